//! The bulk read (rest-api 4.3).
//!
//! An answer can't be taken back, so all values are here and known to be text before the first byte goes out; then they are escaped as they are sent.

use std::{collections::BTreeSet, vec::IntoIter};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde::Deserialize;

use super::{
    Answer, Call, Rest,
    envelope::{Failure, SUCCESS_HEAD, json_response},
    upload::Upload,
};
use crate::{
    api::{
        body::ResponseBody,
        budget::Taken,
        error::{BULK_GET_INVALID, MALFORMED, TOO_LARGE},
        json,
    },
    error::{Error, Result},
    kv::{Answer as Found, Key, NamespaceId, Read, Rights, State},
    limits,
};

#[derive(Deserialize)]
struct Request {
    keys: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "withMetadata")]
    with_metadata: Option<bool>,
}

/// How values are to be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Form {
    as_json: bool,
    with_metadata: bool,
}

/// How many keys are asked for at once.
const READS_IN_FLIGHT: usize = 16;

impl Rest {
    pub(super) async fn bulk_get(&self, call: &Call<'_>, id: &str, upload: &mut Upload) -> Answer {
        let namespace = self.namespace(call, id, Rights::Read).await?;
        let request = upload.json(&self.bulk_buffers).await;
        let Request { keys, kind, with_metadata } =
            request.map_err(|failure: Failure| failure.recoded(MALFORMED, BULK_GET_INVALID))?;
        let as_json = match kind.as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => return Err(invalid(format!("\"{other}\" is not a valid type. Use \"json\" or \"text\""))),
        };
        if keys.is_empty() {
            return Err(invalid("You must request a minimum of 1 key"));
        }
        if keys.len() > limits::BULK_GET_KEYS_MAX {
            return Err(invalid(format!("You can request a maximum of {} keys", limits::BULK_GET_KEYS_MAX)));
        }
        let mut seen = BTreeSet::new();
        let mut distinct = Vec::with_capacity(keys.len());
        for key in keys {
            let key = Key::new(key)?;
            if seen.insert(key.clone()) {
                distinct.push(key);
            }
        }
        let form = Form { as_json, with_metadata: with_metadata.unwrap_or(false) };
        let (pieces, room) = self.pieces(namespace, distinct, form).await?;
        Ok(json_response(StatusCode::OK, body(pieces, room)))
    }

    /// The answer in pieces, all values in it checked.
    async fn pieces(&self, namespace: NamespaceId, keys: Vec<Key>, form: Form) -> Result<(Vec<Piece>, Taken), Failure> {
        let reads = keys.into_iter().map(|key| async move {
            let found = self.backend.get(namespace, &key, &Read::latest()).await;
            (key, found)
        });
        let mut found = stream::iter(reads).buffered(READS_IN_FLIGHT);
        let mut room = self.bulk_buffers.try_take(0)?;
        let mut left = limits::BULK_GET_BYTES_MAX;
        let mut pieces = vec![Piece::Json([SUCCESS_HEAD, b"{\"values\":{"].concat().into())];
        let mut first = true;
        while let Some((key, found)) = found.next().await {
            let mut name = Vec::new();
            if !std::mem::take(&mut first) {
                name.push(b',');
            }
            json::push_string(&mut name, key.as_str());
            name.push(b':');
            pieces.push(Piece::Json(name.into()));
            let shown = show(found?, form, &mut left, &mut room).await?;
            pieces.extend(shown);
        }
        pieces.push(Piece::Json(Bytes::from_static(b"}}}")));
        Ok((pieces, room))
    }
}

/// One key's value as it is shown; `null` for an absent one.
async fn show(found: Found, form: Form, left: &mut u64, room: &mut Taken) -> Result<Vec<Piece>, Failure> {
    let entry = match found.state {
        State::Present(entry) => entry,
        State::Absent => return Ok(vec![Piece::Json(Bytes::from_static(b"null"))]),
        State::Unchanged { .. } => {
            return Err(Error::internal("a question without a held version was answered 'unchanged'").into());
        }
    };
    let too_large = || Failure::new(TOO_LARGE, "Total size of request exceeds the limit of 25MB");
    let length = entry.value.length().unwrap_or(*left);
    if length > *left {
        return Err(too_large());
    }
    room.grow(length)?;
    let value = entry.value.collect(length).await?;
    *left -= value.len() as u64;
    let value = match form.as_json {
        true => Piece::Json(value.slice_ref(json::check(&value).ok_or_else(|| not_of_type("json"))?.as_bytes())),
        false => match std::str::from_utf8(&value) {
            Ok(_) => Piece::Text(value),
            Err(_) => return Err(not_of_type("text")),
        },
    };
    if !form.with_metadata {
        return Ok(vec![value]);
    }
    let mut behind = b",\"metadata\":".to_vec();
    behind.extend_from_slice(entry.metadata.as_deref().unwrap_or(b"null"));
    if let Some(expiration) = entry.expiration {
        behind.extend_from_slice(format!(",\"expiration\":{expiration}").as_bytes());
    }
    behind.push(b'}');
    Ok(vec![Piece::Json(Bytes::from_static(b"{\"value\":")), value, Piece::Json(behind.into())])
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(BULK_GET_INVALID, text)
}

