//! What a load asks of a server, and what has to come back: the bytes of a request for each key, and the check of its answer.
//!
//! Keys are numbers of eight digits, and what each holds follows from its number, so that an answer can be checked without being remembered.

use std::{net::SocketAddr, sync::Arc};

use crate::chance::{Chance, Zipf};

pub const KEY_DIGITS: usize = 8;

/// Values of one length: each begins with its key's number, and goes on with bytes that all share.
#[derive(Clone)]
pub struct Values {
    shared: Arc<[u8]>,
}

impl Values {
    pub fn new(length: usize) -> Values {
        assert!(length > KEY_DIGITS);
        Values { shared: Chance::new(length as u64).text(length).into_bytes().into() }
    }

    pub fn length(&self) -> usize {
        self.shared.len()
    }

    pub fn of(&self, key: u32) -> Vec<u8> {
        let mut value = self.shared.to_vec();
        value[..KEY_DIGITS].copy_from_slice(&digits(key));
        value
    }

    fn is(&self, key: u32, value: &[u8]) -> bool {
        value.len() == self.shared.len()
            && value[..KEY_DIGITS] == digits(key)
            && value[KEY_DIGITS..] == self.shared[KEY_DIGITS..]
    }
}

pub fn digits(key: u32) -> [u8; KEY_DIGITS] {
    let mut digits = [b'0'; KEY_DIGITS];
    let mut rest = key;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

/// The name of a key, the same for all servers.
pub fn name(key: u32) -> String {
    format!("key-{key:08}")
}

/// Which keys are asked for.
#[derive(Clone)]
pub enum Keys {
    One,
    /// Drawn before the measurement, so that drawing is no part of it, and gone through again and again.
    Drawn(Arc<[u32]>),
    /// One after the other, from this one on.
    Counting(u32),
}

impl Keys {
    pub fn zipf(count: usize, exponent: f64) -> Keys {
        let (zipf, mut chance) = (Zipf::new(count, exponent), Chance::new(99));
        Keys::Drawn((0..1 << 20).map(|_| zipf.draw(&mut chance)).collect())
    }

    /// The key of the load's n-th request.
    pub fn at(&self, number: u64) -> u32 {
        match self {
            Keys::One => 0,
            Keys::Drawn(keys) => keys[number as usize % keys.len()],
            Keys::Counting(first) => first + number as u32,
        }
    }
}

/// The bytes of a request.
#[derive(Clone)]
pub enum Request {
    /// Every key's is the same but for the digits of its number at these places.
    Template { bytes: Arc<[u8]>, places: Arc<[usize]> },
    /// Made anew for each key, where its number is not readable in it.
    Made(Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>),
}

/// Stands for the digits in the text that a template is made of.
pub const KEY: &str = "{KEYKEY}";

const _: () = assert!(KEY.len() == KEY_DIGITS);

impl Request {
    pub fn template(text: impl Into<Vec<u8>>) -> Request {
        let bytes: Vec<u8> = text.into();
        let places = memchr::memmem::find_iter(&bytes, KEY.as_bytes()).collect();
        Request::Template { bytes: bytes.into(), places }
    }

    /// A `GET` of the key, on a path of `before` and `after` its number.
    pub fn get(to: SocketAddr, before: &str, after: &str, headers: &str) -> Request {
        Request::template(format!("GET {before}{KEY}{after} HTTP/1.1\r\nHost: {to}\r\n{headers}\r\n"))
    }

    /// The same of any method, with a body in which each key's number stands where its value begins.
    pub fn with_value(method: &str, to: SocketAddr, path: &str, headers: &str, values: &Values) -> Request {
        let length = values.length();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\n{headers}Content-Length: {length}\r\n\r\n{KEY}");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&values.of(0)[KEY_DIGITS..]);
        Request::template(bytes)
    }

    /// Redis' `SET` of each key's value.
    pub fn redis_set(values: &Values) -> Request {
        let head = format!("*3\r\n$3\r\nSET\r\n$12\r\nkey-{KEY}\r\n${}\r\n{KEY}", values.length());
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&values.of(0)[KEY_DIGITS..]);
        bytes.extend_from_slice(b"\r\n");
        Request::template(bytes)
    }

    pub fn write(&self, key: u32, into: &mut Vec<u8>) {
        into.clear();
        match self {
            Request::Template { bytes, places } => {
                into.extend_from_slice(bytes);
                for place in places.iter() {
                    into[*place..place + KEY_DIGITS].copy_from_slice(&digits(key));
                }
            }
            Request::Made(make) => into.extend(make(key)),
        }
    }
}

