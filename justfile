# Short names for what a developer does often. `scripts/test` and `.ci/run` do not need `just`.

[private]
default:
    @just --list

# Everything that the README promises: installs what is missing, runs every test.
test *arguments:
    scripts/test {{ arguments }}

# What has to pass before a merge.
ci:
    .ci/run

# The server as a newcomer starts it.
run *arguments:
    cargo run --bin agent-service -- {{ arguments }}

# The rules alone: a second or two.
rules:
    cargo test -p session

# The simulator over that many new seeds: 100 000 take about a quarter of an hour on two cores.
simulate runs="100000":
    SIM_RUNS={{ runs }} cargo test --profile simulation -p engine --test it simulation::simulation -- --nocapture

# Format, then lint as strictly as CI does.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings

# Architecture: dependency edges, module docs, bans.
tidy:
    cargo test -p tidy

# The scenarios through the official SDK; arguments go to pytest.
acceptance *arguments:
    scripts/test --only acceptance {{ arguments }}

# Replicas behind Nginx while everything around them fails.
faults:
    scripts/test --only faults

# Advisories, licences, sources.
deny:
    cargo deny check
