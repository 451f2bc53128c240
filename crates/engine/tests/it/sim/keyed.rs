//! A client that names an idempotency key: it sends its message until it is answered, perhaps twice at once, perhaps
//! again afterwards. The oracle sees that the message is there once, and that every answer named it.

use async_trait::async_trait;
use engine::port::{Answer, Fence, KeyedRequest, StoreError};
use engine::sessions::{Reply, Respond};
use engine::{CommandError, Outcome};
use session::Command;
use session::command::Poster;
use session::id::{EventId, SessionId};
use tokio::time::{Duration, sleep};

use super::Shared;
use super::cluster::Cluster;
use super::counts::Count;
use crate::rig::message;

const CREDENTIAL: &str = "client";

/// What came of a message that was sent under a key.
pub(crate) struct Keyed {
    pub(crate) session_id: SessionId,
    pub(crate) text: String,
    /// The event that each answer named.
    pub(crate) answers: Vec<EventId>,
}

/// Posts `text` under a key of its own.
pub(crate) async fn post(shared: &Shared, cluster: &Cluster, session_id: &SessionId, text: String) {
    let request = KeyedRequest {
        credential_hash: CREDENTIAL.to_owned(),
        key: format!("key-{}", shared.dice.next()),
        method: "POST".to_owned(),
        path: session_id.to_string(),
        body_hash: text.clone(),
    };
    let sender = Sender { shared, cluster, session_id, text: &text, request: &request };
    let mut answers = Vec::new();
    if shared.dice.chance(300) {
        let (first, second) = tokio::join!(sender.insist(), sender.insist());
        answers.extend(first.into_iter().chain(second));
    } else {
        answers.extend(sender.insist().await);
    }
    if shared.dice.chance(300) {
        sleep(Duration::from_millis(shared.dice.below(3_000))).await;
        answers.extend(sender.insist().await);
    }
    if !answers.is_empty() {
        let keyed = Keyed { session_id: session_id.clone(), text, answers };
        shared.note(|notes| notes.keyed.push(keyed));
    }
}

struct Sender<'s> {
    shared: &'s Shared,
    cluster: &'s Cluster,
    session_id: &'s SessionId,
    text: &'s str,
    request: &'s KeyedRequest,
}

impl Sender<'_> {
    /// The event that the answer names; `None` where the message was refused.
    async fn insist(&self) -> Option<EventId> {
        let command = Command::Post { events: vec![message(self.text)], poster: Poster::Application };
        loop {
            if let Some(node) = self.cluster.any(self.shared) {
                let reply = Reply { respond: &NameTheEvent, request: Some(self.request) };
                let sent = node.sessions.command_answered(self.session_id, command.clone(), Fence::Client, reply);
                match node.request(sent).await {
                    Ok(Ok(answer)) => return Some(EventId::from(answer.body.as_str())),
                    Ok(Err(CommandError::KeyUsed(_))) => {
                        let kept = node.world.idempotency.kept(CREDENTIAL, &self.request.key);
                        if let Ok(Ok(kept)) = node.request(kept).await {
                            let kept = kept.filter(|kept| kept.request == *self.request);
                            let Some(kept) = kept else {
                                let text = format!("{}: a used key has no answer", self.session_id);
                                self.shared.violation(text);
                                return None;
                            };
                            return Some(EventId::from(kept.answer.body.as_str()));
                        }
                    }
                    Ok(Err(CommandError::Refused(_) | CommandError::NotFound(_) | CommandError::TooManyRunning(_))) => {
                        return None;
                    }
                    Ok(Err(_)) | Err(_) => self.shared.count(Count::LostAnswer, 1),
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Answers with the id of the event that was posted.
struct NameTheEvent;

#[async_trait]
impl Respond for NameTheEvent {
    async fn respond(&self, outcome: &Outcome) -> Result<Answer, StoreError> {
        let posted = outcome.posted.first().and_then(|stored| stored.record.event.id());
        Ok(Answer { status: 200, body: posted.map(ToString::to_string).unwrap_or_default() })
    }
}
