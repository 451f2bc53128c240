//! The clients that drive a child in turns. They share the cores with it, so they do little.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::connection::{Connection, Follower};

/// What clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) turns: usize,
    pub(super) tokens: usize,
}

/// One session's client: one connection posts messages, the other follows the session.
pub(super) struct Client {
    session: String,
    posts: Connection,
    follower: Follower,
}

/// What a client saw of one turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// Tokens that were previewed.
    pub(super) tokens: usize,
    /// From the sending of the message to the first of them.
    pub(super) first_token: Option<Duration>,
}

/// Takes turns on all clients, each as fast as it can, until `deadline`; each takes one at least.
pub(super) async fn turns(clients: &mut [Client], text: &str, deadline: Instant) -> anyhow::Result<Totals> {
    let running = clients.iter_mut().map(|client| async move {
        let mut totals = Totals::default();
        loop {
            totals.tokens += client.turn(text).await?.tokens;
            totals.turns += 1;
            if Instant::now() >= deadline {
                return anyhow::Ok(totals);
            }
        }
    });
    let mut sum = Totals::default();
    for totals in futures::future::try_join_all(running).await? {
        sum.turns += totals.turns;
        sum.tokens += totals.tokens;
    }
    Ok(sum)
}

impl Client {
    /// Connects, and returns when the session is followed.
    pub(super) async fn open(address: SocketAddr, session: String) -> anyhow::Result<Self> {
        let follower = Follower::open(address, &session).await?;
        Ok(Self { posts: Connection::open(address).await?, session, follower })
    }

    /// Events seen so far, previews apart.
    pub(super) fn events(&self) -> usize {
        self.follower.events
    }

    /// Posts a message and follows the session until it is idle.
    pub(super) async fn turn(&mut self, text: &str) -> anyhow::Result<Turn> {
        let sent = Instant::now();
        self.posts.send_message(&self.session, text).await?;
        let mut turn = Turn::default();
        loop {
            let look = self.follower.look().await?;
            if look.tokens > 0 {
                turn.tokens += look.tokens;
                turn.first_token.get_or_insert_with(|| sent.elapsed());
            }
            if look.is_idle {
                break;
            }
        }
        self.posts.answer().await?;
        Ok(turn)
    }
}
