//! Who is asking, and what they may. The only place where a secret is compared.
//!
//! A token is found by its hash as an entry of the reserved namespace, through the same `Source` as all entries: so an edge answers from its
//! own cache, revocation travels like any change, and an outage of the centre locks nobody out. Tiers know each other by a
//! shared secret from their configuration instead.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use constant_time_eq::constant_time_eq;
use http::HeaderMap;
use sha2::{Digest, Sha256};

use crate::{
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
    kv::{
        Account, AccountId, Answer, Key, Namespace, NamespaceId, Read, Rights, Source, State, Token, TokenHash,
        Version, kept::Hit, reserved,
    },
};

/// Whoever a request's credential stands for.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Another of our own servers: may do everything, also in the reserved namespace.
    Tier,
    Token(Arc<Token>),
}

pub struct Auth {
    source: Arc<dyn Source>,
    clock: Arc<dyn Clock>,
    cluster_secret: Option<TokenHash>,
    /// How old an answer about a token or a namespace may be.
    max_age: Duration,
    /// What bounds the questions upstream about tokens and namespaces that are not held; `None` where there is no upstream.
    guesses: Option<GuessLimit>,
}

impl Auth {
    /// Without a `cluster_secret` nobody is a tier.
    pub fn new(
        source: Arc<dyn Source>,
        clock: Arc<dyn Clock>,
        cluster_secret: Option<&str>,
        max_age: Duration,
    ) -> Auth {
        let guesses = Some(GuessLimit::new(Arc::clone(&clock)));
        Auth { source, clock, cluster_secret: cluster_secret.map(hash), max_age, guesses }
    }

    /// The same, in front of an origin in this process: guessing costs a look into its store, and floods nobody.
    pub fn beside_origin(self) -> Auth {
        Auth { guesses: None, ..self }
    }

    /// Who sent a request with these headers: a bearer token, or `X-Auth-Key` with `X-Auth-Email`, or `X-Auth-User-Service-Key` (rest-api 1).
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Identity> {
        let secret = secret(headers)?;
        let hash = hash(secret);
        if let Some(cluster) = &self.cluster_secret
            && same(cluster, &hash)
        {
            return Ok(Identity::Tier);
        }
        let key = reserved::token(&hash);
        let Some(record) = self.record(&key).await? else { return Err(unauthenticated()) };
        Ok(Identity::Token(Arc::new(self.token(&record, &hash)?)))
    }

    /// The token of a record, if it is the one with this hash and has not expired.
    fn token(&self, record: &[u8], hash: &TokenHash) -> Result<Token> {
        let token: Token = parse(record, "token")?;
        if self.is_over(token.token.expires) || !same(&token.hash, hash) {
            return Err(unauthenticated());
        }
        Ok(token)
    }

    fn is_over(&self, expires: Option<u64>) -> bool {
        expires.is_some_and(|expires| expires <= self.clock.wall_millis() / 1000)
    }

    /// What a credential opens, if memory knows it: the same as [`Auth::identify`] and [`Auth::namespace`] find, without a wait. `None` says nothing
    /// but "ask those". Without a namespace it is the only one that the token covers.
    pub fn enter_held(&self, authorization: &[u8], namespace: Option<NamespaceId>, right: Rights) -> Option<Entry> {
        let hash = hash(bearer(std::str::from_utf8(authorization).ok().filter(|text| text.is_ascii())?)?);
        if self.cluster_secret.as_ref().is_some_and(|cluster| same(cluster, &hash)) {
            return Some(Entry { namespace: namespace?, by: None });
        }
        let token_key = reserved::token(&hash);
        let record = self.held(&token_key)?.kept;
        let token = self.token(record.metadata()?, &hash).ok()?;
        let namespace = namespace.or_else(|| token.only_namespace())?;
        token.check(right).and_then(|()| token.check_covers(namespace)).ok()?;
        let namespace_key = reserved::namespace(token.account, namespace);
        self.held(&namespace_key)?;
        let by = EntryToken {
            key: token_key,
            version: record.version(),
            expires: token.token.expires,
            namespace: namespace_key,
            checked: None,
        };
        Some(Entry { namespace, by: Some(by) })
    }

