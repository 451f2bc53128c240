//! Attacks on files outside the workspace, through the file tools.

use super::{Attack, tool};

const UNREAD: &str = "Nothing of the secret is read.";
const UNCHANGED: &str = "Nothing outside changes.";
const OUTSIDE: &str = "The tool answers that the path is outside.";

fn is_outside(text: &str) -> bool {
    text.ends_with("is outside the session's working directory")
}

pub(super) const ATTACKS: &[Attack] = &[
    tool(
        "read",
        "read-tool-by-dotdot",
        "Climbs out of the workspace with `..`.",
        OUTSIDE,
        r#"{"file_path": "../../data/secret"}"#,
    )
    .answers(is_outside),
    tool(
        "read",
        "read-tool-by-absolute-path",
        "Names the secret by its absolute path.",
        OUTSIDE,
        r#"{"file_path": "%secret%"}"#,
    )
    .answers(is_outside),
    tool(
        "read",
        "read-tool-by-odd-spelling",
        "Spells the way out with empty and repeated parts.",
        OUTSIDE,
        r#"{"file_path": "/workspace/.//x/../.././//..%secret%"}"#,
    )
    .answers(is_outside),
    tool(
        "read",
        "read-tool-by-prefix",
        "Names a folder whose name begins like the workspace's.",
        OUTSIDE,
        r#"{"file_path": "/workspace_other/../%secret%"}"#,
    )
    .answers(is_outside),
    tool("read", "read-tool-by-symlink", "Reads through a symbolic link.", OUTSIDE, r#"{"file_path": "l"}"#)
        .after("ln -s %secret% l")
        .answers(is_outside),
    tool(
        "read",
        "read-tool-by-relative-symlink",
        "Reads through a relative link to a folder.",
        OUTSIDE,
        r#"{"file_path": "a/d/secret"}"#,
    )
    .after("mkdir a; ln -s ../../../data a/d")
    .answers(is_outside),
    tool(
        "read",
        "read-tool-by-hidden-image",
        "Reads the secret as an image, which is encoded.",
        OUTSIDE,
        r#"{"file_path": "l.png"}"#,
    )
    .after("ln -s %secret% l.png")
    .answers(is_outside),
    tool("read", "read-tool-by-process-link", "Reads through a link of `/proc`.", OUTSIDE, r#"{"file_path": "l"}"#)
        .after("ln -s /proc/self/environ l")
        .answers(is_outside),
    tool(
        "read",
        "read-tool-by-nul",
        "Ends the path early with a NUL.",
        "The path is refused.",
        r#"{"file_path": "ok\u0000/../../../data/secret"}"#,
    )
    .after("echo x >ok")
    .answers(|text| text.ends_with("invalid path")),
    tool(
        "read",
        "read-tool-by-encoding",
        "Spells `..` percent-encoded, overlong and full-width.",
        "There is no such file.",
        r#"{"file_path": "%2e%2e/‥/．．/..%c0%af../data/secret"}"#,
    )
    .answers(|text| text.ends_with("no such file or directory")),
    tool(
        "read",
        "read-tool-blocks-on-a-pipe",
        "Lets the tool open a pipe that nobody writes.",
        "The tool answers.",
        r#"{"file_path": "p"}"#,
    )
    .after("mkfifo p")
    .answers(|text| text.ends_with("not a regular file")),
    tool(
        "read",
        "read-tool-while-links-swap",
        "Swaps a folder with a link while the tool reads through it.",
        UNREAD,
        r#"{"file_path": "x/secret"}"#,
    )
    .after(
        "mkdir real; echo harmless >real/secret; (while :; do ln -sfn %data% x; rm -f x; mv -T \
         real x; mv -T x real; done) >/dev/null 2>&1 &",
    )
    .rounds(100),
    tool(
        "write",
        "write-tool-while-links-swap",
        "Swaps a folder with a link while the tool writes through it.",
        UNCHANGED,
        r#"{"file_path": "x/secret", "content": "stolen"}"#,
    )
    .after(
        "mkdir real; echo harmless >real/secret; (while :; do ln -sfn %data% x; rm -f x; mv -T \
         real x; mv -T x real; done) >/dev/null 2>&1 &",
    )
    .rounds(100),
    tool(
        "write",
        "write-tool-by-absolute-path",
        "Writes over the secret.",
        OUTSIDE,
        r#"{"file_path": "%secret%", "content": "x"}"#,
    )
    .answers(is_outside),
    tool(
        "write",
        "write-tool-by-dangling-link",
        "Writes through a link to a file that does not exist yet.",
        OUTSIDE,
        r#"{"file_path": "l", "content": "x"}"#,
    )
    .after("ln -s %data%/new l")
    .answers(is_outside),
    tool(
        "write",
        "write-tool-makes-folders",
        "Lets the tool make folders on the way through a link.",
        OUTSIDE,
        r#"{"file_path": "d/a/b/c", "content": "x"}"#,
    )
    .after("ln -s %data% d")
    .answers(is_outside),
    tool(
        "write",
        "write-tool-to-a-device",
        "Writes to a device through a link.",
        OUTSIDE,
        r#"{"file_path": "l", "content": "x"}"#,
    )
    .after("ln -s /dev/kmsg l")
    .answers(is_outside),
    tool(
        "write",
        "write-tool-to-shell-startup",
        "Writes the startup files of the next shell, then restarts it.",
        "The next shell reads none.",
        r#"{"file_path": ".bashrc", "content": "echo BREACH"}"#,
    )
    .after("cp /dev/null .profile; echo 'echo BREACH' >.bash_profile"),
    tool(
        "edit",
        "edit-tool-by-symlink",
        "Edits the secret through a link.",
        OUTSIDE,
        r#"{"file_path": "l", "old_string": "the", "new_string": "x"}"#,
    )
    .after("ln -s %secret% l")
    .answers(is_outside),
    tool(
        "edit",
        "edit-tool-as-an-oracle",
        "Learns the secret from what can be found in it.",
        OUTSIDE,
        r#"{"file_path": "%secret%", "old_string": "password", "new_string": "password"}"#,
    )
    .answers(is_outside),
    tool(
        "glob",
        "glob-tool-absolute",
        "Searches from the root.",
        "The pattern is refused.",
        r#"{"pattern": "%data%/*"}"#,
    )
    .answers(|text| text.starts_with("glob: absolute pattern")),
    tool(
        "glob",
        "glob-tool-by-dotdot",
        "Climbs out inside the pattern.",
        "The pattern is refused.",
        r#"{"pattern": "x/../../../data/*"}"#,
    )
    .answers(|text| text.starts_with("glob: '..' is not")),
    tool(
        "glob",
        "glob-tool-by-braces",
        "Hides `..` among alternatives.",
        "Nothing is found.",
        r#"{"pattern": "{..,[.][.]}/{..,[.][.]}/data/*"}"#,
    )
    .answers(|text| !text.contains("secret")),
    tool(
        "glob",
        "glob-tool-outside",
        "Searches in a folder outside.",
        OUTSIDE,
        r#"{"pattern": "*", "path": "%data%"}"#,
    )
    .answers(is_outside),
    tool(
        "glob",
        "glob-tool-through-a-link",
        "Searches through links that lead out.",
        "Nothing is found.",
        r#"{"pattern": "**"}"#,
    )
    .after("ln -s %data% d; ln -s %secret% f; mkdir s; ln -s ../../../data s/d")
    .answers(|text| text == "/workspace/s"),
    tool("grep", "grep-tool-outside", "Searches in the secret.", OUTSIDE, r#"{"pattern": "the", "path": "%secret%"}"#)
        .answers(is_outside),
    tool(
        "grep",
        "grep-tool-through-a-link",
        "Searches through links that lead out.",
        "Nothing is found.",
        r#"{"pattern": "password"}"#,
    )
    .after("ln -s %data% d; ln -s %secret% f")
    .answers(|text| text == "no matches"),
    tool(
        "grep",
        "grep-tool-while-links-swap",
        "Swaps a folder with a link while the tool walks.",
        UNREAD,
        r#"{"pattern": "password"}"#,
    )
    .after(
        "mkdir real; echo harmless >real/secret; (while :; do ln -sfn %data% x; rm -f x; mv -T \
         real x; mv -T x real; done) >/dev/null 2>&1 &",
    )
    .rounds(50),
];
