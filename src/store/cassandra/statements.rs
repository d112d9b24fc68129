//! The statements on the tables of rows, prepared once, and how they are executed: bounded in flight, with a deadline, repeatable.
//!
//! A row is one cell, so of two writes with one timestamp one stands whole; columns are named, and all are written each time.

use std::sync::Arc;

use bytes::Bytes;
use scylla::{
    client::{execution_profile::ExecutionProfileHandle, session::Session},
    errors::{DbError, ExecutionError, RequestAttemptError},
    response::query_result::QueryResult,
    serialize::{
        SerializationError,
        row::{RowSerializationContext, SerializeRow},
        writers::RowWriter,
    },
    statement::{
        Consistency,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
};
use tokio::sync::Semaphore;

use super::{
    place::{Family, Partition},
    session,
    settings::CassandraSettings,
};
use crate::{
    clock::{self, Clock},
    error::{Error, Result},
};

/// Statements in flight to the database, of the whole process. More keep the database busier, and wait there instead of here.
const IN_FLIGHT_MAX: usize = 512;

/// The session, and what holds for all statements on it.
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) settings: CassandraSettings,
    pub(super) clock: Arc<dyn Clock>,
    scanning: ExecutionProfileHandle,
    patient: ExecutionProfileHandle,
    permits: Semaphore,
}

/// The tables of rows.
pub(super) struct Database {
    pub(super) link: Arc<Link>,
    families: [OfFamily; 3],
}

struct OfFamily {
    get: PreparedStatement,
    put: PreparedStatement,
    remove: PreparedStatement,
    remove_between: PreparedStatement,
    remove_from: PreparedStatement,
    scan_between: PreparedStatement,
    scan_from: PreparedStatement,
}

/// A change of a partition, as it is bound to its statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// Seconds to live; zero for ever.
    Put {
        key: Bytes,
        value: Bytes,
        timestamp: i64,
        ttl: i32,
    },
    Remove {
        key: Bytes,
        timestamp: i64,
    },
    /// All rows from a key on, to the next one or to the partition's end.
    RemoveStretch {
        from: Bytes,
        to: Option<Bytes>,
        timestamp: i64,
    },
}

/// A part of a partition: its rows with `from <= key < to`; `None` is the partition's end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stretch {
    pub(super) from: Bytes,
    pub(super) to: Option<Bytes>,
}

/// How a stretch is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    Usually,
    /// No second node is asked before the first has answered: it would only be one more that is busy, and a refusal is an answer, too.
    Patiently,
    /// All copies have to be there.
    All,
}

/// What came of reading a stretch.
pub(super) struct Rows {
    pub(super) rows: Vec<(Bytes, Bytes)>,
    /// How many dead rows the database went over, where they were so many that it said so.
    pub(super) dead: Option<u64>,
}

/// Why a stretch could not be read.
pub(super) enum ReadError {
    /// There are so many dead rows in it that no node reads on.
    TooManyDead(Error),
    /// Nodes took too long, as they do when they go over many dead rows while they have much else to do.
    TooSlow(Error),
    Other(Error),
}

impl ReadError {
    pub(super) fn into_error(self) -> Error {
        match self {
            ReadError::TooManyDead(error) | ReadError::TooSlow(error) | ReadError::Other(error) => error,
        }
    }
}

impl Link {
    pub(super) fn new(session: Session, settings: CassandraSettings, clock: Arc<dyn Clock>) -> Link {
        let scanning = session::asking_again_after(&settings, Some(session::SCAN_SPECULATION_AFTER)).into_handle();
        let patient = session::asking_again_after(&settings, None).into_handle();
        Link { session, settings, clock, scanning, patient, permits: Semaphore::new(IN_FLIGHT_MAX) }
    }

    pub(super) async fn prepare(&self, text: &str) -> Result<PreparedStatement> {
        let prepared = self.session.prepare(text).await;
        prepared
            .map_err(|e| Error::unavailable(format!("preparing the statement '{text}' in Cassandra")).with_source(e))
    }

    pub(super) async fn execute(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryResult, Failure> {
        self.bounded(self.session.execute_unpaged(statement, values)).await
    }

    async fn bounded(
        &self,
        execution: impl Future<Output = Result<QueryResult, ExecutionError>>,
    ) -> Result<QueryResult, Failure> {
        let permit = clock::within(&*self.clock, self.settings.deadline, self.permits.acquire()).await;
        let _permit = permit.map_err(|_| Failure::Crowded)?.expect("the semaphore is never closed");
        execution.await.map_err(|e| Failure::Failed(Box::new(e)))
    }
}

impl Database {
    pub(super) async fn prepare(link: Arc<Link>) -> Result<Database> {
        let families = [
            OfFamily::prepare(&link, Family::Entry).await?,
            OfFamily::prepare(&link, Family::Chunk).await?,
            OfFamily::prepare(&link, Family::Other).await?,
        ];
        Ok(Database { link, families })
    }

