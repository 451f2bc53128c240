//! The sandbox process alone, for the tests of this crate: a library's test cannot re-execute `agent-service`.
//! Not shipped; see `worker::sandbox_main` for what it runs.

fn main() {
    worker::sandbox_main();
    eprintln!("worker-sandbox is started by the worker's tests and does nothing by itself");
    std::process::exit(2);
}
