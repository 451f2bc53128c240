"""The fault run: three replicas, two workers and Nginx at work while everything around them fails.

    .venv/bin/python tests/faults --seconds 900 --seed 7
    .venv/bin/python tests/faults --rolling 20

Clients keep a ledger of what they were told (`ledger`), faults come from the seed (`faults`), and at the end the
ledger is held against what every replica tells (`oracle`). Prints faults, turns, takeovers and violations; ends with 1
if there is any violation. The same seed draws the same faults; what they meet is the machine's own. A rolling restart
is the same without faults, and may cost no request more than a 503 that says when to come back.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "acceptance"))

import httpx  # noqa: E402

import oracle  # noqa: E402
import postgres  # noqa: E402
from deployment import Deployment  # noqa: E402
from effects import Effects  # noqa: E402
from faults import Faults, Kill  # noqa: E402
from ledger import Ledger  # noqa: E402
from population import HEADERS, Client  # noqa: E402
from service import executable  # noqa: E402

SETTLE_SECONDS_MAX = 120.0
TOOLSET = {"type": "agent_toolset_20260401"}

CONFIG = """
server: {{drain_timeout: 10s}}
models:
  demo: {{provider: demo}}
  provider:
    provider: anthropic
    base_url: {provider_url}
    api_key: as-scripted
    patience: {{attempts_max: 2, first_byte_timeout: 2s, idle_timeout: 2s, total_timeout: 20s}}
