"""The real executable as a child process: started, killed and started again on the same data.

The address is read from the line `listening on http://127.0.0.1:PORT`; everything the process prints is kept and
shown when a test fails.
"""

import collections
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import anthropic
import httpx

ROOT = Path(__file__).resolve().parents[2]
API_KEY = "sk-acceptance-0123456789abcdef0123456789abcdef"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0


def executable() -> str:
    """`AGENT_SERVICE` names the executable under test; by default it is the debug build."""
    named = os.environ.get("AGENT_SERVICE")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = Path(named) if named else target / "debug" / "agent-service"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: cargo build --bin agent-service")
    return str(path)


class Service:
    """One server with data of its own. `start` and `kill` may alternate; the data outlive both."""

    def __init__(self, database_url: str | None = None, settings: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="acceptance-server-"))
        self.settings = dict(settings or {})
        if database_url:
            self.settings["POSTGRES_URL"] = database_url
        self.url = ""
        self.metrics_url = ""
        self.output: collections.deque[str] = collections.deque(maxlen=400)
        # Everything that was ever printed, for whoever looks into it afterwards.
        self.log = self.folder / "log"
        self._process: subprocess.Popen[str] | None = None
        self._clients: list[anthropic.Anthropic] = []

    def environment(self, **settings: str) -> dict[str, str]:
        """What the server's processes see of the world, `settings` included."""
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LLVM_PROFILE_FILE", "TMPDIR")}
        return {
            **kept,
            "AGENT_API_KEY": API_KEY,
            "AGENT_DATA_DIR": str(self.folder / "data"),
            "AGENT_PORT": "0",
            "AGENT_METRICS_PORT": "0",
            "LOG_LEVEL": "info",
            **self.settings,
            **settings,
        }

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a subcommand beside the server, on the same data."""
        command = [executable(), *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=60)

    def configure(self, text: str) -> "Service":
        """Writes the configuration file that every later start reads."""
        (self.folder / "config.yaml").write_text(text)
        self.settings["AGENT_CONFIG"] = str(self.folder / "config.yaml")
        return self

    def start(self, **settings: str) -> "Service":
        """Starts the server and returns when it has said where it listens. `settings` hold for this start alone."""
        assert self._process is None, "the server already runs"
        self._process = subprocess.Popen(
            [executable(), "serve"],
            cwd=self.folder,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        addresses: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process, addresses), daemon=True).start()
        try:
            address = addresses.get(timeout=START_SECONDS_MAX)
        except queue.Empty:
            address = None
        if address is None:
            self.kill()
            raise RuntimeError(f"the server did not start:\n{self.tail()}")
        self.url = address
        return self

    def _read(self, process: subprocess.Popen[str], addresses: "queue.Queue[str | None]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(line.rstrip("\n"))
            with self.log.open("a") as log:
                log.write(line)
            if found := re.search(r"metrics on (http://127\.0\.0\.1:\d+/metrics)", line):
                self.metrics_url = found.group(1)
            if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", line):
                addresses.put(found.group(1))
        addresses.put(None)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_dead(self, seconds: float) -> int:
        """Waits until the process has ended by itself; returns its exit code, negative for a signal."""
        assert self._process is not None
        code = self._process.wait(timeout=seconds)
        self._process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no destructor runs, nothing is flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """SIGTERM, as an orchestrator does; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self.wait_dead(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not stop within {STOP_SECONDS_MAX} s:\n{self.tail()}") from None

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.running:
            # SIGTERM first, so that an instrumented build can write its counts.
            try:
                self.stop()
            except RuntimeError:
                pass
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def client(self, **options: object) -> anthropic.Anthropic:
        """The official SDK, told the address and the key and nothing else."""
        client = anthropic.Anthropic(**{"base_url": self.url, "api_key": API_KEY, **options})
        self._clients.append(client)
        return client

    def http(self, **options: object) -> httpx.Client:
        """A plain HTTP client with the server's key."""
        headers = {"x-api-key": API_KEY, "anthropic-version": "2023-06-01"}
        return httpx.Client(**{"base_url": self.url, "headers": headers, "timeout": 60, **options})

    def metric(self, name: str) -> float:
        """A metric without labels of its own, as the server tells it now."""
        page = httpx.get(self.metrics_url, timeout=60).text
        found = re.search(rf"^{name}(?:{{[^}}]*}})? ([0-9.]+)$", page, re.MULTILINE)
        assert found, f"no metric {name} in:\n{page}"
        return float(found.group(1))

    def tail(self) -> str:
        return "\n".join(self.output)
