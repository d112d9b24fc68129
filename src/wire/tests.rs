//! What one half writes, the other reads; and nothing that arrives makes it panic.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::kv::feed::{Follow, Position};
use crate::kv::{NamespaceId, NewToken, Rights, TokenHash};

fn key() -> impl Strategy<Value = Key> {
    "\\PC{1,60}".prop_filter_map("a key", |text| Key::new(text).ok())
}

fn version() -> impl Strategy<Value = Version> {
    (0u64..1 << 63).prop_map(Version::from_u64)
}

fn milliseconds() -> impl Strategy<Value = Duration> {
    (0u64..1 << 40).prop_map(Duration::from_millis)
}

fn bytes(length: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..length).prop_map(Bytes::from)
}

/// Header values hold no control characters, and JSON needs none.
fn metadata() -> impl Strategy<Value = Bytes> {
    "\"[a-z\u{e9}\u{1f600}]{0,20}\"".prop_map(Bytes::from)
}

fn write() -> impl Strategy<Value = (Key, Change)> {
    let expires =
        prop_oneof![Just(Expires::Never), any::<u64>().prop_map(Expires::At), any::<u64>().prop_map(Expires::After)];
    let put = (bytes(300), option::of(metadata()), expires).prop_map(|(value, metadata, expires)| Change::Put {
        value: Value::Whole(value),
        metadata,
        expires,
    });
    (key(), prop_oneof![put, Just(()).prop_map(|()| Change::Delete)])
}

fn shown(writes: &[(Key, Change)]) -> Vec<String> {
    let value = |change: &Change| match change {
        Change::Put { value: Value::Whole(bytes), .. } => bytes.to_vec(),
        _ => Vec::new(),
    };
    writes.iter().map(|(key, change)| format!("{key:?} {change:?} {:?}", value(change))).collect()
}

fn over_the_wire(answer: Answer, held: Option<Held>) -> Result<Answer> {
    // As one of our own asks, who is told all.
    let read = Read { held, asker: Some(FollowerId(1)), ..Read::default() };
    let (head, body) = encode_answer(answer, &read).into_parts();
    let value = match body {
        Body::Whole(bytes) => Value::Whole(bytes),
        Body::Stream { .. } => unreachable!("these values are whole"),
    };
    decode_answer(head.status, &head.headers, value)
}

proptest! {
    #[test]
    fn a_batch_of_writes_survives_the_wire(writes in vec(write(), 0..20)) {
        let decoded = decode_writes(encode_writes(&writes)).unwrap();
        prop_assert_eq!(shown(&decoded), shown(&writes));
    }

    #[test]
    fn a_batch_cut_anywhere_is_refused_or_shorter(writes in vec(write(), 1..5), cut in 1usize..50) {
        let whole = encode_writes(&writes);
        let decoded = decode_writes(whole.slice(..whole.len().saturating_sub(cut)));
        prop_assert!(decoded.map_or(true, |decoded| decoded.len() < writes.len()));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>) {
        let _ = decode_writes(Bytes::from(bytes.clone()));
        let _ = decode_page(&bytes);
        let _ = decode_outcomes(&bytes);
        let _ = decode_control(&bytes);
        let _ = decode_controlled(&bytes);
        let _ = parse_etag(&bytes);
    }

    #[test]
    fn a_present_answer_survives_the_wire(
        version in version(), age in milliseconds(), value in bytes(300), metadata in option::of(metadata()),
        expiration in option::of(0u64..1 << 40), time_left in option::of(milliseconds()), covered: bool,
    ) {
        let entry = || Entry { value: Value::Whole(value.clone()), metadata: metadata.clone(), expiration, time_left };
        let sent = || Answer { state: State::Present(entry()), version, age, covered, status: CacheStatus::Stale };
        let arrived = over_the_wire(sent(), None).unwrap();
        prop_assert_eq!(format!("{:?}", arrived), format!("{:?}", sent()));
        let State::Present(Entry { value: Value::Whole(arrived), .. }) = arrived.state else { panic!("present") };
        prop_assert_eq!(arrived, value);
    }

    #[test]
    fn an_absent_or_unchanged_answer_survives_the_wire(
        version in version(), age in milliseconds(), time_left in option::of(milliseconds()), present: bool, covered: bool,
    ) {
        let absent = || Answer { state: State::Absent, version, age, covered, status: CacheStatus::Hit };
        prop_assert_eq!(format!("{:?}", over_the_wire(absent(), None).unwrap()), format!("{:?}", absent()));
        let unchanged = || Answer { state: State::Unchanged { time_left }, version, age, covered, status: CacheStatus::Bypass };
        let held = Some(Held { version, present });
        prop_assert_eq!(format!("{:?}", over_the_wire(unchanged(), held).unwrap()), format!("{:?}", unchanged()));
    }

    #[test]
    fn an_age_is_rounded_up_and_a_time_left_down(nanos in 0u64..1 << 50) {
        let exact = Duration::from_nanos(nanos);
        let state = State::Unchanged { time_left: Some(exact) };
        let answer = Answer { state, version: Version::ZERO, age: exact, covered: false, status: CacheStatus::Hit };
        let arrived = over_the_wire(answer, None).unwrap();
        prop_assert!(arrived.age >= exact);
        let State::Unchanged { time_left: Some(left) } = arrived.state else { panic!("unchanged") };
        prop_assert!(left <= exact);
    }

    #[test]
    fn a_read_survives_the_wire(max_age in milliseconds(), at_least in option::of(version()), held in option::of((version(), any::<bool>())), asker: Option<u64>) {
        let held = held.map(|(version, present)| Held { version, present });
        let read = Read { max_age, at_least, held, asker: asker.map(FollowerId) };
        let mut headers = HeaderMap::new();
        encode_read(&read, &mut headers);
        prop_assert_eq!(decode_read(&headers, Duration::MAX).unwrap(), read);
    }

    #[test]
    fn a_wish_to_follow_survives_the_wire(follower: u64, from: Option<(u64, u64)>) {
        let from = from.map(|(epoch, sequence)| Position { epoch, sequence });
        let follow = Follow { follower: FollowerId(follower), from, all_states: follower % 2 == 0 };
        let (path, headers) = feed::encode_follow(follow);
        let (_, query) = path.split_once('?').unwrap();
        prop_assert_eq!(feed::decode_follow(&headers, query).unwrap(), follow);
        prop_assert!(feed::decode_follow(&headers, &query.replace("version=1", "version=2")).is_err());
        prop_assert!(feed::decode_follow(&HeaderMap::new(), query).is_err());
    }

    #[test]
    fn an_acknowledgement_survives_the_wire(version in version(), expiration in option::of(0u64..1 << 40), time_left in option::of(milliseconds())) {
        let written = Written { version, expiration, time_left };
        prop_assert_eq!(decode_written(encode_written(&written).headers()).unwrap(), written);
        let outcomes = [Ok(written), Err(Error::new(Kind::RateLimited, "Too Many Requests"))];
        let decoded = decode_outcomes(&encode_outcomes(&outcomes).unwrap()).unwrap();
        prop_assert_eq!(format!("{decoded:?}"), format!("{outcomes:?}"));
    }

    #[test]
    fn a_list_page_survives_the_wire(keys in vec((key(), option::of(0u64..1 << 40), option::of(metadata())), 0..10), cursor in option::of("[a-zA-Z0-9_-]{1,40}")) {
        let keys = keys.into_iter().map(|(key, expiration, metadata)| Listed { key, expiration, metadata }).collect();
        let page = Page { keys, cursor };
        prop_assert_eq!(decode_page(&encode_page(&page).unwrap()).unwrap(), page);
    }
}

