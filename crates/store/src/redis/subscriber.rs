//! Hears the others: one connection, subscribed to the topics that this process listens to.
//!
//! A subscription counts from Redis's confirmation. Whoever listened before is then told that frames were lost, which
//! covers what was rung in between; after a new connection that is everybody. A topic that nobody listens to any more
//! stays subscribed for a while, since the session's next turn or stream is likely to want it again.
//! Pings notice a server that is connected and says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::redis::aio::{PubSubSink, PubSubStream};
use engine::memory::LocalBell;
use engine::port::{Bell as _, Topic};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::{self, Channels, Message, Origin, Read};
use super::{Backoff, Link, Redis, RedisError};

/// How long a topic stays subscribed without listeners.
const LINGER: Duration = Duration::from_secs(30);

/// Between two looks at what nobody listens to.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Channels in one command.
const CHANNELS_MAX: usize = 500;

/// What this process listens to.
#[derive(Default)]
pub(super) struct Followed {
    topics: Mutex<Topics>,
    changed: Notify,
}

#[derive(Default)]
struct Topics {
    listeners: BTreeMap<Topic, Listeners>,
    /// Topics to look at again, because somebody came or the last one left long ago.
    changed: Vec<Topic>,
}

struct Listeners {
    count: usize,
    /// When the last one left.
    left_at: Option<Instant>,
}

impl Followed {
    /// One more listens.
    pub(super) fn enter(&self, topic: &Topic) {
        let topics = &mut *self.topics.lock();
        let listeners = topics.listeners.entry(topic.clone()).or_insert_with(|| {
            topics.changed.push(topic.clone());
            Listeners { count: 0, left_at: None }
        });
        listeners.count += 1;
        listeners.left_at = None;
        self.changed.notify_one();
    }

    /// One listens no more.
    pub(super) fn leave(&self, topic: &Topic) {
        if let Some(listeners) = self.topics.lock().listeners.get_mut(topic) {
            listeners.count -= 1;
            listeners.left_at = (listeners.count == 0).then(Instant::now);
        }
    }

    /// Every topic, for a new connection.
    fn all(&self) -> Vec<Topic> {
        let topics = &mut *self.topics.lock();
        topics.changed.clear();
        topics.listeners.keys().cloned().collect()
    }

    /// What came and what went since the last look.
    fn changes(&self) -> (Vec<Topic>, Vec<Topic>) {
        let topics = &mut *self.topics.lock();
        let changed: BTreeSet<_> = std::mem::take(&mut topics.changed).into_iter().collect();
        changed.into_iter().partition(|topic| topics.listeners.contains_key(topic))
    }

    /// Lets go of what nobody has listened to for a while.
    fn sweep(&self) {
        let topics = &mut *self.topics.lock();
        let is_over = |listeners: &mut Listeners| listeners.left_at.is_some_and(|left| left.elapsed() >= LINGER);
        topics
            .changed
            .extend(topics.listeners.extract_if(.., |_, listeners| is_over(listeners)).map(|(topic, _)| topic));
    }
}

/// What the subscriber works with.
pub(super) struct Subscriber {
    pub(super) redis: Arc<Redis>,
    pub(super) local: Arc<LocalBell>,
    pub(super) followed: Arc<Followed>,
    pub(super) channels: Channels,
    pub(super) origin: Origin,
}

impl Subscriber {
    /// Listens until it is dropped.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new();
        loop {
            let Err(error) = self.listen(&mut backoff).await;
            self.redis.report(Link::Subscriber, Err(&error));
            backoff.pause().await;
        }
    }

    /// Connects, and listens until the connection is lost.
    async fn listen(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, RedisError> {
        let (mut sink, mut stream) = self.redis.within(self.redis.client.get_async_pubsub()).await?.split();
        let mut names = vec![self.channels.lost()];
        names.extend(self.followed.all().iter().map(|topic| self.channels.of(topic)));
        for names in names.chunks(CHANNELS_MAX) {
            self.redis.within(sink.subscribe(names)).await?;
        }
        self.redis.report(Link::Subscriber, Ok(()));
        *backoff = Backoff::new();
        self.local.lose_all();
        let mut pinging = sink.clone();
        tokio::select! {
            ended = self.hear(&mut stream) => ended,
            ended = self.follow(&mut sink) => ended,
            ended = self.ping(&mut pinging) => ended,
        }
    }

    /// Rings here what was rung elsewhere.
    async fn hear(&self, stream: &mut PubSubStream) -> Result<std::convert::Infallible, RedisError> {
        while let Some(message) = stream.next().await {
            match frame::read(self.origin, message.get_payload_bytes()) {
                Read::Own => {}
                Read::Message(Message::Frame(frame)) => self.local.ring(frame),
                Read::Message(Message::Lost) => self.local.lose_all(),
                Read::Unreadable => match self.channels.topic(message.get_channel_name()) {
                    Some(topic) => self.local.lose(&topic),
                    None => self.local.lose_all(),
                },
            }
        }
        Err(RedisError::Failed("the connection was closed".to_owned()))
    }

    /// Keeps the subscriptions in step with the listeners.
    async fn follow(&self, sink: &mut PubSubSink) -> Result<std::convert::Infallible, RedisError> {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            tokio::select! {
                () = self.followed.changed.notified() => {}
                _ = sweep.tick() => self.followed.sweep(),
            }
            let (came, went) = self.followed.changes();
            for topics in went.chunks(CHANNELS_MAX) {
                self.redis.within(sink.unsubscribe(self.names(topics))).await?;
            }
            for topics in came.chunks(CHANNELS_MAX) {
                self.redis.within(sink.subscribe(self.names(topics))).await?;
                topics.iter().for_each(|topic| self.local.lose(topic));
            }
        }
    }

    /// Finds out when the server falls silent.
    async fn ping(&self, sink: &mut PubSubSink) -> Result<std::convert::Infallible, RedisError> {
        loop {
            tokio::time::sleep(self.redis.options.timeout / 2).await;
            self.redis.within(sink.ping::<::redis::Value>()).await?;
        }
    }

    fn names(&self, topics: &[Topic]) -> Vec<String> {
        topics.iter().map(|topic| self.channels.of(topic)).collect()
    }
}
