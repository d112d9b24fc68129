//! Namespaces, tokens and accounts.

use super::*;
use crate::{
    error::Kind,
    kv::{Namespace, NewToken, Rights, Token, TokenHash, reserved},
    limits,
    store::{Batch, Durability, Store as _, keys, memory::FailedCommit},
};

async fn control(world: &World, control: Control) -> Result<Controlled> {
    world.origin.control(ACCOUNT, control).await.map(|(controlled, _)| controlled)
}

fn create(title: &str) -> Control {
    Control::CreateNamespace { title: title.into(), jurisdiction: Some("eu".into()), mode: None }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind
}

async fn titles(world: &World) -> Vec<String> {
    let list = List { prefix: reserved::namespaces(ACCOUNT), limit: 1000, cursor: None };
    let page = world.origin.list(NamespaceId::RESERVED, &list).await.unwrap();
    let mut titles: Vec<String> = page
        .keys
        .iter()
        .map(|listed| serde_json::from_slice::<Namespace>(listed.metadata.as_ref().unwrap()).unwrap().title)
        .collect();
    titles.sort();
    titles
}

async fn record(world: &World, key: &Key) -> Option<Bytes> {
    let answer = world.origin.get(NamespaceId::RESERVED, key, &Read::latest()).await.unwrap();
    match answer.state {
        State::Present(entry) => entry.metadata,
        _ => None,
    }
}

#[tokio::test]
async fn a_namespace_is_an_entry_of_the_reserved_namespace() {
    let world = World::start().await;
    let (created, version) = world.origin.control(ACCOUNT, create("images")).await.unwrap();
    let Controlled::Namespace(namespace) = created else { panic!("a namespace was created") };
    assert_eq!(namespace.jurisdiction.as_deref(), Some("eu"));
    let key = reserved::namespace(ACCOUNT, namespace.id);
    let answer = world.origin.get(NamespaceId::RESERVED, &key, &Read::latest()).await.unwrap();
    assert_eq!(answer.version, version);
    let found: Namespace = serde_json::from_slice(&record(&world, &key).await.unwrap()).unwrap();
    assert_eq!(found, namespace);
    assert_eq!(titles(&world).await, ["default", "images"]);
}

#[tokio::test]
async fn a_title_is_an_accounts_once() {
    let world = World::start().await;
    let error = control(&world, create("default")).await.unwrap_err();
    assert_eq!(error.kind, Kind::NamespaceExists);
    assert_eq!(error.message, "a namespace with this account ID and title already exists");
    let another = AccountId::from_u128(2);
    world.origin.ensure_account(&Account { id: another, name: "another".into() }).await.unwrap();
    world.origin.control(another, create("default")).await.unwrap();
}

#[tokio::test]
async fn of_many_who_want_a_title_at_once_one_gets_it() {
    let world = World::start().await;
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let origin = Arc::clone(&world.origin);
            tokio::spawn(async move { origin.control(ACCOUNT, create("wanted")).await.is_ok() })
        })
        .collect();
    // Some of them go away before they know.
    asking[3].abort();
    let mut got = 0;
    for (i, asked) in asking.into_iter().enumerate() {
        if i != 3 {
            got += usize::from(asked.await.unwrap());
        }
    }
    assert!(got <= 1);
    assert_eq!(titles(&world).await, ["default", "wanted"]);
}

#[tokio::test]
async fn renaming_keeps_the_data_and_refuses_a_taken_title() {
    let world = World::start().await;
    world.put("k", Bytes::from("v")).await.unwrap();
    control(&world, create("taken")).await.unwrap();
    let rename = |title: &str| Control::RenameNamespace { id: world.namespace, title: title.into() };
    assert_eq!(kind(control(&world, rename("taken")).await), Kind::NamespaceExists);
    control(&world, rename("default")).await.unwrap();
    let Controlled::Namespace(renamed) = control(&world, rename("new")).await.unwrap() else { panic!("renamed") };
    assert_eq!((renamed.id, renamed.title.as_str()), (world.namespace, "new"));
    assert_eq!(titles(&world).await, ["new", "taken"]);
    assert_eq!(world.get("k").await.unwrap(), "v");
    let unknown = Control::RenameNamespace { id: NamespaceId::from_u128(9), title: "x".into() };
    assert_eq!(kind(control(&world, unknown).await), Kind::NamespaceUnknown);
}

#[tokio::test]
async fn an_account_has_so_many_namespaces_and_no_more() {
    let world = World::start_with(OriginSettings { namespaces_per_account: 2, ..OriginSettings::default() }).await;
    control(&world, create("second")).await.unwrap();
    assert_eq!(kind(control(&world, create("third")).await), Kind::NamespacesTooMany);
    control(&world, Control::RemoveNamespace { id: world.namespace }).await.unwrap();
    control(&world, create("third")).await.unwrap();
}

#[tokio::test]
async fn what_is_another_accounts_is_unknown() {
    let world = World::start().await;
    let another = AccountId::from_u128(2);
    assert_eq!(kind(world.origin.control(another, create("x")).await), Kind::AccountUnknown);
    world.origin.ensure_account(&Account { id: another, name: "another".into() }).await.unwrap();
    let remove = Control::RemoveNamespace { id: world.namespace };
    assert_eq!(kind(world.origin.control(another, remove).await), Kind::NamespaceUnknown);
}

