//! A long string of a bulk write, taken in as it arrives: unescaped, and decoded from base64 at the same time, since whether it is base64 may
//! only be said behind it.
//!
//! Both forms go to spools; the one that was not meant is left lying there until the request is done.

use std::borrow::Cow;

use base64::{
    DecodeError, Engine,
    alphabet::STANDARD,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use sha2::{Digest, Sha256};

use super::{envelope::Failure, spool::Spool};
use crate::api::error::MALFORMED;

/// The decoder of production, judging by its errors, is Go's: padding is required, ends of lines are passed over (rest-api 4.1).
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Where in the text the base64 is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadBase64(pub usize);

/// What base64 text stands for.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>, BadBase64> {
    let decoded = match text.contains(['\r', '\n']) {
        true => BASE64.decode(text.replace(['\r', '\n'], "")),
        false => BASE64.decode(text),
    };
    decoded.map_err(|error| bad(error, text.len()))
}

fn bad(error: DecodeError, length: usize) -> BadBase64 {
    match error {
        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol { offset: at, .. } => BadBase64(at),
        _ => BadBase64(length),
    }
}

/// Bytes in a spool, and their digest.
pub(super) struct Span {
    pub at: u64,
    pub length: u64,
    pub digest: [u8; 32],
}

/// A span that is still growing.
struct Growing {
    at: u64,
    length: u64,
    digest: Sha256,
}

impl Growing {
    fn new(spool: &Spool) -> Growing {
        Growing { at: spool.length(), length: 0, digest: Sha256::new() }
    }

    fn push(&mut self, bytes: &[u8], spool: &mut Spool) {
        spool.push(bytes);
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
    }

    fn finish(self) -> Span {
        Span { at: self.at, length: self.length, digest: self.digest.finalize().into() }
    }
}

pub(super) struct LongValue {
    /// The start of an escape, or of a character, that goes on in what is to come.
    pending: Vec<u8>,
    text: Growing,
    decoded: Growing,
    base64: Base64,
}

impl LongValue {
    pub(super) fn new(texts: &Spool, decoded: &Spool) -> LongValue {
        LongValue {
            pending: Vec::new(),
            text: Growing::new(texts),
            decoded: Growing::new(decoded),
            base64: Base64 { held: Vec::new(), passed: 0, bad: None },
        }
    }

    /// Takes the next of what stands between the string's quotes.
    pub(super) fn push(&mut self, raw: &[u8], texts: &mut Spool, decoded: &mut Spool) -> Result<(), Failure> {
        let mut quoted = vec![b'"'];
        quoted.append(&mut self.pending);
        quoted.extend_from_slice(raw);
        let end = 1 + whole_end(&quoted[1..]);
        self.pending = quoted.split_off(end);
        self.take(quoted, texts, decoded)
    }

    /// The string has come to its end: its text, and what that is from base64.
    pub(super) fn finish(
        mut self,
        texts: &mut Spool,
        decoded: &mut Spool,
    ) -> Result<(Span, Result<Span, BadBase64>), Failure> {
        let mut quoted = vec![b'"'];
        quoted.append(&mut self.pending);
        self.take(quoted, texts, decoded)?;
        let bytes = self.base64.finish();
        let from_base64 = bytes.map(|bytes| {
            self.decoded.push(&bytes, decoded);
            self.decoded.finish()
        });
        Ok((self.text.finish(), from_base64))
    }

    /// The JSON rules for strings are `serde_json`'s, here as for short ones.
    fn take(&mut self, mut quoted: Vec<u8>, texts: &mut Spool, decoded: &mut Spool) -> Result<(), Failure> {
        quoted.push(b'"');
        let text: Text<'_> = serde_json::from_slice(&quoted)
            .map_err(|error| Failure::new(MALFORMED, format!("could not parse a long value: {error}")))?;
        self.text.push(text.0.as_bytes(), texts);
        let bytes = self.base64.push(&text.0);
        self.decoded.push(&bytes, decoded);
        Ok(())
    }
}

