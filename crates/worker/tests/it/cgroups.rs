//! Control groups of sessions, where this machine lets the tests make some.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio_util::sync::CancellationToken;
use worker::Limits;
use worker::sandbox::{Sandbox, SandboxError};

use crate::support::{Inside, Place, SESSION, at_every_level};

at_every_level!(
    a_session_is_held_by_groups_of_its_own,
    what_a_killed_supervisor_leaves_ends_with_its_group,
    folders_that_are_no_groups_are_refused,
);

/// Groups of this test's own below the one it runs in; removed with the value.
struct Folders(Vec<PathBuf>);

impl Folders {
    /// Nothing where groups cannot be made.
    fn new() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let of_controller = |controller: &str| {
            let line = own.lines().find(|line| line.split(':').nth(1) == Some(controller))?;
            Some(line.splitn(3, ':').nth(2)?.trim_start_matches('/').to_owned())
        };
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let parents: Vec<PathBuf> = if unified {
            vec![Path::new("/sys/fs/cgroup").join(of_controller("")?)]
        } else {
            let parent =
                |controller: &str| Some(Path::new("/sys/fs/cgroup").join(controller).join(of_controller(controller)?));
            vec![parent("memory")?, parent("pids")?]
        };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("agent-service-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folders = Self(parents.into_iter().map(|parent| parent.join(&name)).collect());
        for folder in &folders.0 {
            if let Err(error) = std::fs::create_dir(folder) {
                eprintln!("SKIPPED: control groups cannot be made here: {}: {error}", folder.display());
                return None;
            }
        }
        Some(folders)
    }

    /// The session's file of the first of these names that one of its groups has.
    fn read(&self, names: &[&str]) -> String {
        let files = self.0.iter().flat_map(|folder| names.iter().map(move |name| folder.join(SESSION).join(name)));
        files.into_iter().find_map(|file| std::fs::read_to_string(file).ok()).expect("a group has one of the files")
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

async fn a_session_is_held_by_groups_of_its_own(mut place: Place) {
    let Some(folders) = Folders::new() else { return };
    place.config.cgroups.clone_from(&folders.0);
    let place = place.with_limits(Limits { memory_bytes_max: 64 << 20, processes_max: 40, ..Limits::default() });
    let mut tools = place.sandbox().await;
    assert_eq!(folders.read(&["memory.max", "memory.limit_in_bytes"]).trim(), (64 << 20).to_string());
    assert_eq!(folders.read(&["pids.max"]).trim(), "40");
    tools.bash("setsid sleep 1000 & (setsid bash -c 'sleep 1000; true' &)").await;
    // A process is looked up before its group is, and one that has ended meanwhile is in no group.
    let inside = Inside::of(&tools, &place);
    let processes = inside.processes();
    let members = folders.read(&["cgroup.procs"]);
    let members: Vec<i32> = members.lines().map(|pid| pid.parse().unwrap()).collect();
    let still = inside.processes();
    for process in processes.iter().filter(|process| still.contains(process)) {
        assert!(members.contains(process), "{process} is not among {members:?}");
    }
    let outcome = tools.outcome("bash", json!({"command": "perl -e '$x = \"x\" x (1 << 28); print length $x'"})).await;
    assert!(outcome.is_error, "{outcome:?}");
    let refused = folders.read(&["memory.events", "memory.failcnt"]);
    let counts = refused.lines().filter(|line| !line.starts_with("low")).map(|line| line.rsplit(' ').next().unwrap());
    assert!(counts.map(|count| count.parse::<u64>().unwrap()).sum::<u64>() > 0, "{refused}");
    tools.0.close().await;
    for folder in &folders.0 {
        assert!(!folder.join(SESSION).exists(), "{} stays", folder.display());
    }
}

async fn what_a_killed_supervisor_leaves_ends_with_its_group(mut place: Place) {
    let Some(folders) = Folders::new() else { return };
    place.config.cgroups.clone_from(&folders.0);
    let mut tools = place.sandbox().await;
    tools.bash("setsid sleep 1000 & setsid bash -c 'sleep 1000; true' & true").await;
    let inside = Inside::of(&tools, &place);
    let supervisor = *inside.processes().iter().min().unwrap();
    let supervisor = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    assert!(tools.0.call("bash", json!({"command": "true"}), &CancellationToken::new()).await.is_err());
    tools.0.close().await;
    assert_eq!(inside.processes(), [0; 0]);
    assert!(folders.0.iter().all(|folder| !folder.join(SESSION).exists()));
}

async fn folders_that_are_no_groups_are_refused(mut place: Place) {
    place.config.cgroups = vec![place.data()];
    let error = Sandbox::start(&place.config, SESSION).await.unwrap_err();
    assert!(matches!(error, SandboxError::Cgroup(_)), "{error}");
    assert!(error.to_string().ends_with("has the controller memory"), "{error}");
}
