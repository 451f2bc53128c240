"""A private Redis for one deployment: nothing on disk, a loopback port of its own, and faults on demand."""

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from service import START_SECONDS_MAX


class RedisServer:
    """One `redis-server`; what it holds does not outlive it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="acceptance-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "RedisServer":
        assert self._process is None, "Redis already runs"
        settings = {"bind": "127.0.0.1", "port": str(self.port), "save": "", "appendonly": "no", "dir": str(self.folder)}
        command = ["redis-server", *(word for name, value in settings.items() for word in (f"--{name}", value))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(int(START_SECONDS_MAX * 20)):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            threading.Event().wait(0.05)
        raise RuntimeError(f"redis-server did not start:\n{(self.folder / 'log').read_text()}")

    def ask(self, *words: str) -> bytes:
        """One command, and the first of what is answered."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            head = b"*%d\r\n" % len(words)
            connection.sendall(head + b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words))
            return connection.recv(65536)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
