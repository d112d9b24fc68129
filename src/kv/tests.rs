//! What the constructors check, and what versions and ids promise.

use super::*;

#[test]
fn keys_are_checked_with_the_reference_texts() {
    let check = |bytes: &[u8], expected: Result<(), &str>| {
        let made = Key::new(bytes.to_vec());
        assert_eq!(made.as_ref().map(|_| ()).map_err(|e| e.message.as_str()), expected);
    };
    check(b"a", Ok(()));
    check(&[b'x'; 512], Ok(()));
    check(b"...", Ok(()));
    check(b"\0", Ok(()));
    check(b"", Err("Key names must not be empty"));
    check(b".", Err("Illegal key name \".\". Please use a different name."));
    check(b"..", Err("Illegal key name \"..\". Please use a different name."));
    check(&[b'x'; 513], Err("UTF-8 encoded length of 513 exceeds key length limit of 512."));
    check(b"\xff", Err("Could not URL-decode key name"));
}

#[test]
fn a_next_version_is_greater_and_keeps_its_origin() {
    let first = Version::first_of(1_700_000_000_000, 7);
    let mut last = first;
    for _ in 0..10_000 {
        let next = last.next(7).unwrap();
        assert!(next > last);
        assert_eq!(next.as_u64() & 0xff, 7);
        last = next;
    }
    // The counter holds 8,192: past it the next millisecond is borrowed.
    assert_eq!(last.millis(), first.millis() + 1);
}

#[test]
fn the_last_millisecond_still_has_63_bits() {
    let last = Version::first_of(u64::MAX, 255);
    assert_eq!(last.to_string().parse::<Version>().unwrap(), last);
}

#[test]
fn after_the_last_version_there_is_none() {
    let mut last = Version::first_of(Version::MILLIS_MAX, 7);
    for _ in 1..Version::PER_MILLISECOND {
        last = last.next(7).unwrap();
        assert_eq!(last.as_u64() >> 63, 0);
    }
    assert_eq!(last.next(7), None);
    assert_eq!(Version::from_u64((1 << 63) - 1).next(0), None);
}

proptest::proptest! {
    #[test]
    fn versions_survive_their_text_and_compare_like_it(a in 0u64..1 << 63, b in 0u64..1 << 63) {
        let (a, b) = (Version::from_u64(a), Version::from_u64(b));
        proptest::prop_assert_eq!(a.to_string().parse::<Version>().unwrap(), a);
        proptest::prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
    }

    #[test]
    fn ids_survive_their_text(bits: u128) {
        let id = NamespaceId::from_u128(bits);
        proptest::prop_assert_eq!(id.to_string().parse::<NamespaceId>().unwrap(), id);
        proptest::prop_assert_eq!(NamespaceId::from_bytes(id.to_bytes()), id);
    }

    #[test]
    fn no_text_makes_a_version_or_id_panic(text: String) {
        let _ = text.parse::<Version>();
        let _ = text.parse::<AccountId>();
    }
}
