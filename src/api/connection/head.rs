//! A request's head: found in what arrived, parsed once, and checked for what could be read in two ways.
//!
//! Refused are: both `Content-Length` and `Transfer-Encoding`, lengths that contradict each other, another transfer coding than `chunked`, a bare line feed, a
//! missing or doubled `Host`, a method of absurd length, and what is longer than the limits below. The grammar is `httparse`'s.

use std::{borrow::Cow, mem::MaybeUninit};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

/// Longest head of a request.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most headers of a request.
pub const HEADERS_MAX: usize = 100;
const METHOD_BYTES_MAX: usize = 32;

/// Why a head is refused, as the status that says so; the connection then ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub StatusCode);

const MALFORMED: Refused = Refused(StatusCode::BAD_REQUEST);

/// Finds the end of a head in bytes that grow.
#[derive(Debug, Default)]
pub struct Search {
    /// Where the first line begins that is not known to be whole.
    line_start: usize,
    any_line: bool,
}

impl Search {
    /// The length of the head that `arrived` begins with, once it is whole. Looks at each byte once, but for those of the last line.
    pub fn end(&mut self, arrived: &[u8]) -> Result<Option<usize>, Refused> {
        let start = self.line_start;
        for end in memchr::memchr_iter(b'\n', &arrived[start..]).map(|end| start + end) {
            let length = end - self.line_start;
            if length == 0 || arrived[end - 1] != b'\r' {
                return Err(MALFORMED);
            }
            self.line_start = end + 1;
            // Empty lines before a request are allowed (RFC 9112, 2.2).
            let empty = length == 1;
            if empty && self.any_line {
                let length = self.line_start;
                return if length > HEAD_BYTES_MAX { Err(too_long(arrived)) } else { Ok(Some(length)) };
            }
            self.any_line |= !empty;
        }
        // Whoever speaks something else, such as TLS, need not wait for the deadline.
        let begins_well = |first: &u8| self.any_line || matches!(first, b'\r' | b'A'..=b'Z' | b'a'..=b'z');
        if !arrived.get(self.line_start).is_none_or(begins_well) {
            return Err(MALFORMED);
        }
        if arrived.len() > HEAD_BYTES_MAX { Err(too_long(arrived)) } else { Ok(None) }
    }
}

impl Search {
    /// Whether more than empty lines has arrived, as far as has been looked.
    pub fn has_begun(&self) -> bool {
        self.any_line
    }
}

fn too_long(arrived: &[u8]) -> Refused {
    if arrived.iter().take(METHOD_BYTES_MAX + 1).all(|byte| *byte != b' ') {
        return MALFORMED;
    }
    let first_line = memchr::memchr(b'\n', arrived).unwrap_or(arrived.len());
    if first_line >= HEAD_BYTES_MAX {
        Refused(StatusCode::URI_TOO_LONG)
    } else {
        Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    }
}

/// What stands behind a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A body of so many bytes; none for zero.
    Length(u64),
    Chunked,
}

/// A head that passed the checks.
#[derive(Debug)]
pub struct Head<'a> {
    pub method: &'a str,
    pub target: &'a str,
    pub headers: &'a [httparse::Header<'a>],
    pub framing: Framing,
    /// HTTP/1.0, or else 1.1.
    pub http_10: bool,
    pub keep_alive: bool,
    /// The sender waits for "100 Continue" before it sends the body.
    pub expects_continue: bool,
}

/// Room for a head's fields.
pub type Fields<'a> = [MaybeUninit<httparse::Header<'a>>; HEADERS_MAX];

