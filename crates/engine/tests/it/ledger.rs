//! The ledger of an API key, as turns keep it.

use std::sync::Arc;

use engine::observer::{Basis, Failure, Observer, TurnEnd};
use engine::port::ledger::{Amount, Caps, KeyUsage, Ledger};
use engine::port::{Cap, KeyLimits};
use session::event::{EnvironmentKind, RetryStatus, SessionErrorKind, StopReason};
use session::{ClientEvent, Event};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Duration;

use crate::rig::{Rig, Step, is_idle, message, overloaded, post, says, until};

/// What an answer of the script uses.
const ANSWER: Amount = Amount { tokens: 12, micro_usd: 0 };

/// A rig whose key may use so many tokens a day.
fn capped(tokens: u64) -> Rig {
    let mut rig = Rig::new();
    let caps = Caps { tokens_per_day: Some(tokens), micro_usd_per_day: None };
    rig.world.key_limits = KeyLimits { caps, ..KeyLimits::default() };
    rig
}

async fn usage(rig: &Rig) -> KeyUsage {
    rig.store.key_usage(&"apikey_01".into()).await.unwrap()
}

/// An answer that takes minutes.
fn slow() -> Step {
    Step { pause: Duration::from_secs(600), ..says(&["never"]) }
}

fn is_asking(event: &Event) -> bool {
    matches!(event, Event::ModelRequestStart { .. })
}

/// Tells what ended turns fail by.
struct Failures(UnboundedSender<Option<Failure>>);

impl Observer for Failures {
    fn turn_ended(&self, end: &TurnEnd<'_>) {
        let _ = self.0.send(end.failure);
    }
}

/// Tells what it hears of the ledger.
struct Told(UnboundedSender<Result<Basis, Cap>>);

impl Observer for Told {
    fn request_settled(&self, basis: Basis) {
        let _ = self.0.send(Ok(basis));
    }

    fn cap_refused(&self, cap: Cap) {
        let _ = self.0.send(Err(cap));
    }
}

fn observed() -> (Arc<Told>, UnboundedReceiver<Result<Basis, Cap>>) {
    let (sender, receiver) = unbounded_channel();
    (Arc::new(Told(sender)), receiver)
}

#[tokio::test(start_paused = true)]
async fn a_request_is_reserved_and_settled_at_its_usage() {
    let rig = capped(1_000_000);
    let (observer, mut told) = observed();
    let replica = rig.observed_replica(4, observer);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(says(&["Good ", "morning."]));
    post(&replica.sessions, &id, vec![message("Hello")]).await;
    until(&mut feed, is_asking).await;
    let open = usage(&rig).await;
    assert_eq!((open.settled, open.open_requests), (Amount::default(), 1));
    // The longest answer, and the tools, which are most of the input.
    assert!((33_000..36_000).contains(&open.reserved.tokens), "{open:?}");
    until(&mut feed, is_idle).await;
    assert_eq!(usage(&rig).await, KeyUsage { settled: ANSWER, ..KeyUsage::default() });
    assert_eq!(told.try_recv(), Ok(Ok(Basis::Usage)));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused_and_the_turn_ends() {
    let rig = capped(33_000);
    let (observer, mut told) = observed();
    let replica = rig.observed_replica(4, observer);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    for _ in 0..2 {
        post(&replica.sessions, &id, vec![message("Hello"), message("Hello?")]).await;
        until(&mut feed, is_idle).await;
        let records = rig.world.log.read(&id, 0, usize::MAX).await.unwrap();
        let error = records.iter().rev().find_map(|stored| match &stored.record.event {
            Event::Error { error, .. } => Some(error.clone()),
            _ => None,
        });
        let error = error.expect("the client is told");
        assert_eq!((error.kind, error.retry_status), (SessionErrorKind::Billing, RetryStatus::Exhausted));
        assert!(error.message.contains("33000 tokens a day (limits.tokens_per_day"), "{}", error.message);
        let state = rig.world.log.load(&id).await.unwrap().unwrap().state;
        assert_eq!(state.stop_reason, Some(StopReason::RetriesExhausted));
        assert!(state.queue.is_empty() && state.turn.is_none());
        assert_eq!(told.try_recv(), Ok(Err(Cap::Tokens)));
    }
    assert!(rig.model.asked().is_empty());
    assert_eq!(usage(&rig).await, KeyUsage::default());
}

#[tokio::test(start_paused = true)]
async fn a_cap_is_told_from_the_bill_of_a_provider() {
    let mut bill = overloaded();
    if let Err(error) = &mut bill.result {
        (error.kind, error.retryable) = (SessionErrorKind::Billing, false);
    }
    let cases = [
        (33_000, says(&["never"]), Some(Failure::Cap)),
        (1_000_000, bill, Some(Failure::Model)),
        (1_000_000, says(&["Hello."]), None),
    ];
    for (tokens, step, expected) in cases {
        let rig = capped(tokens);
        let (sender, mut told) = unbounded_channel();
        let replica = rig.observed_replica(4, Arc::new(Failures(sender)));
        let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
        rig.model.then(step);
        post(&replica.sessions, &id, vec![message("Hello")]).await;
        assert_eq!(told.recv().await, Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_provider_costs_nothing() {
    let rig = capped(1_000_000);
    let (observer, mut told) = observed();
    let replica = rig.observed_replica(4, observer);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(overloaded());
    rig.model.then(says(&["Now."]));
    post(&replica.sessions, &id, vec![message("Hello")]).await;
    until(&mut feed, is_idle).await;
    assert_eq!(usage(&rig).await, KeyUsage { settled: ANSWER, ..KeyUsage::default() });
    assert_eq!([told.try_recv(), told.try_recv()], [Ok(Ok(Basis::Nothing)), Ok(Ok(Basis::Usage))]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_counts_in_full() {
    let rig = capped(1_000_000);
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    let mut cut = overloaded();
    if let Err(error) = &mut cut.result {
        (error.is_free, error.retryable, error.usage.input_tokens) = (false, false, 7);
    }
    rig.model.then(cut);
    post(&replica.sessions, &id, vec![message("Hello")]).await;
    until(&mut feed, is_asking).await;
    let reserved = usage(&rig).await.reserved;
    until(&mut feed, is_idle).await;
    assert_eq!(usage(&rig).await, KeyUsage { settled: reserved, estimated: reserved, ..KeyUsage::default() });
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_request_counts_in_full() {
    let rig = capped(1_000_000);
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(slow());
    post(&replica.sessions, &id, vec![message("Hello")]).await;
    until(&mut feed, is_asking).await;
    let reserved = usage(&rig).await.reserved;
    post(&replica.sessions, &id, vec![ClientEvent::Interrupt { session_thread_id: None }]).await;
    until(&mut feed, is_idle).await;
    assert_eq!(usage(&rig).await, KeyUsage { settled: reserved, estimated: reserved, ..KeyUsage::default() });
}

#[tokio::test(start_paused = true)]
async fn a_request_of_a_killed_replica_counts_in_full_beside_the_one_made_again() {
    let rig = capped(1_000_000);
    let first = rig.replica(4);
    let id = rig.session(&first.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(slow());
    rig.model.then(says(&["Here I am."]));
    post(&first.sessions, &id, vec![message("Hello")]).await;
    until(&mut feed, is_asking).await;
    let lost = usage(&rig).await.reserved;
    let _second = rig.replica(4);
    first.task.abort();
    until(&mut feed, is_idle).await;
    assert_eq!(usage(&rig).await, KeyUsage { settled: lost.plus(ANSWER), estimated: lost, ..KeyUsage::default() });
}
