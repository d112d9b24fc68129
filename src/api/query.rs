//! What stands in a request line: keys as path segments, parameters, and numbers in them.
//!
//! Both doors read them alike but for numbers: the binding's are as lenient as JavaScript's `parseInt` (worker-binding 4.2), REST's are numbers.

use crate::{
    error::{Error, Kind, Result},
    kv::{Expires, Key},
    limits,
};

/// A key from one raw path segment, percent-decoded once. A plus is a plus (rest-api 6).
pub fn decode_key(segment: &str) -> Result<Key> {
    let decoded = percent_decode(segment.as_bytes(), false)
        .ok_or_else(|| Error::new(Kind::KeyIllegal, "Could not URL-decode key name"))?;
    Key::new(decoded)
}

/// The bytes that a text stands for; `None` when a percent sign is not followed by two hexadecimal digits.
fn percent_decode(text: &[u8], plus_is_space: bool) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    percent_decode_into(text, plus_is_space, &mut decoded)?;
    Some(decoded)
}

/// Appends the bytes that a text stands for.
pub fn percent_decode_into(text: &[u8], plus_is_space: bool, decoded: &mut Vec<u8>) -> Option<()> {
    let hex = |byte: u8| char::from(byte).to_digit(16);
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (hex(*rest.next()?)?, hex(*rest.next()?)?);
                (high * 16 + low) as u8
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    Some(())
}

/// The parameters behind a path, decoded as forms are. Of one that is given twice, the first counts.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Result<Query> {
        let decode = |text: &str| {
            let decoded = percent_decode(text.as_bytes(), true).and_then(|bytes| String::from_utf8(bytes).ok());
            decoded.ok_or_else(|| Error::bad_request(format!("could not URL-decode '{text}' in the query")))
        };
        let pairs = query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        Ok(Query(pairs.collect::<Result<_>>()?))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The integer that a text begins with, as JavaScript's `parseInt` finds it; one out of range counts as the nearest that isn't.
pub fn leading_integer(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    integer(&digits[..end], negative)
}

/// A number that is all of a text, rounded down: SDKs send whole numbers with a fraction, too, as in `1800000000.0` (limits-and-semantics 3).
pub fn whole_number(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => (true, unsigned),
        None => (false, text),
    };
    let (digits, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(digits) || !all_digits(fraction) {
        return None;
    }
    let whole = integer(digits, negative)?;
    let rounded = negative && fraction.bytes().any(|byte| byte != b'0');
    Some(whole.saturating_sub(i64::from(rounded)))
}

