//! Connections that go from one statement to the next as they are.
//!
//! sqlx's pool asks a connection for a sign of life whenever it is given back, in a task of its own: where a call is one
//! statement, every second trip to the database would be such a question. Here a connection whose statement came to
//! its end is kept for the next one, and goes back to the pool, with its questions and its rules of age and idleness,
//! after [`KEPT_MAX`]. What was given up half-way goes back at once: only the pool can tell what became of it, and
//! undoes what was not committed.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use sqlx::pool::{Pool, PoolConnection};
use sqlx::{Database, Either, Execute, Executor, SqlStr};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// How long a connection stays away from the pool.
const KEPT_MAX: Duration = Duration::from_secs(1);

/// The connections of one process, in use and kept.
#[derive(Debug)]
pub(crate) struct Connections<DB: Database>(Arc<Inner<DB>>);

struct Inner<DB: Database> {
    pool: Pool<DB>,
    /// As many permits as the pool has connections: whoever has one finds a connection here or there.
    room: Semaphore,
    /// Ready for the next statement, the one used last at the end.
    kept: Mutex<Vec<Kept<DB>>>,
}

struct Kept<DB: Database> {
    connection: PoolConnection<DB>,
    /// When it left the pool.
    since: Instant,
}

impl<DB: Database> Connections<DB> {
    pub(crate) fn new(pool: Pool<DB>) -> Self {
        let room = Semaphore::new(pool.options().get_max_connections() as usize);
        Self(Arc::new(Inner { pool, room, kept: Mutex::default() }))
    }

    /// A connection for one statement or more. It goes back to the pool unless it is [done](Lent::done).
    pub(crate) async fn lend(&self) -> Result<Lent<'_, DB>, sqlx::Error> {
        let permit = self.0.permit().await?;
        let kept = match self.0.take() {
            Some(kept) => kept,
            // In a box, since connecting takes a future that those who wait for their turn need not hold.
            None => Kept { connection: Box::pin(self.0.pool.acquire()).await?, since: Instant::now() },
        };
        Ok(Lent { kept, inner: &self.0, _permit: permit })
    }

    /// A transaction on a connection that comes from the pool and goes back to it.
    pub(crate) async fn begin(&self) -> Result<Transaction<'_, DB>, sqlx::Error> {
        let permit = self.0.permit().await?;
        // The pool may have no other to give.
        drop(self.0.kept.lock().pop());
        Ok(Transaction { transaction: Box::pin(self.0.pool.begin()).await?, _permit: permit })
    }

    /// Connections open, and how many of them nobody uses.
    pub(crate) fn count(&self) -> (u32, usize) {
        (self.0.pool.size(), self.0.pool.num_idle() + self.0.kept.lock().len())
    }

    /// Closes every connection, those in use when they are given back.
    pub(crate) async fn close(&self) {
        self.0.room.close();
        self.0.kept.lock().clear();
        self.0.pool.close().await;
    }
}

impl<DB: Database> Inner<DB> {
    async fn permit(&self) -> Result<SemaphorePermit<'_>, sqlx::Error> {
        let permit = timeout(self.pool.options().get_acquire_timeout(), self.room.acquire()).await;
        permit.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)
    }

    /// A connection that may be used as it is.
    fn take(&self) -> Option<Kept<DB>> {
        let mut kept = self.kept.lock();
        kept.retain(Kept::is_fresh);
        kept.pop()
    }

    /// Keeps a connection, and gives those back that were kept for long enough.
    fn keep(&self, returned: Kept<DB>) {
        let mut kept = self.kept.lock();
        // Asked under the lock: what is kept before the end is found by `close`.
        if !self.room.is_closed() {
            kept.push(returned);
            kept.retain(Kept::is_fresh);
        }
    }
}

impl<DB: Database> Kept<DB> {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < KEPT_MAX
    }
}

impl<DB: Database> Clone for Connections<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Database> Drop for Inner<DB> {
    fn drop(&mut self) {
        // There may be no runtime left in which the pool could take them back.
        self.kept.get_mut().drain(..).for_each(|kept| drop(kept.connection.detach()));
    }
}

impl<DB: Database> fmt::Debug for Inner<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("pool", &self.pool).field("kept", &self.kept.lock().len()).finish()
    }
}