#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// How much of the inside of a string can be decoded without what follows: up to an escape (or a pair of them), or a character, that may not be whole.
fn whole_end(raw: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &raw[at..]) {
        let escape = at + found;
        let length = match &raw[escape + 1..] {
            [] => return escape,
            // The first of a pair decides that there is a second one.
            [b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..] => 12,
            [b'u', rest @ ..] if rest.len() >= 4 => 6,
            [b'u', ..] => 12,
            _ => 2,
        };
        if raw.len() < escape + length {
            return escape;
        }
        at = escape + length;
    }
    let lead = raw.iter().rev().take(3).position(|byte| *byte >= 0xc0);
    match lead.map(|behind| (behind + 1, raw[raw.len() - 1 - behind].leading_ones() as usize)) {
        Some((there, needed)) if there < needed && raw.len() - there >= at => raw.len() - there,
        _ => raw.len(),
    }
}

/// A decoder of base64 that comes in pieces.
struct Base64 {
    /// Up to four characters: whatever may be the last, with its padding.
    held: Vec<u8>,
    /// Characters that were decoded.
    passed: usize,
    bad: Option<BadBase64>,
}

impl Base64 {
    fn push(&mut self, text: &str) -> Vec<u8> {
        if self.bad.is_some() {
            return Vec::new();
        }
        self.held.extend(text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')));
        let decodable = self.held.len().saturating_sub(1) / 4 * 4;
        let last = self.held.split_off(decodable);
        let whole = std::mem::replace(&mut self.held, last);
        // Only the very last may have padding.
        if let Some(at) = memchr::memchr(b'=', &whole) {
            self.bad = Some(BadBase64(self.passed + at));
            return Vec::new();
        }
        self.decode(&whole)
    }

    fn finish(mut self) -> Result<Vec<u8>, BadBase64> {
        let last = std::mem::take(&mut self.held);
        let bytes = self.decode(&last);
        match self.bad {
            None => Ok(bytes),
            Some(bad) => Err(bad),
        }
    }

    fn decode(&mut self, text: &[u8]) -> Vec<u8> {
        match BASE64.decode(text) {
            Ok(bytes) => {
                self.passed += text.len();
                bytes
            }
            Err(error) => {
                self.bad.get_or_insert(BadBase64(self.passed + bad(error, text.len()).0));
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{budget::Budget, rest::spool::SpoolRoom};

    /// The text and what it is from base64, of a string whose inside comes in chunks of this length.
    async fn taken(raw: &[u8], chunk_length: usize) -> Option<(Vec<u8>, Result<Vec<u8>, BadBase64>)> {
        let room = SpoolRoom::new(Budget::new(u64::MAX));
        let (mut texts, mut decoded) = (room.open().unwrap(), room.open().unwrap());
        texts.push(b"before");
        let mut long = LongValue::new(&texts, &decoded);
        for chunk in raw.chunks(chunk_length) {
            long.push(chunk, &mut texts, &mut decoded).ok()?;
        }
        let (text, from_base64) = long.finish(&mut texts, &mut decoded).ok()?;
        let (texts, decoded) = (texts.finish().await.unwrap(), decoded.finish().await.unwrap());
        let whole = texts.read(text.at..text.at + text.length).await.unwrap();
        assert_eq!(text.digest, <[u8; 32]>::from(Sha256::digest(&whole)));
        let from_base64 = match from_base64 {
            Ok(span) => Ok(decoded.read(span.at..span.at + span.length).await.unwrap().to_vec()),
            Err(bad) => Err(bad),
        };
        Some((whole.to_vec(), from_base64))
    }

    #[test]
    fn base64_is_the_standard_alphabet_with_padding_and_any_ends_of_lines() {
        let check = |text, expected: Result<&[u8], usize>| {
            assert_eq!(decode_base64(text), expected.map(<[u8]>::to_vec).map_err(BadBase64), "{text}");
        };
        check("", Ok(b""));
        check("AAEC/+8=", Ok(&[0, 1, 2, 255, 239]));
        check("YQ==", Ok(b"a"));
        check("YW\r\nI=\n", Ok(b"ab"));
        check("YR==", Ok(b"a"));
        check("YQ", Err(2));
        check("YQ=", Err(3));
        check("Y Q=", Err(1));
        check("__8=", Err(0));
    }

    #[tokio::test]
    async fn escapes_survive_wherever_chunks_end() {
        for raw in [
            r"",
            r"plain",
            r"\n\\\\\/\u00e9\ud83d\ude00\u0041",
            r"\\u0041\\\u0041",
            "\u{e9}\u{20ac}\u{1f600}",
            "\u{1f600}\\\"",
            r"\ud83d\ude00",
            r"a\u00",
            r"\ud83d",
            r"\ud83dx",
            r"\ude00",
            r"\x",
            "\u{1}",
            "\\",
        ] {
            let quoted = format!("\"{raw}\"");
            let expected: Option<String> = serde_json::from_str(&quoted).ok();
            for chunk_length in 1..=quoted.len() {
                let found = taken(raw.as_bytes(), chunk_length).await.map(|(text, _)| String::from_utf8(text).unwrap());
                assert_eq!(found, expected, "{raw} in chunks of {chunk_length}");
            }
        }
        for raw in [&b"\xff"[..], b"\xc3", b"a\xe2\x82", b"\xc3\\n", b"\xe2\\u0041"] {
            for chunk_length in 1..=raw.len() {
                assert!(taken(raw, chunk_length).await.is_none(), "{}", raw.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn base64_in_pieces_is_what_it_is_in_one() {
        for text in [
            "",
            "YQ==",
            "YWI=",
            "YWJj",
            "YWJjZA==",
            "AAEC/+8=",
            "YW\r\nI=\n",
            "YR==",
            "YQ",
            "YQ=",
            "Y Q=",
            "__8=",
            "YQ==YQ==",
            "====",
            "=",
            "YWJjY",
            "YWJj=",
            "Y\u{e9}Jj",
            "YQ==\n",
            "YWJjYQ=a",
        ] {
            for chunk_length in 1..=text.len().max(1) {
                let (_, found) =
                    taken(text.replace('\r', "\\r").replace('\n', "\\n").as_bytes(), chunk_length).await.unwrap();
                // Where exactly padding goes wrong depends on what is known so far.
                assert_eq!(found.ok(), decode_base64(text).ok(), "{text} in chunks of {chunk_length}");
            }
        }
        let (_, found) = taken(b"YWJjY*==", 3).await.unwrap();
        assert_eq!(found, Err(BadBase64(5)));
    }

    proptest::proptest! {
        #[test]
        fn any_text_and_any_bytes_survive(text: String, bytes: Vec<u8>, chunk_length in 1usize..20) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let quoted = serde_json::to_string(&text).unwrap();
                let (found, _) = taken(&quoted.as_bytes()[1..quoted.len() - 1], chunk_length).await.unwrap();
                assert_eq!(found, text.as_bytes());
                let encoded = base64::engine::general_purpose::STANDARD.encode(&bytes);
                let (_, found) = taken(encoded.as_bytes(), chunk_length).await.unwrap();
                assert_eq!(found, Ok(bytes));
            });
        }

        #[test]
        fn no_bytes_make_it_panic(raw: Vec<u8>, escapes in "[\\\\u\"d8c0\u{e9}]{0,24}", chunk_length in 1usize..20) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let _ = taken(&raw, chunk_length).await;
                let quoted = format!("\"{escapes}\"");
                let expected: Option<String> = serde_json::from_str(&quoted).ok();
                let found = taken(escapes.as_bytes(), chunk_length).await.map(|(text, _)| String::from_utf8(text).unwrap());
                // A quote within is the end of a string to the one, and a fault to both.
                assert_eq!(found, expected);
            });
        }
    }
}
