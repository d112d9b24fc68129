//! What an error is outside: the one place where a [`Kind`] becomes a status, a REST code and a text.
//!
//! The binding port reports by status and reason phrase, which is all that a Worker ever sees (worker-binding 1.3, 2.8, 4.2). REST reports by
//! status and a number in an envelope (rest-api 7). The texts of single checks are written where the check is made.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper::ext::ReasonPhrase;

use super::body::{Response, ResponseBody};
use crate::{
    error::{Error, Kind},
    wire,
};

/// The status of an error on the binding port. Never 404 or 410, which a Worker would read as an absent key (worker-binding 5).
pub fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::BadRequest
        | Kind::KeyIllegal
        | Kind::MetadataInvalid
        | Kind::ExpirationInvalid
        | Kind::ExpirationTtlInvalid
        | Kind::CursorInvalid
        | Kind::LimitInvalid
        | Kind::NamespaceUnknown
        | Kind::NamespaceExists
        | Kind::NamespacesTooMany
        | Kind::AccountUnknown
        | Kind::TokenUnknown => StatusCode::BAD_REQUEST,
        Kind::VersionUnknown => StatusCode::PRECONDITION_FAILED,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Kind::ValueTooLarge | Kind::MetadataTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::KeyTooLong => StatusCode::URI_TOO_LONG,
        Kind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable | Kind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// workerd takes no more than this of a reason phrase from the reference (worker-binding 4.1).
const REASON_CHARS_MAX: usize = 512;