    /// Whether what was found is still so: the same version of the token is held, and the namespace is there. That is looked up anew when either has changed
    /// since the last look, or has grown so old that it is time to renew it.
    pub fn still(&self, entry: &mut Entry) -> bool {
        let Some(by) = &mut entry.by else { return true };
        if self.is_over(by.expires) {
            return false;
        }
        // Before the looks: what changes while they are made counts as changed since.
        let changes = self.source.control_changes();
        let now = self.clock.now();
        if let (Some(changes), Some(checked)) = (changes, &by.checked)
            && checked.changes == changes
            && now < checked.good_until
        {
            return true;
        }
        by.checked = None;
        let (Some(token), Some(namespace)) = (self.held(&by.key), self.held(&by.namespace)) else { return false };
        if token.kept.version() != by.version {
            return false;
        }
        let good_until = self.good_until(&token, now).min(self.good_until(&namespace, now));
        by.checked = changes.map(|changes| Checked { changes, good_until });
        true
    }

    /// Until when a record need not be looked up again: half the age that it may reach, so that whoever looks it up then has it renewed in time.
    fn good_until(&self, hit: &Hit, now: Moment) -> Moment {
        (now + (self.max_age / 2).saturating_sub(hit.age)).min(hit.kept.expires_at())
    }

    /// Whether two credentials, as they were sent, are the same.
    pub fn is_same(&self, a: &[u8], b: &[u8]) -> bool {
        constant_time_eq(a, b)
    }

    /// A reserved record that is there, by memory alone.
    fn held(&self, key: &Key) -> Option<Hit> {
        let read = Read { max_age: self.max_age, ..Read::default() };
        self.source.held(NamespaceId::RESERVED, key.as_bytes(), &read).filter(|hit| hit.kept.is_present())
    }

    /// Whether the identity may do this in that namespace, which then exists.
    ///
    /// Without the right the answer is the same whether the namespace exists or not; another account's namespace is answered as one that
    /// doesn't.
    pub async fn namespace(&self, identity: &Identity, namespace: NamespaceId, right: Rights) -> Result<()> {
        match identity {
            Identity::Tier => Ok(()),
            Identity::Token(token) => {
                token.check(right)?;
                token.check_covers(namespace)?;
                match self.record(&reserved::namespace(token.account, namespace)).await? {
                    Some(_) => Ok(()),
                    None => Err(namespace_unknown()),
                }
            }
        }
    }

    /// A namespace of an account.
    pub async fn find_namespace(&self, account: AccountId, namespace: NamespaceId) -> Result<Namespace> {
        match self.record(&reserved::namespace(account, namespace)).await? {
            Some(record) => parse(&record, "namespace"),
            None => Err(namespace_unknown()),
        }
    }

    pub async fn find_account(&self, account: AccountId) -> Result<Account> {
        match self.record(&reserved::account(account)).await? {
            Some(record) => parse(&record, "account"),
            None => Err(Error::new(Kind::AccountUnknown, "account not found")),
        }
    }

    /// A reserved record: from memory while it is fresh, else through the source, within the limit on guesses.
    async fn record(&self, key: &Key) -> Result<Option<Bytes>> {
        let read = Read { max_age: self.max_age, ..Read::default() };
        if let Some(hit) = self.source.held(NamespaceId::RESERVED, key.as_bytes(), &read) {
            return metadata_of(hit.answer(&read));
        }
        self.guesses.as_ref().map_or(Ok(()), GuessLimit::charge)?;
        let answer = self.source.get(NamespaceId::RESERVED, key, &read).await;
        // An outage is no guess.
        if !matches!(&answer, Ok(Answer { state: State::Absent, .. })) {
            self.guesses.as_ref().inspect(|guesses| guesses.refund());
        }
        metadata_of(answer?)
    }
}

/// What a credential was found to open.
pub struct Entry {
    pub namespace: NamespaceId,
    /// The token that opens it; `None` for the cluster's own secret.
    by: Option<EntryToken>,
}

struct EntryToken {
    key: Key,
    version: Version,
    expires: Option<u64>,
    /// The namespace's record.
    namespace: Key,
    checked: Option<Checked>,
}

/// A look at a token and a namespace that found both as they were.
struct Checked {
    /// By [`Source::control_changes`].
    changes: u64,
    good_until: Moment,
}

