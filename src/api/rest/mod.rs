//! The public REST surface, under `/client/v4`: what wrangler, the SDKs and curl speak (rest-api).
//!
//! One file per noun. Here: which place a path names, who may ask, and that every request is answered, with an envelope where something is wrong.
//! Reads are always the latest: who reads here has mostly just written, perhaps through another location, and nobody reads here for
//! speed (limits-and-semantics 2).

mod accounts;
mod bulk;
mod bulk_get;
mod bulk_put;
mod element;
mod envelope;
mod keys;
mod long_value;
mod metadata;
mod multipart;
mod namespaces;
mod spool;
#[cfg(test)]
mod tests;
mod tokens;
mod upload;
mod values;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, request::Parts};
use serde::de::DeserializeOwned;

use self::{envelope::Failure, spool::SpoolRoom, upload::Upload};
use super::{
    auth::{Auth, Identity},
    body::{Request, Response},
    budget::Budget,
    error::{API_RATE_LIMITED, NAMESPACE_ID_MALFORMED},
    query::Query,
    server::{Handler, told},
};
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    kv::{AccountId, Backend, List, NamespaceId, Rights, Token},
    limits,
    metrics::Operation,
};

pub struct Rest {
    backend: Arc<dyn Backend>,
    auth: Arc<Auth>,
    clock: Arc<dyn Clock>,
    /// What handlers hold in memory.
    buffers: Arc<Budget>,
    spool_room: SpoolRoom,
    /// Of both what bulk calls take, each of which may take much for long: so single writes always find some.
    bulk_buffers: Arc<Budget>,
    bulk_spool_room: SpoolRoom,
}

type Answer = Result<Response, Failure>;

/// A request body is read on so far at most, whatever was wrong with it.
const DRAIN_BYTES_MAX: u64 = 2 * limits::BULK_WRITE_BYTES_MAX;

impl Rest {
    pub fn new(backend: Arc<dyn Backend>, auth: Arc<Auth>, clock: Arc<dyn Clock>, buffers: Arc<Budget>) -> Rest {
        let spool_room = SpoolRoom::new(Arc::clone(&buffers));
        let bulk_buffers = buffers.half();
        let bulk_spool_room = spool_room.half(Arc::clone(&bulk_buffers));
        Rest { backend, auth, clock, buffers, spool_room, bulk_buffers, bulk_spool_room }
    }

    async fn answer(&self, parts: &Parts, place: Option<Place<'_>>, upload: &mut Upload) -> Answer {
        let path = parts.uri.path();
        let Some(place) = place else { return Err(Failure::no_route(path)) };
        let identity = self.auth.identify(&parts.headers).await.map_err(|error| match error.kind {
            Kind::RateLimited => Failure::of(API_RATE_LIMITED, error),
            _ => error.into(),
        })?;
        let Identity::Token(token) = &identity else {
            // Tiers have no account to work in.
            return Err(Error::new(Kind::Unauthenticated, "Unauthorized").into());
        };
        if let Some(account) = place.account
            && account.parse::<AccountId>().ok() != Some(token.account)
        {
            return Err(Failure::no_route(path));
        }
        let call = Call { parts, query: Query::parse(parts.uri.query())?, token: Arc::clone(token), identity };
        self.dispatch(&call, place.noun, upload).await
    }

