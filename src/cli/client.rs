//! The REST API of a running server, as the commands use it: wrangler's environment variables in, the envelope's result out.
//!
//! Plain HTTP only. One request at a time, each with a deadline and a bound on its answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::{
    clock::{self, Clock, RealClock},
    error::{Error, Kind, Result},
    kv::AccountId,
};

pub const BASE_URL_DEFAULT: &str = "http://127.0.0.1:7700/client/v4";

/// How the help of each command that uses the API names what it reads from the environment.
pub const ENVIRONMENT: &str = "\
Environment, the same as wrangler's:
  CLOUDFLARE_API_BASE_URL                     the server [default: http://127.0.0.1:7700/client/v4]
  CLOUDFLARE_API_TOKEN                        a token; or, and before it,
  CLOUDFLARE_API_KEY and CLOUDFLARE_EMAIL     a token and any address
  CLOUDFLARE_ACCOUNT_ID                       the account, where a token's is not meant";

const DEADLINE: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

pub struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    clock: Arc<dyn Clock>,
    base: String,
    credentials: Credentials,
    account: Option<AccountId>,
}

#[derive(PartialEq, Eq)]
enum Credentials {
    Token(String),
    KeyAndEmail(String, String),
}

/// Every answer of the API (rest-api 1).
#[derive(Deserialize)]
struct Envelope {
    success: bool,
    #[serde(default)]
    errors: Vec<ApiError>,
    #[serde(default)]
    result: Json,
}

#[derive(Deserialize)]
struct ApiError {
    code: i64,
    message: String,
}

#[derive(Deserialize)]
struct Account {
    id: AccountId,
    name: String,
}

