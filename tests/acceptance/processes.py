"""Which commands run on this machine, sandboxes included: they are ordinary processes seen from outside."""

import glob
import threading
import time

from turns import WAIT_SECONDS_MAX


def runs(command: str) -> bool:
    """Whether a process runs with exactly this command line."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                if file.read() == wanted:
                    return True
        except OSError:
            pass  # It ended while we looked.
    return False


def wait_for(command: str, running: bool) -> None:
    """Waits until `command` runs, or until it does not."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while runs(command) != running:
        assert time.monotonic() < deadline, f"{command} {'does not run' if running else 'still runs'}"
        threading.Event().wait(0.05)
