//! Ties the worker's process to the one that started it, and closes it to its own children.
//!
//! An embedded worker must not outlive `serve`. The pipe over which it got its key stays open as long as `serve`
//! lives; when it ends, the worker ends, and each sandbox, whose own pipe ends with the worker, kills what it holds.

use std::io::Read;

/// Makes the process unreadable to others of the same user: no core dump, no `/proc/<pid>/environ` or `mem`.
pub fn harden() -> std::io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Ends this process as soon as `lifeline` ends. Returns at once; nothing more may be read from the pipe by others.
pub fn die_with(mut lifeline: impl Read + Send + 'static) -> std::io::Result<()> {
    let watch = move || {
        let mut ignored = [0; 256];
        loop {
            match lifeline.read(&mut ignored) {
                Ok(0) => break,
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => break,
                Ok(_) | Err(_) => {}
            }
        }
        tracing::warn!("the process that started this worker is gone: the worker ends");
        std::process::exit(1);
    };
    std::thread::Builder::new().name("lifeline".to_owned()).spawn(watch)?;
    Ok(())
}
