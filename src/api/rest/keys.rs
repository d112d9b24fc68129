//! The listing of a namespace's keys (rest-api 3.1).

use serde::Serialize;

use super::{
    Answer, Call, Rest,
    envelope::{raw_success, to_json},
};
use crate::{
    api::{json, query::whole_number},
    error::{Error, Kind, Result},
    kv::{Key, List, Listed, Rights},
    limits,
};

/// SDKs go on by one of two forms of the cursor, each ignoring the other; at the end `cursor` is empty and `cursors` gone.
#[derive(Serialize)]
struct ListInfo<'a> {
    count: usize,
    cursor: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursors: Option<Cursors<'a>>,
}

#[derive(Serialize)]
struct Cursors<'a> {
    after: &'a str,
}

impl Rest {
    pub(super) async fn list_keys(&self, call: &Call<'_>, id: &str) -> Answer {
        let namespace = self.namespace(call, id, Rights::Read).await?;
        let prefix = call.query.get("prefix").unwrap_or("");
        Key::check_length(prefix.len())?;
        let list = List {
            prefix: prefix.as_bytes().to_vec().into(),
            limit: limit(call.query.get("limit"))?,
            cursor: call.query.get("cursor").filter(|cursor| !cursor.is_empty()).map(str::to_owned),
        };
        let page = self.backend.list(namespace, &list).await?;
        let info = ListInfo {
            count: page.keys.len(),
            cursor: page.cursor.as_deref().unwrap_or(""),
            cursors: page.cursor.as_deref().map(|after| Cursors { after }),
        };
        Ok(raw_success(&keys_json(&page.keys), Some(&to_json(&info))))
    }
}

/// Clients of before the schema had a minimum of 10 ask for fewer, so anything from 1 on is good.
fn limit(text: Option<&str>) -> Result<usize> {
    let Some(text) = text else { return Ok(limits::LIST_PAGE_MAX) };
    let limit = whole_number(text).and_then(|limit| usize::try_from(limit).ok());
    limit.filter(|limit| (1..=limits::LIST_PAGE_MAX).contains(limit)).ok_or_else(|| {
        let most = limits::LIST_PAGE_MAX;
        Error::new(Kind::LimitInvalid, format!("Invalid limit of {text}. Please specify an integer from 1 to {most}."))
    })
}

/// Metadata goes out as the JSON that it is, exactly as it was written.
fn keys_json(keys: &[Listed]) -> Vec<u8> {
    let mut out = vec![b'['];
    for (at, listed) in keys.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"{\"name\":" } else { b",{\"name\":" });
        json::push_string(&mut out, listed.key.as_str());
        if let Some(expiration) = listed.expiration {
            out.extend_from_slice(format!(",\"expiration\":{expiration}").as_bytes());
        }
        if let Some(metadata) = &listed.metadata {
            out.extend_from_slice(b",\"metadata\":");
            out.extend_from_slice(metadata);
        }
        out.push(b'}');
    }
    out.push(b']');
    out
}
