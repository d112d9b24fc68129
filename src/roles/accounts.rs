//! The accounts that the configuration names, and their credentials, which are kept beside the data for their owner alone.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    api::auth,
    clock::{self, Clock},
    error::{Error, Result},
    kv::{Account, AccountId, Control, List, NamespaceId, NewToken, Rights, Source as _, Writer as _, reserved},
    origin::{Origin, host::Host},
};

/// What opens an account; kept beside the data, for its owner alone.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    pub name: String,
    pub account_id: AccountId,
    pub token: String,
    /// Whether this start made them.
    #[serde(skip)]
    pub new: bool,
}

/// How soon it is tried again where an origin is not there yet, or takes no writes.
const RETRY: Duration = Duration::from_secs(1);

/// Sees to the accounts once there is an origin that takes writes.
pub(super) async fn ensure_all(host: Arc<Host>, names: Vec<String>, data: PathBuf, clock: Arc<dyn Clock>) {
    for name in &names {
        loop {
            let ensured = match host.origin() {
                Ok(origin) => ensure_account(&origin, &data, name, &*clock).await,
                Err(error) => Err(error),
            };
            match ensured {
                Ok(Some(credentials)) => {
                    let file = file_of(&data, name);
                    tracing::info!(account = %credentials.account_id, name, credentials = %file.display(), "the account is there");
                    break;
                }
                Ok(None) => {
                    tracing::info!(name, "the account is there; another origin has its credentials");
                    break;
                }
                Err(error) if error.kind.is_outage() => {
                    tracing::debug!(%error, name, "the account can't be seen to yet");
                    clock.sleep(RETRY).await;
                }
                Err(error) => {
                    tracing::error!(%error, name, "the account could not be made");
                    break;
                }
            }
        }
    }
}

fn file_of(data: &Path, name: &str) -> PathBuf {
    data.join("accounts").join(format!("{name}.json"))
}

/// The credentials of an account, made at its first start. An account that has lost its last token gets its first one back. None where another origin on the
/// same store has made it: the credentials are with that one.
pub(super) async fn ensure_account(
    origin: &Arc<Origin>,
    data: &Path,
    name: &str,
    clock: &dyn Clock,
) -> Result<Option<Credentials>> {
    let file = file_of(data, name);
    let (credentials, new) = match read_credentials(&file)? {
        Some(credentials) => (credentials, false),
        None => {
            let credentials = Credentials {
                name: name.to_owned(),
                account_id: AccountId::from_bytes(clock::random_bytes(clock)),
                token: auth::new_secret(clock),
                new: true,
            };
            write_credentials(&file, &credentials)?;
            (credentials, true)
        }
    };
    if !origin.ensure_account(&Account { id: credentials.account_id, name: name.to_owned() }).await? {
        if new {
            remove_credentials(&file)?;
        }
        return Ok(None);
    }
    let tokens = List { prefix: reserved::token_listings(credentials.account_id), limit: 1, cursor: None };
    if origin.list(NamespaceId::RESERVED, &tokens).await?.keys.is_empty() {
        let token = NewToken { name: "first".to_owned(), rights: Rights::Admin, namespaces: None, expires: None };
        let create = Control::CreateToken { hash: auth::hash(&credentials.token), token };
        origin.control(credentials.account_id, create).await?;
    }
    Ok(Some(Credentials { new, ..credentials }))
}

fn read_credentials(file: &Path) -> Result<Option<Credentials>> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("reading the credentials in {}", file.display())).with_source(e)
    };
    match std::fs::read(file) {
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|e| failed(e.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e.into())),
    }
}

/// Readable by the owner alone, and either whole or not there.
fn write_credentials(file: &Path, credentials: &Credentials) -> Result<()> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal(format!("writing the credentials to {}", file.display())).with_source(e)
    };
    let folder: PathBuf = file.parent().map(Path::to_path_buf).unwrap_or_default();
    std::fs::create_dir_all(&folder).map_err(|e| failed(e.into()))?;
    // Temporary files are for their owner alone from the beginning.
    let mut temporary = tempfile::NamedTempFile::new_in(&folder).map_err(|e| failed(e.into()))?;
    serde_json::to_writer_pretty(&mut temporary, credentials).map_err(|e| failed(e.into()))?;
    temporary.as_file().sync_all().map_err(|e| failed(e.into()))?;
    temporary.persist(file).map_err(|e| failed(e.into()))?;
    Ok(())
}

fn remove_credentials(file: &Path) -> Result<()> {
    std::fs::remove_file(file).map_err(|e| {
        Error::internal(format!("removing the credentials in {}, which nobody needs", file.display())).with_source(e)
    })
}