    async fn dispatch(&self, call: &Call<'_>, noun: Noun<'_>, upload: &mut Upload) -> Answer {
        match (noun, call.parts.method.as_str()) {
            (Noun::Namespaces, "GET") => self.list_namespaces(call).await,
            (Noun::Namespaces, "POST") => self.create_namespace(call, upload).await,
            (Noun::Namespace(id), "GET") => self.get_namespace(call, id).await,
            (Noun::Namespace(id), "PUT") => self.rename_namespace(call, id, upload).await,
            (Noun::Namespace(id), "DELETE") => self.remove_namespace(call, id).await,
            (Noun::Keys(id), "GET") => self.list_keys(call, id).await,
            (Noun::Value(id, key), "GET") => self.get_value(call, id, key).await,
            (Noun::Value(id, key), "PUT") => self.put_value(call, id, key, upload).await,
            (Noun::Value(id, key), "DELETE") => self.delete_value(call, id, key).await,
            (Noun::Metadata(id, key), "GET") => self.get_metadata(call, id, key).await,
            (Noun::Bulk(id), "PUT") => self.bulk_put(call, id, upload).await,
            (Noun::Bulk(id), "DELETE") | (Noun::BulkDelete(id), "POST") => self.bulk_delete(call, id, upload).await,
            (Noun::BulkGet(id), "POST") => self.bulk_get(call, id, upload).await,
            (Noun::Tokens, "GET") => self.list_tokens(call).await,
            (Noun::Tokens, "POST") => self.create_token(call, upload).await,
            (Noun::Token(id), "DELETE") => self.revoke_token(call, id).await,
            (Noun::Accounts, "GET") => self.list_accounts(call).await,
            (Noun::Account, "GET") => self.get_account(call).await,
            (Noun::Memberships, "GET") => self.list_memberships(call).await,
            (Noun::User, "GET") => Ok(self.get_user(call)),
            (Noun::TokenVerification, "GET") => Ok(self.verify_token(call)),
            _ => Err(Failure::method_not_allowed(&call.parts.method)),
        }
    }

    /// The namespace that a path names, if the token may do this in it. The right is judged before anybody looks whether it exists.
    async fn namespace(&self, call: &Call<'_>, id: &str, right: Rights) -> Result<NamespaceId, Failure> {
        let namespace = namespace_id(id)?;
        call.check_right(right)?;
        self.auth.namespace(&call.identity, namespace, right).await?;
        Ok(namespace)
    }

    /// All records of the reserved namespace under a prefix.
    async fn records<T: DeserializeOwned>(&self, prefix: Bytes) -> Result<Vec<T>> {
        let mut records = Vec::new();
        let mut list = List { prefix, limit: limits::LIST_PAGE_MAX, cursor: None };
        while records.len() <= RECORDS_MAX {
            let page = self.backend.list(NamespaceId::RESERVED, &list).await?;
            for listed in page.keys {
                let record = serde_json::from_slice(listed.metadata.as_deref().unwrap_or_default());
                let doing = || format!("reading the record {:?} of the reserved namespace", listed.key);
                records.push(record.map_err(|e| Error::internal(doing()).with_source(e))?);
            }
            if page.cursor.is_none() {
                return Ok(records);
            }
            list.cursor = page.cursor;
        }
        Err(Error::internal(format!("the account has more than {RECORDS_MAX} records of one kind")))
    }
}

/// As many as any account may have of namespaces, and what one could still look through of tokens.
const RECORDS_MAX: usize = limits::NAMESPACES_PER_ACCOUNT_MAX;

impl Handler for Rest {
    async fn handle(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let mut upload = Upload::new(body, &parts.headers);
        let place = Place::of(parts.uri.path());
        let (operation, counted) = match &place {
            Some(place) => place.noun.operation(&parts.method),
            None => ("request", Operation::Other),
        };
        let answer = self.answer(&parts, place, &mut upload).await;
        upload.drain(DRAIN_BYTES_MAX).await;
        told(answer.unwrap_or_else(|failure| failure.response(operation)), counted)
    }
}

/// One authenticated request.
struct Call<'a> {
    parts: &'a Parts,
    query: Query,
    identity: Identity,
    token: Arc<Token>,
}

impl Call<'_> {
    fn account(&self) -> AccountId {
        self.token.account
    }

    /// A token that may only read hears so in the published way (rest-api 7); other lacks of a right are told apart from nothing.
    fn check_right(&self, right: Rights) -> Result<(), Failure> {
        match self.token.token.rights {
            held if held >= right => Ok(()),
            Rights::Read => Err(Failure::read_only_token(&self.parts.method)),
            _ => Err(Error::new(Kind::Forbidden, "Forbidden").into()),
        }
    }

    /// A right over the account as a whole.
    fn check_account_right(&self, right: Rights) -> Result<(), Failure> {
        self.check_right(right)?;
        Ok(self.identity.account_right(right)?)
    }
}

fn namespace_id(text: &str) -> Result<NamespaceId, Failure> {
    text.parse().map_err(|_: Error| {
        let text = format!("could not parse UUID from request's namespace_id: 'invalid namespace format: {text}'");
        Failure::alone(NAMESPACE_ID_MALFORMED, text)
    })
}