fn not_of_type(kind: &str) -> Failure {
    invalid(format!("At least one of the requested keys corresponds to a non-{kind} value"))
}

enum Piece {
    /// Goes out as it is.
    Json(Bytes),
    /// UTF-8 that goes out as a JSON string.
    Text(Bytes),
}

impl Piece {
    fn length(&self) -> usize {
        match self {
            Piece::Json(bytes) | Piece::Text(bytes) => bytes.len(),
        }
    }
}

/// How much goes out at a time, about.
const OUT_BYTES: usize = 64 * 1024;

/// A short answer is whole; a longer one is made as it is sent, and gives back the room of each piece behind it.
fn body(pieces: Vec<Piece>, room: Taken) -> ResponseBody {
    let length: usize = pieces.iter().map(Piece::length).sum();
    let mut writer = Writer { pieces: pieces.into_iter(), under_way: None, left: length, room };
    if length <= OUT_BYTES / 8 {
        // Escaping makes up to six bytes of one.
        return ResponseBody::Whole(writer.next().unwrap_or_default().into());
    }
    ResponseBody::Stream { length: None, chunks: stream::iter(writer.map(|bytes| Ok(bytes.into()))).boxed() }
}

struct Writer {
    pieces: IntoIter<Piece>,
    /// A piece of which some has gone out, and its length as a whole.
    under_way: Option<(Piece, usize)>,
    /// The length of all pieces that have not gone out as a whole. They are what is in memory: of a piece no part is given up alone.
    left: usize,
    room: Taken,
}

impl Iterator for Writer {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < OUT_BYTES {
            let (piece, whole) = match self.under_way.take() {
                Some(under_way) => under_way,
                None => {
                    let Some(piece) = self.pieces.next() else { break };
                    if let Piece::Text(_) = &piece {
                        out.push(b'"');
                    }
                    let whole = piece.length();
                    (piece, whole)
                }
            };
            let left = match piece {
                Piece::Json(json) => push_json(&mut out, json).map(Piece::Json),
                Piece::Text(text) => push_text(&mut out, text).map(Piece::Text),
            };
            match left {
                Some(piece) => self.under_way = Some((piece, whole)),
                None => {
                    self.left -= whole;
                    self.room.shrink_to(self.left as u64);
                }
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

/// Appends some of what is JSON already; what is left of it.
fn push_json(out: &mut Vec<u8>, mut json: Bytes) -> Option<Bytes> {
    out.extend_from_slice(&json.split_to(OUT_BYTES.min(json.len())));
    (!json.is_empty()).then_some(json)
}

/// Appends some of a text, escaped; what is left of it, or a closing quote.
fn push_text(out: &mut Vec<u8>, text: Bytes) -> Option<Bytes> {
    let whole = std::str::from_utf8(&text).expect("it was checked before the answer began");
    let mut end = OUT_BYTES.min(whole.len());
    while !whole.is_char_boundary(end) {
        end -= 1;
    }
    let some = &whole[..end];
    let mut quoted = Vec::with_capacity(some.len() + 2);
    json::push_string(&mut quoted, some);
    out.extend_from_slice(&quoted[1..quoted.len() - 1]);
    if some.len() == whole.len() {
        out.push(b'"');
        return None;
    }
    Some(text.slice(some.len()..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::budget::Budget;

    #[test]
    fn texts_survive_being_sent_in_pieces() {
        let budget = Budget::new(0);
        for length in [0, 1, 1000, OUT_BYTES - 1, OUT_BYTES, OUT_BYTES + 1, 3 * OUT_BYTES + 7] {
            let text: String = "a\u{e9}\"\\\n\u{1f600}\0".chars().cycle().take(length).collect();
            let pieces = vec![Piece::Text(text.clone().into_bytes().into()), Piece::Json(Bytes::from_static(b" "))];
            let left = pieces.iter().map(Piece::length).sum();
            let room = budget.try_take(0).expect("nothing always fits");
            let writer = Writer { pieces: pieces.into_iter(), under_way: None, left, room };
            let sent: Vec<u8> = writer.flatten().collect();
            assert_eq!(serde_json::from_slice::<String>(&sent).expect("it is a JSON string"), text);
        }
    }
}