"""

# The outside world stands on this machine, which tools reach only by leave.
WORKER_CONFIG = "worker: {network: {allowed_addresses: [127.0.0.1]}}\n"


class Provider:
    """The scripted model provider of the crate `server`, as a process."""

    def __init__(self) -> None:
        program = Path(executable()).parent / "examples" / "scripted_provider"
        if not program.exists():
            raise FileNotFoundError(f"{program} does not exist: cargo build -p server --example scripted_provider")
        self._process = subprocess.Popen([str(program)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> int:
    arguments = argparse.ArgumentParser(prog="faults", description="Breaks everything and counts what is lost.")
    arguments.add_argument("--seconds", type=float, default=60, help="how long faults go on (60)")
    arguments.add_argument("--seed", type=int, default=None, help="what faults are drawn from; drawn itself by default")
    arguments.add_argument("--clients", type=int, default=12, help="clients at the same time (12)")
    arguments.add_argument("--pause", type=float, default=12, help="the longest SIGSTOP in seconds, 5 at least (12)")
    arguments.add_argument("--rolling", type=int, default=None, help="no faults, but so many rolling restarts")
    arguments.add_argument("--keep", type=Path, default=None, help="folder for logs and the report")
    options = arguments.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    kind = f"{options.seconds:.0f} s of faults" if options.rolling is None else f"{options.rolling} rolling restarts"
    print(f"seed {seed}, {kind}, {options.clients} clients", flush=True)

    cluster, provider, effects = postgres.Cluster(), Provider(), Effects()
    config = CONFIG.format(provider_url=provider.url)
    deployment = Deployment(cluster, config=config, worker_config=WORKER_CONFIG)
    faults = Faults(deployment, provider.url, seed, options.pause)
    ledger = Ledger()
    try:
        deployment.redis.start()
        deployment.s3.start()
        faults.learn()
        deployment.nginx.start()
        for worker in deployment.workers:
            worker.start()
        clients = populate(deployment, options.clients, effects, ledger, seed)
        rolling = options.rolling is not None
        breaking = threading.Thread(target=faults.roll, args=[options.rolling]) if rolling else threading.Thread(target=faults.run)
        breaking.start()
        progress(None if rolling else options.seconds, ledger, faults)
        faults.stopping.set()
        breaking.join()
        say("everything is whole again")
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(timeout=60)
        failures = faults.failures + [failure for client in clients for failure in client.failures]
        say("the clients are gone")
        unsettled = settle(deployment, ledger)
        say("every session rests" if not unsettled else "not every session rests")
        violations = failures + unsettled + list(verdicts(deployment, ledger, effects))
        for replica in deployment.replicas:
            faults.count_lost_turns(replica)
        if faults.turns_lost:
            violations.append(f"{faults.turns_lost} turns that nothing would have woken (agent_turns_lost_total)")
        if rolling:
            violations += [f"{count} times: {what}" for what, count in ledger.refusals.items() if not what.endswith(": 503")]
        report(deployment, ledger, faults, effects, seed, violations)
        if options.keep:
            keep(options.keep, deployment)
        return 1 if violations else 0
    finally:
        deployment.close()
        effects.close()
        provider.close()
        cluster.stop()


def say(what: str) -> None:
    print(f"{time.strftime('%X')} {what}", flush=True)


def populate(deployment: Deployment, count: int, effects: Effects, ledger: Ledger, seed: int) -> list[Client]:
    """Makes the agents and lets the clients begin."""
    asks = {**TOOLSET, "configs": [{"name": "bash", "permission_policy": {"type": "always_ask"}}]}
    with deployment.http() as http:
        def make(path: str, body: dict) -> str:
            answer = http.post(path, json=body)
            answer.raise_for_status()
            return answer.json()["id"]

        agents = {
            "free": make("/v1/agents", {"name": "free", "model": "demo", "tools": [TOOLSET]}),
            "asks": make("/v1/agents", {"name": "asks", "model": "demo", "tools": [asks]}),
            "provider": make("/v1/agents", {"name": "provider", "model": "provider", "tools": []}),
        }
        environment_id = make("/v1/environments", {"name": "faults", "config": {"type": "cloud"}})
    clients = [Client(deployment.nginx.url, agents, environment_id, effects, ledger, seed + number) for number in range(count)]
    for client in clients:
        client.start()
    return clients


def progress(seconds: float | None, ledger: Ledger, faults: Faults) -> None:
    """Tells how far it is, for so long or until the faults end by themselves."""
    end = time.monotonic() + seconds if seconds is not None else float("inf")
    while (left := end - time.monotonic()) > 0 and not faults.stopping.is_set():
        faults.stopping.wait(min(left, 30))
        say(f"{len(ledger.sessions)} sessions, {ledger.turns} messages, {faults.done.total()} faults")


def settle(deployment: Deployment, ledger: Ledger) -> list[str]:
    """Confirms what still asks, and waits until nothing runs any more; what does not come to rest."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    known = {session.id for session in ledger.sessions}
    with httpx.Client(base_url=deployment.nginx.url, headers=HEADERS, timeout=60) as http:
        while True:
            # Asked of the database, since a slow machine would ask each session for minutes.
            rows = deployment.query("SELECT id FROM sessions WHERE status NOT IN ('idle', 'terminated')")
            running = known & {row[0] for row in rows}
            rows = deployment.query(
                "SELECT session_id FROM (SELECT DISTINCT ON (session_id) session_id, body FROM records "
                "WHERE kind = 'session.status_idle' ORDER BY session_id, position DESC) last "
                "WHERE body LIKE '%requires_action%'"
            )
            asking = known & {row[0] for row in rows} - running
            for session_id in asking:
                confirm(http, session_id)
            if not running and not asking:
                return []
            if time.monotonic() > deadline:
                return [f"{session_id}: does not come to rest" for session_id in sorted(running | asking)]
            time.sleep(0.5)


def confirm(http: httpx.Client, session_id: str) -> None:
    query = {"order": "desc", "limit": 1, "types[]": "session.status_idle"}
    for event in http.get(f"/v1/sessions/{session_id}/events", params=query).json()["data"]:
        calls = event["stop_reason"].get("event_ids", [])
        events = [{"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"} for call in calls]
        if events:
            http.post(f"/v1/sessions/{session_id}/events", json={"events": events})


