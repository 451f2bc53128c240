"""The official SDK's `EnvironmentWorker`, as installed, in a process that can be killed and paused.

Run as a program it is the worker: address, environment and key come from `AGENT_URL`, `ENVIRONMENT_ID` and
`ENVIRONMENT_KEY`, and the folder it starts in is the sessions'. Imported, it starts that program.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anthropic

from turns import WAIT_SECONDS_MAX

MAX_IDLE_SECONDS = 1.0


async def serve() -> None:
    client = anthropic.AsyncAnthropic(base_url=os.environ["AGENT_URL"], api_key="not-a-key-of-this-server")
    worker = client.beta.environments.work.worker(
        environment_id=os.environ["ENVIRONMENT_ID"],
        environment_key=os.environ["ENVIRONMENT_KEY"],
        max_idle=MAX_IDLE_SECONDS,
    )
    await worker.run()


class OfficialWorker:
    """One worker process with a folder; what it logs is kept and can be waited for."""

    def __init__(self, url: str, environment_id: str, key: str, folder: Path, program: str = __file__) -> None:
        self.output: list[str] = []
        self._changed = threading.Condition()
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "ACCEPTANCE_WAIT_SECONDS")}
        self.process = subprocess.Popen(
            [sys.executable, program],
            cwd=folder,
            env={**kept, "AGENT_URL": url, "ENVIRONMENT_ID": environment_id, "ENVIRONMENT_KEY": key},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.output.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_logged(self, text: str) -> str:
        """Waits for a line with this text; returns it."""
        def found() -> str | None:
            return next((line for line in self.output if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self.process.poll() is not None, WAIT_SECONDS_MAX)
            line = found()
        assert line, f"the worker did not log {text!r}:\n{self.tail()}"
        return line

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL. What it started lives on, as after any such death."""
        self.process.kill()
        self.process.wait()

    def wait_ended(self) -> int:
        return self.process.wait(timeout=WAIT_SECONDS_MAX)

    def tail(self) -> str:
        return "\n".join(self.output[-40:])

    def close(self) -> None:
        if self.process.poll() is None:
            # A process that is paused takes no other signal.
            self.kill()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
    asyncio.run(serve())
