//! Tokens of an account: create, list, revoke. These are routes of our own; the hosted product's are for another kind of token.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{
    Answer, Call, Rest,
    envelope::{Failure, success},
    upload::Upload,
};
use crate::{
    api::{auth, error::MALFORMED},
    clock::random_bytes,
    error::{Error, Kind},
    kv::{Control, Controlled, NamespaceId, NewToken, Rights, Token, reserved},
};

#[derive(Deserialize)]
struct TokenRequest {
    name: String,
    rights: Rights,
    /// All of the account's when absent, also those to come.
    namespaces: Option<Vec<NamespaceId>>,
    /// Absolute Unix seconds.
    expires: Option<u64>,
    /// Seconds from now.
    expires_in: Option<u64>,
}

/// What is shown of a token: never its hash, and its value only as it is made.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    #[serde(flatten)]
    token: &'a NewToken,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
}

const NAME_CHARS_MAX: usize = 100;
/// A token's record travels in a header.
const NAMESPACES_MAX: usize = 100;

impl Rest {
    pub(super) async fn create_token(&self, call: &Call<'_>, upload: &mut Upload) -> Answer {
        call.check_account_right(Rights::Admin)?;
        let request: TokenRequest = upload.json(&self.buffers).await?;
        let token = self.checked_token(call, request).await?;
        let value = format!("kvs_{}", URL_SAFE_NO_PAD.encode(random_bytes::<32>(&*self.clock)));
        let control = Control::CreateToken { hash: auth::hash(&value), token };
        match self.backend.control(call.account(), control).await? {
            (Controlled::Token(made), _) => {
                Ok(success(&Shown { id: &made.id, token: &made.token, value: Some(&value) }))
            }
            (other, _) => Err(Error::internal(format!("the making of a token came to {other:?}")).into()),
        }
    }

    async fn checked_token(&self, call: &Call<'_>, request: TokenRequest) -> Result<NewToken, Failure> {
        let refused = |text: String| Err(Failure::new(MALFORMED, text));
        let TokenRequest { name, rights, namespaces, expires, expires_in } = request;
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
            return refused(format!("name has 1 to {NAME_CHARS_MAX} characters"));
        }
        let now = self.clock.wall_millis() / 1000;
        let expires = match (expires, expires_in) {
            (Some(_), Some(_)) => return refused("expires and expires_in exclude each other".to_owned()),
            (None, Some(seconds)) => Some(now.saturating_add(seconds)),
            (expires, None) => expires,
        };
        if expires.is_some_and(|expires| expires <= now) {
            return refused("the token would have expired already".to_owned());
        }
        if let Some(covered) = &namespaces {
            if covered.is_empty() || covered.len() > NAMESPACES_MAX {
                return refused(format!("namespaces names 1 to {NAMESPACES_MAX}, or is left out for all"));
            }
            for namespace in covered {
                self.auth.find_namespace(call.account(), *namespace).await?;
            }
        }
        Ok(NewToken { name, rights, namespaces, expires })
    }

    pub(super) async fn list_tokens(&self, call: &Call<'_>) -> Answer {
        call.check_account_right(Rights::Admin)?;
        let tokens: Vec<Token> = self.records(reserved::token_listings(call.account())).await?;
        let shown: Vec<Shown<'_>> =
            tokens.iter().map(|token| Shown { id: &token.id, token: &token.token, value: None }).collect();
        Ok(success(&shown))
    }

    pub(super) async fn revoke_token(&self, call: &Call<'_>, id: &str) -> Answer {
        call.check_account_right(Rights::Admin)?;
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return Err(Error::new(Kind::TokenUnknown, "token not found").into());
        }
        self.backend.control(call.account(), Control::RevokeToken { id: id.to_owned() }).await?;
        Ok(success(&()))
    }
}