impl<'a> Head<'a> {
    pub fn parse(bytes: &'a [u8], fields: &'a mut Fields<'a>) -> Result<Head<'a>, Refused> {
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, fields) {
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)),
            Ok(httparse::Status::Partial) | Err(_) => return Err(MALFORMED),
        }
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
            return Err(MALFORMED);
        };
        if method.len() > METHOD_BYTES_MAX {
            return Err(MALFORMED);
        }
        let http_10 = version == 0;
        let mut head = Head {
            method,
            target,
            headers: request.headers,
            framing: Framing::Length(0),
            http_10,
            keep_alive: !http_10,
            expects_continue: false,
        };
        head.framing = head.check()?;
        Ok(head)
    }

    /// Reads the fields that are about the connection; answers what follows the head.
    fn check(&mut self) -> Result<Framing, Refused> {
        let (mut hosts, mut length, mut chunked, mut closes) = (0, None, false, false);
        for httparse::Header { name, value } in self.headers {
            // By length first: most fields are none of these.
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => hosts += 1,
                6 if name.eq_ignore_ascii_case("expect") => {
                    self.expects_continue = !self.http_10 && value.eq_ignore_ascii_case(b"100-continue");
                }
                10 if name.eq_ignore_ascii_case("connection") => closes |= self.connection(value),
                14 if name.eq_ignore_ascii_case("content-length") => match length.replace(content_length(value)?) {
                    None => {}
                    Some(_) => return Err(MALFORMED),
                },
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    if chunked || self.http_10 || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        return Err(MALFORMED);
                    }
                    chunked = true;
                }
                _ => {}
            }
        }
        // Whatever else is said (RFC 9112, 9.3).
        self.keep_alive &= !closes;
        let absolute = !self.target.starts_with('/') && self.target.contains("://");
        if !(hosts == 1 || hosts == 0 && (absolute || self.http_10)) {
            return Err(MALFORMED);
        }
        match (length, chunked) {
            (Some(_), true) => Err(MALFORMED),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }

    /// Reads a `Connection` field; whether it asks for the end.
    fn connection(&mut self, value: &[u8]) -> bool {
        let mut closes = false;
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            closes |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        closes
    }

    pub fn has_body(&self) -> bool {
        self.framing != Framing::Length(0)
    }

    /// The head as the doors know it.
    pub fn to_request(&self) -> Result<http::Request<()>, Refused> {
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for field in self.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| MALFORMED)?;
            headers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| MALFORMED)?);
        }
        let mut request = http::Request::new(());
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).map_err(|_| MALFORMED)?;
        *request.uri_mut() = Uri::try_from(self.target).map_err(|_| MALFORMED)?;
        *request.version_mut() = if self.http_10 { http::Version::HTTP_10 } else { http::Version::HTTP_11 };
        *request.headers_mut() = headers;
        Ok(request)
    }
}

impl crate::wire::Fields for Head<'_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }
}

fn content_length(value: &[u8]) -> Result<u64, Refused> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(MALFORMED);
    }
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(MALFORMED)
}

/// DEL, which no header may hold, but JSON may, and so the metadata of a Worker's put (worker-binding 5).
const DELETE: u8 = 0x7f;

