//! Namespaces: create, list, get, rename, remove (rest-api 2).

use serde::{Deserialize, Serialize};

use super::{
    Answer, Call, Rest,
    envelope::{Failure, success, success_page},
    namespace_id,
    upload::Upload,
};
use crate::{
    api::error::{
        DIRECTION_INVALID, MALFORMED, ORDER_INVALID, PAGE_MALFORMED, PER_PAGE_MALFORMED, RestCode, TITLE_MISSING,
    },
    error::{Error, Result},
    kv::{Control, Controlled, Namespace, NamespaceId, Rights, reserved},
    limits,
};

#[derive(Deserialize)]
struct NewNamespace {
    title: Option<String>,
    jurisdiction: Option<String>,
    mode: Option<String>,
}

/// What is shown of a namespace. `supports_url_encoding` marks those whose keys are decoded from the URL, which all of ours are.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    namespace: &'a Namespace,
    supports_url_encoding: bool,
}

impl Shown<'_> {
    fn of(namespace: &Namespace) -> Shown<'_> {
        Shown { namespace, supports_url_encoding: true }
    }
}

/// What SDKs page by; each of them looks at another part of it (client-calls 0).
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct PageInfo {
    pub page: usize,
    pub per_page: usize,
    pub count: usize,
    pub total_count: usize,
    pub total_pages: usize,
}

impl Rest {
    pub(super) async fn create_namespace(&self, call: &Call<'_>, upload: &mut Upload) -> Answer {
        call.check_account_right(Rights::Write)?;
        let NewNamespace { title, jurisdiction, mode } = upload.json(&self.buffers).await?;
        let title = checked_title(title)?;
        check_choice("jurisdiction", jurisdiction.as_deref(), &["eu", "us", "fedramp"])?;
        check_choice("mode", mode.as_deref(), &["instant"])?;
        if mode.is_some() && jurisdiction.is_some() {
            return Err(Failure::new(MALFORMED, "mode and jurisdiction exclude each other"));
        }
        self.control_namespace(call, Control::CreateNamespace { title, jurisdiction, mode }).await
    }

    pub(super) async fn rename_namespace(&self, call: &Call<'_>, id: &str, upload: &mut Upload) -> Answer {
        let id = namespace_id(id)?;
        call.check_account_right(Rights::Write)?;
        let NewNamespace { title, .. } = upload.json(&self.buffers).await?;
        let title = checked_title(title)?;
        self.control_namespace(call, Control::RenameNamespace { id, title }).await
    }

    pub(super) async fn remove_namespace(&self, call: &Call<'_>, id: &str) -> Answer {
        let id = namespace_id(id)?;
        call.check_account_right(Rights::Write)?;
        self.backend.control(call.account(), Control::RemoveNamespace { id }).await?;
        Ok(success(&()))
    }

    async fn control_namespace(&self, call: &Call<'_>, control: Control) -> Answer {
        match self.backend.control(call.account(), control).await? {
            (Controlled::Namespace(namespace), _) => Ok(success(&Shown::of(&namespace))),
            (other, _) => Err(Error::internal(format!("a change of a namespace came to {other:?}")).into()),
        }
    }

    pub(super) async fn get_namespace(&self, call: &Call<'_>, id: &str) -> Answer {
        let id = self.namespace(call, id, Rights::Read).await?;
        let namespaces: Vec<Namespace> =
            self.records(reserved::namespace(call.account(), id).as_bytes().clone()).await?;
        match namespaces.first() {
            Some(namespace) => Ok(success(&Shown::of(namespace))),
            None => Err(Error::new(crate::error::Kind::NamespaceUnknown, "namespace not found").into()),
        }
    }

    /// Of a token that covers some namespaces only, those: it can't tell what else exists.
    pub(super) async fn list_namespaces(&self, call: &Call<'_>) -> Answer {
        call.check_account_right(Rights::Read)?;
        let (page, per_page) = paging(call)?;
        let by_id = chosen(call, "order", "title", "id", ORDER_INVALID)?;
        let descending = chosen(call, "direction", "asc", "desc", DIRECTION_INVALID)?;
        let mut namespaces: Vec<Namespace> = self.records(reserved::namespaces(call.account())).await?;
        let covers = |id: &NamespaceId| call.token.token.namespaces.as_ref().is_none_or(|covered| covered.contains(id));
        namespaces.retain(|namespace| covers(&namespace.id));
        if by_id {
            namespaces.sort_by_key(|namespace| namespace.id);
        } else {
            namespaces.sort_by(|a, b| a.title.cmp(&b.title));
        }
        if descending {
            namespaces.reverse();
        }
        let (shown, info) = page_of(&namespaces, page, per_page);
        Ok(success_page(&shown.iter().map(Shown::of).collect::<Vec<_>>(), &info))
    }
}

/// The items on a page, which is empty past the end.
pub(super) fn page_of<T>(items: &[T], page: usize, per_page: usize) -> (&[T], PageInfo) {
    let from = (page - 1).saturating_mul(per_page).min(items.len());
    let shown = &items[from..items.len().min(from + per_page)];
    let total_pages = items.len().div_ceil(per_page);
    (shown, PageInfo { page, per_page, count: shown.len(), total_count: items.len(), total_pages })
}

/// `page` and `per_page`; both are at least 1.
pub(super) fn paging(call: &Call<'_>) -> Result<(usize, usize), Failure> {
    let number = |name: &str, default: usize, max: usize, code: RestCode| {
        let Some(text) = call.query.get(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (1..=max).contains(number));
        number.ok_or_else(|| {
            Failure::new(code, format!("Invalid {name} of {text}. Please specify an integer from 1 to {max}."))
        })
    };
    let page = number("page", 1, u32::MAX as usize, PAGE_MALFORMED)?;
    let per_page =
        number("per_page", limits::NAMESPACES_PAGE_DEFAULT, limits::NAMESPACES_PAGE_MAX, PER_PAGE_MALFORMED)?;
    Ok((page, per_page))
}

/// Whether a parameter names the second of two choices, in any case (client-calls 4).
fn chosen(call: &Call<'_>, name: &str, default: &str, other: &str, code: RestCode) -> Result<bool, Failure> {
    match call.query.get(name) {
        None => Ok(false),
        Some(text) if text.eq_ignore_ascii_case(default) => Ok(false),
        Some(text) if text.eq_ignore_ascii_case(other) => Ok(true),
        Some(text) => {
            Err(Failure::new(code, format!("Invalid {name} of {text}. Please specify {default} or {other}.")))
        }
    }
}

fn checked_title(title: Option<String>) -> Result<String, Failure> {
    let title = title.filter(|title| !title.is_empty()).ok_or_else(|| Failure::new(TITLE_MISSING, "missing title"))?;
    let length = title.chars().count();
    if length > limits::TITLE_CHARS_MAX {
        let text = format!("Title length of {length} exceeds limit of {}.", limits::TITLE_CHARS_MAX);
        return Err(Failure::new(MALFORMED, text));
    }
    Ok(title)
}

fn check_choice(name: &str, given: Option<&str>, known: &[&str]) -> Result<(), Failure> {
    match given {
        Some(text) if !known.contains(&text) => Err(Failure::new(
            MALFORMED,
            format!("Invalid {name} of {text}. Please specify one of: {}.", known.join(", ")),
        )),
        _ => Ok(()),
    }
}
