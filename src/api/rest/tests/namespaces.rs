//! Namespaces (rest-api 2).

use super::*;

fn namespaces(query: &str) -> String {
    format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces{query}")
}

fn titles(reply: &Reply) -> Vec<String> {
    let result = reply.result();
    result.as_array().unwrap().iter().map(|one| one["title"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_namespace_is_created_read_renamed_and_removed() {
    let world = World::start().await;
    let made = world.post(&namespaces(""), &json!({"title": "sessions", "unknown": 1})).await.result();
    let id = made["id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), id.bytes().all(|byte| byte.is_ascii_hexdigit())), (32, true));
    assert_eq!(made, json!({"id": id, "title": "sessions", "supports_url_encoding": true}));
    let one = namespaces(&format!("/{id}"));
    assert_eq!(world.get(&one).await.result(), made);
    assert_eq!(
        world
            .get(
                &one.to_uppercase()
                    .replace("/CLIENT/V4/ACCOUNTS/", "/client/v4/accounts/")
                    .replace("/STORAGE/KV/NAMESPACES/", "/storage/kv/namespaces/")
            )
            .await
            .result(),
        made
    );

    let renamed = world.put(&one, r#"{"title": "old sessions"}"#).await.result();
    assert_eq!(renamed, json!({"id": id, "title": "old sessions", "supports_url_encoding": true}));
    assert_eq!(world.get(&one).await.result(), renamed);

    // The DELETE of some clients has a body, which says nothing.
    let removal = Ask::new(Method::DELETE, &one).header("content-type", "application/json").body("{}");
    assert_eq!(world.send(removal).await.result(), Json::Null);
    world.get(&one).await.fails(404, 10013, "get namespace: 'namespace not found'");
    world.delete(&one).await.fails(404, 10013, "remove namespace: 'namespace not found'");
    world.put(&one, r#"{"title": "x"}"#).await.fails(404, 10013, "rename namespace: 'namespace not found'");
}

#[tokio::test]
async fn everything_in_a_removed_namespace_is_not_found() {
    let world = World::start().await;
    world.put(&world.path("values/k"), "v").await.result();
    world.delete(&namespaces(&format!("/{}", world.namespace))).await.result();
    world.get(&world.path("values/k")).await.fails(404, 10013, "get: 'namespace not found'");
    world.put(&world.path("values/k"), "v").await.fails(404, 10013, "put: 'namespace not found'");
    world.delete(&world.path("values/k")).await.fails(404, 10013, "remove key: 'namespace not found'");
    world.get(&world.path("metadata/k")).await.fails(404, 10013, "metadata: 'namespace not found'");
    world.get(&world.path("keys")).await.fails(404, 10013, "list keys: 'namespace not found'");
    let asked = json!({"keys": ["k"]});
    world.post(&world.path("bulk/get"), &asked).await.fails(404, 10013, "bulk get keys: 'namespace not found'");
    world.post(&world.path("bulk/delete"), &json!(["k"])).await.fails(404, 10013, "bulk delete: 'namespace not found'");
    world.put(&world.path("bulk"), "[]").await.fails(404, 10013, "bulk put: 'namespace not found'");
}

#[tokio::test]
async fn titles_are_unique_until_their_namespace_is_removed() {
    let world = World::start().await;
    let taken = "a namespace with this account ID and title already exists";
    world.post(&namespaces(""), &json!({"title": "default"})).await.fails(400, 10014, taken);
    let other = world.post(&namespaces(""), &json!({"title": "other"})).await.result();
    let other = namespaces(&format!("/{}", other["id"].as_str().unwrap()));
    world.put(&other, r#"{"title": "default"}"#).await.fails(400, 10014, taken);
    world.delete(&other).await.result();
    world.post(&namespaces(""), &json!({"title": "other"})).await.result();
}

#[tokio::test]
async fn titles_are_checked() {
    let world = World::start().await;
    let all = namespaces("");
    for body in [json!({}), json!({"title": ""}), json!({"title": null})] {
        world.post(&all, &body).await.fails(400, 10019, "create namespace: 'missing title'");
    }
    for body in [json!({"title": 5}), json!({"title": {}}), json!([]), json!("x"), json!({"title": "x", "mode": 1})] {
        world.post(&all, &body).await.fails_saying(400, 10012, "could not parse the request body");
    }
    let long = "\u{e9}".repeat(513);
    world.post(&all, &json!({"title": long})).await.fails(
        400,
        10012,
        "create namespace: 'Title length of 513 exceeds limit of 512.'",
    );
    world.post(&all, &json!({"title": "\u{e9}".repeat(512)})).await.result();
    world.put(&namespaces(&format!("/{}", world.namespace)), "{}").await.fails(
        400,
        10019,
        "rename namespace: 'missing title'",
    );
}

#[tokio::test]
async fn jurisdiction_and_mode_are_kept() {
    let world = World::start().await;
    for (body, member, kept) in [
        (json!({"title": "a", "jurisdiction": "eu"}), "jurisdiction", "eu"),
        (json!({"title": "b", "jurisdiction": "fedramp"}), "jurisdiction", "fedramp"),
        (json!({"title": "c", "mode": "instant"}), "mode", "instant"),
    ] {
        let made = world.post(&namespaces(""), &body).await.result();
        let one = namespaces(&format!("/{}", made["id"].as_str().unwrap()));
        assert_eq!(world.get(&one).await.result()[member], kept);
        let renamed = world.put(&one, format!(r#"{{"title": "{kept} renamed"}}"#)).await.result();
        assert_eq!(renamed[member], kept);
    }
    for body in [
        json!({"title": "d", "jurisdiction": "mars"}),
        json!({"title": "d", "mode": "slow"}),
        json!({"title": "d", "mode": "instant", "jurisdiction": "eu"}),
    ] {
        assert_eq!(world.post(&namespaces(""), &body).await.status, 400);
    }
}

#[tokio::test]
async fn listing_is_paged_and_ordered_as_clients_ask() {
    let world = World::start().await;
    for title in ["c", "a", "b"] {
        world.post(&namespaces(""), &json!({"title": title})).await.result();
    }
    let reply = world.get(&namespaces("")).await;
    assert_eq!(titles(&reply), ["a", "b", "c", "default"]);
    assert_eq!(reply.info(), json!({"page": 1, "per_page": 20, "count": 4, "total_count": 4, "total_pages": 1}));
    // A bare question mark, and capitals: cloudflare-rs.
    assert_eq!(titles(&world.get(&namespaces("?")).await), ["a", "b", "c", "default"]);
    let reply = world.get(&namespaces("?order=Title&direction=Desc&page=1&per_page=3")).await;
    assert_eq!(titles(&reply), ["default", "c", "b"]);
    assert_eq!(reply.info(), json!({"page": 1, "per_page": 3, "count": 3, "total_count": 4, "total_pages": 2}));
    assert_eq!(titles(&world.get(&namespaces("?order=title&direction=desc&page=2&per_page=3")).await), ["a"]);
    assert_eq!(titles(&world.get(&namespaces("?per_page=1000&order=title&direction=asc&page=2")).await), [""; 0]);
    let ids = world.get(&namespaces("?order=Id")).await.result();
    let ids: Vec<&str> = ids.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert!(ids.is_sorted());
    assert_eq!(titles(&world.get(&namespaces("?page=4294967295&per_page=1000")).await), [""; 0]);

    for bad in ["0", "-1", "x", "1.5", "99999999999999999999", ""] {
        world.get(&namespaces(&format!("?page={bad}"))).await.fails_saying(400, 10007, "Invalid page");
        world.get(&namespaces(&format!("?per_page={bad}"))).await.fails_saying(400, 10008, "Invalid per_page");
    }
    world.get(&namespaces("?per_page=1001")).await.fails_saying(400, 10008, "Invalid per_page of 1001");
    world.get(&namespaces("?order=size")).await.fails_saying(400, 10043, "Invalid order of size");
    world.get(&namespaces("?direction=up")).await.fails_saying(400, 10044, "Invalid direction of up");
}

#[tokio::test]
async fn a_malformed_id_is_told_from_an_unknown_one() {
    let world = World::start().await;
    for id in ["x", "0123", &"g".repeat(32), "01234567-89ab-cdef-0123-456789abcdef"] {
        let text = format!("could not parse UUID from request's namespace_id: 'invalid namespace format: {id}'");
        world.get(&namespaces(&format!("/{id}"))).await.fails(400, 10011, &text);
        world.get(&namespaces(&format!("/{id}/values/k"))).await.fails(400, 10011, &text);
        world.delete(&namespaces(&format!("/{id}"))).await.fails(400, 10011, &text);
    }
    let unknown = namespaces(&format!("/{}", "0".repeat(31) + "7"));
    world.get(&unknown).await.fails(404, 10013, "get namespace: 'namespace not found'");
    // Where tokens and namespaces are kept is no namespace to anybody.
    let reserved = namespaces(&format!("/{}/keys", NamespaceId::RESERVED));
    world.get(&reserved).await.fails(404, 10013, "list keys: 'namespace not found'");
}
