//! The purge feed's bytes. Both directions are sequences of frames, and a piece of the stream may hold any part of them.
//!
//! A frame is its kind (u8), the length of what follows (u32), and that many bytes. Numbers are big-endian.
//!
//! | kind | from | what follows |
//! |---|---|---|
//! | 1 start | sender | epoch u64, sequence u64, resumed u8 (0 or 1) |
//! | 2 items | sender | number of the first u64, then the items |
//! | 3 echo | sender | stamp u64, known u8 (0 or 1), age in microseconds u64, safe version u64 |
//! | 4 ping | follower | stamp u64 |
//! | 5 members | sender, one of several origins | how often one has joined u64, and for each its epoch u64, length of its address u16, and the address |
//! | 6 end | sender, an origin that leaves | |
//!
//! An item is its kind (u8) and its fields. Both kinds of purge begin alike, so that a sender can leave the state of one out:
//!
//! | kind | fields |
//! |---|---|
//! | 1 purge | namespace (16 bytes), version u64, key length u16, key |
//! | 2 purge with state | the same, then the state: 0 (u8) for absent; 1 (u8), flags u8, expiration u64 (flag 1), milliseconds left u64 (flag 2), metadata length u16 and metadata (flag 4), value length u32, value |
//! | 3 namespace | namespace (16 bytes), version u64 |
//! | 4 gap | |

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;

use super::{FEED_PATH, FOLLOWER, decode_follower, encode_follower};
use crate::{
    error::{Error, Kind, Result},
    kv::{
        Key, NamespaceId, Version,
        feed::{Echo, Follow, Item, Member, Members, Message, Position, Proof, Purge, Pushed},
    },
};

/// The version of this form; a follower names it, and a sender refuses one that it does not speak.
pub const VERSION: u64 = 1;

const START: u8 = 1;
const ITEMS: u8 = 2;
const ECHO: u8 = 3;
const PING: u8 = 4;
const MEMBERS: u8 = 5;
const END: u8 = 6;

const PURGE: u8 = 1;
const PURGE_WITH_STATE: u8 = 2;
const NAMESPACE: u8 = 3;
const GAP: u8 = 4;

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;
const FLAG_EXPIRATION: u8 = 1;
const FLAG_TIME_LEFT: u8 = 2;
const FLAG_METADATA: u8 = 4;

/// Longest frame that is taken. A sender's are far shorter: it gathers items up to [`ITEMS_BYTES`], and one item is at most a key and a pushed state.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Past how many bytes a sender begins another frame.
pub const ITEMS_BYTES: usize = 64 * 1024;
const HEAD_BYTES: usize = 5;

/// Asks to follow the purge feed. The other half is [`decode_follow`].
pub fn encode_follow(follow: Follow) -> (String, HeaderMap) {
    let mut headers = HeaderMap::new();
    encode_follower(Some(follow.follower), &mut headers);
    let from = follow.from.map(|Position { epoch, sequence }| format!("&epoch={epoch:016x}&sequence={sequence}"));
    let states = if follow.all_states { "&states=all" } else { "" };
    (format!("{FEED_PATH}?version={}{}{states}", VERSION, from.unwrap_or_default()), headers)
}

pub fn decode_follow(headers: &HeaderMap, query: &str) -> Result<Follow> {
    let (mut version, mut epoch, mut sequence, mut all_states) = (None, None, None, false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "version" => version = value.parse::<u64>().ok(),
            "epoch" => epoch = u64::from_str_radix(&value, 16).ok(),
            "sequence" => sequence = value.parse().ok(),
            "states" => all_states = value == "all",
            _ => {}
        }
    }
    if version != Some(VERSION) {
        return Err(Error::bad_request(format!("the purge feed is spoken in version {} here", VERSION)));
    }
    let follower = decode_follower(headers).ok_or_else(|| {
        Error::bad_request(format!("name the follower with the header {FOLLOWER}: 16 hexadecimal digits"))
    })?;
    let from = epoch.zip(sequence).map(|(epoch, sequence)| Position { epoch, sequence });
    Ok(Follow { follower, from, all_states })
}

