//! The contracts of `read`, `write`, `edit`, `glob` and `grep`.

use serde_json::{Value, json};

use crate::support::{Place, at_every_level};

at_every_level!(
    write_and_read_give_back_the_same_text,
    read_selects_lines,
    read_shows_images_and_refuses_other_binaries,
    a_long_read_is_previewed,
    edit_replaces_what_it_was_told_to,
    glob_lists_newest_first,
    grep_finds_lines,
    what_was_given_is_read_and_never_written,
);

fn path(file_path: &str) -> Value {
    json!({"file_path": file_path})
}

async fn write_and_read_give_back_the_same_text(place: Place) {
    let mut tools = place.sandbox().await;
    let text = "first\r\nsécond\n\n";
    let wrote = tools.ok("write", json!({"file_path": "a/b/c.txt", "content": text})).await;
    assert_eq!(wrote, "wrote 16 bytes to a/b/c.txt");
    let own = tools.bash("pwd").await;
    for name in ["a/b/c.txt", "/workspace/a/b/c.txt", &format!("{own}/a/b/c.txt")] {
        assert_eq!(tools.ok("read", path(name)).await, text);
    }
    assert_eq!(tools.bash("cat a/b/c.txt | wc -c").await, "16");
    tools.ok("write", json!({"file_path": "a/b/c.txt", "content": "x"})).await;
    assert_eq!(tools.ok("read", path("a/b/c.txt")).await, "x");
    assert_eq!(tools.error("read", path("missing")).await, "read: missing: no such file or directory");
    assert_eq!(tools.error("read", path("a")).await, "read: a: is a directory");
    assert_eq!(tools.error("read", path("a/b/c.txt/d")).await, "read: a/b/c.txt/d: not a directory");
    assert_eq!(tools.error("write", json!({"file_path": "a", "content": ""})).await, "write: a: is a directory");
}

async fn read_selects_lines(place: Place) {
    let mut tools = place.sandbox().await;
    tools
        .bash("printf 'one\\ntwo\\nthree\\n' >f; seq 1 400000 >big; head -c 300000 /dev/zero | tr '\\0' x >line")
        .await;
    for (range, expected) in [
        ([1, 1], "one"),
        ([2, 3], "two\nthree"),
        ([2, 0], "two\nthree\n"),
        ([2, -5], "two\nthree\n"),
        ([-3, 1], "one"),
        ([3, 2], ""),
        ([9, 10], ""),
    ] {
        assert_eq!(tools.ok("read", json!({"file_path": "f", "view_range": range})).await, expected, "{range:?}");
    }
    assert_eq!(tools.ok("read", json!({"file_path": "big", "view_range": [399_999, 0]})).await, "399999\n400000\n");
    let text = tools.error("read", path("big")).await;
    assert!(text.starts_with("read: big is 2688895 bytes, exceeds 262144-byte limit. Use the view_range"), "{text}");
    let text = tools.error("read", json!({"file_path": "big", "view_range": [1, 0]})).await;
    assert!(text.contains("the selected lines exceed the 262144-byte limit"), "{text}");
    tools.error("read", json!({"file_path": "line", "view_range": [1, 1]})).await;
    let text = tools.error("read", json!({"file_path": "f", "view_range": [1]})).await;
    assert_eq!(text, "read: view_range must be [start_line, end_line]");
}

async fn read_shows_images_and_refuses_other_binaries(place: Place) {
    let mut tools = place.sandbox().await;
    tools
        .bash("printf 'abc' >i.PNG; printf 'abc' >d.pdf; printf '\\xff\\xfe' >b; head -c 5000000 /dev/zero >big.jpg")
        .await;
    let image = tools.outcome("read", path("i.PNG")).await;
    let source = json!({"type": "base64", "media_type": "image/png", "data": "YWJj"});
    assert_eq!(image.content, [json!({"type": "image", "source": source})]);
    let document = tools.outcome("read", path("d.pdf")).await;
    assert_eq!(document.content[0]["type"], "document");
    assert_eq!(document.content[0]["source"]["media_type"], "application/pdf");
    assert!(tools.error("read", path("b")).await.starts_with("read: b: not valid UTF-8 text"));
    assert!(tools.error("read", path("big.jpg")).await.contains("exceeds 3932160-byte limit for image/PDF files."));
    let text = tools.error("read", json!({"file_path": "i.PNG", "view_range": [1, 2]})).await;
    assert_eq!(text, "read: view_range is not supported for image/PDF files");
}

async fn a_long_read_is_previewed(place: Place) {
    let mut tools = place.sandbox().await;
    tools.bash("head -c 100000 /dev/zero | tr '\\0' x >short; seq 1 20000 >long").await;
    assert_eq!(tools.ok("read", path("short")).await.len(), 100_000);
    let text = tools.ok("read", path("long")).await;
    assert!(text.contains("output of 108894 characters") && text.contains("/workspace/long"), "{}", &text[..200]);
    assert!(text.ends_with("20000\n") && text.len() < 12_000);
}

async fn edit_replaces_what_it_was_told_to(place: Place) {
    let mut tools = place.sandbox().await;
    tools.bash("printf 'a b a' >f; head -c 300000 /dev/zero >big; printf '\\xff' >bin").await;
    let edit = |old: &str, new: &str| json!({"file_path": "f", "old_string": old, "new_string": new});
    assert_eq!(tools.error("edit", edit("a", "c")).await, "edit: old_string appears 2 times in f (must be unique)");
    assert_eq!(tools.error("edit", edit("z", "c")).await, "edit: old_string not found in f");
    assert_eq!(tools.error("edit", edit("", "c")).await, "edit: old_string must not be empty");
    assert_eq!(tools.ok("edit", edit("b", "longer")).await, "edited f (1 replacement(s))");
    let mut all = edit("a", "");
    all["replace_all"] = json!(true);
    assert_eq!(tools.ok("edit", all).await, "edited f (2 replacement(s))");
    assert_eq!(tools.ok("read", path("f")).await, " longer ");
    let of = |name: &str| json!({"file_path": name, "old_string": "a", "new_string": "b"});
    assert_eq!(tools.error("edit", of("missing")).await, "edit: missing: no such file or directory");
    assert!(tools.error("edit", of("big")).await.contains("exceeds 262144-byte limit"));
    assert!(tools.error("edit", of("bin")).await.contains("not valid UTF-8"));
}

