//! The content of records: in the row, or in a blob when it is large.
//!
//! A body above [`INLINE_BYTES_MAX`] is put under its hash before the append that refers to it, and read back without
//! the reader noticing. A store without blobs keeps every body in its row.

use std::sync::Arc;

use engine::port::{BlobHash, Blobs, StoreError, StoredRecord};
use session::event::FORMAT_VERSION;
use session::{Event, Record, Timestamp};

use crate::row::{self, Columns};

/// The largest body that stays in its row, in bytes.
pub(crate) const INLINE_BYTES_MAX: usize = 64 * 1024;

/// Where large bodies go.
pub(crate) struct Bodies {
    blobs: Option<Arc<dyn Blobs>>,
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
        Self { blobs }
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
            bodies.push(match &self.blobs {
                Some(blobs) if text.len() > INLINE_BYTES_MAX => {
                    let hash = blobs.put(text.into_bytes()).await?;
                    Body { version, text: None, blob: Some(hash.as_str().to_owned()) }
                }
                _ => Body { version, text: Some(text), blob: None },
            });
        }
        Ok(bodies)
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
