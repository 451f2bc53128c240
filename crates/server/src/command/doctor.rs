//! `agent-service doctor`: looks at everything that a server needs, and says what to do about what is broken.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use session::Timestamp;

use super::store::{self, Store};
use super::system::now;
use super::{SettingsArguments, data_folder, serve, small_runtime, worker};
use crate::config::{Config, Confinement};
use crate::model::ModelsConfig;

/// A clock that is off by more than this makes trouble: leases, logs and certificates disagree.
const SKEW_MAX_SECONDS: f64 = 5.0;

/// How long a provider may take to answer anything at all.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where settings come from.
#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.settings.load(|_| {})?;
    let mut findings = vec![Finding::good("settings", "valid")];
    small_runtime()?.block_on(async {
        findings.push(database(&config).await);
        findings.extend(database_clock(&config).await);
        findings.extend(redis(&config).await);
        findings.extend(object_store(&config).await);
        findings.extend(providers(&config).await);
        findings.extend(confinement(&config).await);
    });
    for finding in &findings {
        println!("{finding}");
    }
    let broken = findings.iter().filter(|finding| finding.state == State::Broken).count();
    match broken {
        0 => println!("\nnothing is broken"),
        1 => println!("\n1 thing is broken"),
        _ => println!("\n{broken} things are broken"),
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One thing that was looked at.
struct Finding {
    name: String,
    state: State,
    detail: String,
    /// What to do about it.
    remedy: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Works, but worth knowing.
    Notable,
    Broken,
}

impl Finding {
    fn good(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Good, detail: detail.into(), remedy: None }
    }

    fn notable(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Notable, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn broken(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Broken, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Good => "ok",
            State::Notable => "note",
            State::Broken => "BROKEN",
        };
        write!(f, "{state:6}  {:32}  {}", self.name, self.detail)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n        -> {remedy}"),
            None => Ok(()),
        }
    }
}

async fn database(config: &Config) -> Finding {
    let name = "database";
    if config.database.url.is_none() {
        let folder = config.server.data_dir.display();
        let remedy = format!("make {folder} writable for this user, or set AGENT_DATA_DIR to a folder that is");
        if let Err(error) = data_folder::create(&config.server.data_dir) {
            return Finding::broken(name, format!("{error:#}"), remedy);
        }
        return match Store::open_beside(config).await {
            Ok(store) => {
                store.database().close().await;
                Finding::good(name, format!("SQLite in {folder}"))
            }
            Err(error) => Finding::broken(name, format!("{error:#}"), remedy),
        };
    }
    let migrations = match store::migrations(config).await {
        Ok(migrations) => migrations,
        Err(error) => {
            let remedy = "check POSTGRES_URL, and that the server there is up and lets this user in";
            return Finding::broken(name, format!("{error:#}"), remedy);
        }
    };
    match migrations.iter().filter(|migration| !migration.applied).count() {
        0 => Finding::good(name, "PostgreSQL, schema up to date"),
        missing => {
            let detail = format!("PostgreSQL, {missing} migrations missing");
            Finding::notable(
                name,
                detail,
                "run `agent-service migrate`; `serve` does it too unless database.migrate is false",
            )
        }
    }
}

/// Whether Redis answers, where there is one or should be.
async fn redis(config: &Config) -> Option<Finding> {
    let redis = match serve::redis::open(&config.redis) {
        Ok(redis) => redis,
        Err(error) => return Some(Finding::broken("redis", format!("{error:#}"), "check REDIS_URL")),
    };
    let Some(redis) = redis else {
        config.database.url.as_ref()?;
        let detail = "none set: replicas hear of each other through the database, up to half a second late";
        return Some(Finding::notable("redis", detail, "set REDIS_URL where more than one replica runs"));
    };
    Some(match redis.version().await {
        Ok(version) => Finding::good("redis", format!("answers, version {version}")),
        Err(error) => {
            let remedy = "check REDIS_URL, and that the server there is up; without it everything works, only later";
            Finding::broken("redis", error.to_string(), remedy)
        }
    })
}

/// How far our clock is from the database's, where the database has one of its own and can be reached.
async fn database_clock(config: &Config) -> Option<Finding> {
    let url = config.database.url.as_ref()?;
    let theirs = store::postgres(config, url, None).ok()?.time().await.ok()?;
    let ours = now();
    Some(clock("the database", ours.seconds_since(theirs) - theirs.seconds_since(ours)))
}

/// Whether the place for large content can be written, read and cleaned, where it is not the data folder.
async fn object_store(config: &Config) -> Option<Finding> {
    let name = "object store";
    config.database.url.as_ref()?;
    let Some(url) = &config.object_store.url else {
        let detail = "none set: large content stays in the database, and files are refused";
        return Some(Finding::notable(name, detail, "set OBJECT_STORE_URL to s3://bucket/prefix or a shared folder"));
    };
    let tried = async {
        let blobs = store::object_store(config)?.expect("a URL is set");
        let hash = blobs.put(b"agent-service doctor".to_vec()).await?;
        let read = blobs.get(&hash).await?;
        blobs.remove(&hash).await?;
        anyhow::ensure!(read.is_some(), "what was put is not there");
        blobs.ping().await?;
        anyhow::Ok(())
    };
    Some(match tried.await {
        Ok(()) => Finding::good(name, format!("{url}: put, read and deleted")),
        Err(error) => {
            let remedy = "check OBJECT_STORE_URL and the AWS_* variables; the key must be allowed to put, get and \
                delete objects and to list the bucket";
            Finding::broken(name, format!("{url}: {error:#}"), remedy)
        }
    })
}

