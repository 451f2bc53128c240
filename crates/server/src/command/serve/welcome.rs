//! What `serve` says when it is ready: where it listens, with which key, and three lines to try.
//!
//! People and scripts read it from standard output. With JSON logs there is nothing but log lines there, so the same
//! is said in two of them, without the key.

use std::fmt::Write as _;
use std::path::Path;

use crate::config::LogFormat;
use crate::secret::Secret;
use crate::telemetry::VERSION;

/// What there is to say.
pub(super) struct Welcome<'a> {
    /// Where clients on this machine reach the API and the metrics.
    pub(super) url: &'a str,
    pub(super) metrics_url: &'a str,
    /// The key that was made here and the file it is kept in; `None` when the operator set one.
    pub(super) made_key: Option<(&'a Secret, &'a Path)>,
    pub(super) database: &'a str,
    /// Where large content is kept.
    pub(super) blobs: &'a str,
    pub(super) models: &'a [String],
}

impl Welcome<'_> {
    /// Says it, as the log's format wants.
    pub(super) fn say(&self, format: LogFormat) {
        match format {
            LogFormat::Text => {
                use std::io::Write as _;
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(self.text().as_bytes()).and_then(|()| out.flush());
            }
            LogFormat::Json => {
                let key_file = self.made_key.map(|(_, path)| path.display().to_string());
                tracing::info!(key_file, database = self.database, blobs = self.blobs, "listening on {}", self.url);
                tracing::info!("metrics on {}", self.metrics_url);
            }
        }
    }

    fn text(&self) -> String {
        let mut text = format!("agent-service {VERSION}\n");
        let _ = writeln!(text, "  database  {}", self.database);
        let _ = writeln!(text, "  blobs     {}", self.blobs);
        let _ = writeln!(text, "  models    {}", self.models.join(", "));
        if let Some((key, path)) = self.made_key {
            let (url, key) = (self.url, key.expose());
            let _ = write!(
                text,
                "  key       {key} (kept in {})\n\nTo try it:\n  \
                 curl -s {url}/v1/models -H 'x-api-key: {key}'\n  \
                 python3 -c 'import anthropic; print(anthropic.Anthropic(base_url=\"{url}\", \
                 api_key=\"{key}\").beta.agents.create(name=\"first\", model=\"{}\"))'\n  \
                 agent-service chat --server-url {url}\n\n",
                path.display(),
                self.models.first().map_or("demo", String::as_str)
            );
        }
        let _ = writeln!(text, "listening on {}\nmetrics on {}", self.url, self.metrics_url);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_the_operator_set_is_not_shown() {
        let models = ["demo".to_owned()];
        let welcome = Welcome {
            url: "http://127.0.0.1:1",
            metrics_url: "http://127.0.0.1:2/metrics",
            made_key: None,
            database: "SQLite",
            blobs: "data/blobs",
            models: &models,
        };
        let text = welcome.text();
        assert!(text.ends_with("listening on http://127.0.0.1:1\nmetrics on http://127.0.0.1:2/metrics\n"), "{text}");
        assert!(!text.contains("key"), "{text}");
        let key = Secret::new("sk-made");
        let text = Welcome { made_key: Some((&key, Path::new("data/api-key"))), ..welcome }.text();
        assert_eq!(text.matches("sk-made").count(), 3, "{text}");
    }
}
