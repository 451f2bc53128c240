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
use super::client::{ApiError, Client};
use super::connected::ConnectedSandbox;
use super::feed::{self, News};
use super::files::{Keeping, SessionFiles};
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
    pub keeping: Keeping,
}

/// How long a call that changes files waits for a snapshot under way.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(2);
/// How long the last snapshot of a session that is given back may take: of one that is idle, and of one that is wanted.
const LAST_SNAPSHOT_IDLE: Duration = Duration::from_secs(120);
const LAST_SNAPSHOT_WANTED: Duration = Duration::from_secs(10);

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
    let prepared = async {
        let files = SessionFiles::begin(context).await?;
        Ok::<_, ApiError>((files, ConnectedSandbox::start(context).await))
    };
    let (status, prepared) = tokio::select! {
        // The sandbox is warm by the time the first call is known.
        started = async { tokio::join!(status(context), prepared) } => started,
        release = &mut stopped => return release,
    };
    let (files, sandbox) = match (prepared, &status) {
        (Ok(prepared), _) => prepared,
        (Err(_), Err(release)) => return *release,
        (Err(error), Ok(_)) => {
            tracing::warn!(session_id = context.session_id, %error, "the session's files cannot be asked for");
            return Release::LeaseLost;
        }
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
        files: files.clone(),
        is_unsaved: false,
        saving: None,
        waits_until: None,
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
    let patience = match release {
        Release::Idle => LAST_SNAPSHOT_IDLE,
        Release::AskedToStop | Release::ShuttingDown => LAST_SNAPSHOT_WANTED,
        Release::Terminated | Release::Deleted | Release::LeaseLost => return release,
    };
    // Nothing changes the files any more. What has not changed since the last snapshot costs a look.
    if files.is_kept() && tokio::time::timeout(patience, save(context, &files, true)).await.is_err() {
        tracing::warn!(session_id = context.session_id, "the last snapshot was not done in time");
    }
    release
}

fn save(context: &Context, files: &Arc<SessionFiles>, is_last: bool) -> SaveFuture {
    let Context { client, session_id, token, keeping, .. } = context;
    Box::pin(files.clone().save(keeping.clone(), client.clone(), session_id.clone(), token.clone(), is_last))
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
    changes_files: bool,
    cancelled: CancellationToken,
    future: CallFuture<'a>,
}

type SaveFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Service<'a> {
    context: &'a Context,
    feed: tokio::sync::mpsc::Receiver<News>,
    calls: Calls,
    sandbox: Option<ConnectedSandbox>,
    running: Option<Running<'a>>,
    files: Arc<SessionFiles>,
    /// A call may have changed files since the last snapshot was begun.
    is_unsaved: bool,
    /// The snapshot under way. Dropping it gives it up.
    saving: Option<SaveFuture>,
    /// Until when the next call waits for it.
    waits_until: Option<Instant>,
    is_idle: bool,
    quiet_since: Instant,
}

impl Service<'_> {
    async fn work(&mut self, mut stopped: Pin<&mut impl Future<Output = Release>>) -> Release {
        loop {
            self.start_next();
            self.save_if_quiet();
            let waits_until = self.waits_until;
            let quiet_until = self.quiet_since + self.context.idle_timeout;
            let may_release = self.is_idle && self.running.is_none();
            let release = tokio::select! {
                biased;
                release = &mut stopped => Some(release),
                news = self.feed.recv() => self.hear(news),
                (sandbox, finished) = finish(&mut self.running) => self.finished(sandbox, finished),
                () = finish_saving(&mut self.saving) => {
                    self.waits_until = None;
                    None
                }
                () = tokio::time::sleep_until(waits_until.unwrap_or(quiet_until)), if waits_until.is_some() => {
                    self.give_snapshot_up();
                    None
                }
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
        let changes_files = call.changes_files();
        if changes_files && self.saving.is_some() {
            self.waits_until.get_or_insert_with(|| Instant::now() + SNAPSHOT_PATIENCE);
            return;
        }
        let cancelled = CancellationToken::new();
        let tool_use_id = call.tool_use_id.clone();
        let (context, sandbox, token) = (self.context, self.sandbox.take(), cancelled.clone());
        let files = self.files.clone();
        let future = Box::pin(async move { call::run(context, &files, sandbox, call, &token).await });
        self.running = Some(Running { tool_use_id, changes_files, cancelled, future });
    }

    /// Begins a snapshot once all calls of an answer are done.
    fn save_if_quiet(&mut self) {
        if self.is_unsaved && self.saving.is_none() && self.running.is_none() && self.files.is_kept() {
            self.is_unsaved = false;
            self.saving = Some(save(self.context, &self.files, false));
        }
    }

    /// The call that comes now will be in the next one.
    fn give_snapshot_up(&mut self) {
        self.waits_until = None;
        if self.saving.take().is_some() {
            self.is_unsaved = true;
            tracing::debug!(session_id = self.context.session_id, "a snapshot is given up for a call that waits");
        }
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
        self.is_unsaved |= running.changes_files;
        self.calls.close(running.tool_use_id);
        (finished == Finished::LeaseLost).then_some(Release::LeaseLost)
    }

    /// Kills what runs and takes the sandbox down.
    async fn end(mut self) {
        drop(self.saving.take());
        if let Some(running) = self.running.take() {
            running.cancelled.cancel();
            self.sandbox = running.future.await.0;
        }
        if let Some(sandbox) = self.sandbox {
            sandbox.close().await;
        }
    }
}

/// Resolves with the snapshot under way, never if there is none.
async fn finish_saving(saving: &mut Option<SaveFuture>) {
    match saving {
        Some(future) => {
            future.as_mut().await;
            *saving = None;
        }
        None => std::future::pending().await,
    }
}

/// Resolves with the running call, never if there is none.
async fn finish(running: &mut Option<Running<'_>>) -> (Option<ConnectedSandbox>, Finished) {
    match running {
        Some(running) => running.future.as_mut().await,
        None => std::future::pending().await,
    }
}
