//! The one connection that writes, and the task that owns it.
//!
//! Jobs that are waiting when a transaction begins share it, each behind a savepoint of its own unless it looks before
//! it writes, and are answered after the commit: the flush to the disk, which costs more than all the rest, is paid once for all of them. A job
//! goes on when its caller has stopped waiting.

use engine::port::StoreError;
use futures::future::BoxFuture;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use crate::failure::store_error;

/// How many jobs share one transaction, at most.
const BATCH: usize = 64;

/// How many jobs may wait before callers wait to hand theirs in.
const QUEUE: usize = 1024;

/// Takes jobs for the writing connection.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Message>,
}

enum Message {
    Job(Box<dyn Job>),
    Close(oneshot::Sender<()>),
}

/// Answers a job's caller: with the job's own result, or with the problem that the commit met.
type Answer = Box<dyn FnOnce(Option<&str>) + Send>;

/// What a failed job leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// Perhaps half of its changes.
    Anything,
    /// Nothing: it looked before it wrote.
    Nothing,
}

/// A job that was run and waits for the commit.
struct Ran {
    /// Whether its changes are to stay; if not, what there is to undo.
    keep: Result<(), Failed>,
    answer: Answer,
}

trait Job: Send {
    /// Whether a failure may leave something behind that has to be undone without the rest of the transaction.
    fn needs_savepoint(&self) -> bool;
    fn run<'c>(self: Box<Self>, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Ran>;
    fn refuse(self: Box<Self>, problem: &str);
}

struct Work<F, T, E> {
    work: F,
    /// Tells refusals, which come before anything is written, from faults. Without it every failure is undone alone.
    is_refusal: Option<fn(&E) -> bool>,
    caller: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Work<F, T, E>
where
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    fn needs_savepoint(&self) -> bool {
        self.is_refusal.is_none()
    }

    fn run<'c>(self: Box<Self>, connection: &'c mut SqliteConnection) -> BoxFuture<'c, Ran> {
        Box::pin(async move {
            let Self { work, is_refusal, caller } = *self;
            let result = work(connection).await;
            let keep = result.as_ref().map(drop).map_err(|error| match is_refusal {
                Some(is_refusal) if is_refusal(error) => Failed::Nothing,
                _ => Failed::Anything,
            });
            let answer = Box::new(move |problem: Option<&str>| {
                let answer = match problem {
                    Some(problem) if keep.is_ok() => Err(E::from(StoreError::Unavailable(problem.to_owned()))),
                    _ => result,
                };
                // The caller may have stopped waiting.
                let _ = caller.send(answer);
            });
            Ran { keep, answer }
        })
    }

    fn refuse(self: Box<Self>, problem: &str) {
        let _ = self.caller.send(Err(E::from(StoreError::Unavailable(problem.to_owned()))));
    }
}

impl Writer {
    /// Starts the task, which ends with the last handle or at [`Writer::close`].
    pub(super) fn start(connection: SqliteConnection) -> Self {
        let (jobs, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(serve(connection, inbox));
        Self { jobs }
    }

    /// Runs `work` in a transaction, which is committed if it succeeds; returns after the commit.
    pub(super) async fn write<F, T, E>(&self, work: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.write_checked(work, None).await
    }

    /// The same for work that looks before it writes, if `is_refusal` is given: an error that it knows has changed
    /// nothing, so no savepoint is set. Any other error undoes the whole transaction.
    pub(super) async fn write_checked<F, T, E>(&self, work: F, is_refusal: Option<fn(&E) -> bool>) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let closed = || E::from(StoreError::Unavailable("the store is closed".to_owned()));
        let (caller, answer) = oneshot::channel();
        let job = Message::Job(Box::new(Work { work, is_refusal, caller }));
        self.jobs.send(job).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Message::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

async fn serve(mut connection: SqliteConnection, mut inbox: mpsc::Receiver<Message>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut jobs = Vec::with_capacity(BATCH);
    let mut closing = Vec::new();
    while closing.is_empty() && inbox.recv_many(&mut batch, BATCH).await > 0 {
        for message in batch.drain(..) {
            match message {
                Message::Job(job) => jobs.push(job),
                Message::Close(done) => closing.push(done),
            }
        }
        commit(&mut connection, std::mem::take(&mut jobs)).await;
    }
    inbox.close();
    // Closing writes the log back into the file; what cannot be is read at the next start.
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the database file was not closed cleanly");
    }
    for done in closing {
        let _ = done.send(());
    }
}

/// Runs the jobs in one transaction and answers each.
async fn commit(connection: &mut SqliteConnection, mut jobs: Vec<Box<dyn Job>>) {
    if jobs.is_empty() {
        return;
    }
    let mut transaction = match connection.begin_with("BEGIN IMMEDIATE").await {
        Ok(transaction) => transaction,
        Err(error) => {
            let problem = store_error(error).to_string();
            return jobs.into_iter().for_each(|job| job.refuse(&problem));
        }
    };
    if jobs.len() == 1 {
        let ran = jobs.remove(0).run(&mut transaction).await;
        let ended = if ran.keep.is_ok() { transaction.commit().await } else { transaction.rollback().await };
        let problem = ended.err().map(|error| store_error(error).to_string());
        return (ran.answer)(problem.as_deref());
    }

    let mut answers = Vec::with_capacity(jobs.len());
    let mut broken: Option<String> = None;
    for job in jobs {
        if let Some(problem) = &broken {
            job.refuse(problem);
            continue;
        }
        if job.needs_savepoint() {
            let (answer, problem) = behind_savepoint(&mut transaction, job).await;
            answers.extend(answer);
            broken = problem;
        } else {
            let ran = job.run(&mut transaction).await;
            answers.push(ran.answer);
            if ran.keep == Err(Failed::Anything) {
                broken = Some("another write of the same transaction failed".to_owned());
            }
        }
    }
    let ended = match broken {
        None => transaction.commit().await.map_err(|error| store_error(error).to_string()),
        Some(problem) => {
            let _ = transaction.rollback().await;
            Err(problem)
        }
    };
    for answer in answers {
        answer(ended.as_ref().err().map(String::as_str));
    }
}

/// Runs one job so that it can be undone alone. A savepoint that cannot be set or left breaks the whole transaction.
async fn behind_savepoint(transaction: &mut SqliteConnection, job: Box<dyn Job>) -> (Option<Answer>, Option<String>) {
    let mut savepoint = match transaction.begin().await {
        Ok(savepoint) => savepoint,
        Err(error) => {
            let problem = store_error(error).to_string();
            job.refuse(&problem);
            return (None, Some(problem));
        }
    };
    let ran = job.run(&mut savepoint).await;
    let left = if ran.keep.is_ok() { savepoint.commit().await } else { savepoint.rollback().await };
    (Some(ran.answer), left.err().map(|error| store_error(error).to_string()))
}
