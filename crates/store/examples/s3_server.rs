//! An S3 server over a folder, as a process of its own, so that tests can take it away.
//!
//!     cargo run -p store --example s3_server -- FOLDER PORT
//!
//! It makes the bucket `agent-service` and serves until it is killed.

#[path = "../tests/it/s3/serving.rs"]
mod serving;

use std::path::PathBuf;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), Some(port)) = (arguments.next(), arguments.next()) else {
        return Err(std::io::Error::other("usage: s3_server FOLDER PORT"));
    };
    let folder = PathBuf::from(folder);
    let port: u16 = port.to_str().and_then(|port| port.parse().ok()).ok_or(std::io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(folder.join(serving::BUCKET))?;
    serving::serve(&folder, TcpListener::bind(("127.0.0.1", port)).await?).await;
    Ok(())
}