/// A connection that is in use.
pub(crate) struct Lent<'c, DB: Database> {
    kept: Kept<DB>,
    inner: &'c Inner<DB>,
    _permit: SemaphorePermit<'c>,
}

impl<DB: Database> Lent<'_, DB> {
    /// Its statements came to their ends: the next one may follow.
    pub(crate) fn done(self) {
        self.inner.keep(self.kept);
    }
}

impl<DB: Database> Deref for Lent<'_, DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.kept.connection
    }
}

impl<DB: Database> DerefMut for Lent<'_, DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.kept.connection
    }
}

/// A transaction; undone unless it is committed.
pub(crate) struct Transaction<'c, DB: Database> {
    transaction: sqlx::Transaction<'static, DB>,
    _permit: SemaphorePermit<'c>,
}

impl<DB: Database> Transaction<'_, DB> {
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        self.transaction.commit().await
    }

    pub(crate) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.transaction.rollback().await
    }
}

impl<DB: Database> Deref for Transaction<'_, DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.transaction
    }
}

impl<DB: Database> DerefMut for Transaction<'_, DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.transaction
    }
}

/// Runs one statement on a connection of its own.
impl<'c, DB: Database> Executor<'c> for &'c Connections<DB>
where
    for<'l> &'l mut DB::Connection: Executor<'l, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let fetched = async move {
            let mut connection = self.lend().await?;
            let fetched: Vec<_> = connection.fetch_many(query).try_collect().await?;
            connection.done();
            Ok(stream::iter(fetched).map(Ok))
        };
        fetched.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let fetched = async move {
            let mut connection = self.lend().await?;
            let row = connection.fetch_optional(query).await?;
            connection.done();
            Ok(row)
        };
        fetched.boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
    where
        'c: 'e,
    {
        async move { self.lend().await?.prepare_with(sql, parameters).await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::{Sqlite, SqlitePoolOptions};
    use sqlx::{query, query_scalar};

    use super::*;

    async fn one_connection() -> Connections<Sqlite> {
        let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
        Connections::new(pool)
    }

    #[tokio::test]
    async fn a_connection_is_kept_from_one_statement_to_the_next() {
        let connections = one_connection().await;
        for number in 0..3 {
            let answer: i64 = query_scalar("SELECT ?").bind(number).fetch_one(&connections).await.unwrap();
            assert_eq!(answer, number);
            assert_eq!((connections.0.pool.num_idle(), connections.count()), (0, (1, 1)));
        }
    }

    #[tokio::test]
    async fn statements_and_transactions_take_turns_on_the_last_connection() {
        let connections = one_connection().await;
        query("CREATE TABLE notes (text TEXT)").execute(&connections).await.unwrap();
        for _ in 0..3 {
            let mut transaction = connections.begin().await.unwrap();
            query("INSERT INTO notes VALUES ('never committed')").execute(&mut *transaction).await.unwrap();
            drop(transaction);
            let notes: Vec<String> = query_scalar("SELECT text FROM notes").fetch_all(&connections).await.unwrap();
            assert!(notes.is_empty());
        }
    }

    #[tokio::test]
    async fn what_was_given_up_half_way_goes_back_to_the_pool() {
        let connections = one_connection().await;
        let mut given_up = connections.lend().await.unwrap();
        let long =
            "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 300000) SELECT max(x) FROM n";
        let statement = query(long).fetch_one(&mut *given_up);
        assert!(statement.now_or_never().is_none(), "it takes a while on the connection's own thread");
        drop(given_up);
        assert_eq!(connections.0.kept.lock().len(), 0);
        let answer: i64 = query_scalar("SELECT 2").fetch_one(&connections).await.unwrap();
        assert_eq!(answer, 2);
    }

    #[tokio::test]
    async fn nothing_is_lent_after_the_end() {
        let connections = one_connection().await;
        let lent = connections.lend().await.unwrap();
        let closing = tokio::spawn({
            let connections = connections.clone();
            async move { connections.close().await }
        });
        while !connections.0.room.is_closed() {
            tokio::task::yield_now().await;
        }
        lent.done();
        closing.await.unwrap();
        assert!(matches!(connections.lend().await, Err(sqlx::Error::PoolClosed)));
    }
}
