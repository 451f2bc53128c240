//! The demo model's directives, read from a user's text. The language is described in [`super`].

use std::time::Duration;

use serde_json::{Map, Value, json};
use session::command::AnswerBlock;

use crate::model::tool_input;

/// The longest wait that a script can ask for.
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// The most words that a script can ask for.
const WORDS_MAX: u32 = 1_000_000;

/// What one response does.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) directives: Vec<Directive>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Directive {
    Say(String),
    Stream(u32),
    Show(String),
    Think(String),
    Call {
        name: String,
        input: Map<String, Value>,
        problem: Option<String>,
    },
    Wait(Duration),
    Pace(Duration),
    /// How, and how many times; always if `None`.
    Fail(Fail, Option<u32>),
    Refuse(Option<String>),
    /// A line that means nothing.
    Unknown(String),
}

/// The ways to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fail {
    Overloaded,
    RateLimited,
    Invalid,
    Billing,
    Cut,
}

impl Fail {
    const ALL: [Self; 5] = [Self::Overloaded, Self::RateLimited, Self::Invalid, Self::Billing, Self::Cut];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::Invalid => "invalid",
            Self::Billing => "billing",
            Self::Cut => "cut",
        }
    }
}

impl Step {
    /// How long to wait before answering. Not at all is `None`: a timer of no length still takes a millisecond.
    pub(super) fn wait(&self) -> Option<Duration> {
        let waits = self.directives.iter().filter_map(|directive| match directive {
            Directive::Wait(wait) => Some(*wait),
            _ => None,
        });
        let sum = waits.fold(Duration::ZERO, Duration::saturating_add).min(WAIT_MAX);
        (!sum.is_zero()).then_some(sum)
    }

    /// How long to wait before each word.
    pub(super) fn pace(&self) -> Option<Duration> {
        self.directives.iter().rev().find_map(|directive| match directive {
            Directive::Pace(pace) => Some(*pace).filter(|pace| !pace.is_zero()),
            _ => None,
        })
    }

    /// How to fail, and how many times.
    pub(super) fn fail(&self) -> Option<(Fail, Option<u32>)> {
        self.directives.iter().find_map(|directive| match directive {
            Directive::Fail(fail, times) => Some((*fail, *times)),
            _ => None,
        })
    }
}

/// The parts of a script, none if the text has no directive.
pub(super) fn parse(text: &str) -> Vec<Step> {
    let mut steps = vec![Step::default()];
    for line in text.lines().map(str::trim) {
        if line == "---" {
            steps.push(Step::default());
        } else if let Some(rest) = line.strip_prefix('!')
            && let Some(step) = steps.last_mut()
        {
            step.directives.push(directive(rest));
        }
    }
    steps.retain(|step| !step.directives.is_empty());
    steps
}

/// What the model says of a line that it does not understand.
pub(super) fn unknown(line: &str) -> String {
    format!(
        "The demo model does not understand `!{line}`. It knows !bash, !read, !write, !edit, !glob, !grep, !tool, \
         !say, !stream, !show, !think, !wait, !pace, !fail and !refuse."
    )
}

fn directive(line: &str) -> Directive {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    understood(word, rest).unwrap_or_else(|| Directive::Unknown(line.to_owned()))
}

fn understood(word: &str, rest: &str) -> Option<Directive> {
    Some(match word {
        "bash" => call("bash", json!({"command": rest})),
        "read" => call("read", json!({"file_path": rest})),
        "glob" => call("glob", json!({"pattern": rest})),
        "grep" => call("grep", json!({"pattern": rest})),
        "write" => {
            let (path, content) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            call("write", json!({"file_path": path, "content": unescape(content)}))
        }
        "edit" => {
            let mut parts = rest.splitn(3, "|||");
            let (path, old, new) = (parts.next()?, parts.next()?, parts.next()?);
            call("edit", json!({"file_path": path, "old_string": unescape(old), "new_string": unescape(new)}))
        }
        "tool" => {
            let (name, input) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            if name.is_empty() {
                return None;
            }
            let AnswerBlock::ToolUse { name, input, problem } = tool_input::tool_use(name.to_owned(), input, false)
            else {
                return None;
            };
            Directive::Call { name, input, problem }
        }
        "say" => Directive::Say(unescape(rest)),
        "think" => Directive::Think(unescape(rest)),
        "show" => Directive::Show(rest.to_owned()),
        "stream" => Directive::Stream(rest.parse::<u32>().ok()?.min(WORDS_MAX)),
        "wait" => Directive::Wait(Duration::from_millis(rest.parse().ok()?).min(WAIT_MAX)),
        "pace" => Directive::Pace(Duration::from_millis(rest.parse().ok()?).min(WAIT_MAX)),
        "fail" => {
            let (name, times) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let fail = Fail::ALL.into_iter().find(|fail| fail.name() == name)?;
            let times = if times.is_empty() { None } else { Some(times.trim().parse().ok()?) };
            Directive::Fail(fail, times)
        }
        "refuse" => Directive::Refuse((!rest.is_empty()).then(|| rest.to_owned())),
        _ => return None,
    })
}

