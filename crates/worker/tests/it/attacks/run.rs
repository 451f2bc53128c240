//! Runs the corpus: every attack at every level, and every attack with a [`Control`] once more where nothing stops it.
//!
//! One scene serves many attacks, because each of them ends with a fresh shell; after a breach a new one is made.

use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use worker::Confinement;
use worker::sandbox::{CallEnd, remove_workspace};

use super::scene::Scene;
use super::{Attack, Attempt, BREACH, Control, Ending, corpus, perl, proxy};
use crate::support::{SECRET, SESSION, has_namespaces};

/// Longer than any call of the corpus may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every level of confinement that this machine has, by the name that the page uses.
pub(super) fn levels() -> Vec<(&'static str, Confinement)> {
    let namespaces = has_namespaces().then_some(("namespaces", Confinement::Namespaces));
    namespaces.into_iter().chain([("landlock", Confinement::Landlock)]).collect()
}

#[tokio::test]
async fn no_attack_succeeds_at_any_level() {
    let (mut failures, mut unneeded) = (Vec::new(), Vec::new());
    for (level, confinement) in levels() {
        let (mut tried, mut open) = (0, 0);
        let is_open = |attack: &Attack| attack.open_at.is_some_and(|(at, _)| at == level);
        let mut scene = Scene::new(confinement, 0).await;
        for attack in corpus().into_iter().flat_map(|(_, attacks)| attacks) {
            let breaches = run(&mut scene, attack).await;
            tried += 1;
            match (is_open(attack), breaches.is_empty()) {
                (true, false) => open += 1,
                (true, true) => unneeded.push(format!("{level}: {}", attack.name)),
                (false, true) => {}
                (false, false) => failures.push(format!("{level}: {}: {}", attack.name, breaches.join("; "))),
            }
            if !breaches.is_empty() {
                scene = Scene::new(confinement, tried).await;
            }
        }
        let succeeded = failures.iter().filter(|failure| failure.starts_with(level)).count();
        report(format_args!("{level}: {tried} attacks tried, {succeeded} succeeded, {open} known to be open"));
    }
    assert!(failures.is_empty(), "\n  {}", failures.join("\n  "));
    assert!(unneeded.is_empty(), "held now, so `open_at` must go:\n  {}", unneeded.join("\n  "));
}

#[tokio::test]
async fn attacks_succeed_where_nothing_stops_them() {
    let mut failures = Vec::new();
    let (mut tried, mut skipped) = (0, 0);
    for attack in corpus().into_iter().flat_map(|(_, attacks)| attacks) {
        if attack.control == Control::None {
            continue;
        }
        if !is_possible(attack.control) {
            skipped += 1;
            continue;
        }
        tried += 1;
        let mut scene = Scene::new(Confinement::Off, 1000 + tried).await;
        let breaches = match attack.control {
            Control::PlainShell | Control::NaiveProxy => run_plainly(&mut scene, attack).await,
            _ => run(&mut scene, attack).await,
        };
        if breaches.is_empty() && !shows_harm(&mut scene).await {
            failures.push(format!("{}: {:?}", attack.name, scene.answers));
        }
    }
    report(format_args!("controls: {tried} tried unconfined, {} failed, {skipped} not possible here", failures.len()));
    assert!(
        failures.is_empty(),
        "these prove nothing, they fail without confinement too:\n  {}",
        failures.join("\n  ")
    );
}

