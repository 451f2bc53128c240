//! The content of records: in the row, or in a blob when it is large.
//!
//! A body above [`INLINE_BYTES_MAX`] is put under its hash before the append that refers to it, and read back without
//! the reader noticing. A store without blobs keeps every body in its row, and so does one whose blobs are away: a
//! row that is too large for comfort is better than a turn that stands still.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::port::{BlobHash, Blobs, StoreError, StoredRecord};
use parking_lot::Mutex;
use session::event::FORMAT_VERSION;
use session::{Event, Record, Timestamp};

use crate::row::{self, Columns};

/// The largest body that stays in its row, in bytes.
pub(crate) const INLINE_BYTES_MAX: usize = 64 * 1024;

/// How long an append waits for a body to be put away.
const PUT_PATIENCE: Duration = Duration::from_secs(3);

/// How long bodies stay in their rows after one could not be put away, before the next is tried.
const AWAY: Duration = Duration::from_secs(10);

/// Where large bodies go.
pub(crate) struct Bodies {
    blobs: Option<Arc<dyn Blobs>>,
    /// Until when the blobs count as away.
    away_until: Mutex<Option<Instant>>,
}

/// A record's body as its columns hold it: one of text and hash.
pub(crate) struct Body {
    pub(crate) version: i64,
    pub(crate) text: Option<String>,
    pub(crate) blob: Option<String>,
}

/// A record as a statement returns it, with the record that it refers to.
pub(crate) struct RecordRow {
    position: u64,
    at: Timestamp,
    body: Body,
    received: Option<Body>,
}

impl RecordRow {
    /// Reads `position`, `at`, `version`, `body`, `blob` and the last three again as `received_*`.
    pub(crate) fn of(row: &impl Columns) -> Result<Self, StoreError> {
        let received = match row.integer_or_null("received_version")? {
            Some(version) => Some(Body {
                version,
                text: row.text_or_null("received_body")?,
                blob: row.text_or_null("received_blob")?,
            }),
            None => None,
        };
        Ok(Self {
            position: row.counter("position")?,
            at: row.time("at")?,
            body: Body {
                version: row.integer("version")?,
                text: row.text_or_null("body")?,
                blob: row.text_or_null("blob")?,
            },
            received,
        })
    }
}

impl Bodies {
    pub(crate) fn new(blobs: Option<Arc<dyn Blobs>>) -> Self {
        Self { blobs, away_until: Mutex::default() }
    }

    pub(crate) fn blobs(&self) -> Option<&Arc<dyn Blobs>> {
        self.blobs.as_ref()
    }

    /// The bodies of an append, the large ones put away.
    pub(crate) async fn write(&self, records: &[Record]) -> Result<Vec<Body>, StoreError> {
        let version = i64::from(FORMAT_VERSION);
        let mut bodies = Vec::with_capacity(records.len());
        for record in records {
            let text = row::to_json(&record.event)?;
            bodies.push(match self.put_away(&text).await {
                Some(hash) => Body { version, text: None, blob: Some(hash.as_str().to_owned()) },
                None => Body { version, text: Some(text), blob: None },
            });
        }
        Ok(bodies)
    }

    /// Puts a large body among the blobs, if they take it in time.
    async fn put_away(&self, text: &str) -> Option<BlobHash> {
        let blobs = self.blobs.as_ref().filter(|_| text.len() > INLINE_BYTES_MAX)?;
        if self.away_until.lock().is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let put = tokio::time::timeout(PUT_PATIENCE, blobs.put(text.as_bytes().to_vec())).await;
        let put = put.unwrap_or_else(|_| Err(StoreError::Unavailable("it was not put away in time".to_owned())));
        put.inspect(|_| *self.away_until.lock() = None)
            .inspect_err(|error| {
                *self.away_until.lock() = Some(Instant::now() + AWAY);
                tracing::warn!(%error, bytes = text.len(), "a large record stays in its row");
            })
            .ok()
    }

    /// The records that rows hold.
    pub(crate) async fn read(&self, rows: Vec<RecordRow>) -> Result<Vec<StoredRecord>, StoreError> {
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            let event = self.event(row.body, row.position).await?;
            let received = match row.received {
                Some(body) => Some(self.event(body, row.position).await?),
                None => None,
            };
            let record = Record { position: row.position, at: row.at, event };
            records.push(StoredRecord { record, received });
        }
        Ok(records)
    }

    async fn event(&self, body: Body, position: u64) -> Result<Event, StoreError> {
        let text = match body.text {
            Some(text) => text,
            None => self.fetch(&body.blob.unwrap_or_default(), position).await?,
        };
        row::event(&text, body.version, position)
    }

    async fn fetch(&self, hash: &str, position: u64) -> Result<String, StoreError> {
        let missing = || StoreError::Corrupt(format!("record {position}: its blob {hash:?} is not there"));
        let hash = BlobHash::parse(hash).ok_or_else(missing)?;
        let blobs = self.blobs.as_ref().ok_or_else(missing)?;
        let bytes = blobs.get(&hash).await?.ok_or_else(missing)?;
        String::from_utf8(bytes).map_err(|error| StoreError::Corrupt(format!("record {position}: {error}")))
    }
}