async fn glob_lists_newest_first(place: Place) {
    let mut tools = place.sandbox().await;
    tools.bash("mkdir -p s/t; touch -d @100 a.rs; touch -d @300 s/b.rs; touch -d @200 s/t/c.rs; touch s/x.txt; ln -s /etc/passwd p.rs; ln -s a.rs l.rs; touch -h -d @50 l.rs").await;
    let glob = |pattern: &str| json!({"pattern": pattern});
    let found = tools.ok("glob", glob("**/*.rs")).await;
    assert_eq!(found, "/workspace/s/b.rs\n/workspace/s/t/c.rs\n/workspace/a.rs\n/workspace/l.rs");
    assert_eq!(tools.ok("glob", glob("*.rs")).await, "/workspace/a.rs\n/workspace/l.rs");
    assert_eq!(tools.ok("glob", json!({"pattern": "*.rs", "path": "/workspace/s"})).await, "/workspace/s/b.rs");
    assert_eq!(tools.ok("glob", glob("s/*/{c,d}.rs")).await, "/workspace/s/t/c.rs");
    assert_eq!(tools.ok("glob", glob("*.zig")).await, "no matches");
    assert!(tools.error("glob", glob("/etc/*")).await.starts_with("glob: absolute pattern not permitted"));
    assert_eq!(tools.error("glob", glob("a/../../*")).await, "glob: '..' is not permitted in the pattern");
    assert!(tools.error("glob", glob("[")).await.starts_with("glob: invalid pattern: "));
    tools.bash("mkdir many; cd many; seq 1 300 | xargs touch").await;
    assert_eq!(tools.ok("glob", glob("many/*")).await.lines().count(), 200);
}

async fn grep_finds_lines(place: Place) {
    let mut tools = place.sandbox().await;
    tools
        .bash("mkdir -p .git node_modules s; for d in .git node_modules s .; do echo 'needle here' >$d/f; done; printf 'needle\\0' >bin; ln -s /etc/passwd link; printf 'x\\r\\nneedle é\\r\\n' >crlf")
        .await;
    let grep = |pattern: &str| json!({"pattern": pattern});
    assert_eq!(
        tools.ok("grep", grep("need.e")).await,
        "/workspace/crlf:2:needle é\n/workspace/f:1:needle here\n/workspace/s/f:1:needle here"
    );
    assert_eq!(tools.ok("grep", json!({"pattern": "needle", "path": "s/f"})).await, "/workspace/s/f:1:needle here");
    assert_eq!(tools.ok("grep", grep("^nothing$")).await, "no matches");
    assert!(tools.error("grep", grep("(")).await.starts_with("grep: invalid regex: "));
    assert_eq!(
        tools.error("grep", json!({"pattern": "x", "path": "missing"})).await,
        "grep: missing: no such file or directory"
    );
    tools.bash("head -c 3000 /dev/zero | tr '\\0' n >long; echo needle >>long; seq 1 30000 >numbers").await;
    assert_eq!(tools.ok("grep", json!({"pattern": "n", "path": "long"})).await, "no matches");
    let text = tools.ok("grep", json!({"pattern": "[0-9]", "path": "numbers"})).await;
    assert!(text.contains("output truncated at 102400 bytes"), "{}", &text[text.len() - 200..]);
}

async fn what_was_given_is_read_and_never_written(place: Place) {
    let mut tools = place.sandbox().await;
    // As a worker does while the sandbox runs.
    let folder = place.config.workspaces_dir.join(".uploads").join(crate::support::SESSION);
    std::fs::create_dir(folder.join("in")).unwrap();
    std::fs::write(folder.join("in/data.csv"), "a,b\n").unwrap();
    let given = place.uploads(crate::support::SESSION);
    assert_eq!(tools.bash(&format!("cat {}/in/data.csv", given.display())).await, "a,b");
    assert_eq!(tools.ok("read", path("/mnt/session/uploads/in/data.csv")).await, "a,b\n");
    let found = tools.ok("glob", json!({"pattern": "**/*.csv", "path": "/mnt/session/uploads"})).await;
    assert_eq!(found, "/mnt/session/uploads/in/data.csv");
    let found = tools.ok("grep", json!({"pattern": "a", "path": "/mnt/session/uploads"})).await;
    assert_eq!(found, "/mnt/session/uploads/in/data.csv:1:a,b");
    let real = folder.canonicalize().unwrap().join("in/data.csv");
    if !place.has_namespaces() {
        assert_eq!(tools.ok("read", path(real.to_str().unwrap())).await, "a,b\n");
        let told = tools.bash_error("ls /mnt/session/uploads").await;
        let folder = folder.canonicalize().unwrap();
        assert!(told.contains(&format!("/mnt/session/uploads is {}", folder.display())), "{told}");
    }
    for input in [json!({"file_path": "/mnt/session/uploads/new", "content": "x"})] {
        assert!(tools.error("write", input).await.ends_with("permission denied"));
    }
    tools.bash_error(&format!("echo x >{}/new", given.display())).await;
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}
