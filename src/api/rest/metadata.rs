//! Metadata: its check, and its rebuilding from the form fields into which some SDKs take it apart.
//!
//! What comes as JSON stays the text that it is. Of what comes in pieces each leaf is a text: whether it was one is not to be known any more
//! (rest-api 8, client-calls 8).

use bytes::Bytes;

use super::envelope::Failure;
use crate::{
    api::{error::MALFORMED, json},
    error::{Error, Kind, Result},
    limits,
};

/// The metadata that a JSON text gives an entry: none for `null`.
pub(super) fn checked(text: &[u8]) -> Result<Option<Bytes>> {
    check_length(text.len())?;
    let text = json::check(text).ok_or_else(|| Error::new(Kind::MetadataInvalid, "metadata must be valid json"))?;
    Ok((text != "null").then(|| Bytes::copy_from_slice(text.as_bytes())))
}

pub(super) fn check_length(length: usize) -> Result<()> {
    if length > limits::METADATA_BYTES_MAX {
        let text = format!("Metadata length of {length} exceeds limit of {}.", limits::METADATA_BYTES_MAX);
        return Err(Error::new(Kind::MetadataTooLarge, text));
    }
    Ok(())
}

/// The fields of one form that concern metadata: one `metadata`, or many as `metadata[a][]` or `metadata.a.0`.
#[derive(Default)]
pub(super) struct Fields {
    whole: Option<Bytes>,
    pieces: Option<Node>,
    dotted: bool,
    /// Of names and texts of pieces.
    bytes: usize,
}

/// Names count against it too, so it is above what metadata may have.
const PIECES_BYTES_MAX: usize = 16 * 1024;
/// How deep pieces may nest: whatever handles them takes stack for each level, and what people nest is far from this.
const LEVELS_MAX: usize = 64;

impl Fields {
    pub(super) fn concerns(name: &str) -> bool {
        name.strip_prefix("metadata").is_some_and(|rest| matches!(rest.as_bytes().first(), None | Some(b'[' | b'.')))
    }

    /// Takes a field that [`Fields::concerns`] metadata.
    pub(super) fn add(&mut self, name: &str, text: Bytes) -> Result<(), Failure> {
        let twice =
            || Failure::new(MALFORMED, format!("the form field '{name}' is given twice, or against another one"));
        let path = name.strip_prefix("metadata").unwrap_or_default();
        if path.is_empty() {
            return match self.whole.replace(text) {
                None => Ok(()),
                Some(_) => Err(twice()),
            };
        }
        self.bytes += name.len() + text.len();
        if self.bytes > PIECES_BYTES_MAX {
            check_length(self.bytes)?;
        }
        let text = String::from_utf8(text.to_vec())
            .map_err(|_| Failure::new(MALFORMED, format!("the form field '{name}' is not UTF-8")))?;
        let dotted = path.starts_with('.');
        self.dotted |= dotted;
        let segments = if dotted { Some(path[1..].split('.').collect()) } else { bracketed(path) };
        let segments: Vec<&str> = segments
            .ok_or_else(|| Failure::new(MALFORMED, format!("the form field '{name}' has unpaired brackets")))?;
        if segments.len() > LEVELS_MAX {
            let text = format!("a form field of metadata has {} levels, and {LEVELS_MAX} are allowed", segments.len());
            return Err(Failure::new(MALFORMED, text));
        }
        insert(&mut self.pieces, &segments, text, !dotted).ok_or_else(twice)
    }

    pub(super) fn finish(self) -> Result<Option<Bytes>, Failure> {
        match (self.whole, self.pieces) {
            (None, None) => Ok(None),
            (Some(text), None) => Ok(checked(&text)?),
            (None, Some(node)) => {
                let mut text = Vec::new();
                node.write(&mut text, self.dotted);
                Ok(checked(&text)?)
            }
            (Some(_), Some(_)) => {
                Err(Failure::new(MALFORMED, "metadata is given both as one form field and in pieces"))
            }
        }
    }
}

/// The names in `[a][b][]`.
fn bracketed(path: &str) -> Option<Vec<&str>> {
    let inner = path.strip_prefix('[')?.strip_suffix(']')?;
    Some(inner.split("][").collect())
}

#[derive(Clone)]
enum Node {
    Text(String),
    Members(Vec<(String, Option<Node>)>),
    Items(Vec<Option<Node>>),
}

/// Puts a text where its path says. With `lists`, an empty name is the end of a list: the last item there that still lacks the rest of the path, or a
/// new one. `None` when something else is there already.
fn insert(node: &mut Option<Node>, path: &[&str], text: String, lists: bool) -> Option<()> {
    let Some((name, rest)) = path.split_first() else {
        if node.is_some() {
            return None;
        }
        *node = Some(Node::Text(text));
        return Some(());
    };
    if lists && name.is_empty() {
        let Node::Items(items) = node.get_or_insert_with(|| Node::Items(Vec::new())) else { return None };
        if !rest.is_empty()
            && let Some(last) = items.last_mut()
        {
            let mut tried = last.clone();
            if insert(&mut tried, rest, text.clone(), lists).is_some() {
                *last = tried;
                return Some(());
            }
        }
        items.push(None);
        return insert(items.last_mut()?, rest, text, lists);
    }
    let Node::Members(members) = node.get_or_insert_with(|| Node::Members(Vec::new())) else { return None };
    let at = members.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
        members.push(((*name).to_owned(), None));
        members.len() - 1
    });
    insert(&mut members[at].1, rest, text, lists)
}

