//! What API keys may use.

use tokio::task::JoinSet;

use session::Command;
use session::command::ModelOutcome;
use session::event::ModelUsage;
use session::id::{ApiKeyId, EventId};

use super::story::{Setting, Story};
use super::{Store, Subject};
use crate::port::ledger::{Amount, Caps, KeyUsage, LedgerChange};
use crate::port::{Append, AppendError, Cap, OverCap};

/// A session of this key, created and idle.
async fn session_of(store: &dyn Store, number: u32, key: Option<&str>) -> Story {
    let (story, created) = Story::begin_in(number, of(key));
    store.append(created).await.expect("the session is new");
    story
}

fn of(key: Option<&str>) -> Setting {
    Setting { api_key_id: key.map(Into::into), ..Setting::default() }
}

/// A message that has the session run, beside `max - 1` others.
fn start(story: &mut Story, max: u32) -> Append {
    Append { running_max: Some(max), ..story.message("go") }
}

pub async fn so_many_sessions_of_a_key_run_at_once(subject: &impl Subject) {
    let store = subject.store();
    let mut stories = Vec::new();
    for number in 0..3 {
        stories.push(session_of(&*store, number, Some("apikey_a")).await);
    }
    for story in &mut stories[..2] {
        store.append(start(story, 2)).await.expect("there is room");
    }
    let mut refused = stories[2].clone();
    let answer = store.append(start(&mut refused, 2)).await;
    assert!(matches!(answer, Err(AppendError::TooManyRunning(2))), "{answer:?}");
    let loaded = store.load(stories[2].id()).await.expect("the store answers").expect("it was created");
    assert_eq!(loaded.state, stories[2].state, "nothing is left of what was refused");
    let (unborn, created) = Story::begin_in(3, of(Some("apikey_a")));
    let answer = store.append(Append { running_max: Some(2), ..created }).await;
    assert!(matches!(answer, Err(AppendError::TooManyRunning(2))), "{answer:?}");
    assert!(store.load(unborn.id()).await.expect("the store answers").is_none());

    // Other keys, and sessions that name none, have nothing to do with it.
    for (number, key) in [(4, Some("apikey_b")), (5, None), (6, None), (7, None)] {
        let mut other = session_of(&*store, number, key).await;
        store.append(start(&mut other, 1)).await.expect("nobody else of this key runs");
    }
    // Whoever runs goes on.
    store.append(start(&mut stories[0], 2)).await.expect("it runs already");
    for _ in 0..2 {
        for append in stories[0].answer("done") {
            store.append(append).await.expect("nobody else appends");
        }
    }
    store.append(start(&mut stories[2], 2)).await.expect("one has gone idle");
}

