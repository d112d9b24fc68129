//! Drives the crate `cloudflare` through every endpoint that touches KV, against the server that the environment names.
//!
//! Prints a line of JSON for each check, and how many there were. What the crate itself can't do (decode the result of a rename, survive a
//! missing value) is checked to be exactly that.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cloudflare::{
    endpoints::workerskv::{
        Key, WorkersKvNamespace,
        create_namespace::{CreateNamespace, CreateNamespaceParams},
        delete_bulk::DeleteBulk,
        delete_key::DeleteKey,
        get_namespace::GetNamespace,
        list_namespace_keys::{ListNamespaceKeys, ListNamespaceKeysParams},
        list_namespaces::{Direction, ListNamespaces, ListNamespacesParams, Order},
        read_key::ReadKey,
        read_key_metadata::ReadKeyMetadata,
        remove_namespace::RemoveNamespace,
        rename_namespace::{RenameNamespace, RenameNamespaceParams},
        write_bulk::{KeyValuePair, WriteBulk},
        write_key::{WriteKey, WriteKeyBody, WriteKeyBodyMetadata, WriteKeyParams},
    },
    framework::{
        Environment,
        auth::Credentials,
        client::{ClientConfig, blocking_api::HttpApiClient},
        response::ApiFailure,
    },
};
use serde_json::json;

type Outcome = Result<(), String>;

fn main() {
    // A check that fails says so on its own line; the default message would only repeat it.
    std::panic::set_hook(Box::new(|_| {}));
    let server = Server::from_environment();
    let checks: &[(&str, fn(&Server) -> Outcome)] = &[
        ("namespaces are created, read, listed in order and removed", namespaces),
        ("a rename is done, though the crate can't decode its result", rename),
        ("values are written raw and read back", values),
        ("odd keys are themselves", odd_keys),
        ("metadata comes before the value and is kept", metadata),
        ("expirations are kept and checked", expirations),
        ("keys are listed over pages", pages),
        ("many are written and deleted at once", bulk),
        ("what is missing is refused with one error", missing),
        ("a wrong token and the email and key pair are told apart", credentials),
    ];
    for (name, check) in checks {
        let outcome =
            catch_unwind(AssertUnwindSafe(|| check(&server))).unwrap_or_else(|panic| Err(panic_text(panic.as_ref())));
        println!("{}", json!({ "name": name, "error": outcome.err() }));
    }
    println!("{}", json!({ "done": checks.len() }));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a text"))
}

struct Server {
    client: HttpApiClient,
    url: String,
    account: String,
    namespace: String,
}

impl Server {
    fn from_environment() -> Server {
        let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let url = format!("{}/", variable("KVASAR_TEST_BASE_URL"));
        let client = connect(&url, Credentials::UserAuthToken { token: variable("KVASAR_TEST_TOKEN") });
        let mut server = Server { client, url, account: variable("KVASAR_TEST_ACCOUNT"), namespace: String::new() };
        server.namespace = server.create("rust").expect("the namespace of the checks is created").id;
        server
    }

    fn create(&self, title: &str) -> Result<WorkersKvNamespace, ApiFailure> {
        let params = CreateNamespaceParams { title: title.to_owned() };
        Ok(self.client.request(&CreateNamespace { account_identifier: &self.account, params })?.result)
    }

    fn write(&self, key: &str, body: WriteKeyBody, params: WriteKeyParams) -> Result<(), ApiFailure> {
        let request =
            WriteKey { account_identifier: &self.account, namespace_identifier: &self.namespace, key, params, body };
        self.client.request(&request).map(|_| ())
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), ApiFailure> {
        self.write(key, WriteKeyBody::Value(value.to_vec()), WriteKeyParams::default())
    }

    fn get(&self, key: &str) -> Result<Vec<u8>, ApiFailure> {
        let (account_identifier, namespace_identifier) = (self.account.as_str(), self.namespace.as_str());
        self.client.request(&ReadKey { account_identifier, namespace_identifier, key })
    }

    fn delete(&self, key: &str) -> Result<(), ApiFailure> {
        let (account_identifier, namespace_identifier) = (self.account.as_str(), self.namespace.as_str());
        self.client.request(&DeleteKey { account_identifier, namespace_identifier, key }).map(|_| ())
    }

    fn metadata(&self, key: &str) -> Result<Option<serde_json::Value>, ApiFailure> {
        let (account_identifier, namespace_identifier) = (self.account.as_str(), self.namespace.as_str());
        Ok(self.client.request(&ReadKeyMetadata { account_identifier, namespace_identifier, key })?.result)
    }

