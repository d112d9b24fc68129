//! `kvasar namespace`: namespaces of a running server, through its REST API.

use std::io::{BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{
    client::{Client, ENVIRONMENT, table},
    show,
};
use crate::{
    error::{Error, Kind, Result},
    kv::{AccountId, NamespaceId},
    limits,
};

/// Create, list, rename and delete namespaces of a running server
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
  kvasar namespace create sessions
  kvasar namespace list --json
  kvasar namespace rename sessions old-sessions
  kvasar namespace delete old-sessions --yes";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a namespace
    Create { title: String },
    /// Show all namespaces of the account
    List,
    /// Give a namespace another title
    Rename {
        /// Its id or its title
        namespace: String,
        /// The title to give it
        title: String,
    },
    /// Remove a namespace and everything in it
    Delete {
        /// Its id or its title
        namespace: String,
        /// Do not ask. Needed where there is no terminal to ask at
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Namespace {
    pub id: NamespaceId,
    pub title: String,
    #[serde(flatten)]
    other: serde_json::Map<String, Json>,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Client::from_environment()?;
    let account = client.account().await?;
    let all = format!("/accounts/{account}/storage/kv/namespaces");
    match arguments.command {
        Command::Create { title } => {
            let doing = format!("creating the namespace '{title}'");
            let made: Namespace = client.call(&doing, Method::POST, &all, Some(&json!({ "title": title }))).await?;
            present(&[made], arguments.json)
        }
        Command::List => present(&list(&client, account).await?, arguments.json),
        Command::Rename { namespace, title } => {
            let found = find(&client, account, &namespace).await?;
            let doing = format!("renaming the namespace '{}'", found.title);
            let path = format!("{all}/{}", found.id);
            let renamed = client.call(&doing, Method::PUT, &path, Some(&json!({ "title": title }))).await?;
            present(&[renamed], arguments.json)
        }
        Command::Delete { namespace, yes } => {
            let found = find(&client, account, &namespace).await?;
            if !yes && !confirmed(&found)? {
                return show("nothing is deleted\n");
            }
            let doing = format!("deleting the namespace '{}'", found.title);
            let path = format!("{all}/{}", found.id);
            let _: Json = client.call(&doing, Method::DELETE, &path, None).await?;
            present(&[found], arguments.json)
        }
    }
}

/// A million namespaces; a server that goes on after that is not one of ours.
const PAGES_MAX: usize = 1000;

/// All namespaces of an account, page by page.
pub async fn list(client: &Client, account: AccountId) -> Result<Vec<Namespace>> {
    let per_page = limits::NAMESPACES_PAGE_MAX;
    let mut all = Vec::new();
    for page in 1..=PAGES_MAX {
        let path = format!(
            "/accounts/{account}/storage/kv/namespaces?page={page}&per_page={per_page}&order=title&direction=asc"
        );
        let found: Vec<Namespace> = client.call("listing namespaces", Method::GET, &path, None).await?;
        let last = found.len() < per_page;
        all.extend(found);
        if last {
            break;
        }
    }
    Ok(all)
}

/// By id, or else by title. A title may look like an id: then the id wins.
pub async fn find(client: &Client, account: AccountId, named: &str) -> Result<Namespace> {
    let all = list(client, account).await?;
    let by_id = named.parse::<NamespaceId>().ok().and_then(|id| all.iter().find(|namespace| namespace.id == id));
    let found = by_id.or_else(|| all.iter().find(|namespace| namespace.title == named));
    found.cloned().ok_or_else(|| {
        Error::new(Kind::NamespaceUnknown, format!("this account has no namespace with the id or title '{named}'"))
    })
}

fn confirmed(namespace: &Namespace) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::bad_request(format!(
            "deleting the namespace '{}' and everything in it: without a terminal to ask at, this needs --yes",
            namespace.title
        )));
    }
    let mut prompt = std::io::stderr();
    let mut answer = String::new();
    write!(prompt, "Delete the namespace '{}' ({}) and everything in it? [y/N] ", namespace.title, namespace.id)
        .and_then(|()| prompt.flush())
        .and_then(|()| std::io::stdin().lock().read_line(&mut answer))
        .map_err(|e| Error::internal("asking whether to delete").with_source(e))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn present(namespaces: &[Namespace], as_json: bool) -> Result<()> {
    if as_json {
        let text = serde_json::to_string_pretty(namespaces)
            .map_err(|e| Error::internal("writing namespaces as JSON").with_source(e))?;
        return show(&format!("{text}\n"));
    }
    let rows: Vec<Vec<String>> = namespaces.iter().map(|n| vec![n.id.to_string(), n.title.clone()]).collect();
    show(&table(&["ID", "TITLE"], &rows))
}
