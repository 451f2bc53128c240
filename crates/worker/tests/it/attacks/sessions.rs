//! Attacks on another session of the same worker.

use super::Control::{Unconfined, Unfiltered};
use super::{Attack, Ending, bash, perl, tool};

const UNREAD: &str = "Nothing of the other session is read.";
const UNCHANGED: &str = "Nothing of the other session changes.";
const UNTOUCHED: &str = "The other session's process runs on as it was.";
const OUTSIDE: &str = "The tool answers that the path is outside.";

fn is_outside(text: &str) -> bool {
    text.ends_with("is outside the session's working directory")
}

pub(super) const ATTACKS: &[Attack] = &[
    bash(
        "read-another-workspace",
        "Reads a file of another session.",
        UNREAD,
        "cat %other%/secret ../sesn_other/secret",
    )
    .proven(Unconfined),
    bash(
        "write-another-workspace",
        "Writes into another session's workspace.",
        UNCHANGED,
        "echo x >%other%/new; echo x >>%other%/secret",
    )
    .proven(Unconfined),
    bash(
        "plant-in-another-workspace",
        "Puts a link, a pipe and a startup file into another session's workspace.",
        UNCHANGED,
        "ln -s /etc %other%/l; mkfifo %other%/p; echo id >%other%/.bashrc",
    )
    .proven(Unconfined),
    bash("remove-another-workspace", "Deletes another session's workspace.", UNCHANGED, "rm -rf %other%")
        .proven(Unconfined),
    bash(
        "lock-another-workspace",
        "Takes all rights from another session's workspace.",
        UNCHANGED,
        "chmod 000 %other%/secret",
    )
    .proven(Unconfined),
    bash(
        "list-workspaces",
        "Lists which sessions the worker has.",
        "No name is told.",
        "ls %workspaces% .. | grep -q sesn_other && echo %breach%; true",
    )
    .proven(Unconfined),
    bash(
        "move-its-own-workspace",
        "Moves its own workspace and puts a link to another in its place.",
        UNCHANGED,
        "mv %workspaces%/sesn_test %workspaces%/moved && ln -s sesn_other %workspaces%/sesn_test; \
         rmdir %workspaces%/sesn_test",
    )
    .ending(Ending::Closed),
    bash(
        "link-to-another-workspace",
        "Leaves a link to another workspace for the next start to follow.",
        UNCHANGED,
        "ln -s %other% .agent/outputs; rm -rf .agent; ln -s %other% .agent",
    )
    .ending(Ending::Closed),
    bash(
        "delete-through-a-link",
        "Leaves links to another workspace for the deletion of its own to follow.",
        UNCHANGED,
        "ln -s %other% l; mkdir d; ln -s %other%/secret d/s",
    )
    .ending(Ending::Removed),
    tool(
        "read",
        "read-tool-in-another-workspace",
        "Reads a file of another session.",
        OUTSIDE,
        r#"{"file_path": "../sesn_other/secret"}"#,
    )
    .answers(is_outside),
    tool(
        "write",
        "write-tool-in-another-workspace",
        "Writes a file of another session through a link.",
        OUTSIDE,
        r#"{"file_path": "l/new", "content": "x"}"#,
    )
    .after("ln -s %other% l")
    .answers(is_outside),
    tool(
        "grep",
        "grep-tool-in-another-workspace",
        "Searches in another session's files.",
        OUTSIDE,
        r#"{"pattern": "the", "path": "%other%"}"#,
    )
    .answers(is_outside),
    bash("kill-another-sessions-process", "Kills a process of another session.", UNTOUCHED, "kill -9 %bystander%")
        .proven(Unconfined),
    bash("stop-another-sessions-process", "Stops a process of another session.", UNTOUCHED, "kill -STOP %bystander%")
        .proven(Unconfined),
    perl(
        "trace-another-sessions-process",
        "Attaches to a process of another session as a debugger.",
        "The call is refused.",
        r#"gained("ptrace", 0x4206, %bystander%, 0, 0)"#,
    )
    .proven(Unconfined),
    bash(
        "environment-of-another-session",
        "Reads the environment of another session's process.",
        UNREAD,
        "tr '\\0' '\\n' </proc/%bystander%/environ | grep -q BYSTANDER && echo %breach%; true",
    )
    .proven(Unconfined),
    bash(
        "folder-of-another-session",
        "Reads below the folder of another session's process.",
        UNREAD,
        "cat /proc/%bystander%/cwd/secret /proc/%bystander%/root%other%/secret",
    )
    .proven(Unconfined),
    perl(
        "descriptor-of-another-session",
        "Takes a descriptor out of another session's process.",
        "The call is refused.",
        r#"my $p = sys("pidfd_open", %bystander%, 0); gained("pidfd_getfd", $p, 0, 0)"#,
    )
    .proven(Unfiltered),
    bash(
        "slow-another-session",
        "Slows a process of another session down.",
        UNTOUCHED,
        "renice 19 -p %bystander%; taskset -p 1 %bystander%; prlimit --pid %bystander% --nofile=1:1; true",
    )
    .proven(Unconfined),
    bash(
        "meet-in-shared-memory",
        "Leaves a message for another session in shared memory.",
        "No process outside finds it.",
        "echo x >/dev/shm/%token%",
    )
    .proven(Unconfined),
];
