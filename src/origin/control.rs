//! What exists: accounts, namespaces and tokens, as entries of the reserved namespace.
//!
//! Changes of it are decided one at a time, so that two can't take the same title. Their records go through the committer like any entry, so they
//! are numbered, durable and cached like any entry.

use std::{
    collections::HashSet,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;

use super::{
    commit::{Action, Change, Committer, Effect},
    membership::Membership,
    namespace_unknown,
    values::Body,
};
use crate::{
    clock::{Clock, random_bytes},
    error::{Error, Kind, Result},
    kv::{
        Account, AccountId, Control, Controlled, Key, Namespace, NamespaceId, NewToken, Token, TokenHash, Version,
        reserved,
    },
    limits,
    store::{
        Store, Table,
        keys::{self, Place, Record},
    },
};

/// The namespaces that exist, of all accounts: in memory, since every request asks.
#[derive(Default)]
pub(super) struct Namespaces {
    known: RwLock<HashSet<NamespaceId>>,
    /// How often this origin has changed them itself.
    changes: AtomicU64,
    /// Held while they are read from the store.
    reading: Mutex<()>,
}

impl Namespaces {
    pub(super) async fn load(store: &dyn Store) -> Result<Namespaces> {
        let namespaces = Namespaces::default();
        namespaces.read(store).await?;
        Ok(namespaces)
    }

    /// Learns what the store has: other origins may have decided since.
    pub(super) async fn read(&self, store: &dyn Store) -> Result<()> {
        let _one_at_a_time = self.reading.lock().await;
        loop {
            let changes = self.changes.load(Ordering::Acquire);
            let mut namespaces = HashSet::new();
            for (key, record) in scan(store, b"namespace/").await? {
                let namespace: Namespace = parse(&key, &record)?;
                namespaces.insert(namespace.id);
            }
            let mut known = self.known.write().expect("no holder of this lock can panic");
            // What was changed here meanwhile may be missing in what was read.
            if self.changes.load(Ordering::Acquire) == changes {
                *known = namespaces;
                return Ok(());
            }
        }
    }

    /// [`Namespaces::check`], at one of several origins: what is not known here another one may have made.
    pub(super) async fn check_anew(&self, namespace: NamespaceId, store: &dyn Store) -> Result<()> {
        if self.check(namespace).is_ok() {
            return Ok(());
        }
        // Who waited for another's reading may have asked after it began.
        drop(self.reading.lock().await);
        if self.check(namespace).is_err() {
            self.read(store).await?;
        }
        self.check(namespace)
    }

    /// An error unless the namespace exists.
    pub(super) fn check(&self, namespace: NamespaceId) -> Result<()> {
        let exists = namespace == NamespaceId::RESERVED
            || self.known.read().expect("no holder of this lock can panic").contains(&namespace);
        if exists { Ok(()) } else { Err(namespace_unknown()) }
    }

    pub(super) fn apply(&self, effect: Effect) {
        let mut namespaces = self.known.write().expect("no holder of this lock can panic");
        self.changes.fetch_add(1, Ordering::AcqRel);
        match effect {
            Effect::Create(namespace) => {
                namespaces.insert(namespace);
            }
            Effect::Remove(namespace) => {
                namespaces.remove(&namespace);
            }
            Effect::Reclaimed(_) => {}
        }
    }
}

/// Decides what exists.
pub(super) struct Registry {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) committer: Arc<Committer>,
    pub(super) namespaces_per_account: usize,
    pub(super) deciding: Mutex<()>,
    /// Where other origins decide, too.
    pub(super) membership: Option<Arc<Membership>>,
}

