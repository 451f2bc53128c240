//! An S3 server in this process, over a folder, on a port of its own.

mod serving;

use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::TcpListener;

pub(crate) use serving::BUCKET;

/// Runs until it is dropped.
pub(crate) struct S3Server {
    pub(crate) folder: Arc<TempDir>,
    port: u16,
    serving: Option<tokio::task::JoinHandle<()>>,
}

impl S3Server {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("the folder is empty");
        let mut server = Self { folder: Arc::new(folder), port: 0, serving: None };
        server.resume().await;
        server
    }

    /// Listens again after [`S3Server::stop`], on the port that it had.
    pub(crate) async fn resume(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("a free port");
        self.port = listener.local_addr().expect("it is bound").port();
        let folder = self.folder.clone();
        self.serving = Some(tokio::spawn(async move { serving::serve(folder.path(), listener).await }));
    }

    /// Ends the listener and every connection.
    pub(crate) async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// The `AWS_*` variables that lead here.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "garage"),
            ("AWS_ACCESS_KEY_ID", serving::ACCESS_KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", serving::SECRET_ACCESS_KEY),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}