    fn of(&self, family: Family) -> &OfFamily {
        match family {
            Family::Entry => &self.families[0],
            Family::Chunk => &self.families[1],
            Family::Other => &self.families[2],
        }
    }

    pub(super) async fn get(&self, partition: &Partition, key: &[u8]) -> Result<Option<Bytes>> {
        let statement = &self.of(partition.family).get;
        let doing = || format!("reading {}", shown(partition, key));
        let bound = (&partition.space[..], partition.bucket, key);
        let result = self.link.execute(statement, bound).await.map_err(|e| e.while_doing(doing()))?;
        let rows = result.into_rows_result().map_err(|e| unexpected(doing(), e))?;
        let row = rows.maybe_first_row::<(Option<Bytes>,)>().map_err(|e| unexpected(doing(), e))?;
        Ok(row.and_then(|(value,)| value))
    }

    /// The first `limit` rows of a stretch.
    pub(super) async fn read(
        &self,
        partition: &Partition,
        stretch: &Stretch,
        limit: usize,
        asking: Asking,
    ) -> Result<Rows, ReadError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let statements = self.of(partition.family);
        let doing = || format!("scanning {}", shown(partition, &stretch.from));
        let (space, bucket, from) = (&partition.space[..], partition.bucket, &stretch.from[..]);
        let at = |statement: &PreparedStatement| {
            let mut statement = statement.clone();
            match asking {
                Asking::Usually => statement.set_execution_profile_handle(Some(self.link.scanning.clone())),
                Asking::Patiently => statement.set_execution_profile_handle(Some(self.link.patient.clone())),
                Asking::All => statement.set_consistency(Consistency::All),
            }
            statement
        };
        let result = match &stretch.to {
            Some(to) => self.link.execute(&at(&statements.scan_between), (space, bucket, from, &to[..], limit)).await,
            None => self.link.execute(&at(&statements.scan_from), (space, bucket, from, limit)).await,
        };
        let result = result.map_err(|e| {
            let kind = match e.read_answer() {
                Some(DbError::ReadFailure { .. }) => ReadError::TooManyDead,
                Some(DbError::ReadTimeout { .. }) => ReadError::TooSlow,
                _ => ReadError::Other,
            };
            kind(e.while_doing(doing()))
        })?;
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| ReadError::Other(unexpected(doing(), e));
        let result = result.into_rows_result().map_err(|e| failed(e.into()))?;
        let dead = result.warnings().filter_map(dead_rows).max();
        let mut rows = Vec::with_capacity(result.rows_num());
        for row in result.rows::<(Bytes, Option<Bytes>)>().map_err(|e| failed(e.into()))? {
            let (key, value) = row.map_err(|e| failed(e.into()))?;
            rows.push((key, value.unwrap_or_default()));
        }
        Ok(Rows { rows, dead })
    }

    /// Makes all changes, which are of one partition. They take effect together or not at all.
    pub(super) async fn write(&self, partition: &Partition, writes: &[Write]) -> Result<()> {
        let statements = self.of(partition.family);
        let doing = || match writes {
            [] => "writing nothing".to_owned(),
            [one] => format!("writing {}", shown(partition, one.key())),
            [first, ..] => format!("writing {} rows, {} the first", writes.len(), shown(partition, first.key())),
        };
        let bound = |write| Bound { partition, write };
        let done = match writes {
            [] => return Ok(()),
            [one] => self.link.execute(statements.of(one), bound(one)).await,
            several => {
                let mut batch = Batch::new(BatchType::Unlogged);
                batch.set_is_idempotent(true);
                several.iter().for_each(|write| batch.append_statement(statements.of(write).clone()));
                let bound: Vec<Bound<'_>> = several.iter().map(bound).collect();
                self.link.bounded(self.link.session.batch(&batch, bound)).await
            }
        };
        done.map(|_| ()).map_err(|e| e.while_doing(doing()))
    }
}

impl OfFamily {
    async fn prepare(link: &Link, family: Family) -> Result<OfFamily> {
        let table = format!("{}.{}", link.settings.keyspace, family.name());
        let at = "space = ? AND bucket = ?";
        let prepare = |text: String| async move {
            let mut statement = link.prepare(&text).await?;
            statement.set_is_idempotent(true);
            Ok::<_, Error>(statement)
        };
        let put =
            format!("INSERT INTO {table} (space, bucket, key, value) VALUES (?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?");
        let remove = format!("DELETE FROM {table} USING TIMESTAMP ? WHERE {at}");
        let scan = format!("SELECT key, value FROM {table} WHERE {at}");
        Ok(OfFamily {
            get: prepare(format!("SELECT value FROM {table} WHERE {at} AND key = ?")).await?,
            put: prepare(put).await?,
            remove: prepare(format!("{remove} AND key = ?")).await?,
            remove_between: prepare(format!("{remove} AND key >= ? AND key < ?")).await?,
            remove_from: prepare(format!("{remove} AND key >= ?")).await?,
            scan_between: prepare(format!("{scan} AND key >= ? AND key < ? LIMIT ?")).await?,
            scan_from: prepare(format!("{scan} AND key >= ? LIMIT ?")).await?,
        })
    }

