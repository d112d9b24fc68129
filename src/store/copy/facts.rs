//! What a copy knows of a store as a whole: who uses it, what its next origin must know, and how far the copy into it has come.
//!
//! An embedded store has all that as rows in `Meta`; a shared one as agreed records.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::export::{Export, Hash};
use crate::{
    clock::Clock,
    error::{Error, Result},
    kv::{NamespaceId, Version},
    store::{
        Agreed, Agreement, Batch, Durability, Replaced, Store, Table,
        keys::{self, Members, agreed, meta},
    },
};

/// How often a record is changed anew because somebody else was first.
const ATTEMPTS: usize = 16;

/// What a store says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// How often an origin has started on it.
    pub(super) starts: u64,
    /// At or above all that it has told anybody of.
    pub(super) last: Version,
    pub(super) cursor_secret: Option<Bytes>,
    /// On a shared store: those who have it in use, or died.
    members: Vec<keys::Listed>,
}

impl Facts {
    pub(super) async fn read(store: &dyn Store) -> Result<Facts> {
        let Some(agreement) = store.agreement() else {
            let number = async |name: &[u8]| match store.get(Table::Meta, name).await? {
                Some(value) => keys::decode_number(name, &value),
                None => Ok(0),
            };
            return Ok(Facts {
                starts: number(meta::STARTS).await?,
                last: version(number(meta::LAST_VERSION).await?)?,
                cursor_secret: store.get(Table::Meta, meta::CURSOR_SECRET).await?,
                members: Vec::new(),
            });
        };
        let members = Members::parse(&agreement.read(Members::NAME).await?)?;
        let secret = agreement.read(agreed::CURSOR_SECRET).await?;
        Ok(Facts {
            starts: members.starts,
            last: version(members.highest())?,
            cursor_secret: (secret.revision > 0).then_some(secret.value),
            members: members.members,
        })
    }

    /// The facts of a store that nobody uses; an error if somebody does. Who shares a store and is silent for a lease has died.
    pub(super) async fn of_unused(store: &dyn Store, clock: &dyn Clock, lease: Duration, what: &str) -> Result<Facts> {
        let first = Facts::read(store).await?;
        if first.members.is_empty() {
            return Ok(first);
        }
        tracing::info!("origins are on the list of {what}: waiting {lease:?} to see whether they are alive");
        clock.sleep(lease + lease / 10).await;
        let second = Facts::read(store).await?;
        let Some(used) = second.members.iter().find(|member| !first.members.contains(member)) else {
            return Ok(second);
        };
        let by = format!(" by the origin at {}", used.address);
        Err(Error::bad_request(format!("{what} is in use{by}: stop the origins on it, and run this again")))
    }

    /// Names the store as it is now. It has another name once an origin has been on it.
    pub(super) fn identity(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.cursor_secret.as_deref().unwrap_or_default());
        hash.update(self.starts.to_be_bytes());
        hash.update(self.last.as_u64().to_be_bytes());
        Hash(hash.finalize().into()).to_string()
    }

    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }
}

fn version(bits: u64) -> Result<Version> {
    if bits >> 63 != 0 {
        return Err(Error::internal(format!("the last version in the store is {bits}, which is none")));
    }
    Ok(Version::from_u64(bits))
}

/// How far a copy has come, kept in its target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Of the source, as the copy began.
    pub(super) source: String,
    /// The start whose value ids it mints in the target.
    pub(super) starts: u64,
    pub(super) phase: Phase,
    /// Unix seconds: what had expired by then is no more part of what this phase goes through.
    pub(super) at: u64,
    /// The namespace that it is in, and the last key behind it.
    pub(super) namespace: Option<NamespaceId>,
    pub(super) after: Option<String>,
    /// Value ids that it has minted.
    pub(super) values: u64,
    /// The highest version that it has seen.
    pub(super) highest: u64,
    /// What this phase has gone through.
    pub(super) export: Export,
    /// How many entries were copied, once all are.
    pub(super) copied: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Entries are read from the source and put into the target.
    Copying,
    /// Both stores are read, and compared.
    Verifying,
    Done,
}

impl Position {
    /// What is noted in the store, and how often that was changed.
    pub(super) async fn read(store: &dyn Store) -> Result<(Option<Position>, u64)> {
        let noted = match store.agreement() {
            Some(agreement) => agreement.read(agreed::COPY).await?,
            None => match store.get(Table::Meta, meta::COPY).await? {
                Some(value) => Agreed { revision: 1, value },
                None => Agreed::default(),
            },
        };
        if noted.revision == 0 {
            return Ok((None, 0));
        }
        let position = serde_json::from_slice(&noted.value)
            .map_err(|e| Error::internal("reading how far the copy into the store has come").with_source(e))?;
        Ok((Some(position), noted.revision))
    }

