//! The form of every REST answer but a value's: the envelope (rest-api 1). Codes and texts of errors are in `api/error.rs`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{
    api::{
        body::{Response, ResponseBody},
        error::{self, METHOD_NOT_ALLOWED, METHOD_NOT_ALLOWED_FOR_TOKEN, NO_ROUTE, RestCode},
    },
    error::{Error, Kind},
};

/// Why a request is refused, until it is known what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    code: RestCode,
    text: String,
    names_operation: bool,
    /// What it was within, if it was not found out here.
    kind: Option<Kind>,
    retry_after: Option<Duration>,
    result: Option<Box<BulkResult>>,
}

/// Texts repeat what a client sent, and are cut here, as the binding port's are.
const TEXT_CHARS_MAX: usize = 512;

/// What bulk writes answer, also beside an error (rest-api 4.1).
#[derive(Debug, Default, Serialize)]
pub(super) struct BulkResult {
    pub successful_key_count: usize,
    pub unsuccessful_keys: Vec<String>,
}

impl Failure {
    pub(super) fn new(code: RestCode, text: impl Into<String>) -> Failure {
        Failure { code, text: text.into(), names_operation: true, kind: None, retry_after: None, result: None }
    }

    /// An error of ours that has another code here than elsewhere.
    pub(super) fn of(code: RestCode, error: Error) -> Failure {
        Failure { code, ..Failure::from(error) }
    }

    /// The same under another code, if it was this one.
    pub(super) fn recoded(self, from: RestCode, to: RestCode) -> Failure {
        if self.code == from { Failure { code: to, ..self } } else { self }
    }

    /// One whose text stands alone.
    pub(super) fn alone(code: RestCode, text: impl Into<String>) -> Failure {
        Failure { names_operation: false, ..Failure::new(code, text) }
    }

    pub(super) fn no_route(path: &str) -> Failure {
        Failure::alone(NO_ROUTE, format!("Could not route to {path}, perhaps your object identifier is invalid?"))
    }

    pub(super) fn method_not_allowed(method: &http::Method) -> Failure {
        Failure::alone(METHOD_NOT_ALLOWED, format!("{method} method not allowed"))
    }

    pub(super) fn read_only_token(method: &http::Method) -> Failure {
        let text =
            format!("{method} method not allowed for the api_token authentication scheme: the token may only read");
        Failure::alone(METHOD_NOT_ALLOWED_FOR_TOKEN, text)
    }

    /// The same beside what a bulk write came to.
    pub(super) fn with_result(self, result: BulkResult) -> Failure {
        Failure { result: Some(Box::new(result)), ..self }
    }

    /// The answer, once it is known which operation failed.
    pub(super) fn response(self, operation: &str) -> Response {
        #[derive(Serialize)]
        struct Envelope {
            success: bool,
            errors: [Reason; 1],
            messages: [(); 0],
            result: Option<Box<BulkResult>>,
        }
        #[derive(Serialize)]
        struct Reason {
            code: u16,
            message: String,
        }
        let text: String = self.text.chars().take(TEXT_CHARS_MAX).collect();
        let message = if self.names_operation { format!("{operation}: '{text}'") } else { text };
        let reason = Reason { code: self.code.number, message };
        let envelope = Envelope { success: false, errors: [reason], messages: [], result: self.result };
        let mut response = json_response(self.code.status, to_json(&envelope).into());
        let headers = response.headers_mut();
        if let Some(kind) = self.kind {
            error::insert_kind(headers, kind);
        }
        error::insert_retry_after(headers, self.retry_after);
        response
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        error::log(&error);
        let (text, names_operation) = error::rest_text(&error);
        Failure {
            code: error::rest_code(error.kind),
            text: text.to_owned(),
            names_operation,
            kind: Some(error.kind),
            retry_after: error.retry_after,
            result: None,
        }
    }
}

pub(super) fn success(result: &impl Serialize) -> Response {
    raw_success(&to_json(result), None)
}

