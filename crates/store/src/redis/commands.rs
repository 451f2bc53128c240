//! Questions that somebody waits for while Redis answers: one connection, a short time-out, and a way without it.
//!
//! A question is asked over the connection that is there, or not at all: connecting happens in the background. One
//! that is not answered in time ends the connection, and the next is made a second later at the earliest. So a Redis
//! that stalls costs those who are waiting one time-out, and everybody after them nothing.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Redis, RedisError};

/// How long nothing is asked after a question that was not answered.
const PAUSE: Duration = Duration::from_secs(1);

/// The connection for questions.
pub(super) struct Commands {
    timeout: Duration,
    line: watch::Sender<Option<MultiplexedConnection>>,
    _task: JoinSet<()>,
}

impl Commands {
    /// Connects in the background. Call it inside a runtime.
    pub(super) fn start(redis: &Arc<Redis>) -> Self {
        let line = watch::Sender::new(None);
        let mut task = JoinSet::new();
        task.spawn(keep(Arc::clone(redis), line.clone()));
        Self { timeout: redis.options.answer_timeout, line, _task: task }
    }

    /// Asks over the connection that is there.
    pub(super) async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> ::redis::RedisResult<T>,
    ) -> Result<T, RedisError> {
        let Some(mut connection) = self.line.borrow().clone() else { return Err(RedisError::NotAsked) };
        let error = match tokio::time::timeout(self.timeout, question(&mut connection)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if !error.is_unrecoverable_error() => return Err(RedisError::Failed(error.to_string())),
            Ok(Err(error)) => RedisError::Failed(error.to_string()),
            Err(_) => RedisError::Silent(self.timeout),
        };
        self.line.send_replace(None);
        Err(error)
    }

    /// Waits until questions can be asked.
    pub(super) async fn connected(&self) {
        // The sender is ours, so waiting cannot fail.
        let _ = self.line.subscribe().wait_for(Option::is_some).await;
    }
}

/// Connects whenever there is no connection, with a pause before each attempt but the first.
async fn keep(redis: Arc<Redis>, line: watch::Sender<Option<MultiplexedConnection>>) {
    let mut watching = line.subscribe();
    loop {
        if let Ok(connection) = redis.connect(redis.options.answer_timeout).await {
            line.send_replace(Some(connection));
            if watching.wait_for(Option::is_none).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
