//! Runs the scripted model provider of the tests alone, for tests in other languages.
//!
//! `scripted_provider [SCRIPT.json] [ADDRESS]` prints its port on the first line and serves until it is killed.
//! The script is a JSON list of replies, also taken by `PUT /script`.

#[path = "../tests/it/model/scripted_provider.rs"]
mod scripted_provider;

use anyhow::Context;
use scripted_provider::{Reply, ScriptedProvider};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let script: Vec<Reply> = match arguments.next().filter(|path| !path.is_empty()) {
        Some(path) => {
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            serde_json::from_str(&text).with_context(|| format!("{path} is not a list of replies"))?
        }
        None => Vec::new(),
    };
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let provider = ScriptedProvider::listen(&address, script).await;
    println!("{}", provider.address.port());
    std::future::pending::<()>().await;
    Ok(())
}
