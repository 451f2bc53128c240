//! The contract of `bash`.

use serde_json::json;

use crate::support::{Place, at_every_level};

at_every_level!(
    the_shell_keeps_its_state_between_calls,
    output_is_merged_stripped_and_trimmed,
    a_failing_command_is_an_error_with_its_output,
    a_shell_that_exits_is_replaced,
    restart_gives_a_fresh_shell,
    a_timeout_kills_the_shell_and_is_an_error,
    the_environment_is_a_fixed_list,
    temporary_files_outlast_a_clean_workspace,
    documented_paths_work_or_are_explained_once,
    the_end_of_a_long_output_is_kept_and_previewed,
);

async fn the_shell_keeps_its_state_between_calls(place: Place) {
    let mut tools = place.sandbox().await;
    assert_eq!(tools.bash("mkdir sub && cd sub && export A=1 B='it'\\''s'").await, "(no output)");
    assert_eq!(tools.bash("basename \"$PWD\"; echo \"$A $B\"").await, "sub\n1 it's");
    tools.bash("f() { echo from-f; }; sleep 1000 &").await;
    assert_eq!(tools.bash("f; jobs -p | wc -l").await, "from-f\n1");
}

async fn output_is_merged_stripped_and_trimmed(place: Place) {
    let mut tools = place.sandbox().await;
    assert_eq!(tools.bash("echo out; echo err >&2; printf '\\e[31mred\\e[0m\\n\\n'").await, "out\nerr\nred");
    assert_eq!(tools.bash("printf 'a\\0b\\xff'").await, "ab\u{fffd}");
    assert_eq!(tools.bash("cat; read x; echo \"[$x]\"").await, "[]");
}

async fn a_failing_command_is_an_error_with_its_output(place: Place) {
    let mut tools = place.sandbox().await;
    assert_eq!(tools.bash_error("echo before; false").await, "before");
    assert_eq!(tools.bash_error("false").await, "bash: exit status 1");
    assert!(tools.bash_error("if then").await.contains("syntax error"));
    assert!(tools.bash_error("echo 'never closed").await.contains("unexpected EOF"));
    assert!(tools.bash("cat <<END\nnever ended' \" (").await.ends_with("never ended' \" ("));
    assert_eq!(tools.bash("echo still here").await, "still here");
}

async fn a_shell_that_exits_is_replaced(place: Place) {
    let mut tools = place.sandbox().await;
    tools.bash("A=1").await;
    assert_eq!(tools.bash_error("echo bye; exit 3").await, "bye");
    assert_eq!(tools.bash("echo \"[$A]\"").await, "[]");
    assert_eq!(tools.bash("exec echo replaced").await, "replaced");
    assert_eq!(tools.bash("exec >/dev/null 2>&1; echo lost").await, "(no output)");
    assert_eq!(tools.bash("echo found").await, "found");
}

async fn restart_gives_a_fresh_shell(place: Place) {
    let mut tools = place.sandbox().await;
    tools.bash("A=1; cd /; sleep 1000 &").await;
    assert_eq!(tools.ok("bash", json!({"restart": true})).await, "bash session restarted");
    assert_eq!(tools.bash("echo \"[$A]\"; jobs | wc -l").await, "[]\n0");
    assert_eq!(tools.error("bash", json!({})).await, "bash: command is required");
    assert!(tools.error("bash", json!({"command": 3})).await.starts_with("bash: invalid input"));
    assert!(tools.error("bash", json!({"command": "a\0b"})).await.starts_with("bash: "));
}

async fn a_timeout_kills_the_shell_and_is_an_error(place: Place) {
    let mut tools = place.sandbox().await;
    let text = tools.error("bash", json!({"command": "A=1; echo part; sleep 1000", "timeout_ms": 300})).await;
    assert!(text.starts_with("bash: command timed out after 0.3s"), "{text}");
    assert!(text.ends_with("part"), "{text}");
    assert_eq!(tools.bash("echo \"[$A]\"").await, "[]");
    assert_eq!(
        tools.ok("bash", json!({"command": "echo 0 is the default", "timeout_ms": 0})).await,
        "0 is the default"
    );
}