pub fn encode_ping(stamp: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD_BYTES + 8);
    head(&mut out, PING, 8);
    out.put_u64(stamp);
    out.freeze()
}

pub fn put_start(out: &mut BytesMut, position: Position, resumed: bool) {
    head(out, START, 17);
    out.put_u64(position.epoch);
    out.put_u64(position.sequence);
    out.put_u8(resumed.into());
}

pub fn put_echo(out: &mut BytesMut, echo: Echo) {
    head(out, ECHO, 25);
    out.put_u64(echo.stamp);
    out.put_u8(echo.proof.is_some().into());
    // Rounded up: an age may be too large, never too small.
    out.put_u64(echo.proof.map_or(0, |proof| u64::try_from(proof.age.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)));
    out.put_u64(echo.proof.map_or(0, |proof| proof.version.as_u64()));
}

pub fn put_members(out: &mut BytesMut, members: &Members) {
    let length = 8 + members.list.iter().map(|member| 10 + member.address.len()).sum::<usize>();
    head(out, MEMBERS, u32::try_from(length).expect("a cluster has some dozens of origins"));
    out.put_u64(members.joined);
    for member in &members.list {
        out.put_u64(member.epoch);
        out.put_u16(u16::try_from(member.address.len()).expect("checked where an origin is given its address"));
        out.put_slice(member.address.as_bytes());
    }
}

pub fn put_end(out: &mut BytesMut) {
    head(out, END, 0);
}

/// A frame of items being gathered.
pub struct ItemsFrame {
    start: usize,
}

impl ItemsFrame {
    pub fn begin(out: &mut BytesMut, first: u64) -> ItemsFrame {
        let start = out.len();
        head(out, ITEMS, 0);
        out.put_u64(first);
        ItemsFrame { start }
    }

    pub fn end(self, out: &mut BytesMut) {
        let length = u32::try_from(out.len() - self.start - HEAD_BYTES).expect("a frame is far shorter than 4 GiB");
        out[self.start + 1..self.start + HEAD_BYTES].copy_from_slice(&length.to_be_bytes());
    }
}

/// An item as it is sent, with or without its state.
#[derive(Clone, Debug)]
pub struct EncodedItem {
    bytes: Bytes,
    /// Up to where it is a purge without its state.
    plain: usize,
}

impl EncodedItem {
    pub fn new(item: &Item) -> EncodedItem {
        let mut out = BytesMut::with_capacity(length_max(item));
        let mut plain = None;
        match item {
            Item::Purge(purge) => {
                out.put_u8(if purge.state.is_some() { PURGE_WITH_STATE } else { PURGE });
                out.put_slice(&purge.namespace.to_bytes());
                out.put_u64(purge.version.as_u64());
                out.put_u16(u16::try_from(purge.key.as_bytes().len()).expect("a key has at most 512 bytes"));
                out.put_slice(purge.key.as_bytes());
                plain = Some(out.len());
                purge.state.iter().for_each(|state| put_state(&mut out, state));
            }
            Item::Namespace { namespace, version } => {
                out.put_u8(NAMESPACE);
                out.put_slice(&namespace.to_bytes());
                out.put_u64(version.as_u64());
            }
            Item::Gap => out.put_u8(GAP),
        }
        let plain = plain.unwrap_or(out.len());
        EncodedItem { bytes: out.freeze(), plain }
    }

    pub fn has_state(&self) -> bool {
        self.plain < self.bytes.len()
    }

    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    pub fn put(&self, out: &mut BytesMut, with_state: bool) {
        if with_state || !self.has_state() {
            out.put_slice(&self.bytes);
        } else {
            out.put_u8(PURGE);
            out.put_slice(&self.bytes[1..self.plain]);
        }
    }
}

