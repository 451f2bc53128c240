"""Several replicas on one PostgreSQL, one Redis and one object store behind a real Nginx, with pool workers: production on one machine.

Nginx runs the configuration of `deploy/nginx` as it is; only the four files that belong to a site are written here.
Every process can be killed, paused and started again, and keeps its address.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import anthropic
import httpx

import postgres
from redis_server import RedisServer
from s3_server import S3Server
from service import API_KEY, ROOT, START_SECONDS_MAX, STOP_SECONDS_MAX, Service, executable
from turns import WAIT_SECONDS_MAX

WORKER_KEY = "sk-worker-acceptance-0123456789abcdef"
# Below the ports that the system gives to outgoing connections, which could take one while its owner is down.
PORTS = range(15_000, 31_000)


def fixed_port() -> int:
    """A port that is free now and that no outgoing connection takes."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Nginx:
    """The load balancer, in front of replicas at these ports."""

    def __init__(self, replica_ports: list[int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="acceptance-nginx-"))
        # Its processes run as another user and keep bodies here.
        self.folder.chmod(0o711)
        self.port, self.workers_port = fixed_port(), fixed_port()
        self.url, self.workers_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.workers_port}"
        source = ROOT / "deploy" / "nginx"
        shutil.copy(source / "nginx.conf", self.folder)
        shutil.copytree(source / "agent-service", self.folder / "agent-service")
        site = self.folder / "agent-service"
        for name in ("replicas.conf", "replicas-streams.conf"):
            # Each replica gets what the file says of its example.
            example = next(line for line in (site / name).read_text().splitlines() if line.startswith("server "))
            servers = [example.replace("127.0.0.1:8080", f"127.0.0.1:{port}") for port in replica_ports]
            (site / name).write_text("\n".join(servers) + "\n")
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (site / "public.conf").write_text(f"listen 127.0.0.1:{self.port};\nserver_name _;\n")
        (site / "workers.conf").write_text(f"listen 127.0.0.1:{self.workers_port};\nserver_name _;\n")
        log = f"access_log {self.folder}/access.log agent_service;\n"
        with (site / "http.conf").open("a") as http:
            http.write(temporary + log)
        self.process: subprocess.Popen[bytes] | None = None

    def _command(self, *arguments: str) -> list[str]:
        settings = f"daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log info;"
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-g", settings, *arguments]

    def check(self) -> str:
        """What `nginx -t` says; raises where it does not accept the configuration."""
        done = subprocess.run(self._command("-t"), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def start(self) -> "Nginx":
        output = (self.folder / "output").open("ab")
        self.process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        output.close()
        for _ in range(int(START_SECONDS_MAX * 20)):
            assert self.process.poll() is None, (self.folder / "output").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            threading.Event().wait(0.05)
        raise RuntimeError("nginx did not start")

    def wait_served_by(self, replica: Service) -> None:
        """Waits until this replica answers a request that somebody makes from now on."""
        address = replica.url.removeprefix("http://")
        with (self.folder / "access.log").open() as log:
            log.seek(0, os.SEEK_END)
            deadline = time.monotonic() + WAIT_SECONDS_MAX
            line = ""
            while time.monotonic() < deadline:
                line += log.readline()
                if not line.endswith("\n"):
                    # Nothing yet, or a part of a line.
                    threading.Event().wait(0.02)
                    continue
                request, line = json.loads(line), ""
                if request["upstream"].endswith(address) and request["status"] < 500:
                    return
        raise AssertionError(f"nginx sent nothing to {address}:\n{self.errors()[-4000:]}")

    def reload(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def errors(self) -> str:
        return (self.folder / "error.log").read_text()

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=STOP_SECONDS_MAX)
        shutil.rmtree(self.folder, ignore_errors=True)


class PoolWorker:
    """`agent-service worker` with a folder of its own; what it prints is kept in a file."""

    def __init__(self, server_url: str, settings: dict[str, str] | None = None, config: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="acceptance-worker-"))
        self.log = self.folder / "log"
        (self.folder / "config.yaml").write_text(config)
        self._settings = {"AGENT_SERVER_URL": server_url, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "PoolWorker":
        assert self._process is None, "the worker already runs"
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LLVM_PROFILE_FILE", "TMPDIR")}
        environment = {
            **kept,
            "AGENT_CONFIG": str(self.folder / "config.yaml"),
            "AGENT_DATA_DIR": str(self.folder / "data"),
            "AGENT_WORKER_KEY": WORKER_KEY,
            "LOG_LEVEL": "info",
            **self._settings,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [executable(), "worker"], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=STOP_SECONDS_MAX)
        self._process = None
        return code

    def close(self) -> None:
        if self.running:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Deployment:
    """Replicas, workers and Nginx on one database, one Redis and one S3 store. Not started until `start`."""

    def __init__(
        self,
        cluster: postgres.Cluster,
        replicas: int = 3,
        workers: int = 2,
        settings: dict[str, str] | None = None,
        config: str = "",
        worker_config: str = "",
        database_url: str | None = None,
    ) -> None:
        self.cluster = cluster
        self.database_url = database_url or cluster.create_database()
        self.redis = RedisServer(fixed_port())
        self.s3 = S3Server(fixed_port())
        ports = [fixed_port() for _ in range(replicas)]
        shared = {
            "AGENT_WORKER_KEY": WORKER_KEY,
            "REDIS_URL": self.redis.url,
            **self.s3.settings,
            **(settings or {}),
        }
        self.replicas = [Service(self.database_url, {"AGENT_PORT": str(port), **shared}) for port in ports]
        for replica in self.replicas:
            replica.configure(config)
        self.nginx = Nginx(ports)
        self.workers = [PoolWorker(self.nginx.workers_url, config=worker_config) for _ in range(workers)]
        self._clients: list[anthropic.Anthropic] = []

    def start(self) -> "Deployment":
        self.redis.start()
        self.s3.start()
        for replica in self.replicas:
            replica.start()
        self.nginx.start()
        for worker in self.workers:
            worker.start()
        return self

    def client(self, **options: object) -> anthropic.Anthropic:
        """The official SDK in front of Nginx."""
        client = anthropic.Anthropic(**{"base_url": self.nginx.url, "api_key": API_KEY, **options})
        self._clients.append(client)
        return client

    def http(self, **options: object) -> httpx.Client:
        """A plain HTTP client in front of Nginx, with the server's key."""
        headers = {"x-api-key": API_KEY, "anthropic-version": "2023-06-01"}
        return httpx.Client(**{"base_url": self.nginx.url, "headers": headers, "timeout": 60, **options})

    def query(self, statement: str) -> list[list[str]]:
        return self.cluster.query(self.database_url, statement)

    def owner(self, session_id: str) -> str | None:
        """The id of the replica that holds the claim of the session."""
        [[owner]] = self.query(f"SELECT coalesce(owner, '') FROM sessions WHERE id = '{session_id}'")
        return owner or None

    def tail(self) -> str:
        replicas = [f"replica {number}:\n{replica.tail()}" for number, replica in enumerate(self.replicas, 1)]
        return "\n".join([*replicas, "nginx:\n" + self.nginx.errors()[-4000:]])

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for worker in self.workers:
            worker.close()
        for replica in self.replicas:
            # One that is paused takes no other signal.
            if replica.running:
                replica.signal(signal.SIGCONT)
            replica.close()
        self.nginx.close()
        self.redis.close()
        self.s3.close()
