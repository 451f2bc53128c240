//! Serves one claimed session: follows its events, runs its calls one at a time, gives up when it is idle.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::call::{self, Finished};
use super::client::Client;
use super::connected::ConnectedSandbox;
use super::feed::{self, News};
use super::lease::{Lease, LeaseEnd};
use super::pending::Calls;
use super::wire::Event;
use crate::egress::Egress;
use crate::sandbox::config::SandboxConfig;
use crate::secret::Secret;

/// What serving a session needs to know.
#[derive(Debug)]
pub(crate) struct Context {
    pub client: Arc<Client>,
    pub sandbox: SandboxConfig,
    pub egress: Egress,
    pub session_id: String,
    /// The item's token: it opens this session and this item, and nothing else.
    pub token: Secret,
    pub idle_timeout: Duration,
    /// Tells the session that has been quiet for longest to make room.
    pub room_wanted: Arc<Notify>,
}

/// Why a worker lets a session go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    Idle,
    Terminated,
    /// Its workspace goes with it.
    Deleted,
    AskedToStop,
    ShuttingDown,
    /// The item is not ours any more and must not be stopped.
    LeaseLost,
}

/// Serves the session until there is a reason to let it go. Its processes are gone when this returns.
pub(crate) async fn serve(context: &Context, lease: &Lease, shutdown: &CancellationToken) -> Release {
    let stopped = async {
        tokio::select! {
            end = lease.ended() => match end {
                LeaseEnd::Lost => Release::LeaseLost,
                LeaseEnd::AskedToStop => Release::AskedToStop,
            },
            () = shutdown.cancelled() => Release::ShuttingDown,
        }
    };
    tokio::pin!(stopped);
    let (status, sandbox) = tokio::select! {
        // The sandbox is warm by the time the first call is known.
        started = async { tokio::join!(status(context), ConnectedSandbox::start(context)) } => started,
        release = &mut stopped => return release,
    };
    let sandbox = sandbox
        .inspect_err(
            |error| tracing::error!(session_id = context.session_id, %error, "no sandbox for the session's tools"),
        )
        .ok();
    let mut service = Service {
        context,
        feed: feed::follow(context.client.clone(), context.session_id.clone(), context.token.clone()),
        calls: Calls::default(),
        sandbox,
        running: None,
        is_idle: false,
        quiet_since: Instant::now(),
    };
    let release = match status {
        Ok(is_idle) => {
            service.is_idle = is_idle;
            service.work(stopped).await
        }
        Err(release) => release,
    };
    service.end().await;
    release
}

/// Whether the session is idle, or why it needs no worker.
async fn status(context: &Context) -> Result<bool, Release> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match context.client.session(&context.session_id, &context.token).await {
            Ok(session) if session.status == "terminated" => return Err(Release::Terminated),
            Ok(session) => return Ok(session.status == "idle"),
            Err(error) if error.is_transient() => backoff.wait().await,
            Err(error) if error.status() == Some(404) => return Err(Release::Deleted),
            Err(error) => {
                tracing::warn!(session_id = context.session_id, %error, "the session cannot be read");
                return Err(Release::LeaseLost);
            }
        }
    }
}

type CallFuture<'a> = Pin<Box<dyn Future<Output = (Option<ConnectedSandbox>, Finished)> + Send + 'a>>;

/// The call that runs now. It holds the sandbox meanwhile.
struct Running<'a> {
    tool_use_id: String,
    cancelled: CancellationToken,
    future: CallFuture<'a>,
}

struct Service<'a> {
    context: &'a Context,
    feed: tokio::sync::mpsc::Receiver<News>,
    calls: Calls,
    sandbox: Option<ConnectedSandbox>,
    running: Option<Running<'a>>,
    is_idle: bool,
    quiet_since: Instant,
}

impl Service<'_> {
    async fn work(&mut self, mut stopped: Pin<&mut impl Future<Output = Release>>) -> Release {
        loop {
            self.start_next();
            let quiet_until = self.quiet_since + self.context.idle_timeout;
            let may_release = self.is_idle && self.running.is_none();
            let release = tokio::select! {
                biased;
                release = &mut stopped => Some(release),
                news = self.feed.recv() => self.hear(news),
                (sandbox, finished) = finish(&mut self.running) => self.finished(sandbox, finished),
                () = tokio::time::sleep_until(quiet_until), if may_release => Some(Release::Idle),
                () = self.context.room_wanted.notified(), if may_release => Some(Release::Idle),
            };
            if let Some(release) = release {
                return release;
            }
        }
    }

    /// Starts the first open call, if none runs.
    fn start_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(call) = self.calls.next().cloned() else { return };
        let cancelled = CancellationToken::new();
        let tool_use_id = call.tool_use_id.clone();
        let (context, sandbox, token) = (self.context, self.sandbox.take(), cancelled.clone());
        let future = Box::pin(async move { call::run(context, sandbox, call, &token).await });
        self.running = Some(Running { tool_use_id, cancelled, future });
    }

    /// Takes in what the feed brings, and everything that waits behind it: it is older than any call started now.
    fn hear(&mut self, first: Option<News>) -> Option<Release> {
        self.quiet_since = Instant::now();
        let mut next = first;
        loop {
            let release = match next {
                Some(News::Listed(events)) => {
                    events.into_iter().for_each(|event| self.calls.apply(event));
                    None
                }
                Some(News::Live(event)) => self.live(event),
                Some(News::Deleted) => Some(Release::Deleted),
                Some(News::Refused) | None => Some(Release::LeaseLost),
            };
            if release.is_some() {
                return release;
            }
            match self.feed.try_recv() {
                Ok(news) => next = Some(news),
                Err(_) => break,
            }
        }
        if let Some(running) = &self.running
            && !self.calls.is_open(&running.tool_use_id)
        {
            running.cancelled.cancel();
        }
        None
    }

    fn live(&mut self, event: Event) -> Option<Release> {
        match event.kind.as_str() {
            "session.status_terminated" => return Some(Release::Terminated),
            "session.deleted" => return Some(Release::Deleted),
            "session.status_idle" => self.is_idle = true,
            "session.status_running" | "session.status_rescheduled" => self.is_idle = false,
            _ => self.calls.apply(event),
        }
        None
    }

    fn finished(&mut self, sandbox: Option<ConnectedSandbox>, finished: Finished) -> Option<Release> {
        self.quiet_since = Instant::now();
        self.sandbox = sandbox;
        let running = self.running.take().expect("only a running call finishes");
        self.calls.close(running.tool_use_id);
        (finished == Finished::LeaseLost).then_some(Release::LeaseLost)
    }

    /// Kills what runs and takes the sandbox down.
    async fn end(mut self) {
        if let Some(running) = self.running.take() {
            running.cancelled.cancel();
            self.sandbox = running.future.await.0;
        }
        if let Some(sandbox) = self.sandbox {
            sandbox.close().await;
        }
    }
}

/// Resolves with the running call, never if there is none.
async fn finish(running: &mut Option<Running<'_>>) -> (Option<ConnectedSandbox>, Finished) {
    match running {
        Some(running) => running.future.as_mut().await,
        None => std::future::pending().await,
    }
}
