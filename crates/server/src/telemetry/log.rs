//! Log lines: one event a line, as a JSON object or as text.
//!
//! A line reads alone: the fields of the spans around an event (`session_id` and the like) stand beside its own.
//! The JSON form has `ts, level, msg, target, track, version` and then the fields.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _, Write as _};

use serde_json::{Map, Value};
use session::Timestamp;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::VERSION;
use crate::config::{LogFormat, LoggingSection};

/// Writes what `logging` asks for to standard output from now on. Called once a process.
pub fn install(logging: &LoggingSection, track: &str, now: fn() -> Timestamp) {
    let targets: Targets = logging.level.parse().expect("the level was validated with the settings");
    let form = match logging.format {
        LogFormat::Json => Form::Json { track: track.to_owned() },
        LogFormat::Text => Form::Text { colour: io::stdout().is_terminal() },
    };
    let lines = Lines { form, now, write: write_to_stdout };
    tracing_subscriber::registry().with(targets).with(lines).init();
}

/// A line that cannot be written has nowhere else to go.
fn write_to_stdout(line: &str) {
    let _ = io::stdout().lock().write_all(line.as_bytes());
}

enum Form {
    Json { track: String },
    Text { colour: bool },
}

struct Lines<W> {
    form: Form,
    now: fn() -> Timestamp,
    write: W,
}

/// The fields of a span, kept with it.
struct SpanFields(Map<String, Value>);

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(&str) + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields.map));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(kept) = span.extensions_mut().get_mut::<SpanFields>()
        {
            kept.0.extend(fields.map);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(kept) = span.extensions().get::<SpanFields>() {
                fields.map.extend(kept.0.clone());
            }
        }
        event.record(&mut fields);
        let line = self.form.line((self.now)(), *event.metadata().level(), event.metadata().target(), fields);
        (self.write)(&line);
    }
}

impl Form {
    fn line(&self, now: Timestamp, level: Level, target: &str, fields: Fields) -> String {
        match self {
            Self::Json { track } => {
                let mut object = Map::new();
                object.insert("ts".to_owned(), now.to_string().into());
                object.insert("level".to_owned(), level.as_str().to_ascii_lowercase().into());
                object.insert("msg".to_owned(), fields.message.into());
                object.insert("target".to_owned(), target.into());
                object.insert("track".to_owned(), track.as_str().into());
                object.insert("version".to_owned(), VERSION.into());
                for (name, value) in fields.map {
                    object.entry(name).or_insert(value);
                }
                format!("{}\n", Value::Object(object))
            }
            Self::Text { colour } => {
                let (on, off) = match (*colour, level) {
                    (false, _) => ("", ""),
                    (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
                    (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
                    (true, _) => ("\x1b[2m", "\x1b[0m"),
                };
                let mut line = format!("{now} {on}{:<5}{off} {}", level.as_str(), escaped(&fields.message));
                for (name, value) in fields.map {
                    let value = match value {
                        Value::String(text) => escaped(&text),
                        other => other.to_string(),
                    };
                    let _ = write!(line, " {on}{name}={off}{value}");
                }
                line.push('\n');
                line
            }
        }
    }
}

/// `text` on one line, and without the sequences that move a terminal's cursor.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The fields of one event or span.
#[derive(Default)]
struct Fields {
    message: String,
    map: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
        } else {
            self.map.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;

    /// What `emit` logs, in this form.
    fn logged(form: Form, emit: impl FnOnce()) -> String {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        let write = move |line: &str| sink.lock().unwrap().push_str(line);
        let lines = Lines { form, now: || Timestamp::from_micros(1_000_000), write };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), emit);
        std::mem::take(&mut *text.lock().unwrap())
    }

    fn emit() {
        let span = tracing::info_span!("turn", session_id = "sesn_1", turn = tracing::field::Empty);
        span.record("turn", 7);
        span.in_scope(|| tracing::warn!(target: "engine", tries = 2, cause = "a\nb", "model {}", "failed"));
    }

    #[test]
    fn a_json_line_has_the_fields_of_event_and_spans() {
        let line = logged(Form::Json { track: "canary".into() }, emit);
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "ts": "1970-01-01T00:00:01.000000Z", "level": "warn", "msg": "model failed", "target": "engine",
                "track": "canary", "version": VERSION, "session_id": "sesn_1", "turn": 7, "tries": 2, "cause": "a\nb",
            })
        );
    }

    #[test]
    fn a_text_line_is_one_line() {
        assert_eq!(
            logged(Form::Text { colour: false }, emit),
            "1970-01-01T00:00:01.000000Z WARN  model failed cause=a\\nb session_id=sesn_1 tries=2 turn=7\n"
        );
    }

    #[test]
    fn a_field_cannot_pose_as_the_line_s_own() {
        let line = logged(Form::Json { track: "stable".into() }, || tracing::info!(level = "error", "hello"));
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["level"], "info");
    }
}
