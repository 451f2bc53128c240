//! Stories about a session's files: what is kept of them, and what the model is told of the rest.

use session::event::{EnvironmentKind, Event};
use session::manifest::ContentHash;
use session::{Command, Ids, Poster};

use crate::story::{Story, calls, given, message, tool_result};

fn story(tools: &[&str]) -> Story {
    given(EnvironmentKind::Cloud).posts(vec![message("go")]).begins().model(calls(tools))
}

fn manifest(name: &str) -> ContentHash {
    ContentHash::of(name.as_bytes())
}

impl Story {
    fn starts(self, index: usize) -> Self {
        let tool_use_id = self.call(index);
        self.when(Command::StartTool { tool_use_id, work_id: Ids::from_seed(5).next() })
    }

    fn saves(self, name: &str) -> Self {
        let tip = self.state.workspace.tip.clone();
        self.when(Command::SaveWorkspace { manifest: manifest(name), bytes: 7, tip })
    }

    fn restores(self) -> Self {
        let workspace = self.state.workspace.clone();
        let manifest = workspace.saved.map(|saved| saved.manifest);
        self.when(Command::RestoreWorkspace { manifest, tip: workspace.tip })
    }

    /// The texts of the last result.
    fn told(&self) -> Vec<&str> {
        let content = self.records.iter().rev().find_map(|record| match &record.event {
            Event::AgentToolResult { content, .. } => Some(content),
            _ => None,
        });
        content.expect("a call was answered").iter().filter_map(|block| block.as_text()).collect()
    }
}

#[test]
fn what_was_saved_is_not_lost() {
    let story = story(&["write", "read"])
        .starts(0)
        .worker_answers(0, "done")
        .saves("a")
        .then(&["log.workspace_saved"])
        .saves("a")
        .then(&[])
        .restores()
        .then(&["log.workspace_restored"])
        .worker_answers(1, "content");
    assert_eq!(story.told(), ["content"]);
    let saved = story.state.workspace.saved.expect("a snapshot");
    assert_eq!((saved.manifest, saved.bytes), (manifest("a"), 7));
}

#[test]
fn what_was_lost_is_told_with_the_next_result_and_once() {
    let story = story(&["write", "write", "write", "read", "read"])
        .starts(0)
        .worker_answers(0, "done")
        .saves("a")
        .starts(1)
        .worker_answers(1, "done")
        .starts(2)
        .when(Command::EndLease { work_id: Ids::from_seed(5).next() })
        .then(&["log.lease_ended", "agent.tool_result error"]);
    assert!(story.told()[0].contains("outcome is unknown"));
    let story = story.restores().restores().worker_answers(3, "content");
    let [notice, "content"] = story.told()[..] else { panic!("{:?}", story.told()) };
    assert!(notice.contains("as they were at 1970-") && notice.contains("the last 2 calls of bash"), "{notice}");
    let read = story.call(3);
    // The answer to the worker was lost, so it posts again: that is no other result.
    let again = Command::Post { events: vec![tool_result(read, "content")], poster: Poster::CloudWorker };
    let story = story.when(again).then(&[]).worker_answers(4, "more");
    assert_eq!(story.told(), ["more"]);
}

#[test]
fn files_that_were_never_saved_are_told_as_missing() {
    let story = story(&["write", "read"]).starts(0).worker_answers(0, "done").restores().worker_answers(1, "content");
    let [notice, "content"] = story.told()[..] else { panic!("{:?}", story.told()) };
    assert!(notice.contains("no state of them was ever saved"), "{notice}");
}

#[test]
fn files_that_were_never_saved_are_told_as_missing_each_time_that_they_move() {
    let story = story(&["write", "read", "read", "read"]).starts(0).worker_answers(0, "done");
    let story = story.restores().worker_answers(1, "nothing").worker_answers(2, "nothing");
    assert_eq!(story.told(), ["nothing"]);
    // Another worker, perhaps the first one with all that it had.
    let story = story.restores().worker_answers(3, "content");
    let [notice, "content"] = story.told()[..] else { panic!("{:?}", story.told()) };
    assert!(
        notice.contains("what the last call of bash, write or edit before this one changed may be lost"),
        "{notice}"
    );
}

#[test]
fn a_call_that_only_reads_leaves_the_files_as_they_are() {
    let story = story(&["read", "write"]).starts(0);
    assert_eq!(story.state.workspace.tip, None);
    let call = story.call(1);
    let story = story.starts(1).starts(1);
    assert_eq!((story.state.workspace.tip, story.state.workspace.unsaved), (Some(call), 1));
}

#[test]
fn files_that_were_read_too_early_are_not_taken() {
    let story = story(&["write", "write"]).starts(0).worker_answers(0, "done");
    let early = story.state.workspace.tip.clone();
    let story = story.starts(1).then_refused(
        Command::SaveWorkspace { manifest: manifest("a"), bytes: 1, tip: early.clone() },
        "read them again",
    );
    let story = story.then_refused(Command::RestoreWorkspace { manifest: None, tip: early }, "other files");
    let tip = story.state.workspace.tip.clone();
    story.then_refused(Command::RestoreWorkspace { manifest: Some(manifest("b")), tip }, "other files");
}
