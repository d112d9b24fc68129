//! JSON that is passed through as it was written: checked, never decoded.
//!
//! The check needs no stack per level of nesting, keeps numbers of any size, and accepts lone surrogates in escapes, as JavaScript does
//! (worker-binding 5). Decoding would lose or refuse each of them.

use serde::Deserialize;
use serde_json::value::RawValue;

/// The text without what stands around it (white space, a byte order mark), if it is exactly one JSON value in UTF-8.
pub fn check(text: &[u8]) -> Option<&str> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let raw: &RawValue = serde_json::from_slice(text).ok()?;
    Some(raw.get())
}

/// Decodes an object. An array would do, too, for a struct's members in their order, which is nothing that anybody was promised.
pub fn object<'de, T: Deserialize<'de>>(text: &'de [u8]) -> serde_json::Result<T> {
    match text.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(text),
        Some(_) => Err(serde::de::Error::custom("an object is expected")),
    }
}

/// Appends a text as a JSON string.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing a string into memory can't fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_accepted_as_it_is() {
        for text in
            ["null", "0", "-1.50e+400", "\"\\ud800\"", "[]", "{\"a\":[1,{\"b\":null}]}", "\"\u{7f}\u{2028}\"", "\"\""]
        {
            assert_eq!(check(text.as_bytes()), Some(text), "{text}");
        }
        assert_eq!(check(b" \r\n\t[1 , 2] "), Some("[1 , 2]"));
        assert_eq!(check(b"\xef\xbb\xbf{}"), Some("{}"));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let texts: [&[u8]; 16] = [
            b"",
            b" ",
            b"nul",
            b"01",
            b"1.",
            b"\"a",
            b"\"\n\"",
            b"\"\\x\"",
            b"\"\\ud80\"",
            b"[1,]",
            b"{\"a\"}",
            b"{a:1}",
            b"[1] [2]",
            b"\"\xff\"",
            b"'a'",
            b"[}",
        ];
        for text in texts {
            assert_eq!(check(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn nesting_of_any_depth_needs_no_stack() {
        let depth = 1_000_000;
        let mut text = "[".repeat(depth);
        assert_eq!(check(text.as_bytes()), None);
        text.push_str(&"]".repeat(depth));
        assert_eq!(check(text.as_bytes()), Some(text.as_str()));
    }

    proptest::proptest! {
        #[test]
        fn whatever_decodes_is_accepted_and_nothing_panics(bytes: Vec<u8>, text: String) {
            let _ = check(&bytes);
            let mut quoted = Vec::new();
            push_string(&mut quoted, &text);
            proptest::prop_assert_eq!(check(&quoted).map(str::as_bytes), Some(quoted.as_slice()));
            proptest::prop_assert_eq!(serde_json::from_slice::<String>(&quoted).unwrap(), text);
        }
    }
}
