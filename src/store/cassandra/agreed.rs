//! What those who share the store agree on: lightweight transactions, each record a row in a partition of its own.
//!
//! **Invariant:** these rows are changed in no other way: a plain write beside a lightweight transaction may silently undo it.
//!
//! Each change carries an operation id, and those of the changes before it, so that one whose outcome was unknown can be tried again: a refusal by a record that
//! names it is success, also when others have changed it since.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use scylla::{policies::retry::FallthroughRetryPolicy, statement::prepared::PreparedStatement};

use super::statements::{Link, unexpected};
use crate::{
    clock,
    error::{Error, Kind, Result},
    store::{Agreed, Replaced},
};

/// How often a change is tried whose outcome was unknown, and a read.
const TRIES: u32 = 6;
/// When a try is given up. The database gives up sooner, unless the node that was asked has stopped.
const TRY_DEADLINE: Duration = Duration::from_millis(2500);
/// Between tries, so that contenders get out of each other's way; doubled each time.
const PAUSE: Duration = Duration::from_millis(20);

/// How many of a record's last changes it names.
const OPERATIONS_MAX: usize = 16;
/// Of how many records the last changes are remembered, to be named by the next one.
const REMEMBERED_MAX: usize = 1000;

pub(super) const TABLE: &str = "control";

/// Names one change.
type Operation = [u8; 16];

pub(super) struct Control {
    link: Arc<Link>,
    read: PreparedStatement,
    read_settled: PreparedStatement,
    insert: PreparedStatement,
    update: PreparedStatement,
    /// As they were last seen here.
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Clone)]
struct Seen {
    revision: u64,
    operations: Vec<Operation>,
}

struct Record {
    agreed: Agreed,
    /// The changes that led to it, the last one first.
    operations: Vec<Operation>,
}

impl Control {
    pub(super) async fn prepare(link: Arc<Link>) -> Result<Control> {
        let table = format!("{}.{TABLE}", link.settings.keyspace);
        let link = &link;
        let prepare = |text: String| async move {
            let mut statement = link.prepare(&text).await?;
            statement.set_request_timeout(Some(TRY_DEADLINE.min(link.settings.deadline)));
            statement.set_retry_policy(Some(Arc::new(FallthroughRetryPolicy::new())));
            Ok::<_, Error>(statement)
        };
        let select = format!("SELECT revision, value, operation FROM {table} WHERE name = ?");
        let insert =
            format!("INSERT INTO {table} (name, revision, value, operation) VALUES (?, ?, ?, ?) IF NOT EXISTS");
        let update =
            format!("UPDATE {table} SET revision = ?, value = ?, operation = ? WHERE name = ? IF revision = ?");
        let mut read = prepare(select.clone()).await?;
        read.set_consistency(link.settings.consistency.serial_read());
        let mut read_settled = link.prepare(&select).await?;
        read_settled.set_is_idempotent(true);
        let (insert, update) = (prepare(insert).await?, prepare(update).await?);
        Ok(Control { link: Arc::clone(link), read, read_settled, insert, update, seen: Mutex::default() })
    }

    pub(super) async fn read(&self, name: &str) -> Result<Agreed> {
        Ok(self.record(name).await?.agreed)
    }

    /// Without a transaction, at a quarter of the cost: what was changed before, but perhaps not what is being changed. For records that change once.
    pub(super) async fn read_settled(&self, name: &str) -> Result<Agreed> {
        Ok(self.record_once(&self.read_settled, name).await?.agreed)
    }

    /// Changes the record, if it still has this revision.
    pub(super) async fn replace(&self, name: &str, revision: u64, value: &Bytes) -> Result<Replaced> {
        let Some(before) = self.operations_at(name, revision).await? else {
            return Ok(Replaced::Overtaken(self.record(name).await?.agreed));
        };
        let operation: Operation = clock::random_bytes(&*self.link.clock);
        let operations: Vec<Operation> = [operation].into_iter().chain(before).take(OPERATIONS_MAX).collect();
        let mut tried = 0;
        loop {
            let failed = match self.try_once(name, revision, value, &operations).await {
                Ok(true) => {
                    self.remember(name, Seen { revision: revision + 1, operations });
                    return Ok(Replaced::Done);
                }
                Ok(false) => return self.refused(name, revision, &operation, tried > 0).await,
                Err(error) => error,
            };
            tried += 1;
            if tried == TRIES || failed.kind != Kind::Unavailable {
                return Err(failed);
            }
            self.pause(tried).await;
        }
    }