pub(super) fn success_page(result: &impl Serialize, info: &impl Serialize) -> Response {
    raw_success(&to_json(result), Some(&to_json(info)))
}

/// What begins every successful answer, up to the result.
pub(super) const SUCCESS_HEAD: &[u8] = br#"{"success":true,"errors":[],"messages":[],"result":"#;

/// An answer around a result, and what goes with it, that are JSON already.
pub(super) fn raw_success(result: &[u8], info: Option<&[u8]>) -> Response {
    let mut body = Vec::with_capacity(SUCCESS_HEAD.len() + result.len() + info.map_or(0, <[u8]>::len) + 32);
    body.extend_from_slice(SUCCESS_HEAD);
    body.extend_from_slice(result);
    if let Some(info) = info {
        body.extend_from_slice(b",\"result_info\":");
        body.extend_from_slice(info);
    }
    body.push(b'}');
    json_response(StatusCode::OK, ResponseBody::Whole(body.into()))
}

pub(super) fn json_response(status: StatusCode, body: ResponseBody) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("what is answered has string keys and goes into memory").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::{KEY_NOT_FOUND, MALFORMED};

    fn text(response: Response) -> String {
        match response.into_body() {
            ResponseBody::Whole(body) => String::from_utf8(body.to_vec()).expect("it is text"),
            ResponseBody::Stream { .. } => panic!("an envelope is whole"),
        }
    }

    #[test]
    fn answers_have_the_published_form() {
        assert_eq!(text(success(&())), r#"{"success":true,"errors":[],"messages":[],"result":null}"#);
        assert_eq!(
            text(success_page(&[1], &serde_json::json!({"count": 1}))),
            r#"{"success":true,"errors":[],"messages":[],"result":[1],"result_info":{"count":1}}"#
        );
        let failure = Failure::new(KEY_NOT_FOUND, "key not found").response("get");
        assert_eq!(failure.status(), 404);
        assert_eq!(failure.headers()["content-type"], "application/json");
        assert_eq!(
            text(failure),
            r#"{"success":false,"errors":[{"code":10009,"message":"get: 'key not found'"}],"messages":[],"result":null}"#
        );
        let result = BulkResult { successful_key_count: 1, unsuccessful_keys: vec!["k".to_owned()] };
        assert!(
            text(Failure::new(MALFORMED, "x").with_result(result).response("bulk put"))
                .ends_with(r#""result":{"successful_key_count":1,"unsuccessful_keys":["k"]}}"#)
        );
    }

    #[test]
    fn errors_have_the_published_codes_and_texts() {
        let check = |error: Error, status: u16, code: u16, message: &str| {
            let response = Failure::from(error).response("put");
            assert_eq!(response.status().as_u16(), status);
            let text = text(response);
            assert!(
                text.contains(&format!(r#"[{{"code":{code},"message":{}}}]"#, serde_json::json!(message))),
                "{text}"
            );
        };
        let of = |kind| Error::new(kind, "as it was found");
        check(of(Kind::NamespaceUnknown), 404, 10013, "put: 'namespace not found'");
        check(of(Kind::NamespaceExists), 400, 10014, "a namespace with this account ID and title already exists");
        check(of(Kind::KeyTooLong), 414, 10030, "put: 'as it was found'");
        check(of(Kind::MetadataInvalid), 400, 10147, "metadata must be valid json");
        check(of(Kind::Unauthenticated), 401, 10000, "Authentication error");
        check(of(Kind::Forbidden), 403, 10000, "Authentication error");
        check(of(Kind::Internal), 500, 10001, "put: 'Internal Server Error'");
    }

    #[test]
    fn when_to_come_back_is_said_in_whole_seconds_rounded_up() {
        let error = Error::new(Kind::RateLimited, "Too Many Requests").after(Duration::from_millis(1500));
        let response = Failure::from(error).response("put");
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &HeaderValue::from(2)));
        assert_eq!(response.headers()["kvasar-error"], "rate-limited");
    }
}
