//! The elements of a large JSON array, one by one as its bytes arrive.
//!
//! It finds only where elements begin and end; whether each is JSON is for the one who takes it to find out. No more than the element under way
//! is held, and of that not the member `value` once it is long: this is given out as it arrives, and the element then has an empty one.

use super::envelope::Failure;
use crate::api::error::{MALFORMED, TOO_LARGE};

pub(super) struct Elements {
    state: State,
    /// What has come of an element that does not end within its chunk.
    carried: Vec<u8>,
    /// Brackets and braces open within the element.
    depth: usize,
    in_string: bool,
    /// The next byte is behind a backslash.
    escaped: bool,
    /// Where the string under way began, in what is carried and what comes behind it.
    string_start: usize,
    /// The string under way is given out and not carried.
    long: bool,
}

/// What is given out.
pub(super) enum Piece<'a> {
    Element(&'a [u8]),
    /// Of the string that is the member `value` of the element to come: some of what stands between its quotes, escapes and all.
    LongValue(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    /// Before an element; the array may end here only when it has none.
    Before {
        may_end: bool,
    },
    Within,
    Ended,
}

/// More room than this is given back behind an element.
const CARRIED_KEPT: usize = 64 * 1024;
/// More is carried of no element. Without its value an entry has a key, metadata and two numbers; all of these in escapes are far shorter.
const CARRIED_MAX: usize = 1024 * 1024;
/// A value of which more than this is carried is long.
const LONG: usize = 64 * 1024;

impl Elements {
    pub(super) fn new() -> Elements {
        Elements {
            state: State::Start,
            carried: Vec::new(),
            depth: 0,
            in_string: false,
            escaped: false,
            string_start: 0,
            long: false,
        }
    }

    /// Takes the next bytes, and gives out each element that ends in them, and what comes of long values.
    pub(super) fn push(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(Piece<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut rest = chunk;
        loop {
            if self.state != State::Within {
                rest = rest.trim_ascii_start();
            }
            let Some(&first) = rest.first() else { return Ok(()) };
            match (self.state, first) {
                (State::Start, b'[') => {
                    self.state = State::Before { may_end: true };
                    rest = &rest[1..];
                }
                (State::Start, _) => return Err(malformed("a JSON array is expected")),
                (State::Before { may_end: true }, b']') => {
                    self.state = State::Ended;
                    rest = &rest[1..];
                }
                (State::Before { .. }, b',' | b']') => {
                    return Err(malformed("an element of the JSON array is missing"));
                }
                (State::Before { .. }, _) => self.state = State::Within,
                (State::Within, _) if self.long => {
                    let end = self.string_end(rest).unwrap_or(rest.len());
                    each(Piece::LongValue(&rest[..end]))?;
                    self.long = end == rest.len();
                    rest = &rest[end..];
                }
                (State::Within, _) => {
                    let Some(end) = self.end(rest) else {
                        self.carried.extend_from_slice(rest);
                        self.begin_long(&mut each)?;
                        return check_carried(self.carried.len());
                    };
                    self.give_out(&rest[..end], &mut each)?;
                    self.state = if rest[end] == b',' { State::Before { may_end: false } } else { State::Ended };
                    rest = &rest[end + 1..];
                }
                (State::Ended, _) => return Err(malformed("something follows the JSON array")),
            }
        }
    }

    fn give_out(
        &mut self,
        last: &[u8],
        each: &mut impl FnMut(Piece<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.carried.is_empty() {
            return each(Piece::Element(last));
        }
        self.carried.extend_from_slice(last);
        each(Piece::Element(&self.carried))?;
        self.carried.clear();
        self.carried.shrink_to(CARRIED_KEPT);
        Ok(())
    }

    /// Where the element under way ends: at a comma or a closing bracket that belongs to the array itself.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.escaped {
                self.escaped = false;
                at += 1;
            } else if self.in_string {
                at += memchr::memchr2(b'"', b'\\', &bytes[at..])?;
                self.in_string = bytes[at] != b'"';
                self.escaped = bytes[at] == b'\\';
                at += 1;
            } else {
                match bytes[at] {
                    b'"' => {
                        self.in_string = true;
                        self.string_start = self.carried.len() + at;
                    }
                    b'{' | b'[' => self.depth += 1,
                    b',' | b']' if self.depth == 0 => return Some(at),
                    b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
                at += 1;
            }
        }
        None
    }

    /// Where the string under way ends: its closing quote, which is not passed.
    fn string_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if !std::mem::take(&mut self.escaped) {
                at += memchr::memchr2(b'"', b'\\', &bytes[at..])?;
                if bytes[at] == b'"' {
                    return Some(at);
                }
                self.escaped = true;
            }
            at += 1;
        }
        None
    }

    /// Stops carrying the string under way if it is a value that has become long. A name that is spelled with escapes is not known here: its value is
    /// carried, as far as anything is.
    fn begin_long(&mut self, each: &mut impl FnMut(Piece<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let inside = self.string_start + 1;
        if !self.in_string || self.depth != 1 || self.carried.len() < inside + LONG {
            return Ok(());
        }
        let before = self.carried[..self.string_start].trim_ascii_end();
        let name = before.strip_suffix(b":").map(<[u8]>::trim_ascii_end);
        if !name.is_some_and(|name| name.ends_with(b"\"value\"") && !name.ends_with(b"\\\"value\"")) {
            return Ok(());
        }
        each(Piece::LongValue(&self.carried[inside..]))?;
        self.carried.truncate(inside);
        self.carried.shrink_to(CARRIED_KEPT);
        self.long = true;
        Ok(())
    }

    /// How many bytes are held.
    pub(super) fn held(&self) -> u64 {
        self.carried.capacity() as u64
    }

    /// How many bytes may be held once so many have been pushed, and in copies that are made of an element while it is looked at: all of it
    /// unescaped, and of that again all from base64. What is carried may double its room.
    pub(super) fn to_be_held(&self, pushed: usize) -> u64 {
        let length = (self.carried.len() + pushed) as u64;
        self.held().max(2 * length) + 2 * length
    }

    /// There are no more bytes.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.state {
            State::Ended => Ok(()),
            State::Start => Err(malformed("a JSON array is expected")),
            State::Before { .. } | State::Within => Err(malformed("the JSON array does not end")),
        }
    }
}