    /// Every page under a prefix, by the cursor in `result_info`.
    fn list(&self, prefix: &str, limit: Option<u16>) -> Result<Vec<Key>, ApiFailure> {
        let mut keys = Vec::new();
        let mut cursor = None;
        loop {
            let params = ListNamespaceKeysParams { limit, cursor, prefix: Some(prefix.to_owned()) };
            let (account_identifier, namespace_identifier) = (self.account.as_str(), self.namespace.as_str());
            let page = self.client.request(&ListNamespaceKeys { account_identifier, namespace_identifier, params })?;
            keys.extend(page.result);
            let next = page.result_info.and_then(|info| Some(info["cursor"].as_str()?.to_owned()));
            cursor = match next {
                Some(next) if !next.is_empty() => Some(next),
                _ => return Ok(keys),
            };
        }
    }

    fn write_bulk(&self, bulk_key_value_pairs: Vec<KeyValuePair>) -> Result<Option<i8>, ApiFailure> {
        let (account_identifier, namespace_identifier) = (self.account.as_str(), self.namespace.as_str());
        let request = WriteBulk { account_identifier, namespace_identifier, bulk_key_value_pairs };
        Ok(self.client.request(&request)?.result.successful_key_count)
    }
}

fn connect(url: &str, credentials: Credentials) -> HttpApiClient {
    HttpApiClient::new(credentials, ClientConfig::default(), Environment::Custom(url.to_owned()))
        .expect("a client can be made for an address on plain HTTP")
}

fn same<T: PartialEq + std::fmt::Debug>(got: T, expected: T) -> Outcome {
    if got == expected { Ok(()) } else { Err(format!("got {got:?}, expected {expected:?}")) }
}

fn done<T>(result: Result<T, ApiFailure>) -> Result<T, String> {
    result.map_err(|failure| format!("{failure:?}"))
}

/// A refusal must carry this status and exactly one error, of this code.
fn refused<T>(result: Result<T, ApiFailure>, status: u16, code: u16) -> Outcome {
    match result {
        Ok(_) => Err("was not refused".to_owned()),
        Err(ApiFailure::Error(got, errors)) => {
            same((got.as_u16(), errors.errors.iter().map(|error| error.code).collect()), (status, vec![code]))
        }
        Err(other) => Err(format!("{other:?}")),
    }
}

fn pair(key: &str, value: &str) -> KeyValuePair {
    KeyValuePair { key: key.to_owned(), value: value.to_owned(), expiration: None, expiration_ttl: None, base64: None }
}

fn namespaces(server: &Server) -> Outcome {
    let titles = ["rust listed a", "rust listed b", "rust listed c"];
    let mut made = Vec::new();
    for title in titles {
        made.push(done(server.create(title))?);
    }
    same(made[0].supports_url_encoding, Some(true))?;
    let account_identifier = server.account.as_str();
    let get = |namespace_identifier| server.client.request(&GetNamespace { account_identifier, namespace_identifier });
    same(done(get(&made[0].id))?.result.title.as_str(), titles[0])?;
    let list = |params| server.client.request(&ListNamespaces { account_identifier, params });
    let ordered = ListNamespacesParams {
        direction: Some(Direction::Desc),
        order: Some(Order::Title),
        page: Some(1),
        per_page: Some(1000),
    };
    let listed: Vec<String> = done(list(ordered))?.result.into_iter().map(|namespace| namespace.title).collect();
    let ours: Vec<&str> = listed.iter().map(String::as_str).filter(|title| titles.contains(title)).collect();
    same(ours, titles.iter().rev().copied().collect())?;
    same(done(list(ListNamespacesParams::default()))?.result.is_empty(), false)?;
    refused(server.create(titles[0]), 400, 10014)?;
    for namespace in &made {
        let namespace_identifier = namespace.id.as_str();
        done(server.client.request(&RemoveNamespace { account_identifier, namespace_identifier }))?;
        refused(get(namespace_identifier), 404, 10013)?;
    }
    Ok(())
}

fn rename(server: &Server) -> Outcome {
    let namespace = done(server.create("rust before"))?;
    let (account_identifier, namespace_identifier) = (server.account.as_str(), namespace.id.as_str());
    let params = RenameNamespaceParams { title: "rust after".to_owned() };
    match server.client.request(&RenameNamespace { account_identifier, namespace_identifier, params }) {
        Err(ApiFailure::Invalid(_)) => {}
        other => return Err(format!("expected a result that doesn't decode as nothing, got {other:?}")),
    }
    let found = done(server.client.request(&GetNamespace { account_identifier, namespace_identifier }))?.result;
    same(found.title.as_str(), "rust after")
}

fn values(server: &Server) -> Outcome {
    let everything: Vec<u8> = (0..=255).collect();
    for value in [b"text".to_vec(), Vec::new(), everything, vec![7; 300_000]] {
        done(server.put("value", &value))?;
        same(done(server.get("value"))? == value, true)?;
    }
    done(server.delete("value"))?;
    done(server.delete("value"))?;
    same(done(server.list("value", None))?.len(), 0)
}

