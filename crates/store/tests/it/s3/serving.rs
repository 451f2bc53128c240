//! An S3 server over a folder: a bucket is a folder in it. The example `s3_server` is the same as a process.

use std::path::Path;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) const BUCKET: &str = "agent-service";
pub(crate) const ACCESS_KEY_ID: &str = "access";
pub(crate) const SECRET_ACCESS_KEY: &str = "secret";

/// Serves until it is dropped, its connections included.
pub(crate) async fn serve(folder: &Path, listener: TcpListener) {
    let mut service = S3ServiceBuilder::new(FileSystem::new(folder).expect("the folder is there"));
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let service = service.build();
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let service = service.clone();
        connections.spawn(async move {
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
