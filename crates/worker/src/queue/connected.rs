//! A session's sandbox together with its way to the network: one is never started, or taken down, without the other.

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::network::{self, SessionNetwork};
use super::session::Context;
use crate::sandbox::{CallEnd, Sandbox, SandboxError};

pub(crate) struct ConnectedSandbox {
    sandbox: Sandbox,
    network: SessionNetwork,
}

impl ConnectedSandbox {
    /// Makes the sandbox while the server is asked what it may reach.
    pub(crate) async fn start(context: &Context) -> Result<Self, SandboxError> {
        let Context { client, egress, session_id, token, .. } = context;
        let (sandbox, policy) =
            tokio::join!(Sandbox::start(&context.sandbox, session_id), network::policy(client, session_id, token));
        let mut sandbox = sandbox?;
        let listener = sandbox.take_proxy().expect("a new sandbox has a listener");
        let opened = SessionNetwork::open(egress, client.clone(), session_id, token.clone(), policy, listener);
        match opened {
            Ok(network) => Ok(Self { sandbox, network }),
            Err(error) => {
                sandbox.close().await;
                Err(SandboxError::Proxy(error))
            }
        }
    }

    pub(crate) async fn call(
        &mut self,
        tool: &str,
        input: Value,
        cancelled: &CancellationToken,
    ) -> Result<CallEnd, SandboxError> {
        self.sandbox.call(tool, input, cancelled).await
    }

    /// Kills every process of the session, ends its connections and tells the server what was refused.
    pub(crate) async fn close(self) {
        self.sandbox.close().await;
        self.network.close().await;
    }
}
