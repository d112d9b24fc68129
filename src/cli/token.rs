//! `kvasar token`: credentials of a running server, through its REST API.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{
    client::{Client, ENVIRONMENT, table},
    namespace, show,
};
use crate::{
    config,
    error::{Error, Result},
    kv::{NamespaceId, Rights},
};

/// Create, list and revoke tokens of a running server
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{ENVIRONMENT}"))]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  kvasar token create reader --rights read --namespace sessions
  kvasar token create deploy --rights write --expires-in 30d
  kvasar token list
  kvasar token revoke 5b1c0e9f8d7a46c2b3e1f0a95c4d7e82";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token, and show it this once
    Create {
        /// What it is called in listings
        name: String,
        /// What it may do; each includes those before it
        #[arg(long, value_enum, default_value = "write")]
        rights: RightsArgument,
        /// Id or title of a namespace that it covers. May be given several times [default: all, also those to come]
        #[arg(long = "namespace", value_name = "NAMESPACE")]
        namespaces: Vec<String>,
        /// After how long it is not accepted any more [default: never]
        #[arg(long, value_name = "TIME", value_parser = config::duration)]
        expires_in: Option<Duration>,
    },
    /// Show all tokens of the account, without their secrets
    List,
    /// Make a token void
    Revoke {
        /// Its id, as `list` shows it
        id: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RightsArgument {
    Read,
    /// Also namespaces themselves, of a token that covers all
    Write,
    /// Also tokens themselves
    Admin,
}

impl From<RightsArgument> for Rights {
    fn from(rights: RightsArgument) -> Rights {
        match rights {
            RightsArgument::Read => Rights::Read,
            RightsArgument::Write => Rights::Write,
            RightsArgument::Admin => Rights::Admin,
        }
    }
}

/// As the API answers it.
#[derive(Debug, Deserialize, Serialize)]
struct Token {
    id: String,
    name: String,
    rights: Rights,
    #[serde(default)]
    namespaces: Option<Vec<NamespaceId>>,
    #[serde(default)]
    expires: Option<u64>,
    /// The secret, only in the answer to its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Client::from_environment()?;
    let account = client.account().await?;
    let all = format!("/accounts/{account}/tokens");
    let now = client.clock().wall_millis() / 1000;
    match arguments.command {
        Command::Create { name, rights, namespaces, expires_in } => {
            let mut covered = Vec::with_capacity(namespaces.len());
            for named in &namespaces {
                covered.push(namespace::find(&client, account, named).await?.id);
            }
            let mut body = json!({ "name": name, "rights": Rights::from(rights) });
            if !covered.is_empty() {
                body["namespaces"] = json!(covered);
            }
            if let Some(time) = expires_in {
                body["expires"] = json!(now.saturating_add(time.as_secs()));
            }
            let doing = format!("creating the token '{name}'");
            let made: Token = client.call(&doing, Method::POST, &all, Some(&body)).await?;
            present_new(&made, now, arguments.json)
        }
        Command::List => {
            let tokens: Vec<Token> = client.call("listing tokens", Method::GET, &all, None).await?;
            present(&tokens, now, arguments.json)
        }
        Command::Revoke { id } => {
            let doing = format!("revoking the token '{id}'");
            let path =
                format!("{all}/{}", percent_encoding::utf8_percent_encode(&id, percent_encoding::NON_ALPHANUMERIC));
            let _: Json = client.call(&doing, Method::DELETE, &path, None).await?;
            show(&if arguments.json { format!("{}\n", json!({ "id": id })) } else { format!("revoked {id}\n") })
        }
    }
}

fn present_new(token: &Token, now: u64, as_json: bool) -> Result<()> {
    if as_json {
        return present_json(token);
    }
    let value = token.value.as_deref().ok_or_else(|| {
        Error::internal(format!("the server made the token '{}' and did not say its value", token.id))
    })?;
    show(&format!("{}\nThe token, shown this once:\n{value}\n", rows(std::slice::from_ref(token), now)))
}

fn present(tokens: &[Token], now: u64, as_json: bool) -> Result<()> {
    if as_json { present_json(tokens) } else { show(&rows(tokens, now)) }
}

fn present_json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::internal("writing tokens as JSON").with_source(e))?;
    show(&format!("{text}\n"))
}

fn rows(tokens: &[Token], now: u64) -> String {
    let row = |token: &Token| {
        let rights = match token.rights {
            Rights::Read => "read",
            Rights::Write => "write",
            Rights::Admin => "admin",
        };
        let namespaces = match &token.namespaces {
            None => "all".to_owned(),
            Some(ids) => ids.iter().map(NamespaceId::to_string).collect::<Vec<_>>().join(","),
        };
        vec![token.id.clone(), token.name.clone(), rights.to_owned(), left(token.expires, now), namespaces]
    };
    let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
    table(&["ID", "NAME", "RIGHTS", "EXPIRES", "NAMESPACES"], &rows)
}

/// How long a token is still good, in its largest unit.
fn left(expires: Option<u64>, now: u64) -> String {
    let Some(expires) = expires else { return "never".to_owned() };
    match expires.saturating_sub(now) {
        0 => "expired".to_owned(),
        seconds @ 1..=119 => format!("in {seconds} seconds"),
        seconds @ 120..=7199 => format!("in {} minutes", seconds / 60),
        seconds @ 7200..=172_799 => format!("in {} hours", seconds / 3600),
        seconds => format!("in {} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_shown_in_its_largest_unit() {
        assert_eq!(left(None, 1000), "never");
        assert_eq!(left(Some(1000), 1000), "expired");
        assert_eq!(left(Some(1001), 1000), "in 1 seconds");
        assert_eq!(left(Some(1120), 1000), "in 2 minutes");
        assert_eq!(left(Some(1000 + 7200), 1000), "in 2 hours");
        assert_eq!(left(Some(1000 + 30 * 86_400), 1000), "in 30 days");
    }

    #[test]
    fn a_listing_never_shows_a_secret() {
        let token = Token {
            id: "t1".to_owned(),
            name: "reader".to_owned(),
            rights: Rights::Read,
            namespaces: Some(vec![NamespaceId::from_u128(1)]),
            expires: None,
            value: Some("secret".to_owned()),
        };
        assert_eq!(
            rows(&[token], 0),
            "ID  NAME    RIGHTS  EXPIRES  NAMESPACES\nt1  reader  read    never    00000000000000000000000000000001\n"
        );
    }
}