    fn of(&self, write: &Write) -> &PreparedStatement {
        match write {
            Write::Put { .. } => &self.put,
            Write::Remove { .. } => &self.remove,
            Write::RemoveStretch { to: Some(_), .. } => &self.remove_between,
            Write::RemoveStretch { to: None, .. } => &self.remove_from,
        }
    }
}

impl Write {
    fn key(&self) -> &[u8] {
        match self {
            Write::Put { key, .. } | Write::Remove { key, .. } => key,
            Write::RemoveStretch { from, .. } => from,
        }
    }

    pub(super) fn length(&self) -> usize {
        match self {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Remove { key, .. } => key.len(),
            Write::RemoveStretch { from, to, .. } => from.len() + to.as_ref().map_or(0, Bytes::len),
        }
    }
}

/// A change with its partition, in the order in which its statement has them.
struct Bound<'a> {
    partition: &'a Partition,
    write: &'a Write,
}

impl SerializeRow for Bound<'_> {
    fn serialize(
        &self,
        context: &RowSerializationContext<'_>,
        writer: &mut RowWriter<'_>,
    ) -> Result<(), SerializationError> {
        let (space, bucket) = (&self.partition.space[..], self.partition.bucket);
        match self.write {
            Write::Put { key, value, timestamp, ttl } => {
                (space, bucket, &key[..], &value[..], timestamp, ttl).serialize(context, writer)
            }
            Write::Remove { key, timestamp } => (timestamp, space, bucket, &key[..]).serialize(context, writer),
            Write::RemoveStretch { from, to: Some(to), timestamp } => {
                (timestamp, space, bucket, &from[..], &to[..]).serialize(context, writer)
            }
            Write::RemoveStretch { from, to: None, timestamp } => {
                (timestamp, space, bucket, &from[..]).serialize(context, writer)
            }
        }
    }

    fn is_empty(&self) -> bool {
        false
    }
}

/// A statement that did not succeed. Whether it took effect is not known.
pub(super) enum Failure {
    Failed(Box<ExecutionError>),
    /// It was not sent: too many others are in flight.
    Crowded,
}

impl Failure {
    pub(super) fn while_doing(self, doing: String) -> Error {
        match self {
            Failure::Crowded => {
                let message =
                    format!("{doing} in Cassandra: {IN_FLIGHT_MAX} statements are in flight, and none of them ends");
                Error::unavailable(message)
            }
            Failure::Failed(e) => {
                let message = format!("{doing} in Cassandra");
                if is_ours(&e) { Error::internal(message) } else { Error::unavailable(message) }.with_source(e)
            }
        }
    }

    /// What a node answered. Of why it did not read on the protocol says nothing; no other reason than dead rows is known.
    fn read_answer(&self) -> Option<&DbError> {
        match self {
            Failure::Failed(e) => match &**e {
                ExecutionError::LastAttemptError(RequestAttemptError::DbError(answer, _)) => Some(answer),
                _ => None,
            },
            Failure::Crowded => None,
        }
    }
}

/// Whether the statement would fail on whatever node, whenever.
fn is_ours(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::BadQuery(_) => true,
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(answer, _)) => matches!(
            answer,
            DbError::SyntaxError
                | DbError::Invalid
                | DbError::ConfigError
                | DbError::Unauthorized
                | DbError::ProtocolError
        ),
        ExecutionError::LastAttemptError(
            RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_),
        ) => true,
        _ => false,
    }
}

pub(super) fn unexpected(doing: String, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::internal(format!("{doing} in Cassandra: the answer is not what it should be")).with_source(error)
}

/// `Read 100 live rows and 5000 tombstone cells for query SELECT ...` of Cassandra, and the like.
fn dead_rows(warning: &str) -> Option<u64> {
    let (before, _) = warning.split_once(" tombstone")?;
    before.rsplit(' ').next()?.parse().ok()
}

fn shown(partition: &Partition, key: &[u8]) -> String {
    format!(
        "the table {}, space '{}', bucket {}, key '{}'",
        partition.family.name(),
        partition.space.escape_ascii(),
        partition.bucket,
        key.escape_ascii()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_dead_rows_is_read_out_of_a_warning() {
        let check = |warning: &str, expected| assert_eq!(dead_rows(warning), expected, "{warning}");
        check(
            "Read 1000 live rows and 12345 tombstone cells for query SELECT key FROM k.entry; token 7 (see tombstone_warn_threshold)",
            Some(12345),
        );
        check("Aggregation query used without partition key", None);
        check(" tombstone", None);
    }
}