/// An error as the binding port answers it: its text as reason phrase and as body, its kind in a header for the tier that asked.
pub fn binding_response(error: &Error) -> Response {
    log(error);
    let text = public_text(error);
    let mut response = Response::new(ResponseBody::Whole(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status(error.kind);
    response.extensions_mut().insert(reason_phrase(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain;charset=UTF-8"));
    insert_kind(headers, error.kind);
    if error.untaken {
        headers.insert(wire::UNTAKEN, HeaderValue::from_static("1"));
    }
    insert_retry_after(headers, error.retry_after);
    response
}

/// Our own faults are logged where they become an answer.
pub(super) fn log(error: &Error) {
    if error.kind == Kind::Internal {
        tracing::error!(%error, "a request failed by our own fault");
    }
}

/// What a client is told: of our own faults only that there was one, the rest is for the log.
fn public_text(error: &Error) -> &str {
    if error.kind == Kind::Internal { "Internal Server Error" } else { &error.message }
}

/// A text fit for the status line: workerd shows nothing at all of a phrase with other bytes than ASCII.
fn reason_phrase(text: &str) -> ReasonPhrase {
    let fitting = |c: char| if c.is_ascii_graphic() || c == ' ' { c as u8 } else { b'?' };
    let bytes: Vec<u8> = text.chars().take(REASON_CHARS_MAX).map(fitting).collect();
    ReasonPhrase::try_from(bytes).expect("visible ASCII and spaces make a reason phrase")
}

/// Names the kind for whoever of ours asked, and for the log.
pub(super) fn insert_kind(headers: &mut http::HeaderMap, kind: Kind) {
    headers.insert(wire::ERROR, HeaderValue::from_static(kind.name()));
}

/// Whole seconds, rounded up.
pub(super) fn insert_retry_after(headers: &mut http::HeaderMap, wait: Option<Duration>) {
    if let Some(wait) = wait {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}

/// A number of the REST API with the status it comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestCode {
    pub status: StatusCode,
    pub number: u16,
}

const fn code(status: StatusCode, number: u16) -> RestCode {
    RestCode { status, number }
}

/// The code of an error of ours in REST (rest-api 7). Codes that no kind has are the constants below.
pub fn rest_code(kind: Kind) -> RestCode {
    match kind {
        Kind::BadRequest | Kind::VersionUnknown => MALFORMED,
        Kind::KeyIllegal => code(StatusCode::BAD_REQUEST, 10042),
        Kind::KeyTooLong => code(StatusCode::URI_TOO_LONG, 10030),
        Kind::ValueTooLarge | Kind::MetadataTooLarge => TOO_LARGE,
        Kind::MetadataInvalid => code(StatusCode::BAD_REQUEST, 10147),
        Kind::ExpirationInvalid => code(StatusCode::BAD_REQUEST, 10033),
        Kind::ExpirationTtlInvalid => code(StatusCode::BAD_REQUEST, 10034),
        Kind::CursorInvalid => code(StatusCode::BAD_REQUEST, 10041),
        Kind::LimitInvalid => code(StatusCode::BAD_REQUEST, 10028),
        Kind::NamespaceUnknown => code(StatusCode::NOT_FOUND, 10013),
        Kind::NamespaceExists => code(StatusCode::BAD_REQUEST, 10014),
        Kind::NamespacesTooMany => code(StatusCode::BAD_REQUEST, 10018),
        Kind::AccountUnknown => NO_ROUTE,
        Kind::TokenUnknown => code(StatusCode::NOT_FOUND, 1001),
        Kind::Unauthenticated => code(StatusCode::UNAUTHORIZED, 10000),
        Kind::Forbidden => code(StatusCode::FORBIDDEN, 10000),
        Kind::RateLimited => code(StatusCode::TOO_MANY_REQUESTS, 10022),
        Kind::RequestTimeout => code(StatusCode::REQUEST_TIMEOUT, 10012),
        Kind::Unavailable | Kind::Unreachable => code(StatusCode::SERVICE_UNAVAILABLE, 10001),
        Kind::Internal => code(StatusCode::INTERNAL_SERVER_ERROR, 10001),
    }
}

pub const NO_ROUTE: RestCode = code(StatusCode::NOT_FOUND, 7003);
pub const KEY_NOT_FOUND: RestCode = code(StatusCode::NOT_FOUND, 10009);
pub const PAGE_MALFORMED: RestCode = code(StatusCode::BAD_REQUEST, 10007);
pub const PER_PAGE_MALFORMED: RestCode = code(StatusCode::BAD_REQUEST, 10008);
pub const NAMESPACE_ID_MALFORMED: RestCode = code(StatusCode::BAD_REQUEST, 10011);
pub const MALFORMED: RestCode = code(StatusCode::BAD_REQUEST, 10012);
pub const TITLE_MISSING: RestCode = code(StatusCode::BAD_REQUEST, 10019);
pub const BULK_TOO_MANY: RestCode = code(StatusCode::BAD_REQUEST, 10020);
pub const TOO_LARGE: RestCode = code(StatusCode::PAYLOAD_TOO_LARGE, 10024);
pub const BULK_GET_INVALID: RestCode = code(StatusCode::BAD_REQUEST, 10029);
pub const ORDER_INVALID: RestCode = code(StatusCode::BAD_REQUEST, 10043);
pub const DIRECTION_INVALID: RestCode = code(StatusCode::BAD_REQUEST, 10044);
pub const METHOD_NOT_ALLOWED: RestCode = code(StatusCode::METHOD_NOT_ALLOWED, 10405);
/// A token that may only read, and would write.
pub const METHOD_NOT_ALLOWED_FOR_TOKEN: RestCode = code(StatusCode::METHOD_NOT_ALLOWED, 10000);
/// Too many questions about credentials that are not known here.
pub const API_RATE_LIMITED: RestCode = code(StatusCode::TOO_MANY_REQUESTS, 971);

/// The text of an error of ours in REST, and whether it stands behind the operation, as in `get: 'namespace not found'`, or alone.
pub fn rest_text(error: &Error) -> (&str, bool) {
    match error.kind {
        Kind::NamespaceUnknown => ("namespace not found", true),
        Kind::NamespaceExists => ("a namespace with this account ID and title already exists", false),
        Kind::MetadataInvalid => ("metadata must be valid json", false),
        Kind::Unauthenticated | Kind::Forbidden => ("Authentication error", false),
        _ => (public_text(error), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phrase(text: &str) -> String {
        String::from_utf8(reason_phrase(text).as_bytes().to_vec()).expect("it is ASCII")
    }

    #[test]
    fn a_reason_phrase_is_visible_ascii_of_bounded_length() {
        assert_eq!(phrase("Value length of 2 exceeds limit of 1."), "Value length of 2 exceeds limit of 1.");
        assert_eq!(phrase("a\r\nb\0c\u{e9}"), "a??b?c?");
        assert_eq!(phrase(&"x".repeat(600)).len(), 512);
        assert_eq!(phrase(""), "");
    }

    #[test]
    fn the_binding_hears_status_text_kind_and_when_to_come_back() {
        let error = Error::new(Kind::RateLimited, "Too Many Requests").after(Duration::from_millis(1500));
        let response = binding_response(&error);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["kvasar-error"], "rate-limited");
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(
            response.extensions().get::<ReasonPhrase>().map(ReasonPhrase::as_bytes),
            Some(&b"Too Many Requests"[..])
        );
        assert!(matches!(response.body(), ResponseBody::Whole(body) if body == "Too Many Requests"));
    }

    #[test]
    fn no_error_of_the_binding_reads_like_an_absent_key() {
        for kind in Kind::ALL {
            let status = status(kind);
            assert!(status.is_client_error() || status.is_server_error());
            assert!(status != StatusCode::NOT_FOUND && status != StatusCode::GONE, "{}", kind.name());
        }
    }

    #[test]
    fn that_nothing_was_done_is_said_where_it_is_certain() {
        let says = |error: Error| binding_response(&error).headers().contains_key(wire::UNTAKEN);
        assert!(!says(Error::unavailable("busy")) && says(Error::unavailable("busy").and_untaken()));
    }

    #[test]
    fn our_own_faults_keep_their_details_to_the_log() {
        let error = Error::internal("writing /var/secret");
        let response = binding_response(&error);
        assert!(matches!(response.body(), ResponseBody::Whole(body) if body == "Internal Server Error"));
        assert_eq!(rest_text(&error), ("Internal Server Error", true));
    }

    #[test]
    fn codes_are_those_of_the_published_table() {
        let check = |kind, status: u16, number| {
            assert_eq!((rest_code(kind).status.as_u16(), rest_code(kind).number), (status, number));
        };
        check(Kind::NamespaceUnknown, 404, 10013);
        check(Kind::NamespaceExists, 400, 10014);
        check(Kind::KeyTooLong, 414, 10030);
        check(Kind::ValueTooLarge, 413, 10024);
        check(Kind::ExpirationInvalid, 400, 10033);
        check(Kind::ExpirationTtlInvalid, 400, 10034);
        check(Kind::CursorInvalid, 400, 10041);
        check(Kind::LimitInvalid, 400, 10028);
        check(Kind::MetadataInvalid, 400, 10147);
        check(Kind::RateLimited, 429, 10022);
        check(Kind::Unauthenticated, 401, 10000);
    }
}
