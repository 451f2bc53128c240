//! Writes a registry for a scraper: OpenMetrics when it asks for it, else the Prometheus text format.
//!
//! The library writes OpenMetrics. The older format differs in that a counter's family carries the `_total` of its
//! samples, and that it knows neither units nor an end mark.

use prometheus_client::registry::Registry;

/// The media type of OpenMetrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of the Prometheus text format.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The media type and the body for a request with this `Accept` header.
pub fn expose(registry: &Registry, accept: &str) -> (&'static str, String) {
    let mut body = String::with_capacity(32 * 1024);
    prometheus_client::encoding::text::encode(&mut body, registry).expect("writing to a string does not fail");
    if accept.contains("application/openmetrics-text") { (OPENMETRICS, body) } else { (TEXT, to_text(&body)) }
}

/// OpenMetrics as the Prometheus text format.
fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // The help comes before the type that decides what the family is called.
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(name), Some(meaning)) => help = Some((name, meaning)),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                let kind = if kind == "unknown" { "untyped" } else { kind };
                if let Some((_, meaning)) = help.take().filter(|(helped, _)| *helped == name) {
                    text.push_str(&format!("# HELP {name}{suffix} {meaning}\n"));
                }
                text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    #[test]
    fn counters_are_named_as_each_format_wants() {
        let mut registry = Registry::default();
        registry.register("errors", "Things that failed", Counter::<u64>::default());
        registry.register("active_count", "Things at work", Gauge::<i64>::default());
        let (kind, text) = expose(&registry, "*/*");
        assert_eq!(kind, TEXT);
        assert_eq!(
            text,
            "# HELP errors_total Things that failed.\n# TYPE errors_total counter\nerrors_total 0\n\
             # HELP active_count Things at work.\n# TYPE active_count gauge\nactive_count 0\n"
        );
        let (kind, openmetrics) = expose(&registry, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
        assert_eq!(kind, OPENMETRICS);
        assert!(openmetrics.contains("# TYPE errors counter\nerrors_total 0\n") && openmetrics.ends_with("# EOF\n"));
    }
}