fn odd_keys(server: &Server) -> Outcome {
    let keys = ["a/b", "a b+c", "100%", "%2F", "\u{e9}\u{2603}", "?x=1#y", "@[]^|~!$&'()*,:;="];
    for key in keys {
        done(server.put(&format!("odd {key}"), key.as_bytes()))?;
        same(done(server.get(&format!("odd {key}")))?, key.as_bytes().to_vec())?;
    }
    let listed: Vec<String> = done(server.list("odd ", None))?.into_iter().map(|key| key.name).collect();
    let mut expected: Vec<String> = keys.iter().map(|key| format!("odd {key}")).collect();
    expected.sort();
    same(listed, expected)
}

fn metadata(server: &Server) -> Outcome {
    for metadata in [json!({ "a": { "b": [1, null, "\u{e9}"] } }), json!("text"), json!(0), json!([])] {
        let body = WriteKeyBody::Metadata(WriteKeyBodyMetadata { value: b"v".to_vec(), metadata: metadata.clone() });
        done(server.write("metadata", body, WriteKeyParams::default()))?;
        same(done(server.metadata("metadata"))?, Some(metadata.clone()))?;
        same(done(server.get("metadata"))?, b"v".to_vec())?;
        same(done(server.list("metadata", None))?[0].metadata.clone(), Some(metadata))?;
    }
    done(server.put("metadata", b"v"))?;
    same(done(server.metadata("metadata"))?, None)
}

fn expirations(server: &Server) -> Outcome {
    let with = |expiration, expiration_ttl| {
        let params = WriteKeyParams { expiration, expiration_ttl };
        server.write("expires", WriteKeyBody::Value(b"v".to_vec()), params)
    };
    done(with(Some(4_000_000_000), None))?;
    let listed = done(server.list("expires", None))?;
    same(listed[0].expiration.map(|at| at.timestamp()), Some(4_000_000_000))?;
    done(with(Some(1), Some(60)))?;
    refused(with(None, Some(59)), 400, 10034)?;
    refused(with(Some(1), None), 400, 10033)
}

fn pages(server: &Server) -> Outcome {
    let keys: Vec<String> = (0..1100).map(|number| format!("page/{number:04}")).collect();
    for chunk in keys.chunks(100) {
        let pairs = chunk.iter().map(|key| pair(key, "v")).collect();
        same(done(server.write_bulk(pairs))?, Some(100))?;
    }
    let listed: Vec<String> = done(server.list("page/", None))?.into_iter().map(|key| key.name).collect();
    same(listed == keys, true)?;
    let small: Vec<String> = done(server.list("page/00", Some(30)))?.into_iter().map(|key| key.name).collect();
    same(small == keys[..100], true)
}

fn bulk(server: &Server) -> Outcome {
    let encoded = KeyValuePair { base64: Some(true), expiration_ttl: Some(600), ..pair("bulk/base64", "AAH/") };
    same(done(server.write_bulk(vec![pair("bulk/text", "\u{e9}"), encoded]))?, Some(2))?;
    same(done(server.get("bulk/text"))?, "\u{e9}".as_bytes().to_vec())?;
    same(done(server.get("bulk/base64"))?, vec![0, 1, 255])?;
    let request = DeleteBulk {
        account_identifier: &server.account,
        namespace_identifier: &server.namespace,
        bulk_keys: vec!["bulk/text".to_owned(), "bulk/base64".to_owned(), "bulk/none".to_owned()],
    };
    let result = done(server.client.request(&request))?.result;
    same((result.successful_key_count, result.unsuccessful_keys), (Some(3), Some(Vec::new())))?;
    same(done(server.list("bulk/", None))?.len(), 0)?;
    refused(server.write_bulk(vec![KeyValuePair { base64: Some(true), ..pair("bulk/bad", "!") }]), 400, 10012)
}

fn missing(server: &Server) -> Outcome {
    refused(server.metadata("none"), 404, 10009)?;
    // The crate asserts the content type of a value before it looks at the status.
    let read = catch_unwind(AssertUnwindSafe(|| server.get("none").is_ok()));
    same(read.is_err(), true)?;
    let namespace_identifier = "0123456789abcdef0123456789abcdef";
    let request = WriteKey {
        account_identifier: &server.account,
        namespace_identifier,
        key: "k",
        params: WriteKeyParams::default(),
        body: WriteKeyBody::Value(b"v".to_vec()),
    };
    refused(server.client.request(&request), 404, 10013)
}

fn credentials(server: &Server) -> Outcome {
    let token = std::env::var("KVASAR_TEST_TOKEN").map_err(|error| error.to_string())?;
    let request = GetNamespace { account_identifier: &server.account, namespace_identifier: &server.namespace };
    let pair = Credentials::UserAuthKey { email: "someone@example.com".to_owned(), key: token };
    done(connect(&server.url, pair).request(&request))?;
    let wrong = Credentials::UserAuthToken { token: "x".repeat(40) };
    match connect(&server.url, wrong).request(&request) {
        Err(ApiFailure::Error(status, errors)) if matches!(status.as_u16(), 401 | 403) => {
            same(errors.errors[0].code, 10000)
        }
        other => Err(format!("expected a refusal of the token, got {other:?}")),
    }
}
