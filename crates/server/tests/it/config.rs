//! Settings: what loads, what is refused and in which words, and what overrides what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use server::config::{Config, HIDDEN, LogFormat, reference};

/// The settings of `yaml` under these variables.
fn load(yaml: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, yaml).unwrap();
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    let lookup = |name: &str| variables.get(name).map(|value| (*value).to_owned());
    let shown = path.display().to_string();
    Config::load(Some(&path), &lookup, |_| {}).map_err(|error| error.to_string().replace(&shown, "FILE"))
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/config").join(name)
}

#[test]
fn the_file_of_the_first_deployments_loads() {
    let config = Config::load(Some(&fixture("seed.yaml")), &|_| None, |_| {}).unwrap();
    assert_eq!((config.server.port, config.server.metrics_port), (8080, 9090));
    assert_eq!((config.agent.max_agents, config.agent.token_limit), (100, 150_000));
    assert_eq!((config.logging.level.as_str(), config.logging.format), ("info", LogFormat::Json));
}

#[test]
fn a_file_may_be_empty_or_hold_empty_sections() {
    for yaml in ["", "# nothing\n", "server: {}\n", "models: {}\n"] {
        assert_eq!(load(yaml, &[]).unwrap().server.port, 8080, "{yaml:?}");
    }
}

#[test]
fn refusals_say_where_and_what() {
    let cases = [
        ("server:\n  prot: 1\n", "FILE: unknown key server.prot, did you mean port?"),
        ("Server:\n  port: 1\n", "FILE: unknown key Server, did you mean server?"),
        (
            "worker:\n  limits:\n    max_proceses: 1\n",
            "FILE: unknown key worker.limits.max_proceses, did you mean max_processes?",
        ),
        (
            "models:\n  demo:\n    provider: demo\n    prise: 1\n",
            "FILE: unknown key models.demo.prise, did you mean price?",
        ),
        ("zzz: 1\n", "FILE: unknown key zzz"),
        ("server:\n  port: 9090\n", "server.metrics_port must differ from server.port"),
        ("server:\n  track: \"a b\"\n", "server.track must be stable or canary"),
        ("server:\n  api_key: short\n", "server.api_key must have at least 8 characters"),
        ("agent:\n  max_agents: 0\n", "agent.max_agents must be at least 1"),
        ("agent:\n  token_limit: 10\n", "agent.token_limit must be at least 1000"),
        (
            "metrics:\n  agent_names: [other]\n",
            "metrics.agent_names must be names of agents; \"other\" stands for all that are not listed",
        ),
        ("logging:\n  level: loud\n", "logging.level must be error, warn, info, debug or trace"),
        ("database:\n  url: mysql://x/y\n", "database.url must begin with postgres://"),
        ("database:\n  max_connections: 1\n", "database.max_connections must be at least 2"),
        (
            "limits:\n  concurrent_sessions: 0\n",
            "limits.concurrent_sessions must be at least 1; leave it out for no limit",
        ),
        (
            "limits:\n  tokens_per_day: 0\n",
            "limits.tokens_per_day must be from 1 to 1000000000000000; leave it out for no limit",
        ),
        (
            "limits:\n  usd_per_day: -1\n",
            "limits.usd_per_day must be from 0.000001 to 1000000000; leave it out for no limit",
        ),
        ("limits:\n  usd_per_day: 5\n", "limits.usd_per_day needs prices: name the models in `models`, each with one"),
        (
            "limits:\n  usd_per_day: 5\nmodels:\n  demo:\n    provider: demo\n  x:\n    provider: openai\n",
            "limits.usd_per_day needs a price of every model: models.x has none",
        ),
        ("environments:\n  lease: 2s\n", "environments.lease must be whole seconds, from 3s to 300s"),
        ("environments:\n  lease: 3500ms\n", "environments.lease must be whole seconds, from 3s to 300s"),
        ("environments:\n  lease: 6m\n", "environments.lease must be whole seconds, from 3s to 300s"),
        ("worker:\n  server_url: localhost\n", "worker.server_url must begin with http:// or https://"),
        ("worker:\n  readable_paths: [opt]\n", "worker.readable_paths opt is not an absolute path"),
        (
            "worker:\n  network:\n    package_hosts: [\"https://x.test\"]\n",
            "worker.network.package_hosts \"https://x.test\" is no host name such as example.com or *.example.com",
        ),
        (
            "worker:\n  network:\n    limits:\n      idle_timeout: 0s\n",
            "worker.network.limits.idle_timeout must be at least 1s",
        ),
        (
            "worker:\n  network:\n    limits:\n      max_connections: 0\n",
            "worker.network.limits.max_connections must be at least 1",
        ),
        (
            "providers:\n  openai:\n    base_url: nowhere\n",
            "providers.openai.base_url must begin with http:// or https://",
        ),
    ];
    for (yaml, expected) in cases {
        assert_eq!(load(yaml, &[]).unwrap_err(), expected, "{yaml}");
    }
}

#[test]
fn limits_of_keys_are_read() {
    let yaml = "limits: {concurrent_sessions: 3, tokens_per_day: 1000, usd_per_day: 2.5}\n\
        models: {demo: {provider: demo}, m: {provider: openai, price: {input_per_million: 0.1, output_per_million: 1}}}";
    let limits = load(yaml, &[]).unwrap().limits.of_keys();
    assert_eq!(limits.concurrent_sessions, Some(3));
    assert_eq!((limits.caps.tokens_per_day, limits.caps.micro_usd_per_day), (Some(1_000), Some(2_500_000)));
    assert_eq!(load("", &[]).unwrap().limits.of_keys(), Default::default());
}