/// Room for an item and its state.
fn length_max(item: &Item) -> usize {
    let Item::Purge(purge) = item else { return 32 };
    let state = match &purge.state {
        Some(Pushed::Present { value, metadata, .. }) => 24 + value.len() + metadata.as_ref().map_or(0, Bytes::len),
        Some(Pushed::Absent) | None => 1,
    };
    32 + purge.key.as_bytes().len() + state
}

fn put_state(out: &mut BytesMut, state: &Pushed) {
    let Pushed::Present { value, metadata, expiration, time_left } = state else {
        return out.put_u8(ABSENT);
    };
    out.put_u8(PRESENT);
    out.put_u8(
        (if expiration.is_some() { FLAG_EXPIRATION } else { 0 })
            | (if time_left.is_some() { FLAG_TIME_LEFT } else { 0 })
            | (if metadata.is_some() { FLAG_METADATA } else { 0 }),
    );
    expiration.iter().for_each(|expiration| out.put_u64(*expiration));
    // Rounded down: it may fall early, never late.
    time_left.iter().for_each(|left| out.put_u64(super::millis(*left)));
    if let Some(metadata) = metadata {
        out.put_u16(u16::try_from(metadata.len()).expect("metadata has at most 1,024 bytes"));
        out.put_slice(metadata);
    }
    out.put_u32(u32::try_from(value.len()).expect("a pushed value has some KiB"));
    out.put_slice(value);
}

fn head(out: &mut BytesMut, kind: u8, length: u32) {
    out.put_u8(kind);
    out.put_u32(length);
}

/// Puts pieces of a stream together to frames.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    pub fn add(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next message of a sender, if it is all there.
    pub fn message(&mut self) -> Result<Option<Message>> {
        let Some((kind, mut payload)) = self.frame()? else { return Ok(None) };
        let message = decode_message(kind, &mut payload).filter(|_| payload.is_empty());
        message.map(Some).ok_or_else(|| unexpected(format!("a frame of kind {kind} that is garbled")))
    }

    /// The stamp of the next ping of a follower, if it is all there.
    pub fn ping(&mut self) -> Result<Option<u64>> {
        match self.frame()? {
            None => Ok(None),
            Some((PING, mut payload)) if payload.len() == 8 => Ok(Some(payload.get_u64())),
            Some((kind, _)) => Err(Error::bad_request(format!("a follower sends pings, not frames of kind {kind}"))),
        }
    }

    fn frame(&mut self) -> Result<Option<(u8, Bytes)>> {
        let Some((head, _)) = self.buffer.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [kind, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(unexpected(format!("a frame of {length} bytes, more than {FRAME_BYTES_MAX}")));
        }
        if self.buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        Ok(Some((kind, self.buffer.split_to(length).freeze())))
    }
}

fn decode_message(kind: u8, payload: &mut Bytes) -> Option<Message> {
    match kind {
        START => {
            let position = Position { epoch: payload.try_get_u64().ok()?, sequence: payload.try_get_u64().ok()? };
            Some(Message::Start { position, resumed: flag(payload)? })
        }
        ITEMS => {
            let first = payload.try_get_u64().ok()?;
            let mut items = Vec::new();
            while payload.has_remaining() {
                items.push(decode_item(payload)?);
            }
            Some(Message::Items { first, items })
        }
        ECHO => {
            let stamp = payload.try_get_u64().ok()?;
            let known = flag(payload)?;
            let age = Duration::from_micros(payload.try_get_u64().ok()?);
            let proof = Proof { age, version: version(payload)? };
            Some(Message::Echo(Echo { stamp, proof: known.then_some(proof) }))
        }
        MEMBERS => {
            let joined = payload.try_get_u64().ok()?;
            let mut list = Vec::new();
            while payload.has_remaining() {
                let epoch = payload.try_get_u64().ok()?;
                let length = payload.try_get_u16().ok()?;
                let address = String::from_utf8(take(payload, length.into())?.to_vec()).ok()?;
                list.push(Member { epoch, address });
            }
            Some(Message::Members(Members { joined, list }))
        }
        END => Some(Message::End),
        _ => None,
    }
}