impl Token {
    /// The namespace that a token is about when a request names none.
    pub fn only_namespace(&self) -> Option<NamespaceId> {
        match self.token.namespaces.as_deref() {
            Some([only]) => Some(*only),
            _ => None,
        }
    }

    fn check(&self, right: Rights) -> Result<()> {
        if self.token.rights >= right { Ok(()) } else { Err(forbidden()) }
    }

    fn check_covers(&self, namespace: NamespaceId) -> Result<()> {
        match &self.token.namespaces {
            Some(covered) if !covered.contains(&namespace) => Err(forbidden()),
            _ => Ok(()),
        }
    }
}

impl Identity {
    /// The account that REST works in, once the path has named one. Another account's id is answered like one that isn't there.
    pub fn in_account(&self, account: AccountId) -> Result<&Arc<Token>> {
        match self {
            Identity::Token(token) if token.account == account => Ok(token),
            _ => Err(Error::new(Kind::AccountUnknown, "account not found")),
        }
    }

    /// Whether a token has a right over the account as a whole: a token bound to some namespaces has none beyond reading.
    pub fn account_right(&self, right: Rights) -> Result<()> {
        match self {
            Identity::Tier => Ok(()),
            Identity::Token(token) => {
                token.check(right)?;
                if right > Rights::Read && token.token.namespaces.is_some() { Err(forbidden()) } else { Ok(()) }
            }
        }
    }
}

/// The hash under which a secret is known.
pub fn hash(secret: &str) -> TokenHash {
    TokenHash::from_digest(Sha256::digest(secret.as_bytes()).into())
}

/// The text of a new token: letters, digits, `-` and `_` only, since clients check that, with 256 bits of chance.
pub fn new_secret(clock: &dyn Clock) -> String {
    use base64::Engine;
    format!("kvs_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(clock::random_bytes::<32>(clock)))
}

fn same(a: &TokenHash, b: &TokenHash) -> bool {
    constant_time_eq(a.as_str().as_bytes(), b.as_str().as_bytes())
}

fn secret(headers: &HeaderMap) -> Result<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let found = match text("authorization") {
        Some(header) => bearer(header),
        None => match (text("x-auth-key"), text("x-auth-email")) {
            (Some(key), Some(email)) if !email.is_empty() => Some(key),
            _ => text("x-auth-user-service-key"),
        },
    };
    found.filter(|secret| !secret.is_empty()).ok_or_else(unauthenticated)
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, secret) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim()).filter(|secret| !secret.is_empty())
}

fn metadata_of(answer: Answer) -> Result<Option<Bytes>> {
    match answer.state {
        State::Present(entry) => Ok(entry.metadata),
        State::Absent => Ok(None),
        State::Unchanged { .. } => Err(Error::internal("a question without a held version was answered 'unchanged'")),
    }
}

fn parse<T: serde::de::DeserializeOwned>(record: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(record)
        .map_err(|e| Error::internal(format!("reading the record of a {what}")).with_source(e))
}

fn namespace_unknown() -> Error {
    Error::new(Kind::NamespaceUnknown, "namespace not found")
}

fn unauthenticated() -> Error {
    Error::new(Kind::Unauthenticated, "Unauthorized")
}

fn forbidden() -> Error {
    Error::new(Kind::Forbidden, "Forbidden")
}

/// How many wrong guesses a second may ask on, so that guessing tokens can't flood the centre. A right one is refunded: who
/// holds a token is never slowed by it, unless the guessers have used the limit up and the token is not held here.
struct GuessLimit {
    clock: Arc<dyn Clock>,
    state: Mutex<GuessState>,
}

struct GuessState {
    left: f64,
    at: Moment,
}

const GUESSES_PER_SECOND: f64 = 500.0;
const GUESSES_BURST: f64 = 2000.0;

impl GuessLimit {
    fn new(clock: Arc<dyn Clock>) -> GuessLimit {
        let state = GuessState { left: GUESSES_BURST, at: clock.now() };
        GuessLimit { clock, state: Mutex::new(state) }
    }