/// What every answer has to be.
#[derive(Clone)]
pub enum Expected {
    /// 200 with the key's value. The text has to be in its head.
    Value { values: Values, head: &'static str },
    /// 200 with the value of key 0, whichever was asked for.
    FirstValue { values: Values },
    /// This status, with a body of any length; the text has to be in its head.
    Status { status: u16, head: &'static str },
    /// Redis' answer to GET.
    RedisValue { values: Values },
    /// Redis' answer to GET of what is not there.
    RedisNone,
    /// Redis' `+OK`.
    RedisOk,
}

/// How often all of an answer is looked at; its status and length always are. Looking at all of each would measure the load.
pub const SAMPLED: u64 = 64;

impl Expected {
    /// The length of the answer at the front of what has come, once it is there; panics when it is not what it has to be.
    pub fn check(&self, key: u32, number: u64, arrived: &[u8]) -> Option<usize> {
        match self {
            Expected::RedisOk => line(b"+OK\r\n", arrived),
            Expected::RedisNone => line(b"$-1\r\n", arrived),
            Expected::RedisValue { values } => {
                let start = memchr::memchr(b'\n', arrived)? + 1;
                let length = std::str::from_utf8(&arrived[..start]).ok().and_then(|line| line.strip_prefix('$'));
                assert_eq!(length.and_then(|l| l.trim().parse().ok()), Some(values.length()), "an answer's length");
                let end = start + values.length();
                (arrived.len() >= end + 2).then(|| {
                    sampled(values, key, number, &arrived[start..end]);
                    end + 2
                })
            }
            Expected::Value { values, head } => {
                let (start, end) = self.http(200, number, head, arrived)?;
                assert_eq!(end - start, values.length(), "an answer's length");
                sampled(values, key, number, &arrived[start..end]);
                Some(end)
            }
            Expected::FirstValue { values } => {
                let (start, end) = self.http(200, number, "", arrived)?;
                assert_eq!(end - start, values.length(), "an answer's length");
                sampled(values, 0, number, &arrived[start..end]);
                Some(end)
            }
            Expected::Status { status, head } => Some(self.http(*status, number, head, arrived)?.1),
        }
    }

    /// Where the body begins and ends.
    fn http(&self, status: u16, number: u64, expected: &str, arrived: &[u8]) -> Option<(usize, usize)> {
        let start = memchr::memmem::find(arrived, b"\r\n\r\n")? + 4;
        let head = &arrived[..start];
        let answered = head.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse::<u16>().ok());
        let is_right = answered == Some(status);
        if !is_right || number.is_multiple_of(SAMPLED) {
            let text = String::from_utf8_lossy(head);
            assert!(is_right && text.contains(expected), "not {status} with '{expected}': {text}");
        }
        let end = start + content_length(head)?;
        (arrived.len() >= end).then_some((start, end))
    }
}

fn line(expected: &[u8], arrived: &[u8]) -> Option<usize> {
    let end = memchr::memchr(b'\n', arrived)? + 1;
    assert_eq!(&arrived[..end], expected, "{}", String::from_utf8_lossy(&arrived[..end]));
    Some(end)
}

fn sampled(values: &Values, key: u32, number: u64, value: &[u8]) {
    assert_eq!(value[..KEY_DIGITS], digits(key), "the value of another key");
    if number.is_multiple_of(SAMPLED) {
        assert!(values.is(key, value), "the value of key {key} is not what was written");
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    // Servers differ in its capitals alone.
    for at in memchr::memmem::find_iter(head, b"ontent-") {
        let rest = &head[at + b"ontent-".len()..];
        if rest.len() > 8 && rest[..7].eq_ignore_ascii_case(b"length:") {
            let digits = rest[7..].iter().skip_while(|c| **c == b' ').take_while(|c| c.is_ascii_digit());
            return Some(digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')));
        }
    }
    panic!("an answer without its length: {}", String::from_utf8_lossy(head))
}