#[test]
fn a_control_change_and_its_outcome_survive_the_wire() {
    let account = AccountId::from_u128(5);
    let namespaces = Some(vec![NamespaceId::from_u128(1)]);
    let token = NewToken { name: "n".into(), rights: Rights::Write, namespaces, expires: Some(9) };
    let hash = TokenHash::from_digest([7; 32]);
    for control in [
        Control::CreateNamespace { title: "t".into(), jurisdiction: Some("eu".into()), mode: None },
        Control::RenameNamespace { id: NamespaceId::from_u128(1), title: "u".into() },
        Control::RemoveNamespace { id: NamespaceId::from_u128(1) },
        Control::CreateToken { hash: hash.clone(), token: token.clone() },
        Control::RevokeToken { id: "x".into() },
    ] {
        let request = ControlRequest { account, control: control.clone() };
        let decoded = decode_control(&encode_control(&request).unwrap()).unwrap();
        assert_eq!((decoded.account, decoded.control), (account, control));
    }
    let token = crate::kv::Token { id: "x".into(), account, hash, token };
    for controlled in [Controlled::Done, Controlled::Token(token)] {
        let json = encode_controlled(controlled.clone(), Version::from_u64(3)).unwrap();
        assert_eq!(decode_controlled(&json).unwrap(), (controlled, Version::from_u64(3)));
    }
}

#[test]
fn an_answered_error_keeps_its_kind_text_and_wait() {
    let mut headers = HeaderMap::new();
    headers.insert(ERROR, HeaderValue::from_static("value-too-large"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("3"));
    let reason = ReasonPhrase::from_static(b"Value length of 9 exceeds limit of 8.");
    let error = decode_error(StatusCode::PAYLOAD_TOO_LARGE, &headers, Some(&reason));
    assert_eq!(error.kind, Kind::ValueTooLarge);
    assert_eq!(error.message, "Value length of 9 exceeds limit of 8.");
    assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
    assert!(error.answered && !error.untaken);
    headers.insert(UNTAKEN, HeaderValue::from_static("1"));
    assert!(decode_error(StatusCode::SERVICE_UNAVAILABLE, &headers, None).untaken);
}

#[test]
fn that_upstream_reached_nobody_does_not_make_it_unreachable() {
    let mut headers = HeaderMap::new();
    headers.insert(ERROR, HeaderValue::from_static("unreachable"));
    assert_eq!(decode_error(StatusCode::SERVICE_UNAVAILABLE, &headers, None).kind, Kind::Unavailable);
}

#[test]
fn metadata_that_a_header_cannot_hold_travels_as_the_same_json() {
    let value = header_text(b"{\n\t\"a\":\"\x7f\xc3\xa9\"}");
    assert_eq!(&value[..], b"{  \"a\":\"\\u007f\xc3\xa9\"}");
}
