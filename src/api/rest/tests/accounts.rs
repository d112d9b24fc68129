//! Who asks, where they may work, and what they may not tell apart.

use super::*;

#[tokio::test]
async fn every_published_form_of_a_credential_is_taken() {
    let world = World::start().await;
    let path = world.path("keys");
    for headers in [
        vec![("authorization", "Bearer Admin")],
        vec![("authorization", "bearer  Admin")],
        vec![("x-auth-key", "Admin"), ("x-auth-email", "a@example.com")],
        vec![("x-auth-user-service-key", "Admin")],
    ] {
        let mut ask = Ask::new(Method::GET, &path).token(None);
        for (name, value) in headers {
            ask = ask.header(name, value);
        }
        world.send(ask).await.result();
    }
    for headers in [
        vec![],
        vec![("authorization", "Admin")],
        vec![("authorization", "Bearer ")],
        vec![("authorization", "Bearer wrong")],
        vec![("authorization", "Basic Admin")],
        vec![("x-auth-key", "Admin")],
        // What tiers know each other by is no one's account.
        vec![("authorization", "Bearer a secret among tiers")],
    ] {
        let mut ask = Ask::new(Method::GET, &path).token(None);
        for (name, value) in headers {
            ask = ask.header(name, value);
        }
        world.send(ask).await.fails(401, 10000, "Authentication error");
    }
}

#[tokio::test]
async fn another_accounts_ids_are_as_unknown_as_those_of_none() {
    let world = World::start().await;
    let unknown = AccountId::from_u128(0xdead);
    for within in ["", "/tokens", "/storage/kv/namespaces", &format!("/storage/kv/namespaces/{}/keys", world.namespace)]
    {
        for account in [unknown.to_string(), OTHER_ACCOUNT.to_string(), "x".to_owned()] {
            let path = format!("/client/v4/accounts/{account}{within}");
            let text = format!("Could not route to {path}, perhaps your object identifier is invalid?");
            world.get(&path).await.fails(404, 7003, &text);
        }
    }
    // Another account's namespace, under an own account.
    let path = format!("/client/v4/accounts/{OTHER_ACCOUNT}/storage/kv/namespaces/{}/values/k", world.namespace);
    let ask = Ask::new(Method::GET, &path).token(Some("other-Admin"));
    world.send(ask).await.fails(404, 10013, "get: 'namespace not found'");
    let path = path.replace("/values/k", "");
    let ask = Ask::new(Method::DELETE, &path).token(Some("other-Admin"));
    world.send(ask).await.fails(404, 10013, "remove namespace: 'namespace not found'");
}

