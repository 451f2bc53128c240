//! One tool call from its recorded start to its delivered result.

use session::id::EventId;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::client::ApiError;
use super::connected::ConnectedSandbox;
use super::files::SessionFiles;
use super::pending::{Call, Calls};
use super::session::Context;
use crate::sandbox::CallEnd;
use crate::sandbox::protocol::ToolOutcome;

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// Its result is delivered.
    Delivered,
    /// It was cancelled, or somebody else closed it: nothing is owed.
    Dropped,
    /// The server does not take this worker's word any more.
    LeaseLost,
}

/// Runs `call` in the session's sandbox, making one if there is none, and hands the sandbox back.
///
/// `cancelled` kills it with all its descendants; a finished result is then not delivered any more.
pub(crate) async fn run(
    context: &Context,
    files: &SessionFiles,
    mut sandbox: Option<ConnectedSandbox>,
    call: Call,
    cancelled: &CancellationToken,
) -> (Option<ConnectedSandbox>, Finished) {
    let tip = if call.changes_files() { files.starting() } else { None };
    let version = match record_start(context, &call, tip.as_ref(), cancelled).await {
        Ok(version) => version,
        Err(finished) => return (sandbox, finished),
    };
    if tip.is_some() {
        files.started();
    }
    let mounted = tokio::select! {
        mounted = files.mount(context, version) => mounted,
        () = cancelled.cancelled() => return (sandbox, Finished::Dropped),
    };
    if let Err(error) = mounted {
        return (sandbox, refused(context, &call, &error).await);
    }
    let outcome = match perform(context, &mut sandbox, &call, cancelled).await {
        CallEnd::Done(outcome) => outcome,
        CallEnd::Killed => return (sandbox, Finished::Dropped),
    };
    (sandbox, deliver(context, &call, outcome, cancelled).await)
}

/// Tells the server that the call is about to run; without its consent nothing runs. Returns the version of what the
/// session is given, which has to be mounted first.
async fn record_start(
    context: &Context,
    call: &Call,
    tip: Option<&EventId>,
    cancelled: &CancellationToken,
) -> Result<Option<u64>, Finished> {
    let mut backoff = retry_backoff();
    loop {
        let attempt = context.client.tool_start(&context.session_id, &context.token, &call.tool_use_id, tip);
        let result = tokio::select! {
            result = attempt => result,
            () = cancelled.cancelled() => return Err(Finished::Dropped),
        };
        match result {
            Ok(started) => return Ok(started.resources_version),
            Err(error) if error.is_transient() => backoff.wait().await,
            Err(error) => return Err(refused(context, call, &error).await),
        }
    }
}

async fn perform(
    context: &Context,
    sandbox: &mut Option<ConnectedSandbox>,
    call: &Call,
    cancelled: &CancellationToken,
) -> CallEnd {
    let mut held = match sandbox.take() {
        Some(held) => held,
        None => match ConnectedSandbox::start(context).await {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(session_id = context.session_id, %error, "no sandbox for the session's tools");
                let text = format!("{}: the sandbox could not be started", call.tool);
                return CallEnd::Done(ToolOutcome::error(text));
            }
        },
    };
    match held.call(&call.tool, call.input.clone(), cancelled).await {
        Ok(end) => {
            *sandbox = Some(held);
            end
        }
        Err(error) => {
            tracing::warn!(session_id = context.session_id, %error, "the sandbox broke during a call");
            held.close().await;
            CallEnd::Done(ToolOutcome::error(format!("{}: {error}; the outcome is unknown", call.tool)))
        }
    }
}

/// Posts the result until the server takes it or says that it is not wanted.
async fn deliver(context: &Context, call: &Call, mut outcome: ToolOutcome, cancelled: &CancellationToken) -> Finished {
    let mut backoff = retry_backoff();
    let mut is_replaced = false;
    loop {
        let attempt = context.client.tool_result(&context.session_id, &context.token, &call.tool_use_id, &outcome);
        let result = tokio::select! {
            result = attempt => result,
            () = cancelled.cancelled() => return Finished::Dropped,
        };
        match result {
            Ok(()) => return Finished::Delivered,
            Err(error) if error.is_transient() => backoff.wait().await,
            // The server does not like this result; the turn must not wait for ever for another.
            Err(error) if matches!(error.status(), Some(400 | 413)) && !is_replaced => {
                tracing::error!(session_id = context.session_id, %error, "a tool result was refused");
                is_replaced = true;
                outcome = ToolOutcome::error(format!("{}: the result could not be delivered", call.tool));
            }
            Err(error) => return refused(context, call, &error).await,
        }
    }
}

/// A refusal means that the call was closed meanwhile, by an interrupt, or that the lease is gone. The log of the
/// session says which.
async fn refused(context: &Context, call: &Call, error: &ApiError) -> Finished {
    if error.status() == Some(412) {
        return Finished::LeaseLost;
    }
    let mut backoff = retry_backoff();
    loop {
        match context.client.open_events(&context.session_id, &context.token).await {
            Ok(events) => {
                let mut calls = Calls::default();
                events.into_iter().for_each(|event| calls.apply(event));
                let is_open = calls.is_open(&call.tool_use_id);
                return if is_open { Finished::LeaseLost } else { Finished::Dropped };
            }
            Err(error) if error.is_transient() => backoff.wait().await,
            Err(_) => return Finished::LeaseLost,
        }
    }
}

fn retry_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(2))
}