    /// Notes it. In a shared store that fails if somebody else has noted something since.
    pub(super) async fn note(&self, store: &dyn Store, revision: &mut u64, durability: Durability) -> Result<()> {
        let value = serde_json::to_vec(self)
            .map_err(|e| Error::internal("writing how far the copy has come").with_source(e))?;
        let Some(agreement) = store.agreement() else {
            let mut batch = Batch::default();
            batch.put(Table::Meta, meta::COPY, value);
            return store.commit(batch, durability).await;
        };
        match agreement.replace(agreed::COPY, *revision, value.into()).await? {
            Replaced::Done => *revision += 1,
            Replaced::Overtaken(_) => {
                return Err(Error::bad_request("another copy into the same store is under way: let one of them end"));
            }
        }
        Ok(())
    }
}

/// An error if the store is the target of a copy that has not ended: it has a part of what it should have.
pub(crate) async fn check_whole(store: &dyn Store) -> Result<()> {
    match Position::read(store).await? {
        (Some(position), _) if position.phase != Phase::Done => Err(Error::bad_request(
            "the copy into this store has not ended: run kvasar store copy again, which goes on where it was, or use another store",
        )),
        _ => Ok(()),
    }
}

/// Counts a start of the copy itself on the target, so that nobody else mints its value ids. May be done twice.
pub(super) async fn count_start(store: &dyn Store, starts: u64) -> Result<()> {
    if starts >= keys::STARTS_MAX {
        return Err(Error::internal(format!("the target has been started {starts} times, the most that it can")));
    }
    match store.agreement() {
        Some(agreement) => change(agreement, |members| members.starts = members.starts.max(starts)).await,
        None => {
            let mut batch = Batch::default();
            batch.put(Table::Meta, meta::STARTS, keys::encode_number(starts));
            store.commit(batch, Durability::Synced).await
        }
    }
}

/// What the next origin on the target must know: above which versions it mints, and by what the cursors are known that were handed out before. May be done twice.
pub(super) async fn hand_over(store: &dyn Store, last: Version, secret: Option<&Bytes>) -> Result<()> {
    let Some(agreement) = store.agreement() else {
        let last = last.max(Facts::read(store).await?.last);
        let mut batch = Batch::default();
        batch.put(Table::Meta, meta::LAST_VERSION, keys::encode_number(last.as_u64()));
        if let Some(secret) = secret {
            batch.put(Table::Meta, meta::CURSOR_SECRET, secret.clone());
        }
        return store.commit(batch, Durability::Synced).await;
    };
    change(agreement, |members| members.floor = members.floor.max(last.as_u64())).await?;
    let Some(secret) = secret else { return Ok(()) };
    let mut known = agreement.read(agreed::CURSOR_SECRET).await?;
    for _ in 0..ATTEMPTS {
        if known.value == *secret {
            return Ok(());
        }
        match agreement.replace(agreed::CURSOR_SECRET, known.revision, secret.clone()).await? {
            Replaced::Done => return Ok(()),
            Replaced::Overtaken(agreed) => known = agreed,
        }
    }
    Err(contended())
}

async fn change(agreement: &dyn Agreement, mut change: impl FnMut(&mut Members)) -> Result<()> {
    let mut known = agreement.read(Members::NAME).await?;
    for _ in 0..ATTEMPTS {
        let old = Members::parse(&known)?;
        let mut members = old.clone();
        change(&mut members);
        if members == old {
            return Ok(());
        }
        match agreement.replace(Members::NAME, known.revision, members.encode()?).await? {
            Replaced::Done => return Ok(()),
            Replaced::Overtaken(agreed) => known = agreed,
        }
    }
    Err(contended())
}

fn contended() -> Error {
    Error::bad_request(format!(
        "the target is in use: what is agreed on in it was changed by others {ATTEMPTS} times; stop the origins on it, and run this again"
    ))
}

/// An error if the target has entries already, as far as anybody can tell: of a shared store, in the namespaces that would be copied.
pub(super) async fn check_empty(store: &dyn Store, namespaces: &[NamespaceId]) -> Result<()> {
    let spans: Vec<(Bytes, Bytes)> = match store.agreement() {
        None => vec![(Bytes::new(), Bytes::new())],
        Some(_) => {
            let of = |namespace: &NamespaceId| {
                let prefix = namespace.to_bytes();
                (Bytes::copy_from_slice(&prefix), keys::after_prefix(&prefix))
            };
            namespaces.iter().rev().map(of).collect()
        }
    };
    for (from, to) in spans {
        if !store.scan(Table::Entry, &from, &to, 1).await?.is_empty() {
            return Err(Error::bad_request(
                "the target has entries already, and no copy was begun into it: give a new folder, or a keyspace that is not there yet",
            ));
        }
    }
    Ok(())
}
