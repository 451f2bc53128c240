//! Commands and inputs that want out: of the workspace, of the process tree, onto the network.

use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use worker::Limits;
use worker::sandbox::CallEnd;

use crate::support::{Inside, Place, SECRET, at_every_level, is_alive};

at_every_level!(
    files_outside_cannot_be_read_or_changed_by_bash,
    modes_and_owners_can_be_changed_inside,
    file_tools_stay_in_the_workspace,
    a_link_swapped_while_tools_run_leads_nowhere,
    the_worker_and_its_processes_are_out_of_reach,
    nothing_of_the_host_can_be_connected_to,
    fifty_megabytes_of_output_take_little_memory,
    no_process_survives_its_call_its_timeout_or_its_session,
    a_worker_that_dies_takes_its_processes_along,
    signals_to_the_workers_group_leave_the_supervisor_to_clean_up,
    a_killed_supervisor_leaves_nothing,
    a_fork_bomb_is_held_at_the_process_limit,
    memory_and_file_sizes_are_limited,
    a_full_workspace_ends_the_command_and_can_be_emptied,
    a_deleted_file_that_stays_open_counts,
    cpu_time_is_limited_over_all_processes,
    nonsense_input_is_an_error_for_the_model,
);

async fn files_outside_cannot_be_read_or_changed_by_bash(place: Place) {
    let other = place.config.workspaces_dir.join("sesn_other");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("secret"), SECRET).unwrap();
    let data = place.data();
    let mode = || std::fs::metadata(data.join("secret")).unwrap().permissions();
    let before = mode();
    let mut tools = place.sandbox().await;
    tools.bash(&format!("ln -s {} data; ln -s / root", data.display())).await;
    for command in [
        format!("cat {}/secret", data.display()),
        format!("cat {}/secret", other.display()),
        "cat ../../data/secret".to_owned(),
        "cat data/secret".to_owned(),
        "cat root/etc/shadow".to_owned(),
        "cat /root/.bashrc || ls /root".to_owned(),
        "ls /home".to_owned(),
        "ls /run".to_owned(),
        "ls /var".to_owned(),
        "cat /proc/1/environ".to_owned(),
        "ln data/secret stolen && cat stolen".to_owned(),
        "mv data/secret stolen".to_owned(),
        "cp data/secret stolen".to_owned(),
        "echo x >data/new".to_owned(),
        "echo x >>data/secret".to_owned(),
        "truncate -s 0 data/secret".to_owned(),
        "rm data/secret".to_owned(),
        "mkdir data/new".to_owned(),
        "chmod 777 data/secret".to_owned(),
        "chmod 000 data".to_owned(),
        "chmod -R 000 ../../data".to_owned(),
        "chown 12345 data/secret".to_owned(),
        "[ \"$(ls -A .. | grep other)\" ]".to_owned(),
        "setfattr -n user.x -v y data/secret".to_owned(),
        "perl -e 'exit 1 unless chmod(0777, \"data/secret\")'".to_owned(),
        "perl -e 'exit 1 unless truncate(\"data/secret\", 0)'".to_owned(),
        "perl -e 'open(F, \"<\", \"/usr/bin/env\") or exit 1; exit 1 unless chmod(0600, *F)'".to_owned(),
        "mknod device b 8 0".to_owned(),
        "mount -t tmpfs none .".to_owned(),
        "unshare -r true".to_owned(),
        "chroot . true".to_owned(),
    ] {
        let outcome = tools.outcome("bash", json!({"command": command})).await;
        assert!(outcome.is_error && !outcome.as_text().unwrap().contains(SECRET), "{command}: {outcome:?}");
    }
    assert_eq!(std::fs::read_to_string(data.join("secret")).unwrap(), SECRET);
    assert_eq!(mode(), before);
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);
}