fn integer(digits: &str, negative: bool) -> Option<i64> {
    if digits.is_empty() {
        return None;
    }
    let magnitude =
        digits.bytes().fold(0i64, |sum, digit| sum.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Some(if negative { -magnitude } else { magnitude })
}

const TTL_SECONDS_MIN: u64 = limits::EXPIRATION_TTL_SECONDS_MIN as u64;
const _: () = assert!(TTL_SECONDS_MIN == 60, "the texts below say 60");

/// When a write expires, by its two parameters as they were given: the TTL wins, and the other is then not even looked at. `number` is the
/// door's way to read a number. The texts are those of worker-binding 4.2 and rest-api 3.4.
pub fn expires(
    ttl: Option<&str>,
    expiration: Option<&str>,
    now_seconds: u64,
    number: fn(&str) -> Option<i64>,
) -> Result<Expires> {
    if let Some(text) = ttl {
        let invalid = |rule: &str| {
            Error::new(Kind::ExpirationTtlInvalid, format!("Invalid expiration_ttl of {}. {rule}", shown(text)))
        };
        return match number(text).and_then(|seconds| u64::try_from(seconds).ok()) {
            Some(seconds) if seconds >= TTL_SECONDS_MIN => Ok(Expires::After(seconds)),
            None | Some(0) => Err(invalid("Please specify integer greater than 0.")),
            Some(_) => Err(invalid("Expiration TTL must be at least 60.")),
        };
    }
    let Some(text) = expiration else { return Ok(Expires::Never) };
    let invalid =
        |rule: &str| Error::new(Kind::ExpirationInvalid, format!("Invalid expiration of {}. {rule}", shown(text)));
    let at = number(text).and_then(|at| u64::try_from(at).ok()).filter(|at| *at > now_seconds).ok_or_else(|| {
        invalid("Please specify integer greater than the current number of seconds since the UNIX epoch.")
    })?;
    if at - now_seconds < TTL_SECONDS_MIN {
        return Err(invalid("Expiration times must be at least 60 seconds in the future."));
    }
    Ok(Expires::At(at))
}

/// No number that anybody means is longer.
const SHOWN_BYTES_MAX: usize = 32;

/// A text as an error repeats it: its sender decides how long it is, not how long our answer gets.
fn shown(text: &str) -> String {
    match text.len() > SHOWN_BYTES_MAX {
        true => format!("{}..", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_decoded_once_and_strictly() {
        let check = |segment: &str, expected: Result<&str, &str>| {
            let decoded = decode_key(segment);
            let found = decoded.as_ref().map(|key| key.as_str()).map_err(|error| error.message.as_str());
            assert_eq!(found, expected, "{segment}");
        };
        check("a+b", Ok("a+b"));
        check("a%2Bb%20c", Ok("a+b c"));
        check("a%2fb%2Fc", Ok("a/b/c"));
        check("%2541", Ok("%41"));
        check("%C3%A9", Ok("\u{e9}"));
        check("%00", Ok("\0"));
        for bad in ["%", "%4", "%zz", "a%2", "%-1", "%+1", "%ED%A0%80", "%FF", "%C3"] {
            check(bad, Err("Could not URL-decode key name"));
        }
        check("", Err("Key names must not be empty"));
        check("%2E", Err("Illegal key name \".\". Please use a different name."));
        check("..", Err("Illegal key name \"..\". Please use a different name."));
    }

    #[test]
    fn parameters_are_decoded_as_forms_are() {
        let query =
            Query::parse(Some("prefix=a+b%2Bc&&limit=10&empty=&bare&limit=20&%C3%A9=1")).expect("it is well formed");
        assert_eq!(query.get("prefix"), Some("a b+c"));
        assert_eq!(query.get("limit"), Some("10"));
        assert_eq!(query.get("empty"), Some(""));
        assert_eq!(query.get("bare"), Some(""));
        assert_eq!(query.get("\u{e9}"), Some("1"));
        assert_eq!(query.get("other"), None);
        assert!(Query::parse(None).expect("it is well formed").0.is_empty());
        assert!(Query::parse(Some("")).expect("it is well formed").0.is_empty());
        for bad in ["a=%", "a=%zz", "%=1", "a=%ED%A0%80"] {
            assert_eq!(Query::parse(Some(bad)).expect_err("it is malformed").kind, Kind::BadRequest);
        }
    }

    #[test]
    fn leading_integers_are_found_as_javascript_finds_them() {
        let check = |text, expected| assert_eq!(leading_integer(text), expected, "{text}");
        check("12", Some(12));
        check("  12abc", Some(12));
        check("-5.9", Some(-5));
        check("+7", Some(7));
        check("99999999999999999999", Some(i64::MAX));
        check("", None);
        check("-", None);
        check("abc", None);
        check("\u{e9}", None);
    }

    #[test]
    fn whole_numbers_are_all_of_their_text() {
        let check = |text, expected| assert_eq!(whole_number(text), expected, "{text}");
        check("12", Some(12));
        check("12.0", Some(12));
        check("12.9", Some(12));
        check("-1.5", Some(-2));
        check("-2.0", Some(-2));
        check("99999999999999999999", Some(i64::MAX));
        for bad in ["", "-", ".", "1.", ".5", "12a", " 12", "+1", "1e9", "0x10", "NaN", "--1", "1.-5"] {
            check(bad, None);
        }
    }

    #[test]
    fn expirations_are_judged_with_the_reference_texts() {
        let check = |ttl, expiration, expected: Result<Expires, &str>| {
            let found = expires(ttl, expiration, 1000, whole_number);
            assert_eq!(found.as_ref().map_err(|error| error.message.as_str()), expected.as_ref().map_err(|text| *text));
        };
        check(None, None, Ok(Expires::Never));
        check(Some("60"), None, Ok(Expires::After(60)));
        check(Some("60"), Some("nonsense"), Ok(Expires::After(60)));
        check(None, Some("1060"), Ok(Expires::At(1060)));
        check(None, Some("4102444800.5"), Ok(Expires::At(4_102_444_800)));
        check(Some("59"), None, Err("Invalid expiration_ttl of 59. Expiration TTL must be at least 60."));
        for bad in ["0", "-1", "x", ""] {
            let text = format!("Invalid expiration_ttl of {bad}. Please specify integer greater than 0.");
            check(Some(bad), Some("2000"), Err(&text));
        }
        for bad in ["1000", "0", "-1", "x", ""] {
            let text = format!(
                "Invalid expiration of {bad}. Please specify integer greater than the current number of seconds since the UNIX epoch."
            );
            check(None, Some(bad), Err(&text));
        }
        check(
            None,
            Some("1059"),
            Err("Invalid expiration of 1059. Expiration times must be at least 60 seconds in the future."),
        );
    }

    proptest::proptest! {
        #[test]
        fn any_key_survives_any_clients_encoding(text in "\\PC{1,40}", escape_all: bool) {
            let encoded: String = text.bytes().map(|byte| {
                if !escape_all && byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
            }).collect();
            match decode_key(&encoded) {
                Ok(key) => proptest::prop_assert_eq!(key.as_str(), text),
                Err(_) => proptest::prop_assert!(text == "." || text == ".."),
            }
        }

        #[test]
        fn parameters_survive_form_encoding(pairs in proptest::collection::vec((".{1,9}", ".{0,9}"), 0..5)) {
            let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
            let query = Query::parse(Some(&encoded)).unwrap();
            proptest::prop_assert_eq!(query.0, pairs);
        }

        #[test]
        fn integers_survive_their_text(number in -i64::MAX..=i64::MAX, garbage in "[a-z ]{0,3}") {
            proptest::prop_assert_eq!(whole_number(&number.to_string()), Some(number));
            proptest::prop_assert_eq!(leading_integer(&format!("{number}{garbage}")), Some(number));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text: String) {
            let _ = (decode_key(&text), Query::parse(Some(&text)), leading_integer(&text), whole_number(&text));
        }
    }
}
