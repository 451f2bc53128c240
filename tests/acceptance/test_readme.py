"""The first five minutes of the README, as a newcomer would paste them."""

import os
import re
import signal
import subprocess
import sys
import threading

from service import API_KEY, ROOT, Service
from turns import WAIT_SECONDS_MAX


def snippet(heading: str, language: str) -> str:
    """The first block in `language` below `heading`."""
    text = (ROOT / "README.md").read_text()
    section = text.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, f"{heading} has no {language} block"
    return found.group(1)


def environment(service: Service) -> dict[str, str]:
    return {**os.environ, "URL": service.url, "KEY": API_KEY}


def test_the_curl_snippet(service: Service) -> None:
    # A first line of output may come from either curl; what ends the turn comes from the stream.
    script = "set -eu\n" + snippet("With curl", "sh") + "\nwait"
    process = subprocess.Popen(
        ["bash", "-c", script],
        env=environment(service),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = []
    # Ends the output, and with it the loop, should the turn never end.
    limit = threading.Timer(WAIT_SECONDS_MAX, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    try:
        for line in process.stdout:
            seen.append(line)
            if "event: session.status_idle" in line:
                break
    finally:
        limit.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert "event: session.status_idle" in seen[-1], "".join(seen)
    assert any("Linux" in line for line in seen), "".join(seen)


def test_the_python_snippet(service: Service) -> None:
    done = subprocess.run(
        [sys.executable, "-c", snippet("With the Python SDK", "python")],
        env=environment(service),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "calls bash" in done.stdout
    assert "got hello" in done.stdout
    assert "says" in done.stdout