impl Client {
    pub fn from_environment() -> Result<Client> {
        Client::new(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn new(variable: impl Fn(&str) -> Option<String>) -> Result<Client> {
        let base = variable("CLOUDFLARE_API_BASE_URL").unwrap_or_else(|| BASE_URL_DEFAULT.to_owned());
        check_base(&base)?;
        let email = variable("CLOUDFLARE_EMAIL").or_else(|| variable("CLOUDFLARE_API_EMAIL"));
        let credentials = match (variable("CLOUDFLARE_API_TOKEN"), variable("CLOUDFLARE_API_KEY"), email) {
            // wrangler prefers the pair, too.
            (_, Some(key), Some(email)) => Credentials::KeyAndEmail(key, email),
            (Some(token), _, _) => Credentials::Token(token),
            _ => {
                let what = "no credential: set CLOUDFLARE_API_TOKEN (`kvasar dev` prints one), or CLOUDFLARE_API_KEY and CLOUDFLARE_EMAIL";
                return Err(Error::new(Kind::Unauthenticated, what));
            }
        };
        let account = match variable("CLOUDFLARE_ACCOUNT_ID") {
            Some(id) => Some(
                id.parse().map_err(|e: Error| Error::bad_request("reading CLOUDFLARE_ACCOUNT_ID").with_source(e))?,
            ),
            None => None,
        };
        Ok(Client {
            http: HttpClient::builder(TokioExecutor::new()).build_http(),
            clock: RealClock::shared(),
            base: base.trim_end_matches('/').to_owned(),
            credentials,
            account,
        })
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The account that was named, or the only one that the credential reaches.
    pub async fn account(&self) -> Result<AccountId> {
        if let Some(account) = self.account {
            return Ok(account);
        }
        let mut accounts: Vec<Account> = self.call("finding the account", Method::GET, "/accounts", None).await?;
        match (accounts.pop(), accounts.len()) {
            (Some(only), 0) => Ok(only.id),
            (None, _) => Err(Error::new(Kind::AccountUnknown, "this credential reaches no account")),
            (Some(last), _) => {
                accounts.push(last);
                let list: String = accounts.iter().map(|a| format!("\n  {}  {}", a.id, a.name)).collect();
                Err(Error::bad_request(format!("set CLOUDFLARE_ACCOUNT_ID to one of the accounts:{list}")))
            }
        }
    }

    /// One request, and the `result` of its answer. `doing` begins the error's text.
    pub async fn call<T: serde::de::DeserializeOwned>(
        &self,
        doing: &str,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<T> {
        let uri = format!("{}{path}", self.base);
        let mut request = http::Request::builder().method(method).uri(&uri);
        request = match &self.credentials {
            Credentials::Token(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            Credentials::KeyAndEmail(key, email) => request.header("X-Auth-Key", key).header("X-Auth-Email", email),
        };
        let body = match body {
            Some(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(json.to_string())
            }
            None => Bytes::new(),
        };
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::unavailable(format!("{doing}: asking {uri}")).with_source(e)
        };
        let request = request.body(Full::new(body)).map_err(|e| failed(e.into()))?;
        let asking = async {
            let response = self.http.request(request).await.map_err(|e| failed(e.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(failed)?;
            Ok((status, body.to_bytes()))
        };
        let answered = clock::within(self.clock.as_ref(), DEADLINE, asking).await;
        let (status, body) = answered.map_err(|_| {
            Error::unavailable(format!("{doing}: {uri} did not answer within {} seconds", DEADLINE.as_secs()))
        })??;
        let envelope: Envelope = serde_json::from_slice(&body).map_err(|e| {
            Error::internal(format!("{doing}: {uri} answered {status}, and not in the API's form")).with_source(e)
        })?;
        if !envelope.success {
            return Err(refused(doing, status, &envelope.errors));
        }
        serde_json::from_value(envelope.result).map_err(|e| {
            Error::internal(format!("{doing}: {uri} answered with another result than was asked for")).with_source(e)
        })
    }
}

fn refused(doing: &str, status: http::StatusCode, errors: &[ApiError]) -> Error {
    let texts: Vec<String> = errors.iter().map(|error| format!("{} (code {})", error.message, error.code)).collect();
    let texts = if texts.is_empty() { "no reason given".to_owned() } else { texts.join("; ") };
    Error::bad_request(format!("{doing}: {texts}, status {}", status.as_u16()))
}

fn check_base(base: &str) -> Result<()> {
    let uri: Uri = base.parse().map_err(|e| {
        Error::bad_request(format!("CLOUDFLARE_API_BASE_URL '{base}' is not a URL such as {BASE_URL_DEFAULT}"))
            .with_source(e)
    })?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(_)) => Ok(()),
        (Some("https"), _) => {
            let what = format!(
                "CLOUDFLARE_API_BASE_URL '{base}' is https, which these commands do not speak: ask the server by http, or use wrangler"
            );
            Err(Error::bad_request(what))
        }
        _ => {
            Err(Error::bad_request(format!("CLOUDFLARE_API_BASE_URL '{base}' is not a URL such as {BASE_URL_DEFAULT}")))
        }
    }
}

/// Rows under their headings, as wide as the widest; the last column as it comes.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(headings.to_vec())).chain(body).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn client(variables: &[(&str, &str)]) -> Result<Client> {
        Client::new(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_is_read_as_wrangler_reads_it() {
        let account = "0123456789abcdef0123456789abcdef";
        let made = client(&[("CLOUDFLARE_API_TOKEN", "t"), ("CLOUDFLARE_ACCOUNT_ID", account)]).expect("it is enough");
        assert_eq!(made.base, BASE_URL_DEFAULT);
        assert_eq!(made.account.map(|id| id.to_string()).as_deref(), Some(account));
        let made = client(&[
            ("CLOUDFLARE_API_KEY", "k"),
            ("CLOUDFLARE_EMAIL", "a@b"),
            ("CLOUDFLARE_API_BASE_URL", "http://localhost:1/client/v4/"),
        ]);
        let made = made.expect("it is enough");
        assert!(made.credentials == Credentials::KeyAndEmail("k".to_owned(), "a@b".to_owned()));
        assert_eq!(made.base, "http://localhost:1/client/v4");
    }

    #[test]
    fn what_cannot_work_is_refused_before_a_request() {
        let check = |variables: &[(&str, &str)], expected: &str| {
            let message = client(variables).err().expect("it is refused").message;
            assert!(message.contains(expected), "{message}");
        };
        check(&[], "no credential");
        check(&[("CLOUDFLARE_API_KEY", "k")], "no credential");
        check(&[("CLOUDFLARE_API_TOKEN", "t"), ("CLOUDFLARE_ACCOUNT_ID", "x")], "CLOUDFLARE_ACCOUNT_ID");
        let with_base = |base| [("CLOUDFLARE_API_TOKEN", "t"), ("CLOUDFLARE_API_BASE_URL", base)];
        check(&with_base("https://example.com/client/v4"), "is https");
        check(&with_base("example.com"), "is not a URL");
        check(&with_base("ht tp://"), "is not a URL");
    }

    /// A server that gives these answers, one a connection, and tells what it was asked.
    async fn answering(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}/client/v4", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") && !request.ends_with(b"}") {
                    assert!(stream.read_buf(&mut request).await.expect("a request") > 0, "the request is whole");
                }
                asked.push(String::from_utf8(request).expect("a request in UTF-8"));
                stream.write_all(answer.as_bytes()).await.expect("an answer");
            }
            asked
        });
        (base, task)
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn the_only_account_of_a_token_need_not_be_named() {
        let account = "0123456789abcdef0123456789abcdef";
        let found = format!(r#"{{"success":true,"errors":[],"result":[{{"id":"{account}","name":"default"}}]}}"#);
        let (base, server) = answering(vec![answer("200 OK", &found)]).await;
        let client = client(&[("CLOUDFLARE_API_TOKEN", "t"), ("CLOUDFLARE_API_BASE_URL", &base)]).expect("enough");
        assert_eq!(client.account().await.expect("an account").to_string(), account);
        let asked = server.await.expect("the server ends");
        assert!(asked[0].starts_with("GET /client/v4/accounts HTTP/1.1\r\n"), "{}", asked[0]);
        assert!(asked[0].contains("authorization: Bearer t\r\n"), "{}", asked[0]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_text_and_code() {
        let taken = r#"{"success":false,"errors":[{"code":10014,"message":"taken"}],"messages":[],"result":null}"#;
        let (base, server) =
            answering(vec![answer("400 Bad Request", taken), answer("502 Bad Gateway", "<html>")]).await;
        let client = client(&[("CLOUDFLARE_API_TOKEN", "t"), ("CLOUDFLARE_API_BASE_URL", &base)]).expect("enough");
        let body = serde_json::json!({ "title": "x" });
        let refused = client.call::<Json>("creating 'x'", Method::POST, "/n", Some(&body)).await.expect_err("refused");
        assert_eq!(refused.to_string(), "creating 'x': taken (code 10014), status 400");
        let foreign = client.call::<Json>("creating 'x'", Method::POST, "/n", Some(&body)).await.expect_err("refused");
        assert!(foreign.to_string().contains("answered 502 Bad Gateway, and not in the API's form"), "{foreign}");
        let asked = server.await.expect("the server ends");
        assert!(asked[0].ends_with("{\"title\":\"x\"}"), "{}", asked[0]);
    }

    #[test]
    fn tables_align_all_but_the_last_column() {
        let rows = [vec!["1".to_owned(), "long title".to_owned()], vec!["22222".to_owned(), String::new()]];
        assert_eq!(table(&["ID", "TITLE"], &rows), "ID     TITLE\n1      long title\n22222\n");
    }
}