#[tokio::test]
async fn an_account_is_written_once_and_again_only_when_it_changes() {
    let world = World::start().await;
    let before = world.answer("missing").await.version;
    let mut account = Account { id: ACCOUNT, name: "test".into() };
    world.origin.ensure_account(&account).await.unwrap();
    assert_eq!(world.answer("missing").await.version, before);
    account.name = "renamed".into();
    world.origin.ensure_account(&account).await.unwrap();
    let found: Account = serde_json::from_slice(&record(&world, &reserved::account(ACCOUNT)).await.unwrap()).unwrap();
    assert_eq!(found, account);
}

#[tokio::test]
async fn a_removed_namespace_is_gone_at_once_and_its_data_soon() {
    let world = World::start().await;
    let before = world.store.count(Table::Entry);
    for i in 0..600 {
        world.put_expiring(&format!("k{i}"), pattern(i * 3, 0), Expires::After(60)).await.unwrap();
    }
    world.put("large", pattern(200_000, 0)).await.unwrap();
    control(&world, Control::RemoveNamespace { id: world.namespace }).await.unwrap();
    assert_eq!(kind(world.put("k", Bytes::from("v")).await), Kind::NamespaceUnknown);
    let read = world.origin.get(world.namespace, &key("k1"), &Read::latest()).await;
    assert_eq!(kind(read), Kind::NamespaceUnknown);
    for table in [Table::Reclaim, Table::Expiry, Table::Chunk] {
        world.until_rows(table, 0).await;
    }
    world.until_rows(Table::Entry, before - 1).await;
}

#[tokio::test]
async fn reclaiming_a_namespace_goes_on_after_a_crash() {
    let mut world = World::start().await;
    for i in 0..1000 {
        world.put(&format!("k{i}"), pattern(1000, 0)).await.unwrap();
    }
    // The removal and two steps of reclaiming pass, and then the power goes out.
    world.store.fail_after(3, FailedCommit::Lost);
    control(&world, Control::RemoveNamespace { id: world.namespace }).await.unwrap();
    world.until_rows(Table::Entry, 1 + 1000 - 2 * 256).await;
    world.crash().await;
    assert_eq!(kind(world.put("k", Bytes::from("v")).await), Kind::NamespaceUnknown);
    for table in [Table::Reclaim, Table::Chunk] {
        world.until_rows(table, 0).await;
    }
    // The account's own record is what is left.
    world.until_rows(Table::Entry, 1).await;
}

fn token(name: &str, namespaces: Option<Vec<NamespaceId>>) -> Control {
    let mut digest = [0; 32];
    digest[..name.len()].copy_from_slice(name.as_bytes());
    let token = NewToken { name: name.into(), rights: Rights::Write, namespaces, expires: None };
    Control::CreateToken { hash: TokenHash::from_digest(digest), token }
}

#[tokio::test]
async fn a_token_is_found_by_its_hash_and_by_its_account_until_it_is_revoked() {
    let world = World::start().await;
    let Controlled::Token(made) = control(&world, token("ci", Some(vec![world.namespace]))).await.unwrap() else {
        panic!("a token was made")
    };
    for key in [reserved::token(&made.hash), reserved::token_listing(ACCOUNT, &made.id)] {
        let found: Token = serde_json::from_slice(&record(&world, &key).await.unwrap()).unwrap();
        assert_eq!(found, made);
    }
    assert_eq!(kind(control(&world, token("ci", None)).await), Kind::BadRequest);
    let revoke = Control::RevokeToken { id: made.id.clone() };
    // With the hash, by which the tiers on the way know the record that they must not answer any more.
    assert_eq!(control(&world, revoke.clone()).await.unwrap(), Controlled::Token(made.clone()));
    for key in [reserved::token(&made.hash), reserved::token_listing(ACCOUNT, &made.id)] {
        assert_eq!(record(&world, &key).await, None);
    }
    assert_eq!(kind(control(&world, revoke).await), Kind::TokenUnknown);
    assert_eq!(kind(control(&world, Control::RevokeToken { id: "../..".repeat(200) }).await), Kind::TokenUnknown);
}

#[tokio::test]
async fn an_account_has_so_many_tokens_and_no_more() {
    let world = World::start().await;
    let Controlled::Token(made) = control(&world, token("last", None)).await.unwrap() else {
        panic!("a token was made")
    };
    // The others straight into the store: as copies of its record.
    let record_of = |id: &str| keys::entry(NamespaceId::RESERVED, reserved::token_listing(ACCOUNT, id).as_bytes());
    let record = world.store.get(Table::Entry, &record_of(&made.id)).await.unwrap().unwrap();
    let mut others = Batch::default();
    for i in 1..limits::TOKENS_PER_ACCOUNT_MAX {
        others.put(Table::Entry, record_of(&format!("{i:032x}")), record.clone());
    }
    world.store.commit(others, Durability::Synced).await.unwrap();
    let error = control(&world, token("one more", None)).await.unwrap_err();
    assert_eq!(error.kind, Kind::BadRequest);
    assert_eq!(error.message, "this account has 1000 tokens, the most it may have: revoke one first");

    let another = AccountId::from_u128(2);
    world.origin.ensure_account(&Account { id: another, name: "another".into() }).await.unwrap();
    world.origin.control(another, token("another's", None)).await.unwrap();

    control(&world, Control::RevokeToken { id: made.id }).await.unwrap();
    control(&world, token("one more", None)).await.unwrap();
}

#[tokio::test]
async fn a_token_covers_only_namespaces_that_exist() {
    let world = World::start().await;
    let nowhere = Some(vec![world.namespace, NamespaceId::from_u128(9)]);
    assert_eq!(kind(control(&world, token("ci", nowhere)).await), Kind::NamespaceUnknown);
}