/// What a path names, still percent-encoded: a slash within a key must not part it (rest-api 6).
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    account: Option<&'a str>,
    noun: Noun<'a>,
}

#[derive(Debug, PartialEq, Eq)]
enum Noun<'a> {
    Accounts,
    Account,
    Memberships,
    User,
    TokenVerification,
    Tokens,
    Token(&'a str),
    Namespaces,
    Namespace(&'a str),
    Keys(&'a str),
    Value(&'a str, &'a str),
    Metadata(&'a str, &'a str),
    Bulk(&'a str),
    BulkDelete(&'a str),
    BulkGet(&'a str),
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Option<Place<'a>> {
        let mut segments = path.strip_prefix("/client/v4/")?.split('/');
        let first = segments.next()?;
        // No route is longer than this, and no more of a path is looked at.
        let rest: Vec<&str> = segments.take(8).collect();
        let (account, noun) = match (first, rest.as_slice()) {
            ("accounts", []) => (None, Noun::Accounts),
            ("memberships", []) => (None, Noun::Memberships),
            ("user", []) => (None, Noun::User),
            ("user", ["tokens", "verify"]) => (None, Noun::TokenVerification),
            ("accounts", [account]) => (Some(*account), Noun::Account),
            ("accounts", [account, "tokens"]) => (Some(*account), Noun::Tokens),
            ("accounts", [account, "tokens", id]) => (Some(*account), Noun::Token(id)),
            ("accounts", [account, "storage", "kv", "namespaces", within @ ..]) => {
                (Some(*account), Noun::in_namespaces(within)?)
            }
            _ => return None,
        };
        Some(Place { account, noun })
    }
}

impl<'a> Noun<'a> {
    fn in_namespaces(segments: &[&'a str]) -> Option<Noun<'a>> {
        match segments {
            [] => Some(Noun::Namespaces),
            [id] => Some(Noun::Namespace(id)),
            [id, "keys"] => Some(Noun::Keys(id)),
            [id, "values", key] => Some(Noun::Value(id, key)),
            [id, "metadata", key] => Some(Noun::Metadata(id, key)),
            [id, "bulk"] => Some(Noun::Bulk(id)),
            [id, "bulk", "delete"] => Some(Noun::BulkDelete(id)),
            [id, "bulk", "get"] => Some(Noun::BulkGet(id)),
            _ => None,
        }
    }

    /// What doing this is called in errors (rest-api 7), and how it is counted.
    fn operation(&self, method: &Method) -> (&'static str, Operation) {
        match (self, method.as_str()) {
            (Noun::Namespaces, "POST") => ("create namespace", Operation::Namespace),
            (Noun::Namespaces, _) => ("list namespaces", Operation::Namespace),
            (Noun::Namespace(_), "PUT") => ("rename namespace", Operation::Namespace),
            (Noun::Namespace(_), "DELETE") => ("remove namespace", Operation::Namespace),
            (Noun::Namespace(_), _) => ("get namespace", Operation::Namespace),
            (Noun::Keys(_), _) => ("list keys", Operation::List),
            (Noun::Value(..), "PUT") => ("put", Operation::Put),
            (Noun::Value(..), "DELETE") => ("remove key", Operation::Delete),
            (Noun::Value(..), _) => ("get", Operation::Get),
            (Noun::Metadata(..), _) => ("metadata", Operation::Get),
            (Noun::Bulk(_), "DELETE") | (Noun::BulkDelete(_), _) => ("bulk delete", Operation::BulkDelete),
            (Noun::Bulk(_), _) => ("bulk put", Operation::BulkPut),
            (Noun::BulkGet(_), _) => ("bulk get keys", Operation::BulkGet),
            (Noun::Tokens, "POST") => ("create token", Operation::Token),
            (Noun::Tokens, _) => ("list tokens", Operation::Token),
            (Noun::Token(_), _) => ("revoke token", Operation::Token),
            (Noun::TokenVerification, _) => ("verify token", Operation::Token),
            (Noun::Accounts | Noun::Account | Noun::Memberships | Noun::User, _) => ("account", Operation::Other),
        }
    }
}
