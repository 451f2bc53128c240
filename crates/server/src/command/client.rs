//! A small client of the API, for the subcommands that speak to a running server.

mod events;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use serde_json::Value;

pub(super) use events::Events;

use crate::secret::Secret;

/// An HTTP client that uses no proxy and follows no redirect.
pub(super) fn plain() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).tcp_nodelay(true).build()
}

/// Where a listener on `host` is reached from this machine.
pub(super) fn local_address(host: IpAddr, port: u16) -> SocketAddr {
    let host = match host {
        // A listener on every address takes IPv4, and there the loopback address always exists.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        other => other,
    };
    SocketAddr::new(host, port)
}

/// The API of one server, with one key.
#[derive(Clone)]
pub(super) struct Api {
    http: reqwest::Client,
    base: String,
    key: Secret,
}

impl Api {
    /// The API at `base`, an address without `/v1`.
    pub(super) fn new(base: &str, key: Secret) -> anyhow::Result<Self> {
        Ok(Self { http: plain()?, base: base.trim_end_matches('/').to_owned(), key })
    }

    /// `GET`s a path.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    /// `POST`s a body to a path.
    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.http.post(format!("{}{path}", self.base)).json(body)).await
    }

    /// Follows a path that answers with events. It is subscribed when this returns.
    pub(super) async fn follow(&self, path: &str) -> anyhow::Result<Events> {
        let response = self.answer(self.http.get(format!("{}{path}", self.base))).await?;
        Ok(Events::new(response))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        self.answer(request).await?.json().await.context("the server's answer is not JSON")
    }

    /// A successful response; any other is an error with the server's own words.
    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let request = request.header("x-api-key", self.key.expose());
        let response = request.send().await.with_context(|| {
            format!("no server answers at {}: start one with `agent-service serve`, or set --server-url", self.base)
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body: Value = response.json().await.unwrap_or_default();
        let message = body.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
        if status == 401 {
            anyhow::bail!(
                "the server does not know this key: set AGENT_API_KEY to its key, or --data-dir to its folder"
            );
        }
        Err(Refused { status: status.as_u16(), message }.into())
    }
}

/// The server's refusal of a request.
#[derive(Debug, thiserror::Error)]
#[error("the server refuses ({status}): {message}")]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_reached_at_loopback() {
        assert_eq!(local_address("::".parse().unwrap(), 80).to_string(), "127.0.0.1:80");
        assert_eq!(local_address("0.0.0.0".parse().unwrap(), 80).to_string(), "127.0.0.1:80");
        assert_eq!(local_address("::1".parse().unwrap(), 80).to_string(), "[::1]:80");
    }
}