impl Registry {
    pub(super) async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        self.alone(async || self.decide(account, control).await).await
    }

    /// Nobody else decides meanwhile, here or at another origin.
    async fn alone<T>(&self, decide: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        let _one_at_a_time = self.deciding.lock().await;
        let Some(membership) = &self.membership else { return decide().await };
        membership.decide().await?;
        let decided = decide().await;
        membership.decided().await;
        decided
    }

    async fn decide(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        if self.find::<Account>(&reserved::account(account)).await?.is_none() {
            return Err(Error::new(Kind::AccountUnknown, "account not found"));
        }
        match control {
            Control::CreateNamespace { title, jurisdiction, mode } => {
                self.create_namespace(account, title, jurisdiction, mode).await
            }
            Control::RenameNamespace { id, title } => self.rename_namespace(account, id, title).await,
            Control::RemoveNamespace { id } => self.remove_namespace(account, id).await,
            Control::CreateToken { hash, token } => self.create_token(account, hash, token).await,
            Control::RevokeToken { id } => self.revoke_token(account, &id).await,
        }
    }

    pub(super) async fn ensure_account(&self, account: &Account) -> Result<bool> {
        let key = reserved::account(account.id);
        if self.find::<Account>(&key).await?.as_ref() == Some(account) {
            return Ok(true);
        }
        self.alone(async || self.make_account(key, account).await).await
    }

    async fn make_account(&self, key: Key, account: &Account) -> Result<bool> {
        if self.membership.is_some() {
            for (other, record) in scan(&*self.store, b"account/").await? {
                if other != key && parse::<Account>(&other, &record)?.name == account.name {
                    return Ok(false);
                }
            }
        }
        tracing::info!(account = %account.id, name = account.name, "writing the record of an account");
        self.commit(vec![put(key, account)?], None).await.map(|_| true)
    }

    async fn create_namespace(
        &self,
        account: AccountId,
        title: String,
        jurisdiction: Option<String>,
        mode: Option<String>,
    ) -> Result<(Controlled, Version)> {
        let others = self.namespaces(account).await?;
        check_title(&others, &title)?;
        if others.len() >= self.namespaces_per_account {
            let most = self.namespaces_per_account;
            return Err(Error::new(
                Kind::NamespacesTooMany,
                format!("this account has {most} namespaces, the most it may have"),
            ));
        }
        let id = NamespaceId::from_bytes(random_bytes(&*self.clock));
        let namespace = Namespace { id, title, jurisdiction, mode };
        let version =
            self.commit(vec![put(reserved::namespace(account, id), &namespace)?], Some(Effect::Create(id))).await?;
        tracing::info!(%account, namespace = %id, title = namespace.title, "created a namespace");
        Ok((Controlled::Namespace(namespace), version))
    }

    async fn rename_namespace(
        &self,
        account: AccountId,
        id: NamespaceId,
        title: String,
    ) -> Result<(Controlled, Version)> {
        let mut others = self.namespaces(account).await?;
        let at = others.iter().position(|other| other.id == id).ok_or_else(namespace_unknown)?;
        let renamed = Namespace { title, ..others.swap_remove(at) };
        check_title(&others, &renamed.title)?;
        let version = self.commit(vec![put(reserved::namespace(account, id), &renamed)?], None).await?;
        Ok((Controlled::Namespace(renamed), version))
    }

    async fn remove_namespace(&self, account: AccountId, id: NamespaceId) -> Result<(Controlled, Version)> {
        let key = reserved::namespace(account, id);
        let namespace: Namespace = self.find(&key).await?.ok_or_else(namespace_unknown)?;
        let version = self.commit(vec![delete(key)], Some(Effect::Remove(id))).await?;
        tracing::info!(%account, namespace = %id, title = namespace.title, "removed a namespace");
        Ok((Controlled::Done, version))
    }

    async fn create_token(
        &self,
        account: AccountId,
        hash: TokenHash,
        token: NewToken,
    ) -> Result<(Controlled, Version)> {
        for namespace in token.namespaces.iter().flatten() {
            let found: Option<Namespace> = self.find(&reserved::namespace(account, *namespace)).await?;
            found.ok_or_else(namespace_unknown)?;
        }
        let key = reserved::token(&hash);
        if self.find::<Token>(&key).await?.is_some() {
            return Err(Error::bad_request("this token exists already"));
        }
        let most = limits::TOKENS_PER_ACCOUNT_MAX;
        if scan(&*self.store, &reserved::token_listings(account)).await?.len() >= most {
            return Err(Error::bad_request(format!(
                "this account has {most} tokens, the most it may have: revoke one first"
            )));
        }
        let id = u128::from_be_bytes(random_bytes(&*self.clock));
        let token = Token { id: format!("{id:032x}"), account, hash, token };
        let listing = reserved::token_listing(account, &token.id);
        let version = self.commit(vec![put(key, &token)?, put(listing, &token)?], None).await?;
        tracing::info!(%account, token = token.id, name = token.token.name, rights = ?token.token.rights, "created a token");
        Ok((Controlled::Token(token), version))
    }

    async fn revoke_token(&self, account: AccountId, id: &str) -> Result<(Controlled, Version)> {
        let unknown = || Error::new(Kind::TokenUnknown, "token not found");
        // The id comes from outside and becomes part of a key.
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let listing = reserved::token_listing(account, id);
        let token: Token = self.find(&listing).await?.ok_or_else(unknown)?;
        let version = self.commit(vec![delete(reserved::token(&token.hash)), delete(listing)], None).await?;
        tracing::info!(%account, token = id, name = token.token.name, "revoked a token");
        // With its hash, so that each tier on the way of the answer can ask anew about the record that it holds of the token.
        Ok((Controlled::Token(token), version))
    }

    async fn namespaces(&self, account: AccountId) -> Result<Vec<Namespace>> {
        let records = scan(&*self.store, &reserved::namespaces(account)).await?;
        records.iter().map(|(key, record)| parse(key, record)).collect()
    }

    async fn find<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>> {
        let row = keys::entry(NamespaceId::RESERVED, key.as_bytes());
        let Some(value) = self.store.get(Table::Entry, &row).await? else { return Ok(None) };
        let record = Record::decode(&row, &value)?;
        if record.place == Place::Deleted { Ok(None) } else { parse(key, &record).map(Some) }
    }

    /// Returns the highest version of the changes.
    async fn commit(&self, changes: Vec<Change>, effect: Option<Effect>) -> Result<Version> {
        let outcomes = self.committer.commit(changes, effect).await?;
        let outcomes = outcomes.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(outcomes.into_iter().map(|outcome| outcome.version).max().unwrap_or(Version::ZERO))
    }
}

