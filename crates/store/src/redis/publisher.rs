//! Tells the others what was rung here: one connection, batches in pipelines.
//!
//! A batch that failed is sent once more over a new connection, for the old one may have been closed while nothing
//! was said; hearing a frame twice does no harm. When that fails too, the outbox is shut until Redis is back, and the
//! others are told then that frames were lost.

use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;

use super::frame::{self, Channels, Message, Origin};
use super::outbox::Outbox;
use super::{Backoff, Link, Redis, RedisError};

/// Publishes until it is dropped.
pub(super) async fn publish(redis: Arc<Redis>, outbox: Arc<Outbox>, channels: Channels, origin: Origin) {
    let mut backoff = Backoff::new();
    loop {
        let lost = async {
            let mut connection = redis.connect(redis.options.timeout).await?;
            redis.report(Link::Publisher, Ok(()));
            backoff = Backoff::new();
            outbox.open();
            tell(&redis, &mut connection, &outbox, &channels, origin).await
        };
        let Err(error) = lost.await;
        outbox.close();
        redis.report(Link::Publisher, Err(&error));
        backoff.pause().await;
    }
}

/// Sends what comes into the outbox until it cannot be sent.
async fn tell(
    redis: &Redis,
    connection: &mut MultiplexedConnection,
    outbox: &Outbox,
    channels: &Channels,
    origin: Origin,
) -> Result<std::convert::Infallible, RedisError> {
    loop {
        let batch = pipeline(&outbox.take().await, channels, origin);
        if redis.within(batch.exec_async(connection)).await.is_err() {
            *connection = redis.connect(redis.options.timeout).await?;
            redis.within(batch.exec_async(connection)).await?;
        }
    }
}

fn pipeline(messages: &[Message], channels: &Channels, origin: Origin) -> ::redis::Pipeline {
    let mut pipeline = ::redis::pipe();
    for message in messages {
        let channel = channels.of_message(message);
        pipeline.cmd("PUBLISH").arg(channel).arg(frame::write(origin, message)).ignore();
    }
    pipeline
}