def verdicts(deployment: Deployment, ledger: Ledger, effects: Effects):
    replicas = [httpx.Client(base_url=replica.url, headers=HEADERS, timeout=60) for replica in deployment.replicas]
    for session in ledger.sessions:
        told = [oracle.read(replica, session.id) for replica in replicas]
        if any(other != told[0] for other in told[1:]):
            yield f"{session.id}: replicas tell different histories"
        yield from oracle.judge(session, told[0], effects.counts)
    for session_id, count, last in deployment.query(
        "SELECT s.id, count(r.position), s.position FROM sessions s JOIN records r ON r.session_id = s.id "
        "GROUP BY s.id HAVING count(r.position) <> s.position OR max(r.position) <> s.position"
    ):
        yield f"{session_id}: {count} records, the last at position {last}"


def report(deployment: Deployment, ledger: Ledger, faults: Faults, effects: Effects, seed: int, violations: list[str]) -> None:
    print("faults:")
    for name, count in sorted(faults.done.items()):
        print(f"  {count:5} {name}")
    [[ended]] = deployment.query("SELECT count(*) FROM records WHERE kind = 'session.status_idle'")
    [[interrupted]] = deployment.query(
        "SELECT count(*) FROM records WHERE kind = 'agent.tool_result' AND body LIKE '%nterrupted%'"
    )
    [[taken]] = deployment.query("SELECT count(*) FROM records WHERE kind = 'log.taken_over'")
    events = sum(len(seen) for session in ledger.sessions for seen in session.streams)
    connections = sum(len(session.streams) for session in ledger.sessions)
    sent = [sent for session in ledger.sessions for sent in session.sent]
    print(f"sessions {len(ledger.sessions)}, messages {ledger.turns}, turns ended {ended}, taken over {taken}")
    print(f"acknowledged {sum(one.acknowledged is not None for one in sent)}, unsure {sum(one.unsure for one in sent)}")
    print(f"sent with a key {ledger.keyed}, of which answered again {ledger.replayed}")
    told = "SELECT count(*) FROM records WHERE kind = 'agent.tool_result' AND body LIKE '%held this session''s files%'"
    [[lost]] = deployment.query(told)
    shown = sum(len(session.journal) for session in ledger.sessions)
    print(f"files written to {shown} times, losses told {lost}")
    print(f"streamed {events} events over {connections} connections")
    print(f"effects {effects.counts.total()} of {len(effects.counts)} marks, calls reported as interrupted {interrupted}")
    print(f"answers that said not now: {json.dumps(dict(sorted(ledger.refusals.items())))}")
    print_takeovers("takeovers", deployment, faults.kills)
    print_takeovers("takeovers in peace", deployment, [kill for kill in faults.kills if kill.in_peace])
    print(f"violations {len(violations)}")
    for violation in violations:
        print(f"  {violation}")
    if violations:
        print(f"again: tests/faults --seed {seed}")


def print_takeovers(name: str, deployment: Deployment, kills: list[Kill]) -> None:
    """For each model call that a killed replica had open: how long until the next event of its session."""
    waits = []
    for kill in kills:
        for session_id in kill.sessions:
            [[later]] = deployment.query(
                "SELECT coalesce(min(at), 0) FROM records WHERE form <> 'internal' AND kind LIKE 'span.%' "
                f"AND session_id = '{session_id}' AND at > {int(kill.at * 1_000_000)}"
            )
            if later != "0":
                waits.append(int(later) / 1_000_000 - kill.at)
    waits.sort()
    if waits:
        p50, p99 = (waits[min(len(waits) - 1, int(share * len(waits)))] for share in (0.5, 0.99))
        print(f"{name} {len(waits)}: p50 {p50:.2f} s, p99 {p99:.2f} s, max {waits[-1]:.2f} s")


def keep(folder: Path, deployment: Deployment) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, replica in enumerate(deployment.replicas, 1):
        shutil.copy(replica.log, folder / f"replica-{number}.log")
    for number, worker in enumerate(deployment.workers, 1):
        shutil.copy(worker.log, folder / f"worker-{number}.log")
    for name in ("access.log", "error.log"):
        shutil.copy(deployment.nginx.folder / name, folder / f"nginx-{name}")
    (folder / "database.sql").write_text(deployment.cluster.program("pg_dump", deployment.database_url))


if __name__ == "__main__":
    sys.exit(main())