    fn charge(&self) -> Result<()> {
        let mut state = self.state.lock().expect("no holder of this lock can panic");
        let now = self.clock.now();
        let refill = now.since(state.at).as_secs_f64() * GUESSES_PER_SECOND;
        state.left = (state.left + refill).min(GUESSES_BURST);
        state.at = now;
        if state.left < 1.0 {
            return Err(Error::new(Kind::RateLimited, "Too Many Requests").after(Duration::from_secs(1)));
        }
        state.left -= 1.0;
        Ok(())
    }

    fn refund(&self) {
        self.state.lock().expect("no holder of this lock can panic").left += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use async_trait::async_trait;

    use super::*;
    use crate::{
        clock::ManualClock,
        kv::{
            CacheStatus, Entry, Key, List, NewToken, Page, Version,
            feed::{Follow, Frames},
            kept::Hit,
        },
    };

    /// Records by key, and how often it was asked for one.
    #[derive(Default)]
    struct Records {
        records: Mutex<HashMap<Key, Bytes>>,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Source for Records {
        fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
            None
        }

        async fn get(&self, namespace: NamespaceId, key: &Key, _: &Read) -> Result<Answer> {
            assert_eq!(namespace, NamespaceId::RESERVED);
            self.asked.fetch_add(1, Ordering::SeqCst);
            let state = match self.records.lock().unwrap().get(key) {
                None => State::Absent,
                Some(record) => State::Present(Entry {
                    value: Bytes::new().into(),
                    metadata: Some(record.clone()),
                    expiration: None,
                    time_left: None,
                }),
            };
            Ok(Answer {
                state,
                version: Version::ZERO,
                age: Duration::ZERO,
                covered: true,
                status: CacheStatus::Bypass,
            })
        }

        async fn list(&self, _: NamespaceId, _: &List) -> Result<Page> {
            Ok(Page { keys: Vec::new(), cursor: None })
        }

        async fn follow(&self, _: Follow, _: Frames) -> Result<Frames> {
            Err(Error::internal("whoever checks credentials follows nothing"))
        }
    }

    const ACCOUNT: AccountId = AccountId::from_u128(1);
    const MINE: NamespaceId = NamespaceId::from_u128(10);
    const OTHERS: NamespaceId = NamespaceId::from_u128(20);
    const SECRET: &str = "a token";

    struct World {
        records: Arc<Records>,
        clock: Arc<ManualClock>,
        auth: Auth,
    }

    fn world() -> World {
        let (records, clock) = (Arc::new(Records::default()), ManualClock::shared());
        let source = Arc::clone(&records) as Arc<dyn Source>;
        let auth = Auth::new(source, Arc::new(Arc::clone(&clock)), Some("the cluster's secret"), Duration::ZERO);
        let world = World { records, clock, auth };
        for (account, namespace) in [(ACCOUNT, MINE), (AccountId::from_u128(2), OTHERS)] {
            let record = Namespace { id: namespace, title: "t".into(), jurisdiction: None, mode: None };
            world.put(reserved::namespace(account, namespace), &record);
        }
        world
    }

    impl World {
        fn put(&self, key: Key, record: &impl serde::Serialize) {
            self.records.records.lock().unwrap().insert(key, serde_json::to_vec(record).unwrap().into());
        }

        fn token(&self, rights: Rights, namespaces: Option<Vec<NamespaceId>>, expires: Option<u64>) {
            let hash = hash(SECRET);
            let token = NewToken { name: "n".into(), rights, namespaces, expires };
            let token = Token { id: "x".into(), account: ACCOUNT, hash: hash.clone(), token };
            self.put(reserved::token(&hash), &token);
        }

        async fn may(&self, right: Rights, namespace: NamespaceId) -> Result<(), Kind> {
            let headers = headers(&[("authorization", &format!("Bearer {SECRET}"))]);
            let identity = self.auth.identify(&headers).await.map_err(|e| e.kind)?;
            self.auth.namespace(&identity, namespace, right).await.map_err(|e| e.kind)
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn each_right_includes_the_lesser_ones() {
        let w = world();
        w.token(Rights::Read, None, None);
        assert_eq!(w.may(Rights::Read, MINE).await, Ok(()));
        assert_eq!(w.may(Rights::Write, MINE).await, Err(Kind::Forbidden));
        w.token(Rights::Admin, None, None);
        assert_eq!(w.may(Rights::Write, MINE).await, Ok(()));
    }

    #[tokio::test]
    async fn without_the_right_a_namespace_that_exists_answers_like_one_that_does_not() {
        let w = world();
        w.token(Rights::Write, Some(vec![]), None);
        assert_eq!(w.may(Rights::Read, MINE).await, w.may(Rights::Read, NamespaceId::from_u128(99)).await);
        w.token(Rights::Read, None, None);
        assert_eq!(w.may(Rights::Write, MINE).await, w.may(Rights::Write, NamespaceId::from_u128(99)).await);
    }

    #[tokio::test]
    async fn another_accounts_namespace_is_unknown() {
        let w = world();
        w.token(Rights::Admin, None, None);
        assert_eq!(w.may(Rights::Read, OTHERS).await, Err(Kind::NamespaceUnknown));
        assert_eq!(w.may(Rights::Read, NamespaceId::RESERVED).await, Err(Kind::NamespaceUnknown));
    }

    #[tokio::test]
    async fn an_expired_token_is_no_token() {
        let w = world();
        w.token(Rights::Admin, None, Some(w.clock.wall_millis() / 1000 + 10));
        assert_eq!(w.may(Rights::Read, MINE).await, Ok(()));
        w.clock.advance(Duration::from_secs(10));
        assert_eq!(w.may(Rights::Read, MINE).await, Err(Kind::Unauthenticated));
    }

    #[tokio::test]
    async fn every_form_of_credential_is_taken_and_what_is_none_is_refused() {
        let w = world();
        w.token(Rights::Read, None, None);
        let check =
            async |pairs: &[(&'static str, &str)]| w.auth.identify(&headers(pairs)).await.map_err(|e| e.kind).is_ok();
        assert!(check(&[("authorization", "Bearer a token")]).await);
        assert!(check(&[("authorization", "bearer a token")]).await);
        assert!(check(&[("x-auth-key", SECRET), ("x-auth-email", "a@b")]).await);
        assert!(check(&[("x-auth-user-service-key", SECRET)]).await);
        for refused in [
            &[][..],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Basic a token")],
            &[("authorization", "a token")],
            &[("authorization", "Bearer another")],
            &[("x-auth-key", SECRET)],
            &[("x-auth-key", SECRET), ("x-auth-email", "")],
        ] {
            assert!(!check(refused).await, "{refused:?}");
        }
    }

    #[tokio::test]
    async fn only_the_clusters_secret_makes_a_tier() {
        let w = world();
        let tier = w.auth.identify(&headers(&[("authorization", "Bearer the cluster's secret")])).await.unwrap();
        assert!(matches!(tier, Identity::Tier));
        assert!(w.auth.namespace(&tier, NamespaceId::RESERVED, Rights::Read).await.is_ok());
        assert_eq!(w.records.asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn guessing_is_bounded_and_right_credentials_use_nothing_up() {
        let w = world();
        w.token(Rights::Read, None, None);
        let right = headers(&[("authorization", "Bearer a token")]);
        for _ in 0..10_000 {
            w.auth.identify(&right).await.unwrap();
        }
        let mut limited = 0;
        for i in 0..10_000 {
            let guess = headers(&[("authorization", &format!("Bearer {i}"))]);
            let error = w.auth.identify(&guess).await.unwrap_err();
            limited += usize::from(error.kind == Kind::RateLimited);
        }
        assert_eq!(limited, 10_000 - GUESSES_BURST as usize);
        w.clock.advance(Duration::from_secs(1));
        assert!(w.auth.identify(&right).await.is_ok());
    }

    #[tokio::test]
    async fn beside_an_origin_guessing_slows_nobody() {
        let w = world();
        w.token(Rights::Read, None, None);
        let auth = w.auth.beside_origin();
        for i in 0..10_000 {
            let guess = headers(&[("authorization", &format!("Bearer {i}"))]);
            assert_eq!(auth.identify(&guess).await.unwrap_err().kind, Kind::Unauthenticated);
        }
        assert!(auth.identify(&headers(&[("authorization", "Bearer a token")])).await.is_ok());
    }

    #[test]
    fn a_new_secret_is_what_the_clients_accept() {
        let secret = new_secret(&ManualClock::shared());
        assert!((40..=80).contains(&secret.len()));
        assert!(secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }
}
