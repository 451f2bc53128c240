//! A session's events for its worker: the stream, and a list after every connect for what it missed.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

use super::backoff::Backoff;
use super::client::{ApiError, Client};
use super::sse;
use super::wire::{CALL_EVENTS, Event};
use crate::secret::Secret;

/// Waiting events; the worker takes them at once unless it is shutting down.
const EVENTS_WAITING_MAX: usize = 256;

#[derive(Debug)]
pub(crate) enum News {
    /// What is open right now, oldest first. Comes after every connect.
    Listed(Vec<Event>),
    Live(Event),
    /// The session does not exist any more.
    Deleted,
    /// The token opens nothing any more.
    Refused,
}

/// Follows the session until nobody listens; ends by itself after `Deleted` and `Refused`.
pub(crate) fn follow(client: Arc<Client>, session_id: String, token: Secret) -> mpsc::Receiver<News> {
    let (sender, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    tokio::spawn(async move {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        loop {
            let end = tokio::select! {
                end = connection(&client, &session_id, &token, &sender, &mut backoff) => end,
                () = sender.closed() => return,
            };
            let last = match end {
                Err(error) if error.status() == Some(404) => News::Deleted,
                Err(error) if !error.is_transient() => {
                    tracing::info!(session_id, %error, "the session's events are closed to this worker");
                    News::Refused
                }
                Ok(()) | Err(_) => {
                    backoff.wait().await;
                    continue;
                }
            };
            let _ = sender.send(last).await;
            return;
        }
    });
    receiver
}

/// One connection from its opening to its end. The stream is opened first, so that the list misses nothing.
async fn connection(
    client: &Client,
    session_id: &str,
    token: &Secret,
    sender: &mpsc::Sender<News>,
    backoff: &mut Backoff,
) -> Result<(), ApiError> {
    let mut stream = client.stream(session_id, token).await?;
    let listed = client.open_events(session_id, token).await?;
    backoff.reset();
    if sender.send(News::Listed(listed)).await.is_err() {
        return Ok(());
    }
    let mut reader = sse::Reader::default();
    // An error in the middle is an end like any other: the next connection lists what was missed.
    while let Ok(Some(bytes)) = stream.chunk().await {
        reader.push(&bytes);
        loop {
            let message = match reader.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(session_id, %error, "the event stream is not understood");
                    return Ok(());
                }
            };
            if let Some(event) = relevant(&message)
                && sender.send(News::Live(event)).await.is_err()
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The event, if its type concerns a worker: the others are not even parsed.
fn relevant(message: &sse::Message) -> Option<Event> {
    let name = message.name.as_str();
    let is_status = name.starts_with("session.status_") || name == "session.deleted";
    if !is_status && !CALL_EVENTS.contains(&name) {
        return None;
    }
    serde_json::from_str(&message.data).ok()
}