async fn modes_and_owners_can_be_changed_inside(place: Place) {
    let mut tools = place.sandbox().await;
    tools.bash("printf '#!/bin/sh\\necho run' >x; chmod +x x; [ \"$(./x)\" = run ]").await;
    assert_eq!(
        tools.bash("mkdir -p a/b; chmod 700 a; cd a/b; chmod 6755 ../../x; stat -c %a ../../x .. ").await,
        "755\n700"
    );
    assert_eq!(tools.bash("ln -s x ../../l; chmod 640 ../../l; stat -c %a ../../x").await, "640");
    assert_eq!(tools.bash("perl -e 'open(F, \">\", \"f\"); chmod(0604, *F) or die $!'; stat -c %a f").await, "604");
    tools.bash("touch -d @1000 f $'latin\\xe9'; [ $(stat -c %Y f) = 1000 ]; ln -s f t; touch -h -d @5 t; [ \"$(stat -c %Y t f | xargs)\" = \"5 1000\" ]").await;
    tools.bash("cp -p f g && chown $(id -u) g && tar cf t f g && mkdir o && tar xf t -C o").await;
    let suid = "perl -MFcntl -e 'sysopen(F, \"s\", O_CREAT|O_WRONLY, 04755) and print \"made\"; exit 1'";
    assert_eq!(tools.bash_error(suid).await, "bash: exit status 1");
    assert!(tools.bash_error("chmod 600 missing").await.contains("No such file"));
    assert!(tools.bash_error("chown 12345 g").await.contains("not permitted"));
    tools.bash("cd; git init -q r && cd r && git -c user.name=n -c user.email=e commit -q --allow-empty -m m").await;
}

async fn file_tools_stay_in_the_workspace(place: Place) {
    let mut tools = place.sandbox().await;
    let secret = place.data().join("secret");
    tools.bash(&format!("ln -s {} link; ln -s ../../data dir; ln -s dir/secret chain", secret.display())).await;
    tools.bash("mkfifo pipe").await;
    let outside = [
        secret.to_str().unwrap(),
        "../../data/secret",
        "link",
        "dir/secret",
        "chain",
        "/etc/passwd",
        "/workspace/../x",
        "/tmp/../../../x",
    ];
    for path in outside {
        for (tool, input) in [
            ("read", json!({"file_path": path})),
            ("write", json!({"file_path": path, "content": "x"})),
            ("edit", json!({"file_path": path, "old_string": "the", "new_string": "x"})),
            ("grep", json!({"pattern": ".", "path": path})),
            ("glob", json!({"pattern": "*", "path": path})),
        ] {
            let text = tools.error(tool, input).await;
            assert_eq!(text, format!("{tool}: path {path:?} is outside the session's working directory"));
        }
    }
    for (tool, input) in [
        ("read", json!({"file_path": "pipe"})),
        ("edit", json!({"file_path": "pipe", "old_string": "a", "new_string": "b"})),
        ("write", json!({"file_path": "pipe", "content": "x"})),
    ] {
        assert_eq!(tools.error(tool, input).await, format!("{tool}: pipe: not a regular file"));
    }
    assert_eq!(tools.ok("grep", json!({"pattern": "database"})).await, "no matches");
    assert_eq!(tools.ok("glob", json!({"pattern": "**"})).await, "/workspace/pipe");
    assert_eq!(std::fs::read_to_string(secret).unwrap(), SECRET);
}

async fn a_link_swapped_while_tools_run_leads_nowhere(place: Place) {
    let mut tools = place.sandbox().await;
    let data = place.data();
    tools.bash("mkdir real; echo harmless >real/secret; mkdir away").await;
    let swap = format!(
        "(while :; do ln -sfn {} x; rm -f x; mv -T real x; mv -T x real; done) >/dev/null 2>&1 &",
        data.display()
    );
    tools.bash(&swap).await;
    for round in 0..200 {
        let read = tools.outcome("read", json!({"file_path": "x/secret"})).await;
        assert!(!read.as_text().unwrap().contains(SECRET), "round {round}");
        tools.outcome("write", json!({"file_path": "x/secret", "content": "harmless"})).await;
    }
    assert_eq!(std::fs::read_to_string(data.join("secret")).unwrap(), SECRET);
}

