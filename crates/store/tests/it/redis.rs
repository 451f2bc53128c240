//! Redis as the bell of several processes: the contract, and what becomes of it when the server goes away.

use std::sync::Arc;
use std::time::Duration;

use engine::contract::bells::{Ends, appended, ring_until_heard, say};
use engine::port::{Bell, Frame, Listener, Topic};
use session::id::SessionId;
use store::testing::RedisServer;
use store::{Presence, Redis, RedisBell, RedisOptions};

/// Two processes on one server.
struct Processes {
    here: Process,
    there: Process,
    server: RedisServer,
}

struct Process {
    redis: Arc<Redis>,
    bell: RedisBell,
}

impl Process {
    fn start(options: RedisOptions, origin: u128) -> Self {
        let redis = Redis::new(options).expect("the address is right");
        Self { bell: RedisBell::start(&redis, origin), redis }
    }

    async fn knows(&self, presence: Presence) {
        self.redis.presence().wait_for(|now| *now == presence).await.expect("the process runs");
    }
}

impl Ends for Processes {
    fn here(&self) -> &dyn Bell {
        &self.here.bell
    }

    fn there(&self) -> &dyn Bell {
        &self.there.bell
    }
}

async fn processes() -> Option<Processes> {
    let server = RedisServer::start().await?;
    let processes =
        Processes { here: Process::start(server.options(), 1), there: Process::start(server.options(), 2), server };
    processes.know(Presence::Here).await;
    Some(processes)
}

impl Processes {
    async fn know(&self, presence: Presence) {
        self.here.knows(presence).await;
        self.there.knows(presence).await;
    }
}

engine::contract_tests!(bell crate::redis::processes);

/// Waits for the word that frames were lost.
async fn hear_of_a_loss(listener: &mut dyn Listener) {
    while listener.hear().await.is_some() {}
}

fn session() -> SessionId {
    SessionId::from("sesn_redis")
}

/// A listener over there that has heard something.
async fn listening(processes: &Processes) -> Box<dyn Listener> {
    let mut listener = processes.there().listen(Topic::Session(session()));
    ring_until_heard(processes.here(), appended(&session(), 1), &mut *listener).await;
    listener
}

#[tokio::test]
async fn a_server_that_stops_is_missed_and_found_again() {
    let Some(mut processes) = processes().await else { return };
    let mut listener = listening(&processes).await;
    assert!(processes.here().reaches_others());
    processes.server.stop();
    processes.know(Presence::Away).await;
    assert!(!processes.here().reaches_others());
    // Who is in the same process hears all the same.
    let mut near = processes.here().listen(Topic::Session(session()));
    processes.here().ring(appended(&session(), 2));
    assert_eq!(near.hear().await.as_ref().map(say), Some(say(&appended(&session(), 2))));

    processes.server.start_again().await;
    processes.know(Presence::Here).await;
    hear_of_a_loss(&mut *listener).await;
    ring_until_heard(processes.here(), appended(&session(), 3), &mut *listener).await;
    // What was rung while it was away is reported by whoever rang it, once it can.
    let mut claimable = processes.there().listen(Topic::Claimable);
    ring_until_heard(processes.here(), Frame::Claimable, &mut *claimable).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_awaited() {
    let Some(mut server) = RedisServer::start().await else { return };
    server.stop();
    let (here, there) = (Process::start(server.options(), 1), Process::start(server.options(), 2));
    here.knows(Presence::Away).await;
    let mut listener = there.bell.listen(Topic::Work);
    here.bell.ring(Frame::WorkQueued);
    server.start_again().await;
    hear_of_a_loss(&mut *listener).await;
    ring_until_heard(&here.bell, Frame::WorkQueued, &mut *listener).await;
}

#[tokio::test]
async fn a_server_that_stalls_is_noticed() {
    let Some(processes) = processes().await else { return };
    let mut listener = listening(&processes).await;
    processes.server.stall();
    processes.know(Presence::Away).await;
    for position in 2..10_000 {
        processes.here().ring(appended(&session(), position));
    }
    processes.server.go_on();
    processes.know(Presence::Here).await;
    hear_of_a_loss(&mut *listener).await;
    ring_until_heard(processes.here(), appended(&session(), 10_000), &mut *listener).await;
}

#[tokio::test]
async fn cut_connections_are_made_again() {
    let Some(processes) = processes().await else { return };
    let mut listener = listening(&processes).await;
    for position in 2..6 {
        processes.server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        hear_of_a_loss(&mut *listener).await;
        ring_until_heard(processes.here(), appended(&session(), position * 10), &mut *listener).await;
        // The publishers find their connections cut when they next have something to say, and say it over new ones.
        processes.server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        let frame = appended(&session(), position * 10 + 1);
        processes.here().ring(frame.clone());
        while listener.hear().await.as_ref().map(say) != Some(say(&frame)) {}
    }
}

#[tokio::test]
async fn a_wiped_server_goes_on() {
    let Some(processes) = processes().await else { return };
    let mut listener = listening(&processes).await;
    processes.server.command(&["FLUSHALL"]).await;
    let frame = appended(&session(), 2);
    processes.here().ring(frame.clone());
    while listener.hear().await.as_ref().map(say) != Some(say(&frame)) {}
}

#[tokio::test]
async fn ten_thousand_sessions_are_subscribed_to_again() {
    let Some(mut processes) = processes().await else { return };
    let topic = |number: usize| Topic::Session(SessionId::from(format!("sesn_{number}")));
    let mut listeners: Vec<_> = (0..10_000).map(|number| processes.there().listen(topic(number))).collect();
    for listener in &mut listeners {
        hear_of_a_loss(&mut **listener).await;
    }
    processes.server.stop();
    processes.know(Presence::Away).await;
    processes.server.start_again().await;
    for listener in &mut listeners {
        hear_of_a_loss(&mut **listener).await;
    }
    let last = SessionId::from("sesn_9999");
    ring_until_heard(processes.here(), appended(&last, 1), &mut **listeners.last_mut().unwrap()).await;
    let channels = processes.server.command(&["PUBSUB", "NUMSUB", "agent-service:bell:session:sesn_0"]).await;
    assert!(channels.contains("int(1)"), "{channels}");
}

#[tokio::test]
async fn an_address_with_tls_is_spoken_to_in_tls() {
    let Some(server) = RedisServer::start().await else { return };
    let plain = server.options();
    let url = plain.url.replace("redis:", "rediss:");
    let redis = Redis::new(RedisOptions { url, timeout: Duration::from_secs(2), ..plain }).expect("it is an address");
    redis.version().await.expect_err("the server speaks no TLS");
    let redis = Redis::new(server.options()).expect("it is an address");
    assert!(redis.version().await.expect("it is there").starts_with(|first: char| first.is_ascii_digit()));
}
