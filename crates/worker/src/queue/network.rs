//! A session's part of the network: the policy that its environment gives it, its place in the proxy, and the report
//! of what was refused, so that the server shows it in one place for all workers.

use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::client::Client;
use crate::egress::{Egress, Policy, RefusalCounts, SessionEgress};
use crate::secret::Secret;

const REPORT_PERIOD: Duration = Duration::from_secs(5);
/// How long the last report may hold up the end of a session. What does not get there is in the log of the worker.
const LAST_REPORT_PATIENCE: Duration = Duration::from_secs(2);

/// A session's open network.
pub(crate) struct SessionNetwork {
    egress: SessionEgress,
    closed: CancellationToken,
    reports: tokio::task::JoinHandle<()>,
}

impl SessionNetwork {
    /// Serves what connects to `listener` under `policy`, and reports refusals until it is closed or dropped.
    pub(crate) fn open(
        egress: &Egress,
        client: Arc<Client>,
        session_id: &str,
        token: Secret,
        policy: Policy,
        listener: std::net::TcpListener,
    ) -> std::io::Result<Self> {
        let egress = egress.serve(session_id, policy, listener)?;
        let closed = CancellationToken::new();
        let report = Report { client, session_id: session_id.to_owned(), token, counts: egress.refusals() };
        let reports = tokio::spawn(report.until(closed.clone()));
        Ok(Self { egress, closed, reports })
    }

    /// Ends every connection and sends the last report. Comes before the work item is stopped, since the report goes
    /// under its token.
    pub(crate) async fn close(self) {
        let Self { egress, closed, reports } = self;
        drop(egress);
        closed.cancel();
        let abort = reports.abort_handle();
        if tokio::time::timeout(LAST_REPORT_PATIENCE, reports).await.is_err() {
            abort.abort();
        }
    }
}

/// What the session's environment allows. Tried until the server has answered; an answer that is none, such as that
/// of a server too old to know the question, allows nothing.
pub(crate) async fn policy(client: &Client, session_id: &str, token: &Secret) -> Policy {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match client.sandbox_settings(session_id, token).await {
            Ok(settings) => return settings.network.policy(),
            Err(error) if error.is_transient() => backoff.wait().await,
            Err(error) => {
                tracing::warn!(session_id, %error, "what the session may reach is not known, so it reaches nothing");
                return Policy::Off;
            }
        }
    }
}

struct Report {
    client: Arc<Client>,
    session_id: String,
    token: Secret,
    counts: Arc<RefusalCounts>,
}

impl Report {
    async fn until(self, closed: CancellationToken) {
        let mut ticks = tokio::time::interval(REPORT_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.send().await,
                () = closed.cancelled() => return self.send().await,
            }
        }
    }

    /// Best effort: what could not be sent goes with the next report, as long as there is one.
    async fn send(&self) {
        let counts = self.counts.take();
        if counts.is_empty() {
            return;
        }
        if let Err(error) = self.client.report_refusals(&self.session_id, &self.token, &counts).await {
            tracing::debug!(session_id = self.session_id, %error, "refusals were not reported");
            self.counts.put_back(&counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::HostPattern;
    use crate::{NetworkConfig, SandboxConfig, WorkerConfig};
    use axum::Json;
    use axum::extract::State;
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    /// A client of a server that answers the worker's question so, and hands out the reports it gets.
    async fn client(status: StatusCode, settings: Value) -> (Arc<Client>, mpsc::UnboundedReceiver<Value>) {
        let (sender, reports) = mpsc::unbounded_channel();
        let router = axum::Router::new()
            .route("/v1/internal/sessions/sesn_1/sandbox", get(async move || (status, Json(settings))))
            .route(
                "/v1/internal/sessions/sesn_1/refusals",
                post(async |State(sender): State<mpsc::UnboundedSender<Value>>, Json(body): Json<Value>| {
                    sender.send(body).unwrap();
                    Json(json!({"type": "refusals"}))
                }),
            )
            .with_state(sender);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = WorkerConfig::new(url, Secret::new("key"), "w", SandboxConfig::new("/nowhere"));
        (Arc::new(Client::new(&config).unwrap()), reports)
    }

    #[tokio::test]
    async fn a_policy_is_what_the_server_says_or_nothing() {
        let hosts = ["a.test", "*.b.test"];
        let limited = Policy::Limited { allowed_hosts: hosts.map(HostPattern::new).to_vec() };
        let ok = StatusCode::OK;
        for (status, network, expected) in [
            (ok, json!({"type": "unrestricted"}), Policy::Unrestricted),
            (ok, json!({"type": "limited", "allowed_hosts": hosts}), limited),
            (ok, json!({"type": "limited"}), Policy::Off),
            (ok, json!({"type": "new_kind"}), Policy::Off),
            (ok, json!(null), Policy::Off),
            (StatusCode::NOT_FOUND, json!({"type": "unrestricted"}), Policy::Off),
        ] {
            let (client, _) = client(status, json!({"type": "sandbox", "network": network})).await;
            assert_eq!(policy(&client, "sesn_1", &Secret::new("token")).await, expected, "{status} {network}");
        }
    }

    #[tokio::test]
    async fn refusals_are_reported_at_the_end_at_the_latest() {
        let (client, mut reports) = client(StatusCode::OK, Value::Null).await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let egress = Egress::new(NetworkConfig::default());
        let token = Secret::new("token");
        let network = SessionNetwork::open(&egress, client, "sesn_1", token, Policy::Unrestricted, listener).unwrap();
        for _ in 0..2 {
            let mut stream = tokio::net::TcpStream::connect(proxy).await.unwrap();
            stream.write_all(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n").await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        }
        network.close().await;
        let mut reported = 0;
        while let Ok(report) = reports.try_recv() {
            reported += report["counts"]["address"].as_u64().unwrap();
        }
        assert_eq!(reported, 2);
    }
}