impl Node {
    /// As JSON. Dotted names have no sign for lists but members `0`, `1` and so on.
    fn write(&self, out: &mut Vec<u8>, dotted: bool) {
        let item = |out: &mut Vec<u8>, at: usize, node: &Option<Node>| {
            if at > 0 {
                out.push(b',');
            }
            match node {
                Some(node) => node.write(out, dotted),
                None => out.extend_from_slice(b"null"),
            }
        };
        match self {
            Node::Text(text) => json::push_string(out, text),
            Node::Items(items) => {
                out.push(b'[');
                items.iter().enumerate().for_each(|(at, node)| item(out, at, node));
                out.push(b']');
            }
            Node::Members(members)
                if dotted && members.iter().enumerate().all(|(at, (name, _))| *name == at.to_string()) =>
            {
                out.push(b'[');
                members.iter().enumerate().for_each(|(at, (_, node))| item(out, at, node));
                out.push(b']');
            }
            Node::Members(members) => {
                out.push(b'{');
                for (at, (name, node)) in members.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    json::push_string(out, name);
                    out.push(b':');
                    item(out, 0, node);
                }
                out.push(b'}');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rebuilt(fields: &[(&str, &str)]) -> Result<Option<String>, String> {
        let mut collected = Fields::default();
        for (name, text) in fields {
            assert!(Fields::concerns(name), "{name}");
            collected.add(name, Bytes::copy_from_slice(text.as_bytes())).map_err(|failure| format!("{failure:?}"))?;
        }
        let metadata = collected.finish().map_err(|failure| format!("{failure:?}"))?;
        Ok(metadata.map(|text| String::from_utf8(text.to_vec()).expect("it is JSON")))
    }

    #[track_caller]
    fn check(fields: &[(&str, &str)], expected: Option<&str>) {
        assert_eq!(rebuilt(fields).expect("it is well formed").as_deref(), expected);
    }

    #[test]
    fn one_field_is_kept_as_its_text() {
        check(&[], None);
        check(&[("metadata", "{\"n\": 1.50}")], Some("{\"n\": 1.50}"));
        check(&[("metadata", " \"s\"\r\n")], Some("\"s\""));
        check(&[("metadata", "null")], None);
        check(&[("metadata", "12345678901234567890123")], Some("12345678901234567890123"));
    }

    #[test]
    fn brackets_become_the_object_they_were() {
        check(
            &[("metadata[a]", "1"), ("metadata[n][x][]", "p"), ("metadata[n][x][]", "q"), ("metadata[n][y]", "z")],
            Some(r#"{"a":"1","n":{"x":["p","q"],"y":"z"}}"#),
        );
        check(&[("metadata[]", "a"), ("metadata[]", "b")], Some(r#"["a","b"]"#));
        check(
            &[("metadata[l][][a]", "1"), ("metadata[l][][b]", "2"), ("metadata[l][][a]", "3")],
            Some(r#"{"l":[{"a":"1","b":"2"},{"a":"3"}]}"#),
        );
        check(&[("metadata[0]", "zero")], Some(r#"{"0":"zero"}"#));
        check(&[("metadata[a.b]", "\u{e9}\"")], Some("{\"a.b\":\"\u{e9}\\\"\"}"));
    }

    #[test]
    fn dots_become_the_object_they_were() {
        check(
            &[("metadata.a", "1"), ("metadata.n.x.0", "p"), ("metadata.n.x.1", "q")],
            Some(r#"{"a":"1","n":{"x":["p","q"]}}"#),
        );
        check(&[("metadata.l.0.a", "1"), ("metadata.l.1.a", "2")], Some(r#"{"l":[{"a":"1"},{"a":"2"}]}"#));
        check(&[("metadata.m.1", "one")], Some(r#"{"m":{"1":"one"}}"#));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for fields in [
            &[("metadata", "1"), ("metadata", "1")][..],
            &[("metadata", "1"), ("metadata[a]", "1")],
            &[("metadata[a]", "1"), ("metadata[a]", "2")],
            &[("metadata[a]", "1"), ("metadata[a][b]", "2")],
            &[("metadata[a]", "1"), ("metadata[]", "2")],
            &[("metadata[a", "1")],
            &[("metadata[a]b", "1")],
        ] {
            assert!(rebuilt(fields).is_err(), "{fields:?}");
        }
        assert!(!Fields::concerns("metadatax") && !Fields::concerns("value") && !Fields::concerns(""));
    }

    #[test]
    fn the_limit_is_on_the_json_text() {
        let text = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        check(&[("metadata", &text(1024))], Some(&text(1024)));
        let refused = rebuilt(&[("metadata", &text(1025))]).expect_err("it is too long");
        assert!(refused.contains("Metadata length of 1025 exceeds limit of 1024."), "{refused}");
        let many: Vec<(String, String)> = (0..5000).map(|n| (format!("metadata[{n}]"), "x".repeat(10))).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert!(rebuilt(&many).is_err());
        assert!(checked(&[b'['; 1024]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_fields_make_it_panic_and_what_is_rebuilt_is_json(
            fields in proptest::collection::vec(("metadata[\\[\\].a0]{0,12}", ".{0,4}"), 0..8)
        ) {
            let fields: Vec<(&str, &str)> =
                fields.iter().map(|(name, text)| (name.as_str(), text.as_str())).filter(|(name, _)| Fields::concerns(name)).collect();
            if let Ok(Some(text)) = rebuilt(&fields) {
                proptest::prop_assert!(json::check(text.as_bytes()).is_some());
            }
        }
    }
}
