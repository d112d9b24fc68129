//! What clients ask to find out who they are and where they may work (client-calls 1.2). A token belongs to one account, and stands for no
//! person.

use serde_json::{Value as Json, json};

use super::{
    Answer, Call, Rest,
    envelope::{Failure, raw_success, success, success_page, to_json},
    namespaces::{page_of, paging},
};
use crate::{api::body::Response, kv::Rights};

impl Rest {
    pub(super) async fn list_accounts(&self, call: &Call<'_>) -> Answer {
        let (page, per_page) = paging(call)?;
        let accounts = [self.account(call).await?];
        let (shown, info) = page_of(&accounts, page, per_page);
        Ok(success_page(&shown, &info))
    }

    pub(super) async fn get_account(&self, call: &Call<'_>) -> Answer {
        Ok(success(&self.account(call).await?))
    }

    /// The accounts once more, as seen from the user; wrangler works with what is in both lists.
    pub(super) async fn list_memberships(&self, call: &Call<'_>) -> Answer {
        let (page, per_page) = paging(call)?;
        let role = match call.token.token.rights {
            Rights::Read => "Workers KV Storage Read",
            Rights::Write => "Workers KV Storage Write",
            Rights::Admin => "Administrator",
        };
        let membership = json!({
            "id": call.token.id,
            "status": "accepted",
            "account": self.account(call).await?,
            "roles": [role],
        });
        let memberships = [membership];
        let (shown, info) = page_of(&memberships, page, per_page);
        Ok(success_page(&shown, &info))
    }

    async fn account(&self, call: &Call<'_>) -> Result<Json, Failure> {
        let account = self.auth.find_account(call.account()).await?;
        Ok(json!({ "id": account.id, "name": account.name, "type": "standard" }))
    }

    /// The address is the one that came with the credential, if any: wrangler shows it to people.
    pub(super) fn get_user(&self, call: &Call<'_>) -> Response {
        let email = call.parts.headers.get("x-auth-email").and_then(|value| value.to_str().ok()).unwrap_or("");
        success(&json!({ "id": call.token.id, "email": email }))
    }

    pub(super) fn verify_token(&self, call: &Call<'_>) -> Response {
        let mut result = json!({ "id": call.token.id, "status": "active" });
        if let Some(expires) = call.token.token.expires {
            result["expires"] = json!(expires);
        }
        raw_success(&to_json(&result), None)
    }
}