#[test]
fn values_of_the_wrong_form_are_refused_in_one_line() {
    let cases = [
        ("server:\n  port: many\n", "line 2"),
        ("server:\n  port: 70000\n", "line 2"),
        ("server:\n  drain_timeout: 30\n", "line 2"),
        ("server:\n  drain_timeout: soon\n", "expected a duration such as 500ms, 30s, 5m, 12h or 7d, got \"soon\""),
        (
            "worker:\n  limits:\n    max_memory: 4GB\n",
            "expected a size such as 65536, 64KiB, 32MiB or 4GiB, got \"4GB\"",
        ),
        ("worker:\n  confinement: weak\n", "line 2"),
        ("server: [\n", ""),
        ("- 1\n", ""),
    ];
    for (yaml, expected) in cases {
        let error = load(yaml, &[]).unwrap_err();
        assert!(error.starts_with("FILE: ") && error.contains(expected) && !error.contains('\n'), "{yaml}: {error}");
    }
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let yaml = "server: {port: 1, metrics_port: 2, api_key: from-the-file}\nlogging: {level: warn}\n";
    let variables =
        [("AGENT_PORT", "3"), ("AGENT_API_KEY", "from-the-environment"), ("LOG_FORMAT", "json"), ("LOG_LEVEL", "")];
    let config = load(yaml, &variables).unwrap();
    assert_eq!((config.server.port, config.server.metrics_port), (3, 2));
    assert_eq!(config.server.api_key.unwrap().expose(), "from-the-environment");
    assert_eq!((config.logging.level.as_str(), config.logging.format), ("warn", LogFormat::Json));

    let lookup = |name: &str| (name == "AGENT_PORT").then(|| "3".to_owned());
    assert_eq!(Config::load(None, &lookup, |config| config.server.port = 4).unwrap().server.port, 4);
}

#[test]
fn a_variable_that_cannot_be_used_is_named() {
    let cases = [
        ("AGENT_PORT", "http", "AGENT_PORT: invalid digit found in string"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT: expected json or text, got \"xml\""),
        ("POSTGRES_URL", "redis://x", "database.url must begin with postgres://"),
        ("REDIS_URL", "http://x", "redis.url must begin with redis://, rediss:// or redis+unix://"),
    ];
    for (name, value, expected) in cases {
        assert_eq!(load("", &[(name, value)]).unwrap_err(), expected);
    }
}

#[test]
fn secrets_come_from_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let key = file("key", "sk-ant-from-a-file\n");
    let empty = file("empty", "\n");
    let from_key = format!("providers: {{anthropic: {{api_key_file: {key}}}}}\n");
    let config = load(&from_key, &[]).unwrap();
    assert_eq!(config.providers.anthropic.api_key.unwrap().expose(), "sk-ant-from-a-file");

    let config = load("", &[("ANTHROPIC_API_KEY_FILE", &key)]).unwrap();
    assert_eq!(config.providers.anthropic.api_key.unwrap().expose(), "sk-ant-from-a-file");
    // A variable stands above the file's key and its twin alike.
    let config = load(&from_key, &[("ANTHROPIC_API_KEY", "sk-ant-other")]).unwrap();
    assert_eq!(config.providers.anthropic.api_key.unwrap().expose(), "sk-ant-other");

    let both = format!("server: {{api_key: 12345678, api_key_file: {key}}}\n");
    assert_eq!(load(&both, &[]).unwrap_err(), "server.api_key and server.api_key_file are both set: keep one of them");
    let error = load("", &[("AGENT_API_KEY_FILE", &empty)]).unwrap_err();
    assert_eq!(error, format!("server.api_key_file: {empty} is empty"));
    let error = load("worker: {key_file: /nowhere}\n", &[]).unwrap_err();
    assert!(error.starts_with("worker.key_file: cannot read /nowhere: "), "{error}");
}

#[test]
fn what_is_printed_loads_again_and_shows_no_secret() {
    let secret = "sk-canary-0123456789abcdef";
    let yaml = format!(
        "server: {{api_key: {secret}}}\nworker: {{key: {secret}}}\ndatabase: {{url: \"postgres://u:{secret}@h/d\"}}\n\
         providers: {{anthropic: {{api_key: {secret}}}, openai: {{api_key: {secret}}}}}\n\
         models: {{mine: {{provider: openai, api_key: {secret}, base_url: \"http://127.0.0.1:1/v1\"}}}}\n"
    );
    let config = load(&yaml, &[]).unwrap();
    let printed = config.to_yaml();
    assert!(!printed.contains("canary"), "{printed}");
    assert_eq!(printed.matches(HIDDEN).count(), 6, "{printed}");
    assert!(!format!("{config:?}").contains("canary"));

    let defaults = Config::default().to_yaml();
    assert_eq!(load(&defaults, &[]).unwrap().to_yaml(), defaults);
}

#[test]
fn the_reference_in_the_docs_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/configuration.md");
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let hint = "run `agent-service config reference > docs/reference/configuration.md`";
    assert!(kept == reference::markdown(), "{} is not current: {hint}", path.display());
}

#[test]
fn addresses_are_networks_or_single_ones() {
    let yaml = "worker:\n  network:\n    allowed_addresses: [10.20.0.0/16, 192.168.1.7, \"fd00::/64\", \"fd00::7\"]\n";
    let config = load(yaml, &[]).unwrap();
    let shown: Vec<_> = config.worker.network.allowed_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.20.0.0/16", "192.168.1.7", "fd00::/64", "fd00::7"]);
    for wrong in ["10.0.0.0/33", "10.0.0", "localhost", "10.0.0.0-10.0.0.9", ""] {
        let error = load(&format!("worker:\n  network:\n    allowed_addresses: [\"{wrong}\"]\n"), &[]).unwrap_err();
        assert!(error.contains("expected an address such as 192.168.1.7"), "{error}");
    }
}