async fn the_environment_is_a_fixed_list(place: Place) {
    let mut tools = place.sandbox().await;
    let names = tools.bash("env | cut -d= -f1 | LC_ALL=C sort | tr '\\n' ' '").await;
    let tmpdir = if place.has_namespaces() { "" } else { "TMPDIR " };
    let expected = format!(
        "ALL_PROXY HOME HTTPS_PROXY HTTP_PROXY LANG NO_PROXY PATH PWD SHLVL TAR_OPTIONS TERM {tmpdir}_ all_proxy \
         http_proxy https_proxy no_proxy "
    );
    assert_eq!(names, expected);
    assert_eq!(tools.bash("ls -A; mktemp >/dev/null && ls -d \"$HOME\"/.agent/tmp/tmp.* | wc -l").await, ".agent\n1");
    assert_eq!(
        tools.bash("bash -c 'for fd in {0..300}; do [ -e /proc/$$/fd/$fd ] && echo $fd; done' | tr '\\n' ' '").await,
        "0 1 2 "
    );
}

async fn the_end_of_a_long_output_is_kept_and_previewed(place: Place) {
    let mut tools = place.sandbox().await;
    let text = tools.bash("head -c 90000 /dev/zero | tr '\\0' x").await;
    assert_eq!(text.len(), 90_000);
    let text = tools.bash("seq 1 60000").await;
    assert!(text.contains("/workspace/.agent/outputs/bash-2.txt"), "{}", &text[..200]);
    assert!(text.ends_with("60000") && text.len() < 12_000);
    let saved = tools.ok("read", json!({"file_path": ".agent/outputs/bash-2.txt", "view_range": [1, 1]})).await;
    assert!(saved.starts_with("[output truncated: the last 102400 of "), "{saved}");
}

async fn temporary_files_outlast_a_clean_workspace(place: Place) {
    let mut tools = place.sandbox().await;
    tools.outcome("bash", json!({"command": "rm -rf .agent"})).await;
    tools.bash("cat < <(echo x) >\"$(mktemp)\"; cat <<< here").await;
    tools.ok("write", json!({"file_path": "/tmp/a", "content": "written"})).await;
    assert_eq!(tools.bash("cat \"${TMPDIR:-/tmp}/a\"").await, "written");
    tools.bash("echo made >\"${TMPDIR:-/tmp}/b\"").await;
    assert_eq!(tools.ok("read", json!({"file_path": "/tmp/b"})).await, "made\n");
}

async fn documented_paths_work_or_are_explained_once(place: Place) {
    let mut tools = place.sandbox().await;
    tools.ok("write", json!({"file_path": "/workspace/a", "content": "a"})).await;
    tools.ok("write", json!({"file_path": "/mnt/session/outputs/b", "content": "b"})).await;
    if place.has_namespaces() {
        assert_eq!(tools.bash("cat /workspace/a /mnt/session/outputs/b").await, "ab");
        assert!(tools.bash_error("touch /mnt/session/uploads/c").await.contains("Read-only file system"));
        assert!(tools.bash_error("touch /c").await.contains("Read-only file system"));
        return;
    }
    let workspace = place.workspace();
    let text = tools.bash_error("cat /workspace/a").await;
    let explained = format!("[in bash, unlike in the file tools, /workspace is {}, /tmp is ", workspace.display());
    assert!(text.starts_with(&explained) && text.ends_with("/workspace/a: No such file or directory"), "{text}");
    let real = workspace.join(".agent/session/outputs/b");
    assert!(text.contains(&format!("/mnt/session/outputs is {}", real.parent().unwrap().display())), "{text}");
    assert_eq!(tools.bash(&format!("cat {} # not /workspace", real.display())).await, "b");
}