fn decode_item(payload: &mut Bytes) -> Option<Item> {
    match payload.try_get_u8().ok()? {
        kind @ (PURGE | PURGE_WITH_STATE) => {
            let namespace = namespace(payload)?;
            let version = version(payload)?;
            let length = payload.try_get_u16().ok()?;
            let key = Key::new(take(payload, length.into())?).ok()?;
            let state = if kind == PURGE_WITH_STATE { Some(decode_state(payload)?) } else { None };
            Some(Item::Purge(Purge { namespace, key, version, state }))
        }
        NAMESPACE => Some(Item::Namespace { namespace: namespace(payload)?, version: version(payload)? }),
        GAP => Some(Item::Gap),
        _ => None,
    }
}

fn decode_state(payload: &mut Bytes) -> Option<Pushed> {
    match payload.try_get_u8().ok()? {
        ABSENT => return Some(Pushed::Absent),
        PRESENT => {}
        _ => return None,
    }
    let flags = payload.try_get_u8().ok()?;
    let expiration = if flags & FLAG_EXPIRATION != 0 { Some(payload.try_get_u64().ok()?) } else { None };
    let millis = if flags & FLAG_TIME_LEFT != 0 { Some(payload.try_get_u64().ok()?) } else { None };
    let metadata = if flags & FLAG_METADATA != 0 {
        let length = payload.try_get_u16().ok()?;
        Some(take(payload, length.into())?)
    } else {
        None
    };
    let length = payload.try_get_u32().ok()?;
    let value = take(payload, length as usize)?;
    Some(Pushed::Present { value, metadata, expiration, time_left: millis.map(Duration::from_millis) })
}

