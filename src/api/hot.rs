//! The hot read: a key that memory holds, asked for on a connection that has asked before.
//!
//! All of what such a request costs is in [`Binding::read_hot`], which a newcomer can read from top to bottom; what is around it is in `connection.rs`. It allocates
//! nothing and copies no value. Whatever is not plain here says `None`, and the request walks the general path (`binding.rs`), which gives the same answer, byte for byte.
//!
//! What each step may cost, in instructions of a request with a token as the Workers runtime sends it (`tests/hot/run` counts the sum):
//!
//! | step | instructions |
//! |---|---|
//! | find the head's end, parse it (`connection/head.rs`) | 1,950 |
//! | path and parameters: key, `cache_ttl` | 550 |
//! | what the read accepts, by its other fields | 150 |
//! | the caller's right: credential and namespace as on the last request, and neither changed since | 500 |
//! | the look into memory, and its age | 600 |
//! | the answer's head | 850 |
//! | counting | 300 |
//! | the connection: buffers, the copy of a small value, waiting for the next | 600 |

use http::StatusCode;

use super::{
    auth::{Auth, Entry},
    binding::{Binding, cache_ttl, counted, namespace_of},
    connection::{head::Head, outgoing},
    query::percent_decode_into,
};
use crate::{
    clock::Moment,
    kv::{
        NamespaceId, Rights,
        kept::{Hit, Kept},
    },
    limits,
    wire::{self, AnswerHead, Fields, StateHead},
};

/// What a connection remembers of its last hot read, so that the same caller is not looked into anew: its credential and namespace as they were sent, and
/// what they were found to mean.
#[derive(Default)]
pub struct Remembered {
    credential: Vec<u8>,
    namespace: Vec<u8>,
    entry: Option<Entry>,
    /// Room for a decoded key.
    key: Vec<u8>,
}

/// An answer that is written already, but for the end of its head and its value.
pub struct HotAnswer {
    pub status: StatusCode,
    /// When it was looked up.
    pub at: Moment,
    kept: Kept,
}

impl HotAnswer {
    pub fn value(&self) -> &[u8] {
        match self.status {
            StatusCode::OK => self.kept.value().unwrap_or_default(),
            _ => &[],
        }
    }

    pub fn framing(&self) -> outgoing::Framing {
        match self.status {
            StatusCode::NOT_MODIFIED => outgoing::Framing::None,
            _ => outgoing::Framing::Length(self.value().len() as u64),
        }
    }
}

/// Longest credential that is remembered: what a connection keeps while it waits is small.
const REMEMBERED_BYTES_MAX: usize = 512;

impl Binding {
    /// The hot read, step by step.
    pub(super) fn read_hot(
        &self,
        head: &Head<'_>,
        remembered: &mut Remembered,
        out: &mut Vec<u8>,
    ) -> Option<HotAnswer> {
        if head.method != "GET" || head.has_body() {
            return None;
        }
        let target = Target::parse(head.target)?;
        let read = wire::decode_read(head, cache_ttl(target.cache_ttl).ok()?).ok()?;
        let Remembered { credential, namespace, entry, key: room } = remembered;
        let namespace = enter(&self.auth, head, credential, namespace, entry)?;
        let key = target.key(room)?;
        let Hit { kept, age, covered, now, status: cache_status } = self.backend.held(namespace, key, &read)?;

        let time_left = kept.time_left(now);
        let (status, state) = if kept.unchanged(read.held) {
            (StatusCode::NOT_MODIFIED, StateHead::Unchanged { present: kept.is_present(), time_left })
        } else if kept.is_present() {
            // A value in pieces is streamed, by the general path.
            kept.value()?;
            let (metadata, expiration) = (kept.metadata(), kept.expiration());
            (StatusCode::OK, StateHead::Present { metadata, expiration, time_left })
        } else {
            (StatusCode::NOT_FOUND, StateHead::Absent)
        };
        outgoing::status_line(out, status, None);
        AnswerHead { version: kept.version(), age, covered, status: cache_status, state }.encode(&read, out);
        self.metrics.answered(counted(cache_status), age);
        Some(HotAnswer { status, at: now, kept })
    }
}

/// The namespace that the caller may read, if that is what it was on the last request, or can be told from memory.
fn enter(
    auth: &Auth,
    head: &Head<'_>,
    credential: &mut Vec<u8>,
    namespace: &mut Vec<u8>,
    entry: &mut Option<Entry>,
) -> Option<NamespaceId> {
    let sent = head.field("authorization")?;
    let named = match head.field(wire::NAMESPACE) {
        None => &[][..],
        // It is not the same as none.
        Some([]) => return None,
        Some(named) => named,
    };
    if let Some(known) = entry
        && *namespace == named
        && auth.is_same(credential, sent)
    {
        if auth.still(known) {
            return Some(known.namespace);
        }
        *entry = None;
    }
    let found = auth.enter_held(sent, namespace_of(head).ok()?, Rights::Read)?;
    let id = found.namespace;
    if sent.len() > REMEMBERED_BYTES_MAX {
        return Some(id);
    }
    *entry = Some(found);
    credential.clear();
    credential.extend_from_slice(sent);
    namespace.clear();
    namespace.extend_from_slice(named);
    Some(id)
}

/// A request's target, when it is plain: one segment, and no parameters but those of a read.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    segment: &'a str,
    encoded: bool,
    cache_ttl: Option<&'a str>,
}

/// The bytes of a segment that need no closer look.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        plain[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"-_.~%!$&'()*+,;:@=";
    let mut mark = 0;
    while mark < marks.len() {
        plain[marks[mark] as usize] = true;
        mark += 1;
    }
    plain
};

impl<'a> Target<'a> {
    fn parse(target: &'a str) -> Option<Target<'a>> {
        const ENCODED: &str = "urlencoded=true";
        let path = target.strip_prefix('/')?;
        // What needs a closer look, such as `#` or a slash, is not plain.
        let end = path.bytes().position(|byte| !PLAIN[usize::from(byte)]).unwrap_or(path.len());
        let (segment, mut query) = path.split_at(end);
        if segment.is_empty() || !(query.is_empty() || query.starts_with('?')) {
            return None;
        }
        let mut found = Target { segment, encoded: false, cache_ttl: None };
        let mut mark = '?';
        while let Some(parameter) = query.strip_prefix(mark) {
            if let Some(rest) = parameter.strip_prefix(ENCODED)
                && !found.encoded
            {
                found.encoded = true;
                query = rest;
            } else {
                let ttl = parameter.strip_prefix("cache_ttl=").filter(|_| found.cache_ttl.is_none())?;
                let end = ttl.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(ttl.len());
                (found.cache_ttl, query) = (Some(&ttl[..end]), &ttl[end..]);
            }
            mark = '&';
        }
        query.is_empty().then_some(found)
    }

    /// The key that it names.
    fn key<'b>(&self, room: &'b mut Vec<u8>) -> Option<&'b [u8]>
    where
        'a: 'b,
    {
        if !self.encoded || memchr::memchr(b'%', self.segment.as_bytes()).is_none() {
            return Some(self.segment.as_bytes());
        }
        if self.segment.len() > 3 * limits::KEY_BYTES_MAX {
            // No key is as long, and the room is kept.
            return None;
        }
        room.clear();
        percent_decode_into(self.segment.as_bytes(), false, room)?;
        Some(room)
    }
}

#[cfg(test)]
mod tests;
