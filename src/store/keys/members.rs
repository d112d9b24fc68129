//! **Members**, an agreed record of a shared store: the origins that have it in use.
//!
//! It is JSON, as it is small and people look at it when something is wrong.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    store::Agreed,
};

/// What the origins agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub members: Vec<Listed>,
    /// How often an origin has joined.
    pub starts: u64,
    /// Above which a newcomer mints: no safe version that anybody has answered is higher.
    pub floor: u64,
    /// How often namespaces or tokens were decided about.
    pub control: u64,
    /// Who decides about them now.
    pub deciding: Option<u64>,
    /// Those who were on the list last, the latest one first.
    #[serde(default)]
    pub departed: Vec<Departed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    pub epoch: u64,
    /// Its intents below this were carried out; one that came later never is.
    pub end: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub epoch: u64,
    pub id: u8,
    pub address: String,
    /// Counts its refreshments.
    pub beat: u64,
    pub safe: u64,
    /// Below which its intents are carried out.
    pub done: u64,
    /// Who finishes for it, once it has been taken for dead; then it is.
    #[serde(default)]
    pub heir: Option<u64>,
}

impl Members {
    /// The record's name.
    pub const NAME: &str = "members";
    /// How many that departed are remembered.
    const DEPARTED_MAX: usize = 32;

    pub fn parse(agreed: &Agreed) -> Result<Members> {
        if agreed.revision == 0 {
            return Ok(Members::default());
        }
        serde_json::from_slice(&agreed.value)
            .map_err(|e| Error::internal("reading the list of origins in the store").with_source(e))
    }

    pub fn encode(&self) -> Result<Bytes> {
        let value =
            serde_json::to_vec(self).map_err(|e| Error::internal("writing the list of origins").with_source(e))?;
        Ok(value.into())
    }

    pub fn of(&self, epoch: u64) -> Option<&Listed> {
        self.members.iter().find(|member| member.epoch == epoch)
    }

    pub fn of_mut(&mut self, epoch: u64) -> Option<&mut Listed> {
        self.members.iter_mut().find(|member| member.epoch == epoch)
    }

    /// Takes an origin off the list whose intents below `end` are carried out.
    pub fn remove(&mut self, epoch: u64, end: u64) {
        self.members.retain(|member| member.epoch != epoch);
        self.departed.insert(0, Departed { epoch, end });
        self.departed.truncate(Members::DEPARTED_MAX);
        if self.deciding == Some(epoch) {
            // What it decided may be in the store.
            self.deciding = None;
            self.control += 1;
        }
    }

    /// Above all that anybody on the list has published.
    pub fn highest(&self) -> u64 {
        self.members.iter().map(|member| member.safe).fold(self.floor, u64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(epoch: u64) -> Listed {
        Listed { epoch, id: 0, address: "origin:7000".into(), beat: 1, safe: epoch, done: 0, heir: None }
    }

    #[test]
    fn the_list_survives_the_store() {
        let mut members = Members { members: vec![listed(7), listed(9)], starts: 2, ..Members::default() };
        members.remove(7, 3);
        let agreed = Agreed { revision: 1, value: members.encode().unwrap() };
        assert_eq!(Members::parse(&agreed).unwrap(), members);
        assert_eq!(Members::parse(&Agreed::default()).unwrap(), Members::default());
        assert!(Members::parse(&Agreed { revision: 1, value: Bytes::from_static(b"{") }).is_err());
    }

    /// It may have decided something, and said so to nobody.
    #[test]
    fn with_one_that_decides_goes_its_turn_and_the_others_look_at_what_it_decided() {
        let mut members =
            Members { members: vec![listed(7), listed(9)], deciding: Some(7), control: 4, ..Members::default() };
        members.remove(9, 0);
        assert_eq!((members.deciding, members.control), (Some(7), 4));
        members.remove(7, 0);
        assert_eq!((members.deciding, members.control), (None, 5));
    }

    #[test]
    fn those_who_departed_last_are_remembered() {
        let mut members = Members::default();
        for epoch in 0..100 {
            members.members.push(listed(epoch));
            members.remove(epoch, epoch + 1);
        }
        assert_eq!(members.departed.len(), Members::DEPARTED_MAX);
        assert_eq!(members.departed[0], Departed { epoch: 99, end: 100 });
    }
}
