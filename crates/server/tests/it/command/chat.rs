//! `chat` against a running server, typed into as a person would.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::process::{Server, agent_service, run, stderr, stdout};

fn data_dir(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("data")
}

/// A chat under way; it finds the key in the server's folder.
fn chat(server: &Server, data_dir: &Path, more: &[&str]) -> Child {
    let mut arguments = vec!["chat", "--server-url", &server.url, "--data-dir", data_dir.to_str().unwrap()];
    arguments.extend_from_slice(more);
    let mut command = agent_service(&arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn one_message_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&data_dir(&folder), |_| {});
    let output = chat(&server, &data_dir(&folder), &["--message", "!say hello\u{1b}[2J"]).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    // What a model says cannot command the terminal.
    assert_eq!(stdout(&output), "hello\u{fffd}[2J\n");
}

#[test]
fn a_call_is_asked_about_and_denied() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&data_dir(&folder), |_| {});
    let mut child = chat(&server, &data_dir(&folder), &["--ask"]);
    // The second line answers the question, the empty one leaves.
    child.stdin.take().unwrap().write_all(b"!bash echo hi\nn\n\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    let [call, question, result] =
        ["[bash] echo hi", "allow this call? y/n", "tool said (error):"].map(|part| said.find(part));
    assert!(call.is_some() && call < question && question < result, "{said}");
}

#[test]
fn ctrl_c_interrupts_the_agent_and_the_second_one_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&data_dir(&folder), |_| {});
    let mut child = chat(&server, &data_dir(&folder), &[]);
    let interrupt =
        |child: &Child| kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    let session = first.split([' ', ';']).nth(1).unwrap().to_owned();
    let key = std::fs::read_to_string(data_dir(&folder).join("api-key")).unwrap();
    let events = || {
        let (_, body) = server.get(&format!("{}/v1/sessions/{session}/events", server.url), key.trim());
        let body: Value = serde_json::from_str(&body).unwrap();
        body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"!wait 600000\n").unwrap();
    while !events().iter().any(|kind| kind == "span.model_request_start") {}
    interrupt(&child);
    while events().last().is_none_or(|kind| kind != "session.status_idle") {}
    assert!(events().iter().any(|kind| kind == "user.interrupt"));

    // It is the user's turn again; Ctrl-C at the prompt leaves.
    let mut said = Vec::new();
    while !said.ends_with(b"leaves\n> ") {
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_chat_without_server_or_key_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("none");
    let nowhere = nowhere.to_str().unwrap();
    let output = run(&["chat", "--data-dir", nowhere, "--message", "hi"]);
    let expected = format!(
        "agent-service: there is no key in {nowhere}: set AGENT_API_KEY to the server's key, or --data-dir to its folder\n"
    );
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), expected.as_str()));

    // Nothing listens on port 9 of the loopback address.
    let arguments = ["chat", "--server-url", "http://127.0.0.1:9", "--message", "hi"];
    let output = agent_service(&arguments).env("AGENT_API_KEY", "sk-of-this-test").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("start one with `agent-service serve`"), "{}", stderr(&output));

    let server = Server::start(&data_dir(&folder), |_| {});
    let arguments = ["chat", "--server-url", &server.url, "--message", "hi"];
    let output = agent_service(&arguments).env("AGENT_API_KEY", "sk-of-somebody-else").output().unwrap();
    assert!(stderr(&output).contains("the server does not know this key"), "{}", stderr(&output));
}