/// What a clock that is `skew_seconds` ahead of somebody's means.
fn clock(whose: &str, skew_seconds: f64) -> Finding {
    if skew_seconds.abs() <= SKEW_MAX_SECONDS {
        return Finding::good("clock", format!("agrees with {whose}"));
    }
    let detail = format!("{skew_seconds:.0} s off the clock of {whose}");
    Finding::broken("clock", detail, "synchronise this machine's clock, with NTP for one")
}

/// Whether each provider answers, and how far our clock is from theirs.
async fn providers(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let anthropic = &config.providers.anthropic;
    let openai = &config.providers.openai;
    let has_models = config.models != ModelsConfig::default();
    if anthropic.api_key.is_some() {
        let base = anthropic.base_url.as_deref().unwrap_or("https://api.anthropic.com");
        let headers = [
            ("x-api-key", anthropic.api_key.as_ref().map(|key| key.expose().to_owned())),
            ("anthropic-version", Some("2023-06-01".to_owned())),
        ];
        findings.extend(provider("anthropic", &format!("{}/v1/models", base.trim_end_matches('/')), &headers).await);
    }
    if openai.base_url.is_some() || openai.api_key.is_some() {
        let base = openai.base_url.as_deref().unwrap_or("https://api.openai.com/v1").trim_end_matches('/');
        let has_path = url::Url::parse(base).is_ok_and(|url| url.path().len() > 1);
        let url = if has_path { format!("{base}/models") } else { format!("{base}/v1/models") };
        let authorization = openai.api_key.as_ref().map(|key| format!("Bearer {}", key.expose()));
        findings.extend(provider("openai", &url, &[("authorization", authorization)]).await);
    }
    if findings.is_empty() && !has_models {
        let remedy = "set ANTHROPIC_API_KEY, or OPENAI_BASE_URL for an OpenAI-compatible server, to use a real model";
        findings.push(Finding::notable("model provider", "none set: only the scripted model `demo` answers", remedy));
    }
    findings
}

async fn provider(name: &str, url: &str, headers: &[(&str, Option<String>)]) -> Vec<Finding> {
    let label = format!("provider {name}");
    let http = reqwest::Client::builder().timeout(PROVIDER_TIMEOUT).build();
    let mut request = match http {
        Ok(http) => http.get(url),
        Err(error) => return vec![Finding::broken(label, error.to_string(), "check the machine's certificates")],
    };
    for (header, value) in headers {
        if let Some(value) = value {
            request = request.header(*header, value);
        }
    }
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => {
            let detail = format!("{url} does not answer: {}", innermost(&error));
            return vec![Finding::broken(label, detail, "check the base URL and the network's way there")];
        }
    };
    let skew = response.headers().get("date").and_then(|date| skew_seconds(date.to_str().ok()?, now()));
    let status = response.status();
    let mut findings = vec![match status.as_u16() {
        401 | 403 => Finding::broken(label, format!("{url} answers {status}"), "set a key that the provider knows"),
        // A compatible server need not list its models.
        200..=299 | 404 | 405 => Finding::good(label, format!("{url} answers")),
        429 => Finding::notable(label, format!("{url} answers {status}"), "the key is at its rate limit"),
        _ => Finding::broken(label, format!("{url} answers {status}"), "the provider is in trouble: try again later"),
    }];
    findings.extend(skew.map(|skew| clock(name, skew)));
    findings
}

/// How far our clock is ahead of the one that wrote this `Date` header.
fn skew_seconds(date: &str, now: Timestamp) -> Option<f64> {
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_second();
    let ours = now.as_micros().div_euclid(1_000_000);
    Some((ours - theirs) as f64)
}

/// What an error was about in the end; the addresses around it are already said.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The worker's own probe, a line for each part.
async fn confinement(config: &Config) -> Vec<Finding> {
    if !config.worker.is_embedded() {
        let detail = "not looked at: this server starts no worker of its own";
        let remedy = "run `agent-service worker --probe` where the workers run";
        return vec![Finding::notable("confinement", detail, remedy)];
    }
    if config.worker.confinement == Confinement::Off {
        let detail = "off: what a model writes runs with all rights of this user";
        let remedy = "remove worker.confinement: off, except for development on a machine that holds nothing dear";
        return vec![Finding::notable("confinement", detail, remedy)];
    }
    if let Err(error) = data_folder::create(&config.server.data_dir) {
        return vec![Finding::broken("confinement", format!("{error:#}"), "make the data folder writable")];
    }
    let report = worker::report(config).await;
    let rows = report.rows.into_iter().map(|row| match (row.held, row.required) {
        (true, _) => Finding::good(row.name, row.detail),
        (false, true) => Finding::broken(
            row.name,
            row.detail,
            "needs Linux 6.2 with Landlock and seccomp, for worker.confinement: namespaces also user namespaces, and a \
             container that allows them; for development alone: worker.confinement: off",
        ),
        (false, false) => {
            Finding::notable(row.name, row.detail, "another kernel or container may have it; the worker runs without")
        }
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skew_is_ours_less_theirs() {
        let now: Timestamp = "2026-11-23T09:30:10.5Z".parse().unwrap();
        assert_eq!(skew_seconds("Mon, 23 Nov 2026 09:30:00 GMT", now), Some(10.0));
        assert_eq!(skew_seconds("Mon, 23 Nov 2026 09:31:00 GMT", now), Some(-50.0));
        assert_eq!(skew_seconds("yesterday", now), None);
    }
}
