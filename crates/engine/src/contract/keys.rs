//! What API keys may use.

use tokio::task::JoinSet;

use super::story::{Setting, Story};
use super::{Store, Subject};
use crate::port::{Append, AppendError};

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