async fn the_worker_and_its_processes_are_out_of_reach(place: Place) {
    let mut tools = place.sandbox().await;
    let worker = std::process::id();
    let supervisor = tools.0.process_id();
    for pid in [worker, supervisor] {
        for command in [
            format!("cat /proc/{pid}/environ"),
            format!("cat /proc/{pid}/maps"),
            format!("readlink /proc/{pid}/fd/0"),
            format!("cat /proc/{pid}/mem"),
            format!("cat /proc/{pid}/root/etc/passwd"),
            format!("kill -0 {pid}"),
            format!("kill -9 {pid}"),
            format!("kill -STOP {pid}"),
            format!("prlimit --pid {pid} --nofile=1:1"),
            format!("renice 19 -p {pid}"),
            format!("taskset -p 1 {pid}"),
            format!("strace -p {pid}"),
        ] {
            tools.bash_error(&command).await;
        }
    }
    tools.outcome("bash", json!({"command": "kill -9 -1"})).await;
    assert_eq!(tools.bash("echo alive").await, "alive");
    assert!(is_alive(supervisor.cast_signed()));
}

fn quoted(command: &str) -> String {
    format!("'{}'", command.replace('\'', r"'\''"))
}

async fn nothing_of_the_host_can_be_connected_to(place: Place) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let path = place.workspace().join("socket");
    std::fs::create_dir_all(place.workspace()).unwrap();
    let unix = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    unix.set_nonblocking(true).unwrap();
    let mut tools = place.sandbox().await;
    for command in [
        format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -u 3 line"),
        format!("exec 3<>/dev/udp/127.0.0.1/{port}"),
        "perl -e 'socket(S, 16, 3, 0) or die $!'".to_owned(),
        "perl -MSocket -e 'socket(S, PF_INET, SOCK_DGRAM, 0) or die $!'".to_owned(),
        "perl -MSocket -e 'socket(S, PF_INET, SOCK_RAW, 1) or die $!'".to_owned(),
        "perl -MSocket -e 'socket(S, PF_INET6, SOCK_STREAM, 262) or die $!'".to_owned(),
    ] {
        let command = format!("timeout 5 bash -c {}", quoted(&command));
        tools.bash_error(&command).await;
    }
    tools.bash("perl -MSocket -e 'socketpair(A, B, PF_UNIX, SOCK_STREAM, 0) or die; syswrite(A, \"x\"); sysread(B, $x, 1) or die'").await;
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(unix.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

async fn fifty_megabytes_of_output_take_little_memory(place: Place) {
    let mut tools = place.sandbox().await;
    let text = tools.bash("head -c 52428800 /dev/zero | tr '\\0' x; echo end").await;
    assert!(text.ends_with("end") && text.len() < 12_000);
    let status = std::fs::read_to_string(format!("/proc/{}/status", tools.0.process_id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 40 * 1024, "the supervisor needed {kib} KiB");
    tools.bash("yes >/dev/stdout & sleep 0.2; kill %1").await;
}

/// Ways of a process to outlive its call; each prints its process id.
const SURVIVORS: [&str; 5] = [
    "bash -c 'trap \"\" TERM HUP INT; echo $$; while :; do sleep 1000; done' &",
    "setsid bash -c 'echo $$; sleep 1000' &",
    "(setsid bash -c '(echo $BASHPID; sleep 1000) &' &)",
    "bash -c 'echo $$; kill -STOP $$' &",
    "perl -e 'exit if fork; exit if fork; $| = 1; print \"$$\\n\"; $0 = \"x) S 1 (y\"; sleep 1000' &",
];

async fn no_process_survives_its_call_its_timeout_or_its_session(place: Place) {
    for survivor in SURVIVORS {
        let mut tools = place.sandbox().await;
        let command = format!("exec 3>pid; {{ {survivor} }} >&3; until [ -s pid ]; do sleep 0.01; done; cat pid");
        let start = async |tools: &mut crate::support::Tools| {
            let pid: i32 = tools.bash(&format!("rm -f pid; {command}")).await.trim().parse().unwrap();
            let pid = Inside::of(tools, &place).host_pid(pid);
            assert!(is_alive(pid), "{survivor}");
            pid
        };
        let pid = start(&mut tools).await;
        tools.error("bash", json!({"command": "sleep 1000", "timeout_ms": 100})).await;
        assert!(!is_alive(pid), "timeout: {survivor}");

        let pid = start(&mut tools).await;
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        let end = tools.0.call("bash", json!({"command": "sleep 1000"}), &cancelled).await.unwrap();
        assert_eq!(end, CallEnd::Killed);
        assert!(!is_alive(pid), "interrupt: {survivor}");

        let pid = start(&mut tools).await;
        tools.0.close().await;
        assert!(!is_alive(pid), "close: {survivor}");
    }
}

async fn a_worker_that_dies_takes_its_processes_along(place: Place) {
    let mut tools = place.sandbox().await;
    let pid: i32 = tools.bash("setsid sleep 1000 & echo $!").await.parse().unwrap();
    let pid = Inside::of(&tools, &place).host_pid(pid);
    let supervisor = tools.0.process_id().cast_signed();
    // What the death of the worker looks like from inside: its end of the pipe is closed.
    drop(tools);
    for _ in 0..1000 {
        if !is_alive(pid) && !is_alive(supervisor) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the sandbox outlives its worker");
}

async fn signals_to_the_workers_group_leave_the_supervisor_to_clean_up(place: Place) {
    let tools = place.sandbox().await;
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let group = |pid| stat(pid).rsplit(')').next().unwrap().split_whitespace().nth(2).unwrap().to_owned();
    let supervisor = Inside::of(&tools, &place).processes().into_iter().min().unwrap().cast_unsigned();
    assert_ne!(group(supervisor), group(std::process::id()));
    assert_eq!(group(supervisor), supervisor.to_string());
}

async fn a_killed_supervisor_leaves_nothing(place: Place) {
    let mut tools = place.sandbox().await;
    let inside = Inside::of(&tools, &place);
    let started =
        tools.bash("echo $$; setsid sleep 1000 & setsid bash -c 'sleep 1000; true' & sleep 0.1; echo $!").await;
    let shell = inside.host_pid(started.lines().next().unwrap().parse().unwrap());
    let all = inside.processes();
    // Supervisor, file helper, shell and three that the shell started.
    assert!(all.contains(&shell) && all.len() == 6, "{all:?}");
    let supervisor = rustix_pid((*all.iter().min().unwrap()).cast_unsigned());
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    let call = tools.0.call("bash", json!({"command": "true"}), &CancellationToken::new()).await;
    assert!(call.is_err(), "{call:?}");
    tools.0.close().await;
    assert_eq!(inside.processes(), [0; 0]);
}

fn rustix_pid(pid: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(pid.cast_signed()).unwrap()
}

async fn a_fork_bomb_is_held_at_the_process_limit(place: Place) {
    let place = place.with_limits(Limits { processes_max: 50, ..Limits::default() });
    let mut tools = place.sandbox().await;
    let bomb = json!({"command": "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000", "timeout_ms": 2000});
    let inside = Inside::of(&tools, &place);
    let mut counts = Vec::new();
    let text = {
        let call = tools.error("bash", bomb);
        tokio::pin!(call);
        loop {
            tokio::select! {
                text = &mut call => break text,
                () = tokio::time::sleep(Duration::from_millis(20)) => counts.push(inside.processes().len()),
            }
        }
    };
    assert!(text.contains("timed out"), "{text}");
    let most = counts.into_iter().max().unwrap();
    // The supervisor stands there too, and those that were just admitted may not be counted yet.
    assert!((20..=80).contains(&most), "{most} processes at once");
    assert_eq!(inside.processes().len(), 2, "the bomb is gone, supervisor and file helper stay");
    assert_eq!(tools.bash("echo alive").await, "alive");
    let forks = "perl -e 'for (1..100) { defined fork or print(\"no more\\n\"), exit }' | sort -u";
    assert_eq!(tools.bash(forks).await, "no more");
}

async fn memory_and_file_sizes_are_limited(place: Place) {
    let limits = Limits {
        process_memory_bytes_max: 256 << 20,
        memory_bytes_max: 200 << 20,
        file_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let place = place.with_limits(limits);
    let mut tools = place.sandbox().await;
    assert!(!tools.bash_error("perl -e '$x = \"x\" x (1 << 30); print length $x'").await.contains("1073741824"));
    tools.bash_error("head -c 2000000 /dev/zero >big").await;
    assert_eq!(std::fs::metadata(place.workspace().join("big")).unwrap().len(), 1 << 20);
    let hog = "perl -e '$x = \"x\" x (60 << 20); sleep 1000' &";
    let text = tools.bash_error(&format!("{hog} {hog} {hog} {hog} wait")).await;
    assert!(text.contains("bytes of memory"), "{text}");
    assert_eq!(tools.bash("ulimit -c").await, "0");
}

async fn nonsense_input_is_an_error_for_the_model(place: Place) {
    let mut tools = place.sandbox().await;
    for tool in ["bash", "read", "write", "edit", "glob", "grep", "rm"] {
        for input in [Value::Null, json!([]), json!("x"), json!({"command": [], "file_path": 1, "pattern": {}})] {
            let text = tools.error(tool, input).await;
            assert!(text.starts_with(&format!("{tool}: ")), "{text}");
        }
    }
    let deep = "[".repeat(100_000);
    tools.error("grep", json!({"pattern": deep})).await;
    tools.error("read", json!({"file_path": "a/".repeat(50_000)})).await;
    tools.bash(&format!(": {}", "x".repeat(200_000))).await;
}

fn small_workspace() -> Limits {
    Limits { workspace_bytes_max: 8 << 20, workspace_files_max: 500, ..Limits::default() }
}

async fn a_full_workspace_ends_the_command_and_can_be_emptied(place: Place) {
    let place = place.with_limits(small_workspace());
    let mut tools = place.sandbox().await;
    let fills = [
        "for i in {1..1000}; do head -c 1000000 /dev/zero >$i; done; sleep 1000",
        "mkdir d; for i in {1..2000}; do : >d/$i; done; sleep 1000",
        // Where bash keeps its temporary files counts as well.
        "cd $(mktemp -d) && head -c 20000000 /dev/zero >big; sleep 1000",
    ];
    for fill in fills {
        let text = tools.error("bash", json!({"command": fill, "timeout_ms": 60_000})).await;
        assert!(text.starts_with("bash: the workspace is full: it holds "), "{fill}: {text}");
        for tool in [("write", json!({"file_path": "x", "content": "x"}))] {
            let text = tools.error(tool.0, tool.1).await;
            assert!(text.starts_with("write: the workspace is full"), "{text}");
        }
        tools.bash("rm -rf * .agent/tmp/*").await;
        tools.ok("write", json!({"file_path": "x", "content": "x"})).await;
    }
}

async fn a_deleted_file_that_stays_open_counts(place: Place) {
    let place = place.with_limits(small_workspace());
    let mut tools = place.sandbox().await;
    let command = "exec 3>f; rm f; head -c 20000000 /dev/zero >&3; sleep 1000";
    let text = tools.error("bash", json!({"command": command, "timeout_ms": 60_000})).await;
    assert!(text.starts_with("bash: the workspace is full"), "{text}");
    assert_eq!(tools.bash("ls").await, "(no output)");
}

async fn cpu_time_is_limited_over_all_processes(place: Place) {
    let place = place.with_limits(Limits { cpu_seconds_max: 2, ..Limits::default() });
    let mut tools = place.sandbox().await;
    let burn = "while :; do perl -e '1 while (times)[0] < 0.5'; done";
    let text = tools.error("bash", json!({"command": burn, "timeout_ms": 100_000})).await;
    assert!(text.starts_with("bash: more than 2 seconds of CPU time"), "{text}");
    assert_eq!(tools.bash("echo alive").await, "alive");
}
