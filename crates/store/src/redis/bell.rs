//! The bell of several processes: rung here at once, and told to the others through Redis.
//!
//! Ringing never waits for Redis: [`LocalBell`] serves this process, and a bounded outbox what goes out. Two tasks,
//! dropped with the bell, keep the connections: [`super::publisher`] and [`super::subscriber`].

use std::sync::Arc;

use async_trait::async_trait;
use engine::memory::LocalBell;
use engine::port::{Bell, Frame, Listener, Topic};
use tokio::task::JoinSet;

use super::frame::{Channels, Origin};
use super::outbox::Outbox;
use super::subscriber::{Followed, Subscriber};
use super::{Presence, Redis, publisher};

/// A bell that the processes on one Redis share.
pub struct RedisBell {
    redis: Arc<Redis>,
    local: Arc<LocalBell>,
    outbox: Arc<Outbox>,
    followed: Arc<Followed>,
    _tasks: JoinSet<()>,
}

struct RedisListener {
    topic: Topic,
    followed: Arc<Followed>,
    local: Box<dyn Listener>,
}

impl RedisBell {
    /// A bell for one process, which `origin`, drawn afresh, tells from every other. It can be rung at once, whether
    /// Redis is there or not. Call it inside a runtime.
    pub fn start(redis: &Arc<Redis>, origin: u128) -> Self {
        let origin = Origin(origin);
        let channels = Channels::new(&redis.options.key_prefix);
        let local = Arc::new(LocalBell::among_others());
        let (outbox, followed) = (Arc::<Outbox>::default(), Arc::<Followed>::default());
        let subscriber = Subscriber {
            redis: Arc::clone(redis),
            local: Arc::clone(&local),
            followed: Arc::clone(&followed),
            channels: channels.clone(),
            origin,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(subscriber.run());
        tasks.spawn(publisher::publish(Arc::clone(redis), Arc::clone(&outbox), channels, origin));
        Self { redis: Arc::clone(redis), local, outbox, followed, _tasks: tasks }
    }
}

impl Bell for RedisBell {
    fn ring(&self, frame: Frame) {
        self.local.ring(frame.clone());
        self.outbox.put(frame);
    }

    fn listen(&self, topic: Topic) -> Box<dyn Listener> {
        let local = self.local.listen(topic.clone());
        self.followed.enter(&topic);
        Box::new(RedisListener { topic, followed: Arc::clone(&self.followed), local })
    }

    fn reaches_others(&self) -> bool {
        *self.redis.presence.borrow() == Presence::Here
    }
}

#[async_trait]
impl Listener for RedisListener {
    async fn hear(&mut self) -> Option<Frame> {
        self.local.hear().await
    }

    fn decline_previews(&mut self) {
        self.local.decline_previews();
    }
}

impl Drop for RedisListener {
    fn drop(&mut self) {
        self.followed.leave(&self.topic);
    }
}