fn check_carried(length: usize) -> Result<(), Failure> {
    if length > CARRIED_MAX {
        let text = format!("an element of the JSON array exceeds {CARRIED_MAX} bytes beside its value");
        return Err(Failure::new(TOO_LARGE, text));
    }
    Ok(())
}

fn malformed(text: &str) -> Failure {
    Failure::new(MALFORMED, format!("could not parse the request body: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements found when the text comes in chunks of these lengths, over and over.
    fn elements(text: &[u8], chunk_lengths: &[usize]) -> Result<Vec<Vec<u8>>, Failure> {
        let mut found = Vec::new();
        let mut splitter = Elements::new();
        let mut rest = text;
        for length in chunk_lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, after) = rest.split_at((*length).clamp(1, rest.len()));
            splitter.push(chunk, |piece| {
                match piece {
                    Piece::Element(element) => found.push(element.to_vec()),
                    Piece::LongValue(_) => panic!("no value is long"),
                }
                Ok(())
            })?;
            rest = after;
        }
        splitter.finish()?;
        Ok(found)
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        for length in [1, 2, 3, 5, text.len().max(1)] {
            let found = elements(text.as_bytes(), &[length]).expect("it is an array");
            let found: Vec<&str> =
                found.iter().map(|element| std::str::from_utf8(element).expect("it is text").trim_end()).collect();
            assert_eq!(found, expected, "in chunks of {length}");
        }
    }

    #[test]
    fn elements_are_found_wherever_chunks_end() {
        check("[]", &[]);
        check(" [ \n ] \r\n", &[]);
        check("[1]", &["1"]);
        check(r#"["a","b\"]","c\\","[{,"]"#, &[r#""a""#, r#""b\"]""#, r#""c\\""#, r#""[{,""#]);
        check(r#" [ {"k" : [1,{}]} , null ,[] ] "#, &[r#"{"k" : [1,{}]}"#, "null", "[]"]);
    }

    #[test]
    fn what_is_no_whole_array_is_refused() {
        for text in
            ["", " ", "{}", "1", "[", "[1", "[1,", "[1,]", "[,1]", "[,]", "[] 1", "[][]", "[\"a]", "[{]", "[[1]", "]"]
        {
            for length in [1, 2, 100] {
                assert!(elements(text.as_bytes(), &[length]).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn a_large_element_leaves_no_room_taken() {
        let mut splitter = Elements::new();
        splitter.push(b"[\"", |_| Ok(())).expect("it is well formed");
        for _ in 0..100 {
            splitter.push(&[b'x'; 10_000], |_| Ok(())).expect("it is well formed");
        }
        assert!(splitter.held() >= 1_000_000);
        splitter
            .push(b"\",", |piece| {
                assert!(matches!(piece, Piece::Element(element) if element.len() == 1_000_002));
                Ok(())
            })
            .expect("it is well formed");
        assert!(splitter.held() <= CARRIED_KEPT as u64);
    }

    /// The elements, and the long value before each.
    fn with_long_values(text: &str, chunk_length: usize) -> Vec<(String, String)> {
        let (mut found, mut long) = (Vec::new(), Vec::new());
        let mut splitter = Elements::new();
        for chunk in text.as_bytes().chunks(chunk_length) {
            splitter
                .push(chunk, |piece| {
                    match piece {
                        Piece::LongValue(raw) => long.extend_from_slice(raw),
                        Piece::Element(element) => found.push((
                            String::from_utf8(element.to_vec()).expect("it is text"),
                            String::from_utf8(std::mem::take(&mut long)).expect("it is text"),
                        )),
                    }
                    Ok(())
                })
                .expect("it is well formed");
            assert!(splitter.held() <= 2 * (LONG + 2 * chunk_length) as u64 + 1000, "{} are held", splitter.held());
        }
        splitter.finish().expect("it is well formed");
        found
    }

    #[test]
    fn a_long_value_is_given_out_as_it_arrives() {
        let long = r#"x\\\"],{[\u00e9"#.repeat(100_000);
        let text = format!(
            r#"[{{"key":"a","value":"short"}},{{"key":"b" , "value" : "{long}","base64":false}},{{"value":"{long}"}},{{"key":"d"}}]"#
        );
        for chunk_length in [1000, 4096, 100_000] {
            let found = with_long_values(&text, chunk_length);
            assert_eq!(found.len(), 4);
            assert_eq!(found[0], (r#"{"key":"a","value":"short"}"#.to_owned(), String::new()));
            assert!(found[1].1 == long && found[2].1 == long);
            assert_eq!(found[1].0, r#"{"key":"b" , "value" : "","base64":false}"#);
            assert_eq!(found[2].0, r#"{"value":""}"#);
            assert_eq!(found[3], (r#"{"key":"d"}"#.to_owned(), String::new()));
        }
    }

    #[test]
    fn other_long_strings_stay_in_their_element() {
        let long = "x".repeat(200_000);
        for element in [
            format!("\"{long}\""),
            format!("{{\"key\":\"{long}\"}}"),
            format!("{{\"metadata\":{{\"value\":\"{long}\"}}}}"),
            format!("{{\"a\\\"value\":\"{long}\"}}"),
            format!("{{\"valu\\u0065\":\"{long}\"}}"),
            format!("[\"value\",\"{long}\"]"),
        ] {
            assert_eq!(
                elements(format!("[{element}]").as_bytes(), &[1000]).expect("it is well formed"),
                [element.into_bytes()]
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_array_is_taken_apart_as_it_was_put_together(
            texts in proptest::collection::vec(".{0,20}", 0..8),
            nested: bool,
            pretty: bool,
            lengths in proptest::collection::vec(1usize..9, 1..4),
        ) {
            let elements_in: Vec<serde_json::Value> = texts.iter()
                .map(|text| if nested { serde_json::json!({ text: [text, { "a": text }] }) } else { serde_json::json!(text) })
                .collect();
            let text = if pretty { serde_json::to_string_pretty(&elements_in) } else { serde_json::to_string(&elements_in) }.unwrap();
            let found = elements(text.as_bytes(), &lengths).unwrap();
            let decoded: Vec<serde_json::Value> = found.iter().map(|element| serde_json::from_slice(element).unwrap()).collect();
            proptest::prop_assert_eq!(decoded, elements_in);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "[\\[\\]{}\",\\\\ 1a]{0,30}", lengths in proptest::collection::vec(1usize..9, 1..4)) {
            let _ = elements(&bytes, &lengths);
            // Whatever decodes as an array is taken apart into as many elements.
            if let Ok(decoded) = serde_json::from_str::<Vec<serde::de::IgnoredAny>>(&text) {
                proptest::prop_assert_eq!(elements(text.as_bytes(), &lengths).unwrap().len(), decoded.len());
            }
        }
    }
}
