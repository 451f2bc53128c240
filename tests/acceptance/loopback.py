"""A server process on a loopback port of its own, which can be killed, paused and started again."""

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from service import START_SECONDS_MAX


class LoopbackServer:
    """Keeps its port and its folder until `close`. What it prints is in the folder's file `log`."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.folder = Path(tempfile.mkdtemp(prefix=f"acceptance-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        assert self._process is None, f"{self.name} already runs"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(int(START_SECONDS_MAX * 20)):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            threading.Event().wait(0.05)
        raise RuntimeError(f"{self.name} did not start:\n{(self.folder / 'log').read_text()}")

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
