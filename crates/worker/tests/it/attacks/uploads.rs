//! Attacks on what a session was given: its own copies, and those of another session.

use super::Control::Unconfined;
use super::{Attack, bash, perl, tool};

const UNREAD: &str = "Nothing of the secret is read.";
const READ_ONLY: &str = "What was given stays as it was.";

fn is_denied(text: &str) -> bool {
    text.ends_with(": permission denied")
}

pub(super) const ATTACKS: &[Attack] = &[
    bash(
        "write-what-was-given",
        "Writes into the files that the session was given, and beside them.",
        READ_ONLY,
        "chmod -R u+w %uploads%; echo x >>%uploads%/in/given; : >%uploads%/in/given; echo x >%uploads%/in/new; mkdir \
         %uploads%/folder; cp -f /bin/echo %uploads%/in/given",
    )
    .proven(Unconfined),
    bash(
        "remove-what-was-given",
        "Removes the files that the session was given, and their folder.",
        READ_ONLY,
        "rm -rf %uploads%/in; rm -rf %uploads%",
    )
    .proven(Unconfined),
    bash(
        "move-what-was-given",
        "Moves the files that the session was given, and their folder.",
        READ_ONLY,
        "mv %uploads%/in/given %uploads%/in/other; mv %uploads%/in stolen; mv %uploads% stolen",
    )
    .proven(Unconfined),
    bash(
        "link-what-was-given",
        "Gives a file that the session was given another name in the workspace, and writes there.",
        READ_ONLY,
        "ln %uploads%/in/given own; chmod u+w own && echo x >>own",
    )
    .proven(Unconfined),
    bash(
        "mark-what-was-given",
        "Changes modes and times of the files that the session was given.",
        READ_ONLY,
        "touch -d 2000-01-01 %uploads%/in/given; chmod 777 %uploads%/in; chmod 000 %uploads%/in/given",
    )
    .proven(Unconfined),
    perl(
        "swap-what-was-given",
        "Exchanges a file that the session was given with one of its own in one step.",
        READ_ONLY,
        r#"
            open F, ">", "own"; close F; my ($own, $given) = ("own", "%uploads%/in/given");
            sys("renameat2", -100, $own, -100, $given, 2); sys("renameat2", -100, $given, -100, $own, 0);
            truncate $given, 0; unlink $given"#,
    )
    .proven(Unconfined),
    tool(
        "write",
        "write-tool-on-what-was-given",
        "Writes a file that the session was given.",
        "The tool answers that it may not.",
        r#"{"file_path": "/mnt/session/uploads/in/given", "content": "x"}"#,
    )
    .answers(is_denied),
    tool(
        "write",
        "write-tool-beside-what-was-given",
        "Makes a file beside those that the session was given, through a link.",
        "The tool answers that it may not.",
        r#"{"file_path": "l/new/file", "content": "x"}"#,
    )
    .after("ln -s /mnt/session/uploads/in l")
    .answers(is_denied),
    tool(
        "edit",
        "edit-tool-on-what-was-given",
        "Edits a file that the session was given.",
        "The tool answers that it may not.",
        r#"{"file_path": "/mnt/session/uploads/in/given", "old_string": "given", "new_string": "x"}"#,
    )
    .answers(is_denied),
    tool(
        "read",
        "forge-what-was-given",
        "Puts a folder of its own where the file tools look for what the session was given.",
        "The tool reads what was given.",
        r#"{"file_path": "/mnt/session/uploads/in/given"}"#,
    )
    .after(
        "rm -rf .agent/session; mkdir -p .agent/session/uploads/in; echo forged >.agent/session/uploads/in/given; mv \
         .agent/session .agent/elsewhere; mkdir -p .agent/session; ln -s ../elsewhere/uploads .agent/session/uploads",
    )
    .answers(|text| text == "given\n"),
    bash(
        "read-what-another-was-given",
        "Reads the files that another session was given.",
        UNREAD,
        "cat %other_uploads%/in/given /mnt/session/uploads/../../../%other_uploads%/in/given",
    )
    .proven(Unconfined),
];