#[tokio::test]
async fn rights_are_judged_before_anything_is_looked_at() {
    let world = World::start().await;
    world.put(&world.path("values/k"), "v").await.result();
    let missing = world.path("").replace(&world.namespace.to_string(), &"7".repeat(32));
    for base in [world.path(""), missing] {
        for (method, path) in [
            (Method::PUT, "values/k"),
            (Method::DELETE, "values/k"),
            (Method::PUT, "bulk"),
            (Method::POST, "bulk/delete"),
        ] {
            let ask = Ask::new(method.clone(), &format!("{base}{path}")).token(Some("Read"));
            world.send(ask).await.fails_saying(
                405,
                10000,
                &format!("{method} method not allowed for the api_token authentication"),
            );
        }
    }
    for path in ["values/k", "metadata/k", "keys"] {
        assert_eq!(world.send(Ask::new(Method::GET, &world.path(path)).token(Some("Read"))).await.status, 200);
    }
    let namespaces = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces");
    let own = format!("{namespaces}/{}", world.namespace);
    for (method, path) in [(Method::POST, &namespaces), (Method::PUT, &own), (Method::DELETE, &own)] {
        let ask = Ask::new(method, path).token(Some("Read")).body(r#"{"title": "x"}"#);
        world.send(ask).await.fails_saying(405, 10000, "the token may only read");
    }
    let tokens = format!("/client/v4/accounts/{ACCOUNT}/tokens");
    for (method, path) in [(Method::GET, &tokens), (Method::POST, &tokens), (Method::DELETE, &format!("{tokens}/x"))] {
        let ask = Ask::new(method, path).token(Some("Write")).body(r#"{"name": "x", "rights": "read"}"#);
        world.send(ask).await.fails(403, 10000, "Authentication error");
    }
    assert_eq!(world.value("k").await.as_deref(), Some(&b"v"[..]));
}

#[tokio::test]
async fn who_may_write_everywhere_may_change_namespaces_and_who_may_somewhere_may_not() {
    let world = World::start().await;
    let namespaces = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces");
    let bound = json!({"name": "bound", "rights": "write", "namespaces": [world.namespace]});
    let bound = make_token(&world, bound).await["value"].as_str().unwrap().to_owned();
    let ask = |method: &Method, path: &str, token: &str, title: &str| {
        Ask::new(method.clone(), path).token(Some(token)).body(json!({ "title": title }).to_string())
    };
    let own = format!("{namespaces}/{}", world.namespace);
    for (method, path) in [(Method::POST, &namespaces), (Method::PUT, &own), (Method::DELETE, &own)] {
        world.send(ask(&method, path, &bound, "x")).await.fails(403, 10000, "Authentication error");
    }
    let made = world.send(ask(&Method::POST, &namespaces, "Write", "made")).await.result();
    let path = format!("{namespaces}/{}", made["id"].as_str().unwrap());
    let renamed = world.send(ask(&Method::PUT, &path, "Write", "renamed")).await.result();
    assert_eq!(renamed["title"], "renamed");
    world.send(ask(&Method::DELETE, &path, "Write", "")).await.result();
    world.get(&path).await.fails(404, 10013, "get namespace: 'namespace not found'");
}

async fn make_token(world: &World, body: Json) -> Json {
    world.post(&format!("/client/v4/accounts/{ACCOUNT}/tokens"), &body).await.result()
}

#[tokio::test]
async fn a_token_bound_to_a_namespace_can_tell_nothing_of_others() {
    let world = World::start().await;
    let namespaces = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces");
    let other = world.post(&namespaces, &json!({"title": "other"})).await.result();
    let other = format!("{namespaces}/{}", other["id"].as_str().unwrap());
    world.put(&format!("{other}/values/k"), "v").await.result();
    let made = make_token(&world, json!({"name": "bound", "rights": "write", "namespaces": [world.namespace]})).await;
    let token = made["value"].as_str();
    let send = async |method: Method, path: &str| world.send(Ask::new(method, path).token(token)).await;
    send(Method::PUT, &world.path("values/k")).await.result();
    let missing = format!("{namespaces}/{}", "7".repeat(32));
    for path in ["", "/values/k", "/values/none", "/metadata/k", "/keys"] {
        for base in [&other, &missing] {
            send(Method::GET, &format!("{base}{path}")).await.fails(403, 10000, "Authentication error");
        }
    }
    send(Method::PUT, &format!("{other}/values/k")).await.fails(403, 10000, "Authentication error");
    let listed = send(Method::GET, &namespaces).await;
    assert_eq!(listed.result().as_array().unwrap().len(), 1);
    assert_eq!(listed.info()["total_count"], 1);
    // Nor may it grow beyond what it is bound to.
    let made = make_token(&world, json!({"name": "bound", "rights": "admin", "namespaces": [world.namespace]})).await;
    let ask = Ask::new(Method::POST, &format!("/client/v4/accounts/{ACCOUNT}/tokens"))
        .token(made["value"].as_str())
        .body(r#"{"name": "all", "rights": "admin"}"#);
    world.send(ask).await.fails(403, 10000, "Authentication error");
}

#[tokio::test]
async fn a_token_is_shown_once_listed_without_its_secret_and_revoked() {
    let world = World::start().await;
    let tokens = format!("/client/v4/accounts/{ACCOUNT}/tokens");
    let made = make_token(&world, json!({"name": "ci", "rights": "read", "expires_in": 100})).await;
    let (id, value) = (made["id"].as_str().unwrap(), made["value"].as_str().unwrap());
    // The Terraform provider refuses others (client-calls 6).
    assert!(
        (40..=80).contains(&value.len())
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    );
    let shown = json!({"id": id, "name": "ci", "rights": "read", "namespaces": null, "expires": world.now() + 100});
    let listed = world.get(&tokens).await;
    assert!(listed.result().as_array().unwrap().contains(&shown));
    let text = String::from_utf8(listed.body.to_vec()).unwrap();
    assert!(!text.contains(value) && !text.contains(auth::hash(value).as_str()));

    let verify = || Ask::new(Method::GET, "/client/v4/user/tokens/verify").token(Some(value));
    let verified = world.send(verify()).await.result();
    assert_eq!((&verified["id"], &verified["status"]), (&json!(id), &json!("active")));
    assert_eq!(world.delete(&format!("{tokens}/{id}")).await.result(), Json::Null);
    world.send(verify()).await.fails(401, 10000, "Authentication error");
    for id in [id, "x", "%2E%2E", "a%2Fb"] {
        world.delete(&format!("{tokens}/{id}")).await.fails(404, 1001, "revoke token: 'token not found'");
    }
    let made = make_token(&world, json!({"name": "ci", "rights": "read", "expires": world.now() + 50})).await;
    let value = made["value"].as_str();
    world.send(Ask::new(Method::GET, &world.path("keys")).token(value)).await.result();
    world.clock.advance(Duration::from_secs(50));
    world.send(Ask::new(Method::GET, &world.path("keys")).token(value)).await.fails(401, 10000, "Authentication error");
}

#[tokio::test]
async fn tokens_that_cannot_be_are_refused() {
    let world = World::start().await;
    let tokens = format!("/client/v4/accounts/{ACCOUNT}/tokens");
    for body in [
        json!({}),
        json!({"name": "a"}),
        json!({"name": "", "rights": "read"}),
        json!({"name": "x".repeat(101), "rights": "read"}),
        json!({"name": "a", "rights": "root"}),
        json!({"name": "a", "rights": "read", "namespaces": []}),
        json!({"name": "a", "rights": "read", "namespaces": ["x"]}),
        json!({"name": "a", "rights": "read", "namespaces": vec!["0"; 101]}),
        json!({"name": "a", "rights": "read", "expires": 1}),
        json!({"name": "a", "rights": "read", "expires": -1}),
        json!({"name": "a", "rights": "read", "expires": world.now() + 100, "expires_in": 5}),
    ] {
        world.post(&tokens, &body).await.fails_saying(400, 10012, "create token: ");
    }
    let unknown = json!({"name": "a", "rights": "read", "namespaces": ["7".repeat(32)]});
    world.post(&tokens, &unknown).await.fails(404, 10013, "create token: 'namespace not found'");
    for token in ["Read", "Write"] {
        let ask = Ask::new(Method::GET, &tokens).token(Some(token));
        assert!(world.send(ask).await.status.is_client_error());
    }
}

#[tokio::test]
async fn wrangler_finds_its_account() {
    let world = World::start().await;
    let account = json!({"id": ACCOUNT, "name": "account", "type": "standard"});
    let accounts = world.get("/client/v4/accounts?page=1").await;
    assert_eq!(accounts.result(), json!([account]));
    assert_eq!(accounts.info()["total_count"], 1);
    assert_eq!(world.get("/client/v4/accounts?page=2").await.result(), json!([]));
    assert_eq!(world.get(&format!("/client/v4/accounts/{ACCOUNT}")).await.result(), account);
    let memberships = world.get("/client/v4/memberships?page=1").await;
    assert_eq!(memberships.result()[0]["account"], account);
    assert_eq!(memberships.info()["total_count"], 1);
    assert_eq!(world.get("/client/v4/user").await.result()["email"], "");
    let ask = Ask::new(Method::GET, "/client/v4/user")
        .token(None)
        .header("x-auth-key", "Read")
        .header("x-auth-email", "a@example.com");
    assert_eq!(world.send(ask).await.result()["email"], "a@example.com");
}

#[tokio::test]
async fn what_is_no_route_or_no_method_says_so() {
    let world = World::start().await;
    for path in [
        "/",
        "/client/v4",
        "/client/v4/",
        "/client/v4/zones",
        "/client/v4/accounts/",
        "/accounts",
        &format!("/client/v4/accounts/{ACCOUNT}/workers/namespaces"),
        &format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces/"),
        &world.path("values"),
        &world.path("bulk/put"),
        &world.path("keys/"),
        &"/client/v4/accounts".repeat(1000),
    ] {
        let text = format!("Could not route to {path}, perhaps your object identifier is invalid?");
        let text: String = text.chars().take(512).collect();
        let code = if path.ends_with("/accounts/") || path.ends_with("/namespaces/") { None } else { Some(7003) };
        let reply = world.get(path).await;
        match code {
            Some(code) => reply.fails(404, code, &text),
            // An empty id is malformed like any other.
            None => assert!(reply.status.is_client_error()),
        }
    }
    for (method, path) in [
        (Method::POST, world.path("values/k")),
        (Method::HEAD, world.path("values/k")),
        (Method::PATCH, world.path("keys")),
        (Method::GET, world.path("bulk")),
        (Method::GET, world.path("bulk/get")),
        (Method::DELETE, "/client/v4/accounts".to_owned()),
        (Method::OPTIONS, "/client/v4/user".to_owned()),
    ] {
        let text = format!("{method} method not allowed");
        world.send(Ask::new(method, &path)).await.fails(405, 10405, &text);
    }
}
