"""The faults: what is done to which process, for how long, all drawn from the seed.

Replicas and workers are killed, paused and stopped in threads of their own, so that faults overlap; at least one of
each is always left in peace. What happens to the database happens to nobody's start.
"""

import collections
import contextlib
import dataclasses
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from deployment import Deployment, PoolWorker
from loopback import LoopbackServer
from service import Service

# So long after the end of a fault something may still be on its way back.
RECOVERY_SECONDS = 4.0

# What the scripted provider answers in turn while it is at fault.
PROVIDER_FAULTS = [
    {"status": 429, "error_type": "rate_limit_error", "headers": [["retry-after", "1"]]},
    {"status": 529, "error_type": "overloaded_error"},
    {"cut_after_bytes": 200},
    {"hang": True, "words": ["well"]},
    {"status": 500},
]


@dataclasses.dataclass
class Kill:
    """A replica was killed."""

    at: float
    # Which it had in a model call.
    sessions: list[str]
    # Nothing else was broken then or a moment before.
    in_peace: bool


class Faults:
    """Does one thing after another to a deployment until it is told to stop."""

    def __init__(self, deployment: Deployment, provider_url: str, seed: int, pause_seconds_max: float) -> None:
        self._deployment, self._provider_url = deployment, provider_url
        self._random = random.Random(seed)
        self._pause_seconds_max = pause_seconds_max
        self._busy: set[Service | PoolWorker] = set()
        self._busy_lock = threading.Lock()
        # Starts, kills and the database's faults, one at a time.
        self._database = threading.Lock()
        self._running: list[threading.Thread] = []
        self.stopping = threading.Event()
        self.done: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.kills: list[Kill] = []
        self.turns_lost = 0
        self._broken_until = 0.0
        self._replica_ids: dict[Service, str] = {}

    def learn(self) -> None:
        """Starts the replicas one after another, to know them by their ids."""
        for replica in self._deployment.replicas:
            self._start(replica)

    def run(self) -> None:
        """Until `stopping`; then waits until everything that was broken is whole again."""
        table: list[tuple[Callable[[], None], int]] = [
            (self._kill_replica, 5),
            (self._pause_replica, 2),
            (self._stop_replica, 2),
            (self._kill_worker, 2),
            (self._pause_worker, 2),
            (self._restart_database_fast, 1),
            (self._restart_database_immediate, 1),
            (self._cut_connections, 2),
            (self._spoil_provider, 2),
            (self._reload_nginx, 1),
            (self._stop_redis, 1),
            (self._stall_redis, 1),
            (self._flush_redis, 1),
            (self._stop_s3, 1),
            (self._stall_s3, 1),
        ]
        while not self.stopping.is_set():
            fault = self._random.choices([fault for fault, _ in table], [weight for _, weight in table])[0]
            try:
                fault()
            except Exception as failure:
                self.failures.append(f"{fault.__name__} could not be done: {failure!r}")
            self.stopping.wait(self._random.uniform(0.5, 3.0))
        for thread in self._running:
            thread.join()

    def roll(self, rounds: int) -> None:
        """No fault at all, but every replica told to stop and started again, one after another."""
        try:
            for _ in range(rounds):
                for replica in self._deployment.replicas:
                    code = replica.stop()
                    if code != 0:
                        self.failures.append(f"a replica left with code {code} after SIGTERM")
                    self._start(replica)
                    self._deployment.nginx.wait_served_by(replica)
                    self.done["replica told to stop"] += 1
        except Exception as failure:
            self.failures.append(f"a replica could not be restarted: {failure!r}")
        finally:
            self.stopping.set()

    def count_lost_turns(self, replica: Service) -> None:
        """Adds up what a replica counts as lost, before its counts go with it."""
        try:
            text = httpx.get(replica.metrics_url, timeout=5).text
        except httpx.HTTPError:
            return
        counts = re.findall(r"^agent_turns_lost_total\{.*\} (\d+)", text, re.MULTILINE)
        if not counts:
            self.failures.append("a replica does not tell agent_turns_lost_total")
        self.turns_lost += sum(map(int, counts))

    # Replicas

    def _kill_replica(self) -> None:
        with self._claim(self._deployment.replicas) as replica:
            if replica is None:
                return
            with self._database:
                self._note_kill(replica)
                self.count_lost_turns(replica)
                replica.kill()
            self.done["replica killed"] += 1
            time.sleep(self._random.uniform(0.0, 3.0))
            self._start(replica)

    def _note_kill(self, replica: Service) -> None:
        owner = self._replica_ids.get(replica)
        rows = self._deployment.query(
            "SELECT s.id FROM sessions s JOIN records r ON r.session_id = s.id AND r.position = s.position "
            f"WHERE s.owner = '{owner}' AND r.kind = 'span.model_request_start'"
        )
        with self._busy_lock:
            in_peace = len(self._busy) == 1 and time.monotonic() > self._broken_until
        self.kills.append(Kill(time.time(), [row[0] for row in rows], in_peace))

    def _pause_replica(self) -> None:
        self._background("replica paused", self._deployment.replicas, self._paused)

    def _stop_replica(self) -> None:
        def stopped(replica: Service | PoolWorker) -> None:
            code = replica.stop()
            if code != 0:
                self.failures.append(f"a replica left with code {code} after SIGTERM")
            self._start(replica)

        self._background("replica told to stop", self._deployment.replicas, stopped)

    def _start(self, replica: Service | PoolWorker) -> None:
        if isinstance(replica, PoolWorker):
            replica.start()
            return
        with self._database:
            known = {row[0] for row in self._deployment.query("SELECT id FROM replicas")} if self._replica_ids else set()
            replica.start()
            while True:
                ids = {row[0] for row in self._deployment.query("SELECT id FROM replicas")} - known
                ids -= set(self._replica_ids.values())
                if ids:
                    self._replica_ids[replica] = ids.pop()
                    return
                time.sleep(0.05)

    # Workers

    def _kill_worker(self) -> None:
        with self._claim(self._deployment.workers) as worker:
            if worker is None:
                return
            worker.kill()
            self.done["worker killed"] += 1
            time.sleep(self._random.uniform(0.0, 2.0))
            worker.start()

    def _pause_worker(self) -> None:
        self._background("worker paused", self._deployment.workers, self._paused)

    def _paused(self, process: Service | PoolWorker) -> None:
        process.signal(signal.SIGSTOP)
        try:
            self.stopping.wait(self._random.uniform(5.0, self._pause_seconds_max))
        finally:
            process.signal(signal.SIGCONT)

    # What all of them need

    def _restart_database_fast(self) -> None:
        self._restart_database("fast")

    def _restart_database_immediate(self) -> None:
        self._restart_database("immediate")

    def _restart_database(self, mode: str) -> None:
        with self._database:
            self._deployment.cluster.halt(mode)
            time.sleep(self._random.uniform(0.0, 3.0))
            self._deployment.cluster.start()
            self._broken_until = time.monotonic() + RECOVERY_SECONDS
        self.done[f"PostgreSQL restarted ({mode})"] += 1

    def _cut_connections(self) -> None:
        with self._database:
            self._deployment.query(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            self._broken_until = time.monotonic() + RECOVERY_SECONDS
        self.done["database connections cut"] += 1

    def _stop_redis(self) -> None:
        self._stop(self._deployment.redis, "Redis")

    def _stall_redis(self) -> None:
        self._stall(self._deployment.redis, "Redis")

    def _flush_redis(self) -> None:
        self._deployment.redis.ask("FLUSHALL")
        self._deployment.redis.ask("CLIENT", "KILL", "TYPE", "normal")
        self._deployment.redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
        self.done["Redis flushed, its connections cut"] += 1

    def _stop_s3(self) -> None:
        self._stop(self._deployment.s3, "object store")

    def _stall_s3(self) -> None:
        self._stall(self._deployment.s3, "object store")

    def _stop(self, server: LoopbackServer, name: str) -> None:
        server.kill()
        self.stopping.wait(self._random.uniform(0.5, 5.0))
        server.start()
        self._broken_until = time.monotonic() + RECOVERY_SECONDS
        self.done[f"{name} stopped"] += 1

    def _stall(self, server: LoopbackServer, name: str) -> None:
        server.signal(signal.SIGSTOP)
        self.stopping.wait(self._random.uniform(1.0, 5.0))
        server.signal(signal.SIGCONT)
        self.done[f"{name} stalled"] += 1

    def _spoil_provider(self) -> None:
        script = self._random.choices(PROVIDER_FAULTS, k=self._random.randint(1, 8))
        httpx.put(f"{self._provider_url}/script", json=script, timeout=10).raise_for_status()
        self.done["model provider at fault"] += 1

    def _reload_nginx(self) -> None:
        self._deployment.nginx.reload()
        self.done["Nginx reloaded"] += 1

    # Whose turn it is

    @contextlib.contextmanager
    def _claim(self, among: list) -> Iterator[Service | PoolWorker | None]:
        """One that nothing is being done to, unless it is the last such."""
        with self._busy_lock:
            free = [one for one in among if one not in self._busy]
            one = self._random.choice(free) if len(free) > 1 else None
            if one is not None:
                self._busy.add(one)
        try:
            yield one
        finally:
            with self._busy_lock:
                self._busy.discard(one)
                # The time of a replica that was started is not yet its own.
                self._broken_until = max(self._broken_until, time.monotonic() + RECOVERY_SECONDS)

    def _background(self, name: str, among: list, work: Callable[[Service | PoolWorker], None]) -> None:
        def run() -> None:
            with self._claim(among) as one:
                if one is None:
                    return
                try:
                    work(one)
                    self.done[name] += 1
                except Exception as failure:
                    self.failures.append(f"{name} could not be done: {failure!r}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._running.append(thread)