fn check_title(others: &[Namespace], title: &str) -> Result<()> {
    if others.iter().any(|other| other.title == title) {
        return Err(Error::new(Kind::NamespaceExists, "a namespace with this account ID and title already exists"));
    }
    Ok(())
}

fn put(key: Key, record: &impl Serialize) -> Result<Change> {
    let record = serde_json::to_vec(record)
        .map_err(|e| Error::internal(format!("writing the record {key:?}")).with_source(e))?;
    let action = Action::Put { body: Body::Inline(Bytes::new()), metadata: Some(record.into()), expiration: None };
    Ok(Change { namespace: NamespaceId::RESERVED, key, action, id: None, own: false })
}

fn delete(key: Key) -> Change {
    Change { namespace: NamespaceId::RESERVED, key, action: Action::Delete, id: None, own: false }
}

fn parse<T: DeserializeOwned>(key: &Key, record: &Record) -> Result<T> {
    let text = record.metadata.as_deref().unwrap_or_default();
    serde_json::from_slice(text).map_err(|e| Error::internal(format!("reading the record {key:?}")).with_source(e))
}

/// All entries of the reserved namespace with a prefix.
async fn scan(store: &dyn Store, prefix: &[u8]) -> Result<Vec<(Key, Record)>> {
    const STEP_ROWS: usize = 1000;
    let mut from = keys::entry(NamespaceId::RESERVED, prefix);
    let to = keys::after_prefix(&from);
    let mut records = Vec::new();
    loop {
        let rows = store.scan(Table::Entry, &from, &to, STEP_ROWS).await?;
        for (row, value) in &rows {
            let (_, key) = keys::parse_entry(row)?;
            let record = Record::decode(row, value)?;
            if record.place != Place::Deleted {
                records.push((key, record));
            }
        }
        match rows.last() {
            Some((last, _)) if rows.len() == STEP_ROWS => from = keys::after(last),
            _ => return Ok(records),
        }
    }
}
