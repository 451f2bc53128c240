//! Redis: the bell between processes, a cache, and limits that they share.
//!
//! Nothing here is the truth and nothing waits for it: every use has a time-out and a way without it. [`Redis`] is one
//! server's address and what is known of its presence, [`RedisBell`] the bell; the rest is in the modules below, one
//! use a file. A process holds three connections: one that listens, one that tells, and one for questions.
//!
//! Only this module names the client library. What is stored in Redis may be wiped at any time.

mod bell;
mod commands;
mod definitions;
mod frame;
mod outbox;
mod publisher;
mod rate_limits;
mod subscriber;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

pub use bell::RedisBell;
pub use definitions::CachedDefinitions;
pub use rate_limits::RedisRateLimits;

use commands::Commands;

/// How a Redis server is reached.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://`, `rediss://` for TLS, or `redis+unix://` for a socket.
    pub url: String,
    /// What every key and channel begins with.
    pub key_prefix: String,
    /// How long the server may be silent before it counts as away.
    pub timeout: Duration,
    /// How long somebody's request may wait for it.
    pub answer_timeout: Duration,
}

/// An address that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the address of Redis cannot be used: {0}")]
pub struct RedisAddressError(String);

/// Redis did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    #[error("Redis does not answer within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("Redis was not asked, because it is away")]
    NotAsked,
    #[error("{0}")]
    Failed(String),
}

/// Whether Redis is there, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing is known yet.
    Unknown,
    Here,
    Away,
}

/// One Redis server. Connects when it is used.
pub struct Redis {
    client: ::redis::Client,
    options: RedisOptions,
    links: Mutex<Links>,
    commands: OnceLock<Arc<Commands>>,
    presence: watch::Sender<Presence>,
}

/// How the bell's connections are: `None` until the first attempt.
#[derive(Clone, Copy, Default)]
struct Links {
    subscriber: Option<bool>,
    publisher: Option<bool>,
}

/// One of the bell's connections.
#[derive(Clone, Copy)]
enum Link {
    Subscriber,
    Publisher,
}

impl Redis {
    /// The server at this address, which is not looked at yet.
    pub fn new(options: RedisOptions) -> Result<Arc<Self>, RedisAddressError> {
        if options.url.starts_with("rediss:") {
            // The client asks for the process's choice, and more than one is linked in. Whoever chose before is right.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client =
            ::redis::Client::open(options.url.as_str()).map_err(|error| RedisAddressError(error.to_string()))?;
        let presence = watch::Sender::new(Presence::Unknown);
        Ok(Arc::new(Self { client, options, links: Mutex::default(), commands: OnceLock::new(), presence }))
    }

    /// Whether it is there, and every change of that; known only where there is a bell.
    pub fn presence(&self) -> watch::Receiver<Presence> {
        self.presence.subscribe()
    }

    /// Asks for a sign of life, over a connection of its own, and says which version answers.
    pub async fn version(&self) -> Result<String, RedisError> {
        let mut connection = self.connect(self.options.timeout).await?;
        // INFO is often withheld from those who only use a server; HELLO is not.
        let hello = self.within(::redis::cmd("HELLO").query_async(&mut connection)).await?;
        let facts: BTreeMap<String, ::redis::Value> = hello;
        match facts.get("version") {
            Some(::redis::Value::BulkString(version)) => Ok(String::from_utf8_lossy(version).into_owned()),
            _ => Ok("of an unknown version".to_owned()),
        }
    }

    /// The connection for questions, which all that ask some share.
    fn commands(self: &Arc<Self>) -> Arc<Commands> {
        Arc::clone(self.commands.get_or_init(|| Arc::new(Commands::start(self))))
    }

    /// A connection for commands, each of which may take `timeout`.
    async fn connect(&self, timeout: Duration) -> Result<::redis::aio::MultiplexedConnection, RedisError> {
        let config = ::redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.timeout))
            .set_response_timeout(Some(timeout));
        self.within(self.client.get_multiplexed_async_connection_with_config(&config)).await
    }

    /// Waits no longer than Redis may be silent.
    async fn within<T>(&self, asked: impl Future<Output = ::redis::RedisResult<T>>) -> Result<T, RedisError> {
        let timeout = self.options.timeout;
        match tokio::time::timeout(timeout, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.is_timeout() => Err(RedisError::Silent(timeout)),
            Ok(Err(error)) => Err(RedisError::Failed(error.to_string())),
            Err(_) => Err(RedisError::Silent(timeout)),
        }
    }

    /// Takes note of a connection that came or went, and says so once for each change of the whole.
    fn report(&self, link: Link, outcome: Result<(), &RedisError>) {
        let mut links = self.links.lock();
        match link {
            Link::Subscriber => links.subscriber = Some(outcome.is_ok()),
            Link::Publisher => links.publisher = Some(outcome.is_ok()),
        }
        let now = links.presence();
        let before = self.presence.send_replace(now);
        match (before, now, outcome) {
            (Presence::Unknown | Presence::Here, Presence::Away, Err(error)) => {
                tracing::warn!(%error, "Redis is away: other replicas are heard through the database, half a second late");
            }
            (Presence::Away, Presence::Here, _) => tracing::info!("Redis is back"),
            _ => {}
        }
    }
}

impl Links {
    fn presence(self) -> Presence {
        match [self.subscriber, self.publisher] {
            [Some(true), Some(true)] => Presence::Here,
            links if links.contains(&Some(false)) => Presence::Away,
            _ => Presence::Unknown,
        }
    }
}

/// The pauses between attempts to connect: short at first, and never long, since an attempt costs little.
struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    fn new() -> Self {
        Self { next: Self::FIRST }
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(Self::LONGEST);
    }
}