fn call(name: &str, input: Value) -> Directive {
    let Value::Object(input) = input else { return Directive::Unknown(name.to_owned()) };
    Directive::Call { name: name.to_owned(), input, problem: None }
}

/// `\n`, `\t` and `\\` as what they stand for; any other backslash stays.
fn unescape(text: &str) -> String {
    let mut unescaped = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            unescaped.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => unescaped.push('\n'),
            Some('t') => unescaped.push('\t'),
            Some('\\') => unescaped.push('\\'),
            Some(other) => unescaped.extend(['\\', other]),
            None => unescaped.push('\\'),
        }
    }
    unescaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(line: &str) -> Directive {
        let mut steps = parse(line);
        assert_eq!(steps.len(), 1, "{line}");
        steps.remove(0).directives.remove(0)
    }

    #[test]
    fn every_directive_is_understood() {
        for (line, expected) in [
            ("!bash echo  a | wc", call("bash", json!({"command": "echo  a | wc"}))),
            ("!read a b.txt", call("read", json!({"file_path": "a b.txt"}))),
            ("!write a.txt x\\ny\\\\n\\q", call("write", json!({"file_path": "a.txt", "content": "x\ny\\n\\q"}))),
            (
                "!edit a.txt|||x y|||",
                call("edit", json!({"file_path": "a.txt", "old_string": "x y", "new_string": ""})),
            ),
            ("!glob **/*", call("glob", json!({"pattern": "**/*"}))),
            ("!grep a.*b", call("grep", json!({"pattern": "a.*b"}))),
            ("!tool now", call("now", json!({}))),
            ("!tool weather {\"city\": \"Bonn\"}", call("weather", json!({"city": "Bonn"}))),
            ("!say a\\nb", Directive::Say("a\nb".into())),
            ("!think hard", Directive::Think("hard".into())),
            ("!show tools", Directive::Show("tools".into())),
            ("!stream 20", Directive::Stream(20)),
            ("!wait 50", Directive::Wait(Duration::from_millis(50))),
            ("!pace 5", Directive::Pace(Duration::from_millis(5))),
            ("!fail overloaded", Directive::Fail(Fail::Overloaded, None)),
            ("!fail rate_limited 2", Directive::Fail(Fail::RateLimited, Some(2))),
            ("!refuse", Directive::Refuse(None)),
            ("!refuse cyber", Directive::Refuse(Some("cyber".into()))),
            ("!important", Directive::Unknown("important".into())),
            ("!edit a.txt", Directive::Unknown("edit a.txt".into())),
            ("!fail sometimes", Directive::Unknown("fail sometimes".into())),
            ("!stream many", Directive::Unknown("stream many".into())),
            ("!", Directive::Unknown(String::new())),
        ] {
            assert_eq!(only(line), expected, "{line}");
        }
    }

    #[test]
    fn broken_json_is_a_broken_call() {
        let Directive::Call { name, problem: Some(problem), .. } = only("!tool f {oops") else { panic!("understood") };
        assert_eq!(name, "f");
        assert!(problem.starts_with("the input of this call is not valid JSON"));
    }

    #[test]
    fn lines_make_parts() {
        let steps = parse("Please:\n!bash a\n  !bash b\n---\n---\nthen\n!say c\n");
        let sizes: Vec<_> = steps.iter().map(|step| step.directives.len()).collect();
        assert_eq!(sizes, [2, 1]);
        assert_eq!(parse("hello\n---\nworld!"), []);
        let step = &parse("!wait 5\n!wait 6\n!fail cut 1")[0];
        assert_eq!((step.wait(), step.fail()), (Some(Duration::from_millis(11)), Some((Fail::Cut, Some(1)))));
    }
}
