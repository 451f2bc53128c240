//! `config`, `doctor`, `healthcheck`, `openapi` and what goes wrong on the command line.

use store::testing::{Cluster, RedisServer};

use super::process::{Server, block_on, run, stderr, stdout};

#[test]
fn config_check_prints_the_settings_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, "server: {port: 8081, api_key: sk-canary-canary}\n").unwrap();
    let output = run(&["config", "check", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("port: 8081") && !stdout(&output).contains("canary"), "{}", stdout(&output));
}

#[test]
fn a_bad_file_is_one_line_on_standard_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, "server: {prot: 8081}\n").unwrap();
    let path = file.to_str().unwrap();
    for arguments in [&["config", "check", path][..], &["serve", "--config", path], &["--config", path]] {
        let output = run(arguments);
        let expected = format!("agent-service: {path}: unknown key server.prot, did you mean port?\n");
        assert_eq!((output.status.code(), stderr(&output), stdout(&output)), (Some(1), expected.as_str(), ""));
    }
}

#[test]
fn doctor_leaves_with_an_error_when_something_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in-the-way");
    std::fs::write(&file, "").unwrap();
    let config = folder.path().join("config.yaml");
    // Nothing listens on port 9 of the loopback address.
    std::fs::write(&config, "worker: {embedded: false}\nproviders: {openai: {base_url: \"http://127.0.0.1:9\"}}\n")
        .unwrap();
    let data_dir = folder.path().join("in-the-way/data");
    let arguments = ["doctor", "--config", config.to_str().unwrap(), "--data-dir", data_dir.to_str().unwrap()];
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    let report = stdout(&output);
    assert!(report.contains("BROKEN  database"), "{report}");
    assert!(report.contains("BROKEN  provider openai"), "{report}");
    assert!(report.contains("2 things are broken"), "{report}");
}

#[test]
fn doctor_is_content_with_a_fresh_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "worker: {embedded: false}\n").unwrap();
    let data_dir = folder.path().join("data");
    let arguments = ["doctor", "--config", config.to_str().unwrap(), "--data-dir", data_dir.to_str().unwrap()];
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert!(stdout(&output).contains("ok      database"), "{}", stdout(&output));
    assert!(stdout(&output).contains("nothing is broken"), "{}", stdout(&output));
}

#[tokio::test]
async fn doctor_compares_its_clock_with_the_databases() {
    let Some(cluster) = Cluster::shared().await else { return };
    let database = cluster.database().await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    let settings = format!("worker: {{embedded: false}}\ndatabase: {{url: \"{}\"}}\n", database.url);
    std::fs::write(&config, settings).unwrap();
    let output = run(&["doctor", "--config", config.to_str().unwrap()]);
    let report = stdout(&output);
    assert!(report.contains("ok      clock") && report.contains("agrees with the database"), "{report}");
    assert_eq!(output.status.code(), Some(0), "{report}");
}

#[test]
fn healthcheck_says_whether_a_server_lives() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), |_| {});
    let port = server.url.rsplit_once(':').unwrap().1.to_owned();
    assert_eq!(run(&["healthcheck", "--port", &port]).status.code(), Some(0));
    drop(server);
    let output = run(&["healthcheck", "--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with(&format!("agent-service: no answer from http://127.0.0.1:{port}/health: ")));
}

#[test]
fn openapi_prints_a_document() {
    let output = run(&["openapi"]);
    let document: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document["paths"]["/v1/sessions"]["post"].is_object());
}

#[test]
fn an_unknown_subcommand_is_no_start() {
    assert_eq!(run(&["sreve"]).status.code(), Some(2));
}

/// The report of a run that is as small as can be, on these stores.
fn bench(stores: &[&str]) -> serde_json::Value {
    let sizes = "--sessions 2 --token-streams 2 --streams 3 --seconds 1 --event 200 --open-sessions 4 --rate 200 \
                 --live-sessions 2 --history 50";
    let sizes: Vec<&str> = sizes.split_whitespace().collect();
    let output = run(&[&["bench", "--json"][..], stores, &sizes].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(stdout(&output)).unwrap()
}

#[test]
fn bench_measures_on_the_stores_that_it_is_given() {
    let Some(redis) = block_on(RedisServer::start()) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(cluster) = runtime.block_on(Cluster::shared()) else { return };
    let database = runtime.block_on(cluster.bare_database());
    let report = bench(&["--postgres", &database.url, "--redis", &redis.options().url]);
    assert_eq!(report["subject"], "PostgreSQL and Redis");
    let commands = block_on(redis.command(&["INFO", "commandstats"]));
    assert!(commands.contains("cmdstat_publish"), "the server told Redis nothing: {commands}");
}

#[test]
fn bench_refuses_a_redis_that_it_cannot_measure_on() {
    // Nothing listens on port 9 of the loopback address.
    let expected = [("http://127.0.0.1", "redis.url must begin with redis://"), ("redis://127.0.0.1:9", "no answer")];
    for (url, named) in expected {
        let output = run(&["bench", "--redis", url]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
        let said = stderr(&output);
        assert!(said.contains("agent-service: --redis: ") && said.contains(named), "{said}");
    }
}

#[test]
fn bench_measures_every_figure_beside_its_floor() {
    let report = bench(&[]);
    assert_eq!(report["subject"], "SQLite");
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 13, "{report}");
    // The kernel counts CPU time in hundredths of a second: so little work may well be none. A figure that could not
    // be measured is null.
    let (append, beside_floor) = figures.split_last().unwrap();
    assert!(append["floor"].is_null(), "{append}");
    for figure in beside_floor {
        assert!(figure["reached"].is_number() && figure["floor"].is_number(), "{figure}");
    }
    for name in [
        "start to healthy",
        "memory when idle",
        "memory with 3 live streams",
        "turns at 2 sessions",
        "200 event writes/s beside as many reads, p99",
        "first token at 2 live sessions, p50",
        "catch-up of 50 events, p99",
    ] {
        let figure = figures.iter().find(|figure| figure["figure"] == name).unwrap();
        assert!(figure["reached"].as_f64().unwrap() > 0.0, "{figure}");
    }
}

#[test]
fn bench_measures_what_confinement_costs() {
    let output = run(&["bench", "--tools", "--sandboxes", "2", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    let figures = report["figures"].as_array().unwrap();
    let named = |name: &str| figures.iter().find(|figure| figure["figure"] == name).unwrap();
    assert_eq!(figures.len(), 4, "{report}");
    assert_eq!(named("sessions with a live shell")["reached"], 2.0);
    assert!(named("memory of an idle sandbox")["reached"].as_f64().unwrap() > 0.0);
    assert!(named("later bash call, beyond sh -c")["floor"].as_f64().unwrap() > 0.0);
}