pub async fn concurrent_starts_share_the_limit(subject: &impl Subject) {
    const STARTS: u32 = 8;
    let store = subject.store();
    let mut starts = JoinSet::new();
    for number in 0..STARTS {
        let story = session_of(&*store, number, Some("apikey_a")).await;
        let store = store.clone();
        starts.spawn(async move {
            loop {
                match store.append(start(&mut story.clone(), 3)).await {
                    Ok(_) => return true,
                    Err(AppendError::TooManyRunning(3)) => return false,
                    Err(AppendError::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    let started = starts.join_all().await.into_iter().filter(|started| *started).count();
    assert_eq!(started, 3);
}

const HOUR_MS: i64 = 3_600_000;

fn amount(tokens: u64, micro_usd: u64) -> Amount {
    Amount { tokens, micro_usd }
}

fn tokens_per_day(tokens: u64) -> Caps {
    Caps { tokens_per_day: Some(tokens), micro_usd_per_day: None }
}

async fn usage(store: &dyn Store) -> KeyUsage {
    store.key_usage(&ApiKeyId::from("apikey_a")).await.expect("the store answers")
}

/// A running session of the key `apikey_a`.
async fn running(store: &dyn Store, number: u32) -> Story {
    let mut story = session_of(store, number, Some("apikey_a")).await;
    store.append(story.message("go")).await.expect("nobody else appends");
    story
}

/// The intent of a model request that may use so much, and its id.
fn ask(story: &mut Story, amount: Amount, caps: Caps) -> (Append, EventId) {
    let intent = story.tell(Command::BeginModelRequest);
    let request = story.state.turn.as_ref().and_then(|turn| turn.request.as_ref()).expect("a request is open");
    let request_id = request.span_id.clone();
    (Append { ledger: LedgerChange::Reserve { request_id: request_id.clone(), amount, caps }, ..intent }, request_id)
}

/// The request's end, without an answer.
fn end(story: &mut Story, request_id: &EventId, spent: Option<Amount>) -> Append {
    let (outcome, usage) = (ModelOutcome::Lost, ModelUsage::default());
    let end = story.tell(Command::FinishModelRequest { span_id: request_id.clone(), outcome, usage });
    Append { ledger: LedgerChange::Settle { request_id: request_id.clone(), spent }, ..end }
}

pub async fn a_reservation_is_settled_once(subject: &impl Subject) {
    let store = subject.store();
    let mut story = running(&*store, 1).await;
    let caps = tokens_per_day(1_000);
    let mut settled = Amount::default();
    let mut estimated = Amount::default();
    for spent in [Some(amount(70, 7)), Some(Amount::default()), None] {
        let (intent, request_id) = ask(&mut story, amount(200, 20), caps);
        store.append(intent).await.expect("it fits");
        let open = KeyUsage { settled, estimated, reserved: amount(200, 20), open_requests: 1 };
        assert_eq!(usage(&*store).await, open);
        let end = end(&mut story, &request_id, spent);
        store.append(end.clone()).await.expect("nobody else appends");
        settled = settled.plus(spent.unwrap_or(amount(200, 20)));
        if spent.is_none() {
            estimated = estimated.plus(amount(200, 20));
        }
        let over = KeyUsage { settled, estimated, ..KeyUsage::default() };
        assert_eq!(usage(&*store).await, over);
        assert!(matches!(store.append(end.clone()).await, Err(AppendError::Conflict)), "it took place");
        let again = Append { ledger: end.ledger, ..story.aside() };
        store.append(again).await.expect("what is settled is left alone");
        assert_eq!(usage(&*store).await, over);
    }
    let other = store.key_usage(&ApiKeyId::from("apikey_b")).await.expect("the store answers");
    assert_eq!(other, KeyUsage::default());
}

pub async fn a_cap_refuses_what_does_not_fit(subject: &impl Subject) {
    let store = subject.store();
    let (mut first, mut second) = (running(&*store, 1).await, running(&*store, 2).await);
    let caps = Caps { tokens_per_day: Some(500), micro_usd_per_day: Some(60) };
    let (intent, request_id) = ask(&mut first, amount(300, 40), caps);
    store.append(intent).await.expect("it fits");
    for (wanted, over) in [
        (amount(201, 1), OverCap { cap: Cap::Tokens, limit: 500, used: 300, wanted: 201 }),
        (amount(200, 21), OverCap { cap: Cap::Spend, limit: 60, used: 40, wanted: 21 }),
    ] {
        let refused = store.append(ask(&mut second.clone(), wanted, caps).0).await;
        assert!(matches!(&refused, Err(AppendError::OverCap(told)) if *told == over), "{refused:?}");
    }
    let loaded = store.load(second.id()).await.expect("the store answers").expect("it was created");
    assert_eq!(loaded.state, second.state, "nothing is left of what was refused");
    assert_eq!(usage(&*store).await.open_requests, 1);
    // A guard that fails reserves nothing.
    let elsewhere = Append { state: first.state.clone(), ..ask(&mut second.clone(), amount(1, 1), caps).0 };
    assert!(matches!(store.append(elsewhere).await, Err(AppendError::Conflict)));
    assert_eq!(usage(&*store).await.open_requests, 1);

    store.append(end(&mut first, &request_id, Some(amount(100, 10)))).await.expect("nobody else appends");
    store.append(ask(&mut second, amount(400, 50), caps).0).await.expect("it fits exactly");
    // Whoever names no key has no cap and no ledger.
    let mut free = session_of(&*store, 3, None).await;
    store.append(free.message("go")).await.expect("nobody else appends");
    let (intent, request_id) = ask(&mut free, amount(9_000, 9_000), caps);
    store.append(intent).await.expect("nobody counts it");
    store.append(end(&mut free, &request_id, None)).await.expect("nobody counts it");
    assert_eq!(usage(&*store).await.settled, amount(100, 10));
}

pub async fn a_day_has_a_ledger_of_its_own(subject: &impl Subject) {
    let store = subject.store();
    let (mut first, mut second) = (running(&*store, 1).await, running(&*store, 2).await);
    let caps = tokens_per_day(100);
    let (intent, request_id) = ask(&mut first, amount(100, 0), caps);
    store.append(intent).await.expect("it fits");
    let refused = store.append(ask(&mut second.clone(), amount(1, 0), caps).0).await;
    assert!(matches!(refused, Err(AppendError::OverCap(_))), "{refused:?}");

    subject.advance(24 * HOUR_MS).await;
    assert_eq!(usage(&*store).await, KeyUsage::default(), "the new day is empty");
    store.append(ask(&mut second, amount(100, 0), caps).0).await.expect("it fits");
    let today = usage(&*store).await;
    store.append(end(&mut first, &request_id, None)).await.expect("nobody else appends");
    assert_eq!(usage(&*store).await, today, "it was yesterday's");
}

pub async fn a_session_leaves_no_reservation_open(subject: &impl Subject) {
    let store = subject.store();
    let mut story = running(&*store, 1).await;
    let caps = tokens_per_day(1_000);
    // A build that knows no ledger ends the request, and settles nothing.
    let end_unknown =
        |story: &mut Story, request_id: &EventId| Append { ledger: LedgerChange::None, ..end(story, request_id, None) };
    let (intent, first) = ask(&mut story, amount(100, 1), caps);
    store.append(intent).await.expect("it fits");
    store.append(end_unknown(&mut story, &first)).await.expect("nobody else appends");
    let (intent, second) = ask(&mut story, amount(50, 1), caps);
    store.append(intent).await.expect("it fits");
    let after =
        KeyUsage { settled: amount(100, 1), estimated: amount(100, 1), reserved: amount(50, 1), open_requests: 1 };
    assert_eq!(usage(&*store).await, after, "the next request settles what was left");

    store.append(end_unknown(&mut story, &second)).await.expect("nobody else appends");
    for command in [
        Command::Post {
            events: vec![session::ClientEvent::Interrupt { session_thread_id: None }],
            poster: session::Poster::Application,
        },
        Command::Delete,
    ] {
        store.append(story.tell(command)).await.expect("nobody else appends");
    }
    let over = KeyUsage { settled: amount(150, 2), estimated: amount(150, 2), ..KeyUsage::default() };
    assert_eq!(usage(&*store).await, over, "and so does the end of the session");
}

pub async fn concurrent_reservations_are_all_counted(subject: &impl Subject) {
    const SESSIONS: u32 = 12;
    let store = subject.store();
    let mut requests = JoinSet::new();
    for number in 0..SESSIONS {
        let mut story = running(&*store, number).await;
        let store = store.clone();
        requests.spawn(async move {
            let (intent, request_id) = ask(&mut story, amount(10, 1), tokens_per_day(1_000_000));
            store.append(intent).await.expect("nobody else appends to this session");
            let spent = number.is_multiple_of(2).then_some(amount(3, 2));
            store.append(end(&mut story, &request_id, spent)).await.expect("nobody else appends to this session");
        });
    }
    requests.join_all().await;
    let half = u64::from(SESSIONS / 2);
    let over =
        KeyUsage { settled: amount(half * 13, half * 3), estimated: amount(half * 10, half), ..KeyUsage::default() };
    assert_eq!(usage(&*store).await, over);
    let refused = store.append(ask(&mut running(&*store, SESSIONS).await, amount(1, 0), tokens_per_day(78)).0).await;
    assert!(matches!(refused, Err(AppendError::OverCap(OverCap { used: 78, .. }))), "{refused:?}");
}