    /// The changes that led to a revision; `None` if the record has another one.
    async fn operations_at(&self, name: &str, revision: u64) -> Result<Option<Vec<Operation>>> {
        if revision == 0 {
            return Ok(Some(Vec::new()));
        }
        let seen = self.seen.lock().expect("no holder of this lock can panic").get(name).cloned();
        if let Some(seen) = seen.filter(|seen| seen.revision == revision) {
            return Ok(Some(seen.operations));
        }
        let record = self.record(name).await?;
        Ok((record.agreed.revision == revision).then_some(record.operations))
    }

    fn remember(&self, name: &str, now: Seen) {
        let mut seen = self.seen.lock().expect("no holder of this lock can panic");
        if seen.len() >= REMEMBERED_MAX {
            seen.clear();
        }
        match seen.get_mut(name) {
            Some(seen) if seen.revision > now.revision => {}
            Some(seen) => *seen = now,
            None => _ = seen.insert(name.to_owned(), now),
        }
    }

    /// Whether this try took effect.
    pub(super) async fn try_once(
        &self,
        name: &str,
        revision: u64,
        value: &Bytes,
        operations: &[Operation],
    ) -> Result<bool> {
        let doing = || format!("changing what is agreed on as '{name}', from revision {revision},");
        let (old, new) = (i64_of(revision)?, i64_of(revision + 1)?);
        let operations = operations.concat();
        let result = match revision {
            0 => self.link.execute(&self.insert, (name, new, &value[..], operations)).await,
            _ => self.link.execute(&self.update, (new, &value[..], operations, name, old)).await,
        };
        let result = result.map_err(|e| e.while_doing(doing()))?;
        let rows = result.into_rows_result().map_err(|e| unexpected(doing(), e))?;
        // What else the row says depends on the outcome, so only the first column has a type here.
        let mut rows = rows.rows::<scylla::value::Row>().map_err(|e| unexpected(doing(), e))?;
        let row =
            rows.next().ok_or_else(|| unexpected(doing(), "it has no row"))?.map_err(|e| unexpected(doing(), e))?;
        let applied = row.columns.first().and_then(Option::as_ref).and_then(scylla::value::CqlValue::as_boolean);
        applied.ok_or_else(|| unexpected(doing(), "it does not say whether it was applied"))
    }

    /// What a refusal means, after an earlier try of the same change whose outcome is unknown, or without one.
    pub(super) async fn refused(
        &self,
        name: &str,
        revision: u64,
        operation: &Operation,
        tried_before: bool,
    ) -> Result<Replaced> {
        let Record { agreed, operations } = self.record(name).await?;
        if operations.contains(operation) {
            return Ok(Replaced::Done);
        }
        // What is so far back that nobody knows its author any more may have been ours.
        if tried_before && agreed.revision - agreed.revision.min(revision) > operations.len() as u64 {
            return Err(Error::unavailable(format!(
                "changing what is agreed on as '{name}', from revision {revision}, in Cassandra: it may have been changed, and has been {} times since",
                agreed.revision - revision - 1
            )));
        }
        Ok(Replaced::Overtaken(agreed))
    }

    async fn record(&self, name: &str) -> Result<Record> {
        let mut tried = 0;
        loop {
            match self.record_once(&self.read, name).await {
                Err(error) if error.kind == Kind::Unavailable && tried + 1 < TRIES => tried += 1,
                result => return result,
            }
            self.pause(tried).await;
        }
    }

    async fn record_once(&self, statement: &PreparedStatement, name: &str) -> Result<Record> {
        let doing = || format!("reading what is agreed on as '{name}'");
        let result = self.link.execute(statement, (name,)).await.map_err(|e| e.while_doing(doing()))?;
        let rows = result.into_rows_result().map_err(|e| unexpected(doing(), e))?;
        let row = rows.maybe_first_row::<(i64, Option<Bytes>, Option<Bytes>)>().map_err(|e| unexpected(doing(), e))?;
        let Some((revision, value, operations)) = row else {
            return Ok(Record { agreed: Agreed::default(), operations: Vec::new() });
        };
        let revision = u64::try_from(revision).map_err(|e| unexpected(doing(), e))?;
        let operations = operations.unwrap_or_default();
        let (operations, []) = operations.as_chunks() else {
            return Err(unexpected(doing(), "the names of its changes are cut off"));
        };
        let operations = operations.to_vec();
        self.remember(name, Seen { revision, operations: operations.clone() });
        Ok(Record { agreed: Agreed { revision, value: value.unwrap_or_default() }, operations })
    }

    async fn pause(&self, tried: u32) {
        let pause = PAUSE * 2u32.saturating_pow(tried.min(8));
        self.link.clock.sleep(clock::jittered(&*self.link.clock, pause)).await;
    }
}

fn i64_of(revision: u64) -> Result<i64> {
    i64::try_from(revision).map_err(|e| Error::internal(format!("{revision} is no revision")).with_source(e))
}
