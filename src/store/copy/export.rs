//! What a store holds, as a count and a hash that stores of either kind have in common.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// What a user could read out of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub entries: u64,
    /// Of their values.
    pub bytes: u64,
    pub hash: Hash,
}

impl Export {
    pub(super) fn add(&mut self, bytes: u64, digest: &[u8; 32]) {
        self.entries += 1;
        self.bytes += bytes;
        self.hash.add(digest);
    }
}

/// The sum of the hashes of all entries, as numbers of 256 bits: so it can be added up in pieces. It finds what went wrong; it is no proof against
/// somebody who forges entries.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Hash(pub(super) [u8; 32]);

impl Hash {
    fn add(&mut self, digest: &[u8; 32]) {
        let mut carry = 0;
        for (byte, added) in self.0.iter_mut().zip(digest).rev() {
            let sum = u16::from(*byte) + u16::from(*added) + carry;
            *byte = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digits = text.as_bytes();
        let mut hash = Hash::default();
        for (byte, pair) in hash.0.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(pair, 16).map_err(D::Error::custom)?;
        }
        if digits.len() == 64 { Ok(hash) } else { Err(D::Error::custom("a hash has 64 digits")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_sum_in_whatever_order() {
        let digests: Vec<[u8; 32]> = (0..5).map(|i| std::array::from_fn(|at| (at * 37 + i * 91) as u8)).collect();
        let sum = |digests: &mut dyn Iterator<Item = &[u8; 32]>| {
            let mut export = Export::default();
            digests.for_each(|digest| export.add(1, digest));
            export
        };
        let forward = sum(&mut digests.iter());
        assert_eq!(forward, sum(&mut digests.iter().rev()));
        assert_ne!(forward, sum(&mut digests[1..].iter().chain(&digests[1..2])));
        let mut carried = Hash([0xff; 32]);
        carried.add(&std::array::from_fn(|at| u8::from(at == 31)));
        assert_eq!(carried, Hash::default());
        let text = serde_json::to_string(&forward).unwrap();
        assert_eq!(serde_json::from_str::<Export>(&text).unwrap(), forward);
        for wrong in ["\"\"", "\"00\"", &format!("\"{}\"", "g".repeat(64)), &format!("\"{}\"", "0".repeat(66))] {
            assert!(serde_json::from_str::<Hash>(wrong).is_err(), "{wrong}");
        }
    }
}