/// A head whose metadata says DEL as JSON's escape says it. Anywhere else a DEL stays what it is: an error.
pub fn escape_delete(head: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(DELETE, head).is_none() {
        return Cow::Borrowed(head);
    }
    let mut escaped = Vec::with_capacity(head.len() + 64);
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        let metadata = name.eq_ignore_ascii_case(crate::wire::METADATA.as_bytes());
        for byte in line {
            match *byte {
                DELETE if metadata => escaped.extend_from_slice(b"\\u007f"),
                other => escaped.push(other),
            }
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed<R>(bytes: &[u8], then: impl FnOnce(Result<Head<'_>, Refused>) -> R) -> R {
        let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        then(Head::parse(bytes, &mut fields))
    }

    fn framing(fields: &str) -> Result<Framing, u16> {
        let head = format!("PUT /k HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        parsed(head.as_bytes(), |head| head.map(|head| head.framing).map_err(|refused| refused.0.as_u16()))
    }

    #[test]
    fn a_head_is_found_wherever_it_is_cut() {
        let head = b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let arriving = [head.as_slice(), b"GET /next HTTP/1.1\r\n"].concat();
        for piece in [1, 2, 7, 100] {
            let mut search = Search::default();
            let mut found = None;
            for length in (0..arriving.len()).step_by(piece).chain([arriving.len()]) {
                if found.is_none() {
                    found = search.end(&arriving[..length]).unwrap().map(|end| (end, length));
                }
            }
            let (end, length) = found.unwrap();
            assert_eq!(end, head.len());
            assert!(length < end + piece);
        }
    }

    #[test]
    fn a_line_ends_with_a_return_and_a_line_feed() {
        for bytes in ["GET / HTTP/1.1\n", "\n", "GET / HTTP/1.1\r\nHost: a\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\n"] {
            assert_eq!(Search::default().end(bytes.as_bytes()), Err(MALFORMED), "{bytes:?}");
        }
    }

    #[test]
    fn what_can_be_no_request_is_refused_at_its_first_byte() {
        for bytes in [b"\x16\x03\x01", b"\xff\xff\xff", b"\r\n\0", b" GE"] {
            assert_eq!(Search::default().end(bytes), Err(MALFORMED));
        }
    }

    #[test]
    fn what_is_too_long_is_refused_by_what_is_long_about_it() {
        let long = "x".repeat(HEAD_BYTES_MAX);
        let check = |bytes: String, status: u16| {
            let refused = Search::default().end(bytes.as_bytes()).expect_err("it is too long");
            assert_eq!(refused.0.as_u16(), status);
        };
        check(format!("GET /{long}"), 414);
        check(format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414);
        check(format!("GET / HTTP/1.1\r\na: {long}"), 431);
        check(format!("GET / HTTP/1.1\r\na: {long}\r\n\r\n"), 431);
        check(format!("{long}x"), 400);
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "m: x\r\n".repeat(HEADERS_MAX));
        assert_eq!(parsed(many.as_bytes(), |head| head.unwrap_err().0.as_u16()), 431);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        assert_eq!(framing("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("content-length:  5 \r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
        assert_eq!(framing(""), Ok(Framing::Length(0)));
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Host: b\r\n",
        ] {
            assert_eq!(framing(fields), Err(400), "{fields}");
        }
        let check = |bytes: &str, accepted: bool| {
            assert_eq!(parsed(bytes.as_bytes(), |head| head.is_ok()), accepted, "{bytes}");
        };
        check("GET / HTTP/1.1\r\n\r\n", false);
        check("GET / HTTP/1.0\r\n\r\n", true);
        check("GET http://a/k HTTP/1.1\r\n\r\n", true);
        check("PUT /k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", false);
        check(&format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "G".repeat(40)), false);
    }

    #[test]
    fn a_connection_is_kept_as_its_version_and_its_options_say() {
        let kept = |version: &str, options: &str| {
            let head = format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: {options}\r\n\r\n");
            parsed(head.as_bytes(), |head| head.unwrap().keep_alive)
        };
        assert!(kept("1.1", "x") && kept("1.1", "keep-alive") && kept("1.0", "x, Keep-Alive"));
        assert!(!kept("1.1", "close\r\nConnection: keep-alive"));
        assert!(!kept("1.1", "x,close") && !kept("1.0", "x") && !kept("1.1", "close, keep-alive"));
    }

    #[test]
    fn a_delete_character_in_metadata_becomes_its_escape_and_elsewhere_stays_an_error() {
        let head =
            |header: &str| format!("PUT /k HTTP/1.1\r\nHost: a\r\n{header}\r\nContent-Length: 1\r\n\r\n").into_bytes();
        let metadata = head("CF-KV-Metadata: \"a\x7f\x7fb\"");
        assert_eq!(escape_delete(&metadata), head("CF-KV-Metadata: \"a\\u007f\\u007fb\""));
        let other = head("X: a\x7fb");
        let escaped = escape_delete(&other);
        assert_eq!(escaped, other);
        assert!(parsed(&escaped, |head| head.is_err()));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = Search::default().end(&bytes);
            parsed(&escape_delete(&bytes), |head| head.map(|head| head.to_request().is_ok())).ok();
        }
    }
}