/// Whether harm that was done shows in the end: a process that was sent SIGKILL may not have run since.
async fn shows_harm(scene: &mut Scene) -> bool {
    for _ in 0..250 {
        if !scene.harm().await.is_empty() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// An attempt with a mistake in it would be held by everything.
#[test]
fn attempts_are_programs() {
    /// Unfinished on purpose.
    const UNFINISHED: &str = "unfinished-input";
    let names = regex::Regex::new("%[a-z_]+%").unwrap();
    let mut broken = Vec::new();
    for attack in corpus().into_iter().flat_map(|(_, attacks)| attacks) {
        let (interpreter, check, text) = match attack.attempt {
            Attempt::Bash(text) if attack.name != UNFINISHED => ("bash", "-n", text.to_owned()),
            Attempt::Perl(body) => ("perl", "-c", perl::program(&names.replace_all(body, "1"))),
            _ => continue,
        };
        let option = if interpreter == "bash" { "-c" } else { "-e" };
        let output = Command::new(interpreter).args([check, option, &text]).output().unwrap();
        if !output.status.success() {
            broken.push(format!("{}: {}", attack.name, String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(broken.is_empty(), "\n  {}", broken.join("\n  "));
}

/// Written past the capture of the test's output, because a passing run should tell its figures too.
fn report(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "attack corpus: {line}");
}

/// Whether this machine lets the unconfined twin of an attack through.
fn is_possible(control: Control) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let is_filtered = field("Seccomp:") != "0";
    let has_capabilities = u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0) >> 21 & 1 == 1;
    match control {
        Control::None => false,
        Control::Unconfined | Control::PlainShell | Control::NaiveProxy => true,
        Control::UnconfinedRoot => has_capabilities && !is_filtered,
        Control::Unfiltered => !is_filtered,
    }
}

/// Makes one attempt and says what it achieved; nothing, if it is held.
async fn run(scene: &mut Scene, attack: &Attack) -> Vec<String> {
    let mut breaches = Vec::new();
    scene.answers.clear();
    if let Some(setup) = attack.setup
        && let Err(end) = call(scene, "bash", json!({"command": command(scene, setup)})).await
    {
        return vec![end];
    }
    for _ in 0..attack.rounds {
        let (tool, input) = match attack.attempt {
            Attempt::Bash(text) => ("bash", json!({"command": command(scene, text), "timeout_ms": attack.timeout_ms})),
            Attempt::Perl(body) => {
                let program = perl::program(body).replace('\'', r"'\''");
                let text = command(scene, &format!("perl -e '{program}'"));
                ("bash", json!({"command": text, "timeout_ms": attack.timeout_ms}))
            }
            Attempt::Tool(tool, input) => (tool, serde_json::from_str(&scene.fill(input)).expect(attack.name)),
        };
        match call(scene, tool, input).await {
            Ok(content) => breaches.extend(judge(&content, attack)),
            Err(end) => breaches.push(end),
        }
        if !breaches.is_empty() {
            break;
        }
    }
    breaches.extend(scene.harm().await);
    breaches.extend(end(scene, attack.ending).await);
    breaches.extend(scene.survivors().into_iter().map(|pid| format!("process {pid} survives")));
    if !breaches.is_empty() {
        scene.sweep();
    }
    breaches
}

/// The command with the mark by which its processes are found.
fn command(scene: &Scene, text: &str) -> String {
    format!("export ATTACK={}; {}", scene.token, scene.fill(text))
}

async fn call(scene: &mut Scene, tool: &str, input: serde_json::Value) -> Result<Vec<serde_json::Value>, String> {
    let Some(tools) = &mut scene.tools else { return Err("there is no sandbox any more".to_owned()) };
    match tokio::time::timeout(PATIENCE, tools.0.call(tool, input, &CancellationToken::new())).await {
        Ok(Ok(CallEnd::Done(outcome))) => {
            scene.answers.extend(outcome.content.iter().filter_map(|block| block["text"].as_str()).map(str::to_owned));
            Ok(outcome.content)
        }
        Ok(Ok(CallEnd::Killed)) => Err("the call was killed".to_owned()),
        Ok(Err(error)) => Err(format!("the sandbox failed: {error}")),
        Err(_) => Err("the call does not end".to_owned()),
    }
}

/// What an answer gives away.
fn judge(content: &[serde_json::Value], attack: &Attack) -> Vec<String> {
    let mut breaches = Vec::new();
    let text = content.iter().filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n");
    let data = content.iter().filter_map(|block| block["source"]["data"].as_str());
    let holds_secret = |data: &str| {
        let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap_or_default();
        decoded.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
    };
    if text.contains(SECRET) || data.into_iter().any(holds_secret) {
        breaches.push("the answer holds a secret".to_owned());
    }
    if let Some(line) = text.lines().find(|line| line.contains(BREACH)) {
        breaches.push(line.to_owned());
    }
    if let Some(control) = unfit(&text) {
        breaches.push(format!("the answer holds {control:?}"));
    }
    if let [block] = content
        && block["type"] != "text"
        && attack.expected.is_some()
    {
        breaches.push(format!("the answer is of type {}", block["type"]));
    } else if content.len() != 1 {
        breaches.push(format!("the answer has {} blocks", content.len()));
    }
    if attack.expected.is_some_and(|expected| !expected(&text)) {
        breaches.push(format!("the answer is not what it must be: {text:?}"));
    }
    breaches
}

/// A control character that a terminal, a log or another parser could act on. A carriage return may end a line.
fn unfit(text: &str) -> Option<char> {
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let ends_line = character == '\r' && characters.peek() == Some(&'\n');
        if character.is_control() && !ends_line && !matches!(character, '\t' | '\n') {
            return Some(character);
        }
    }
    None
}

/// Ends the attempt's processes in the way that the attack is about, and leaves the scene as it was before.
async fn end(scene: &mut Scene, ending: Ending) -> Vec<String> {
    let mut breaches = Vec::new();
    let sleep = json!({"command": "sleep 1000", "timeout_ms": 100});
    match (ending, scene.tools.take()) {
        (_, None) => {}
        (Ending::Restarted, tools) => {
            scene.tools = tools;
            breaches.extend(call(scene, "bash", json!({"restart": true})).await.err());
        }
        (Ending::TimedOut, tools) => {
            scene.tools = tools;
            breaches.extend(call(scene, "bash", sleep).await.err());
        }
        (Ending::Cancelled, Some(mut tools)) => {
            let cancelled = CancellationToken::new();
            cancelled.cancel();
            breaches.extend(tools.0.call("bash", sleep, &cancelled).await.err().map(|error| error.to_string()));
            scene.tools = Some(tools);
        }
        (Ending::Closed, Some(tools)) => tools.0.close().await,
        (Ending::WorkerDied, Some(tools)) => {
            drop(tools);
            for _ in 0..1000 {
                if scene.survivors().is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        (Ending::Removed, Some(tools)) => {
            tools.0.close().await;
            let removed = remove_workspace(&scene.place.config, SESSION).await;
            breaches.extend(removed.err().map(|error| format!("the workspace cannot be deleted: {error}")));
        }
    }
    breaches.extend(scene.start().await);
    scene.clear_workspace();
    let answer = call(scene, "bash", json!({"command": "echo alive"})).await;
    if !answer.is_ok_and(|content| content == [json!({"type": "text", "text": "alive"})]) {
        breaches.push("the sandbox does not answer as it should afterwards".to_owned());
    }
    breaches
}

/// The attempt of an attack by bash in a shell that nobody confines or cleans up after.
async fn run_plainly(scene: &mut Scene, attack: &Attack) -> Vec<String> {
    let text = match attack.attempt {
        Attempt::Bash(text) => text.to_owned(),
        Attempt::Perl(body) => format!("perl -e '{}'", perl::program(body).replace('\'', r"'\''")),
        Attempt::Tool(..) => panic!("{}: a file tool has no plain form", attack.name),
    };
    let seconds = (attack.timeout_ms as f64 / 1000.0).to_string();
    let script = format!("{}\n{}", command(scene, attack.setup.unwrap_or(":")), command(scene, &text));
    let status = Command::new("timeout")
        .args([&seconds, "bash", "--noprofile", "--norc", "-c", &format!("exec 2>&1; {script}")])
        .env("SERVER_KEY", SECRET)
        .envs((attack.control == Control::NaiveProxy).then(|| ("http_proxy", proxy::naive())))
        .current_dir(scene.workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::fs::File::create(scene.workspace().join(".output")).unwrap()))
        .status();
    status.unwrap();
    let output = std::fs::read(scene.workspace().join(".output")).unwrap();
    let text = String::from_utf8_lossy(&output);
    scene.answers.push(text.to_string());
    let mut breaches = judge(&[json!({"type": "text", "text": text.trim_end()})], attack);
    breaches.extend(scene.harm().await);
    breaches.extend(scene.survivors().into_iter().map(|pid| format!("process {pid} survives")));
    scene.sweep();
    breaches
}
