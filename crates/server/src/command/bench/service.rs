//! What somebody who uses a server waits for: the answers to writes and to reads that come at a fixed rate, the first
//! token of an answer, the way back to the end of a long history.
//!
//! A wait begins when its request was due, not when it could be sent: a server that falls behind does not slow those
//! down who would have told of it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::{sleep, sleep_until};

use super::connection::Connection;
use super::load::Client;
use super::subject::{Kind, Subject};
use super::{open, take_turns};

/// Connections over which requests at a fixed rate are spread, for writes and for reads each.
const LANES: usize = 100;

/// Events in a page of history that is read at a fixed rate.
const PAGE: usize = 100;

/// Events in a page while a client catches up: the most that the API allows.
const CATCH_UP_PAGE: usize = 1_000;

/// How often a client catches up.
const CATCH_UPS: usize = 100;

/// Between two turns of a session while first tokens are awaited, and how many it takes.
const TURN_EVERY: Duration = Duration::from_secs(1);

/// How much is asked of a child.
pub(super) struct Demand {
    /// Writes and reads a second, each.
    pub(super) rate: usize,
    /// Sessions that take a turn a second.
    pub(super) live_sessions: usize,
    /// Events of the history that is caught up with.
    pub(super) history: usize,
    pub(super) duration: Duration,
}

/// What was waited, in milliseconds.
pub(super) struct Service {
    pub(super) write_p99_ms: f64,
    pub(super) read_p99_ms: f64,
    pub(super) first_token_p50_ms: f64,
    pub(super) first_token_p99_ms: f64,
    pub(super) catch_up_p99_ms: f64,
}

pub(super) async fn measure(subject: &Subject, demand: &Demand) -> anyhow::Result<Service> {
    let (writes, reads) = at_rate(subject, demand).await?;
    let first_tokens = first_tokens(subject, demand).await?;
    let catch_ups = catch_ups(subject, demand.history).await?;
    Ok(Service {
        write_p99_ms: percentile(writes, 99),
        read_p99_ms: percentile(reads, 99),
        first_token_p50_ms: percentile(first_tokens.clone(), 50),
        first_token_p99_ms: percentile(first_tokens, 99),
        catch_up_p99_ms: percentile(catch_ups, 99),
    })
}

/// Messages that each begin a turn, and pages of the same sessions' histories.
async fn at_rate(subject: &Subject, demand: &Demand) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let sessions = subject.open_sessions(LANES).await?;
    let began = Instant::now() + Duration::from_millis(100);
    let period = Duration::from_secs_f64(LANES as f64 / demand.rate as f64);
    let lanes = sessions.iter().enumerate().map(|(lane, session)| async move {
        let mut write = Connection::open(subject.address).await?;
        let mut read = Connection::open(subject.address).await?;
        let history = format!("/v1/sessions/{session}/events?order=desc&limit={PAGE}");
        let first = began + period * u32::try_from(lane)? / u32::try_from(LANES)?;
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        let writing = async {
            let mut due = first;
            while due < began + demand.duration {
                sleep_until(due.into()).await;
                write.send_message(session, "!stream 1").await?;
                write.answer().await?;
                writes.push(due.elapsed());
                due += period;
            }
            anyhow::Ok(())
        };
        let reading = async {
            let mut due = first + period / 2;
            while due < began + demand.duration {
                sleep_until(due.into()).await;
                read.get(&history).await?;
                reads.push(due.elapsed());
                due += period;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(writing, reading)?;
        anyhow::Ok((writes, reads))
    });
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for (written, read) in futures::future::try_join_all(lanes).await? {
        writes.extend(written);
        reads.extend(read);
    }
    Ok((writes, reads))
}

/// The scripted model says its first word at once, so all of the wait is the server's.
async fn first_tokens(subject: &Subject, demand: &Demand) -> anyhow::Result<Vec<Duration>> {
    let mut clients = open(subject, demand.live_sessions).await?;
    let (began, count) = (Instant::now(), clients.len().max(1));
    let running = clients.iter_mut().enumerate().map(|(number, client): (usize, &mut Client)| async move {
        sleep(TURN_EVERY * u32::try_from(number)? / u32::try_from(count)?).await;
        let mut waits = Vec::new();
        loop {
            let next = Instant::now() + TURN_EVERY;
            let turn = client.turn("!stream 5").await?;
            waits.push(turn.first_token.context("a turn without a token")?);
            if began.elapsed() >= demand.duration {
                return anyhow::Ok(waits);
            }
            sleep_until(next.into()).await;
        }
    });
    Ok(futures::future::try_join_all(running).await?.concat())
}

/// Reads a long history from its beginning, page by page, as a client does that was away.
async fn catch_ups(subject: &Subject, history: usize) -> anyhow::Result<Vec<Duration>> {
    let session = subject.open_sessions(1).await?.remove(0);
    if subject.kind() == Kind::Server {
        let mut clients = [Client::open(subject.address, session.clone()).await?];
        while clients[0].events() < history {
            take_turns(&mut clients, 10).await?;
        }
    }
    let mut connection = Connection::open(subject.address).await?;
    let first = format!("/v1/sessions/{session}/events?limit={CATCH_UP_PAGE}");
    let mut waits = Vec::with_capacity(CATCH_UPS);
    for _ in 0..CATCH_UPS {
        let began = Instant::now();
        let mut path = first.clone();
        for _ in 0..history.div_ceil(CATCH_UP_PAGE) {
            let page = connection.get(&path).await?;
            match next_page(&page) {
                Some(next) => path = format!("{first}&page={next}"),
                None => break,
            }
        }
        waits.push(began.elapsed());
    }
    Ok(waits)
}

/// The cursor at the end of a page, without reading all of it as JSON.
fn next_page(page: &[u8]) -> Option<&str> {
    let tail = std::str::from_utf8(&page[page.len().saturating_sub(400)..]).ok()?;
    let (_, cursor) = tail.rsplit_once(r#""next_page":"#)?;
    cursor.strip_prefix('"')?.split('"').next()
}

/// The wait that so many of a hundred do not exceed, in milliseconds.
fn percentile(mut waits: Vec<Duration>, percent: usize) -> f64 {
    waits.sort_unstable();
    let rank = (waits.len() * percent).div_ceil(100).max(1) - 1;
    waits.get(rank).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_wait_that_was_measured() {
        let waits: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!((percentile(waits.clone(), 50), percentile(waits, 99)), (100.0, 198.0));
        assert_eq!(percentile(vec![Duration::from_millis(7)], 99), 7.0);
        assert!(percentile(Vec::new(), 99).is_nan(), "nothing was measured");
    }

    #[test]
    fn a_page_names_the_next() {
        assert_eq!(next_page(br#"{"data":[{"text":"a"}],"next_page":"abc"}"#), Some("abc"));
        assert_eq!(next_page(br#"{"data":[{"next_page":"no"}],"next_page":null}"#), None);
    }
}