fn flag(payload: &mut Bytes) -> Option<bool> {
    match payload.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn namespace(payload: &mut Bytes) -> Option<NamespaceId> {
    let bytes = take(payload, 16)?;
    bytes[..].try_into().ok().map(NamespaceId::from_bytes)
}

fn version(payload: &mut Bytes) -> Option<Version> {
    let bits = payload.try_get_u64().ok()?;
    (bits >> 63 == 0).then(|| Version::from_u64(bits))
}

fn take(payload: &mut Bytes, length: usize) -> Option<Bytes> {
    (payload.len() >= length).then(|| payload.split_to(length))
}

fn unexpected(what: String) -> Error {
    Error::new(Kind::Unreachable, format!("upstream does not speak our feed: it sent {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn state() -> impl Strategy<Value = Pushed> {
        let present = (bytes(1100), proptest::option::of(bytes(1025)), any::<Option<u64>>(), any::<Option<u64>>())
            .prop_map(|(value, metadata, expiration, left)| Pushed::Present {
                value,
                metadata,
                expiration,
                time_left: left.map(Duration::from_millis),
            });
        prop_oneof![Just(Pushed::Absent), present]
    }

    fn item() -> impl Strategy<Value = Item> {
        let version = (0u64..1 << 63).prop_map(Version::from_u64);
        let namespace = any::<u128>().prop_map(NamespaceId::from_u128);
        let key = "[a-z]{1,40}".prop_map(|key| Key::new(key).expect("letters make a key"));
        let purge = (namespace.clone(), key, version.clone(), proptest::option::of(state()))
            .prop_map(|(namespace, key, version, state)| Item::Purge(Purge { namespace, key, version, state }));
        let removed = (namespace, version).prop_map(|(namespace, version)| Item::Namespace { namespace, version });
        prop_oneof![purge, removed, Just(Item::Gap)]
    }

    fn decode(stream: &[u8], piece: usize) -> Result<Vec<Message>> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for piece in stream.chunks(piece) {
            decoder.add(piece);
            while let Some(message) = decoder.message()? {
                messages.push(message);
            }
        }
        assert!(decoder.buffer.is_empty(), "whole frames leave nothing over");
        Ok(messages)
    }

    fn sent(items: &[Item], with_state: bool) -> BytesMut {
        let mut out = BytesMut::new();
        let frame = ItemsFrame::begin(&mut out, 7);
        items.iter().for_each(|item| EncodedItem::new(item).put(&mut out, with_state));
        frame.end(&mut out);
        out
    }

    proptest! {
        #[test]
        fn items_survive_the_wire_in_pieces_of_any_length(items in proptest::collection::vec(item(), 1..8), piece in 1usize..200) {
            prop_assert_eq!(decode(&sent(&items, true), piece).unwrap(), vec![Message::Items { first: 7, items }]);
        }

        #[test]
        fn without_their_states_purges_stay_purges(items in proptest::collection::vec(item(), 1..8)) {
            let plain = items.iter().cloned().map(|item| match item {
                Item::Purge(purge) => Item::Purge(Purge { state: None, ..purge }),
                other => other,
            });
            let plain = plain.collect();
            prop_assert_eq!(decode(&sent(&items, false), 64).unwrap(), vec![Message::Items { first: 7, items: plain }]);
        }

        #[test]
        fn starts_echoes_and_pings_survive_the_wire(epoch: u64, sequence: u64, resumed: bool, stamp: u64, micros in 0u64..1 << 50, version in 0u64..1 << 63, known: bool) {
            let position = Position { epoch, sequence };
            let proof = Proof { age: Duration::from_micros(micros), version: Version::from_u64(version) };
            let echo = Echo { stamp, proof: known.then_some(proof) };
            let mut out = BytesMut::new();
            put_start(&mut out, position, resumed);
            put_echo(&mut out, echo);
            let list = vec![Member { epoch, address: "one:7000".into() }, Member { epoch: stamp, address: String::new() }];
            let members = Members { joined: stamp, list };
            put_members(&mut out, &members);
            put_end(&mut out);
            let expected =
                vec![Message::Start { position, resumed }, Message::Echo(echo), Message::Members(members), Message::End];
            prop_assert_eq!(decode(&out, 3).unwrap(), expected);
            let mut decoder = Decoder::default();
            decoder.add(&encode_ping(stamp));
            prop_assert_eq!(decoder.ping().unwrap(), Some(stamp));
            prop_assert_eq!(decoder.ping().unwrap(), None);
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(stream in bytes(300)) {
            let mut decoder = Decoder::default();
            decoder.add(&stream);
            while let Ok(Some(_)) = decoder.message() {}
            let mut decoder = Decoder::default();
            decoder.add(&stream);
            while let Ok(Some(_)) = decoder.ping() {}
        }
    }

    #[test]
    fn an_age_is_rounded_up_and_time_left_down() {
        let mut out = BytesMut::new();
        let proof = Proof { age: Duration::from_nanos(1), version: Version::ZERO };
        put_echo(&mut out, Echo { stamp: 1, proof: Some(proof) });
        let Message::Echo(echo) = decode(&out, 100).unwrap().remove(0) else { panic!("an echo was sent") };
        assert_eq!(echo.proof.unwrap().age, Duration::from_micros(1));
        let time_left = Some(Duration::from_micros(2999));
        let pushed = Pushed::Present { value: Bytes::new(), metadata: None, expiration: None, time_left };
        let mut out = BytesMut::new();
        put_state(&mut out, &pushed);
        let Some(Pushed::Present { time_left, .. }) = decode_state(&mut out.freeze()) else { panic!("it was put") };
        assert_eq!(time_left, Some(Duration::from_millis(2)));
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_gathered() {
        let mut decoder = Decoder::default();
        decoder.add(&[ITEMS, 0xff, 0, 0, 0]);
        assert!(decoder.message().is_err());
    }
}
