"""Scenarios 13 and 14: the official SDK's `EnvironmentWorker`, served, killed, paused, stopped and refused.

What a session's history says must be true of the worker's folder: a call that is reported as run ran once, a call
whose outcome is unknown was not run again, and a call that nobody was shown is no one's loss.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

import shapes
from conftest import database_url
from official_worker import OfficialWorker
from service import ROOT, Service
from test_tools import confirm
from turns import (
    WAIT_SECONDS_MAX,
    Listener,
    ask_for,
    described,
    history,
    message,
    new_session,
    of_type,
    run_turn,
    text,
    types,
)

# The official worker asks for no lease, so the server's own length decides how long its death goes unnoticed.
SETTINGS = "environments: {lease: 6s}\n"
# Leaves a trace, says so, and waits until the test opens the gate.
BLOCKED = "!bash echo ran >> trace; cat gate"
COUNT = "!bash wc -l < trace"


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, database: str) -> Iterator[Service]:
    service = Service(database_url(request, database)).configure(SETTINGS).start()
    yield service
    service.close()


class Hosted:
    """A self-hosted environment with a key, the folder of its workers, and the workers that were started."""

    def __init__(self, service: Service, client: anthropic.Anthropic, name: str, folder: Path) -> None:
        self.service, self.client, self.folder = service, client, folder
        self.id = client.beta.environments.create(name=name, config={"type": "self_hosted"}).id
        self.key = self.new_key()
        os.mkfifo(folder / "gate")
        self.workers: list[OfficialWorker] = []

    def keys(self, *arguments: str) -> str:
        done = self.service.command("keys", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def new_key(self) -> str:
        return self.keys("create", "--environment", self.id).strip()

    def worker(self, key: str | None = None, **more: Any) -> OfficialWorker:
        worker = OfficialWorker(self.service.url, self.id, key or self.key, self.folder, **more)
        self.workers.append(worker)
        return worker

    def session(self, tools: list[dict[str, Any]] | None = None) -> str:
        return new_session(self.client, self.id, tools).id

    def items(self) -> list[Any]:
        """The items of the queue, newest first; only a worker's credential lists them."""
        with anthropic.Anthropic(base_url=self.service.url, auth_token=self.key, api_key=None) as worker:
            return list(worker.beta.environments.work.list(self.id))

    def wait_items(self, *states: str) -> list[Any]:
        """Waits until the items, newest first, are in these states."""
        return eventually(lambda: (found := self.items()) and [item.state for item in found] == list(states) and found, states)

    def open_gate(self) -> None:
        """Lets go what waits at the gate, or is about to: it reads an end of file."""
        eventually(self._open_gate, "somebody at the gate")

    def _open_gate(self) -> bool:
        try:
            os.close(os.open(self.folder / "gate", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False  # Nobody waits there.
        return True

    def trace(self) -> list[str]:
        path = self.folder / "trace"
        return path.read_text().splitlines() if path.exists() else []

    def wait_trace(self) -> None:
        """Waits until the blocked call has begun."""
        eventually(self.trace, "a call that leaves its trace")

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self._open_gate()  # What a killed worker left behind may still wait.


def eventually(wanted: Callable[[], Any], what: object) -> Any:
    """What `wanted` returns once it is true."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := wanted()):
        assert time.monotonic() < deadline, f"waited for {what}"
        threading.Event().wait(0.05)
    return found


@pytest.fixture
def hosted(service: Service, client: anthropic.Anthropic, unique: str, tmp_path: Path) -> Iterator[Hosted]:
    hosted = Hosted(service, client, unique, tmp_path)
    yield hosted
    hosted.close()
    assert service.running, f"the server died:\n{service.tail()}"


def answers(events: list[Any]) -> dict[str, Any]:
    """What the worker's calls were answered, by call; `check_calls` has seen that each was answered once."""
    return {event.tool_use_id: event for event in of_type(events, "user.tool_result")}


def checked(client: anthropic.Anthropic, session_id: str) -> list[Any]:
    listed = history(client, session_id)
    shapes.check_history(listed)
    shapes.check_calls(listed)
    return listed


def is_unknown(result: Any) -> bool:
    return result.is_error is True and "outcome is unknown" in text(result)


def test_a_session_is_served(hosted: Hosted, client: anthropic.Anthropic) -> None:
    worker = hosted.worker()
    session_id = hosted.session()
    events = run_turn(
        client,
        session_id,
        '!tool write {"file_path": "notes.txt", "content": "first line\\nsecond line\\n"}',
        "---",
        '!tool edit {"file_path": "notes.txt", "old_string": "second", "new_string": "last"}',
        "---",
        "!bash cat notes.txt; export COLOUR=blue",
        '!tool read {"file_path": "notes.txt"}',
        '!tool grep {"pattern": "last"}',
        '!tool glob {"pattern": "*.txt"}',
        "---",
        "!bash exit 3",
        "---",
        "!say done",
    )
    shapes.check_all(events)
    listed = checked(client, session_id)
    said = answers(listed)
    names = {use.id: use.name for use in of_type(listed, "agent.tool_use")}
    assert list(names.values()) == ["write", "edit", "bash", "read", "grep", "glob", "bash"], worker.tail()
    failed = [names[call] for call, result in said.items() if result.is_error]
    assert failed in ([], ["bash"]), {names[call]: text(result) for call, result in said.items()}
    assert "agent.tool_result" not in types(listed), "what a client's worker ran is the client's"
    assert (hosted.folder / "notes.txt").read_text() == "first line\nlast line\n"
    assert [text(event) for event in of_type(listed, "agent.message")] == ["done"]

    stats = client.beta.environments.work.stats(hosted.id)
    shapes.check(stats)
    assert (stats.workers_polling, stats.depth, stats.pending) == (1, 0, 0)
    [item] = hosted.wait_items("stopped")
    shapes.check(item)
    assert item.data.id == session_id and item.stopped_at and item.secret is None
    shapes.check(client.beta.environments.work.retrieve(item.id, environment_id=hosted.id))

    # The session lies dormant now; a message brings a worker back, in an item of its own.
    events = run_turn(client, session_id, "!bash cat notes.txt", "---", "!say again")
    [result] = answers(events).values()
    assert text(result) == "first line\nlast line"
    hosted.wait_items("stopped", "stopped")


def test_the_documented_worker(hosted: Hosted, client: anthropic.Anthropic) -> None:
    page = (ROOT / "docs/operate/README.md").read_text()
    found = re.search(r"```py\n(.*?)```", page, re.DOTALL)
    assert found, "the page shows a worker"
    program = hosted.folder / "worker.py"
    program.write_text(found.group(1))
    hosted.worker(program=str(program))
    [result] = answers(run_turn(client, hosted.session(), "!bash ls", "---", "!say done")).values()
    assert "worker.py" in text(result).splitlines(), text(result)


def test_a_worker_that_is_killed_in_mid_call(hosted: Hosted, client: anthropic.Anthropic) -> None:
    first = hosted.worker()
    session_id = hosted.session()
    with Listener(client, session_id) as listener:
        client.beta.sessions.events.send(session_id, events=[message(BLOCKED, "---", COUNT, "---", "!say done")])
        hosted.wait_trace()
        first.kill()
        second = hosted.worker()
        listener.wait_idle(reason="end_turn")
    listed = checked(client, session_id)
    lost, counted = (answers(listed)[use.id] for use in of_type(listed, "agent.tool_use"))
    assert is_unknown(lost), text(lost)
    assert text(counted).strip() == "1", f"it ran more than once: {text(counted)}"
    assert hosted.trace() == ["ran"]
    assert second.wait_logged("claimed work")
    hosted.wait_items("stopped")


def test_a_worker_that_is_too_slow_for_its_lease(hosted: Hosted, client: anthropic.Anthropic) -> None:
    first = hosted.worker()
    session_id = hosted.session()
    with Listener(client, session_id) as listener:
        client.beta.sessions.events.send(session_id, events=[message(BLOCKED, "---", COUNT, "---", "!say done")])
        hosted.wait_trace()
        first.signal(signal.SIGSTOP)
        hosted.worker()
        listener.wait_idle(reason="end_turn")
    before = described(checked(client, session_id))

    # The call ends at last, and its worker wakes to find that nobody waits for the result.
    hosted.open_gate()
    first.signal(signal.SIGCONT)
    first.wait_logged("heartbeat precondition failed")
    first.wait_logged("tool result send failed")
    first.wait_logged("without stopping it")
    listed = checked(client, session_id)
    assert described(listed) == before, "a late result changes nothing"
    lost, counted = (answers(listed)[use.id] for use in of_type(listed, "agent.tool_use"))
    assert is_unknown(lost), text(lost)
    assert text(counted).strip() == "1"


def test_a_worker_that_is_asked_to_stop(hosted: Hosted, client: anthropic.Anthropic) -> None:
    worker = hosted.worker()
    session_id = hosted.session()
    with Listener(client, session_id) as listener:
        client.beta.sessions.events.send(session_id, events=[message(BLOCKED, "---", COUNT, "---", "!say done")])
        hosted.wait_trace()
        [item] = hosted.items()
        asked = client.beta.environments.work.stop(item.id, environment_id=hosted.id)
        shapes.check(asked)
        assert asked.state == "stopping"
        worker.wait_logged("heartbeat signals shutdown state=stopping")
        hosted.open_gate()
        listener.wait_idle(reason="end_turn")
    listed = checked(client, session_id)
    finished, counted = (answers(listed)[use.id] for use in of_type(listed, "agent.tool_use"))
    assert not finished.is_error, "what a stopping worker finishes still counts"
    assert text(counted).strip() == "1"
    hosted.wait_items("stopped", "stopped")
    with pytest.raises(anthropic.ConflictError):
        client.with_options(max_retries=0).beta.environments.work.stop(item.id, environment_id=hosted.id, force=True)


@pytest.fixture
def private_hosted(private_service: Service, unique: str, tmp_path: Path) -> Iterator[Hosted]:
    """One on a server that nobody else has streams on."""
    service = private_service.configure(SETTINGS).start()
    hosted = Hosted(service, service.client(), unique, tmp_path)
    yield hosted
    hosted.close()


def test_a_call_that_no_worker_was_shown(private_hosted: Hosted) -> None:
    hosted, client = private_hosted, private_hosted.client

    def streams(count: int) -> None:
        eventually(lambda: hosted.service.metric("agent_sse_connections") == count, f"{count} open streams")

    first = hosted.worker()
    session_id = hosted.session()
    first.wait_logged("session tool runner starting")
    streams(1)
    first.kill()
    streams(0)
    client.beta.sessions.events.send(
        session_id, events=[message("!bash echo ran >> trace", "---", COUNT, "---", "!say done")]
    )
    hosted.worker()
    with Listener(client, session_id) as listener:
        listener.wait_idle(reason="end_turn")
    listed = checked(client, session_id)
    ran, counted = (answers(listed)[use.id] for use in of_type(listed, "agent.tool_use"))
    assert not ran.is_error, f"nobody had begun it: {text(ran)}"
    assert text(counted).strip() == "1"
    assert [item.state for item in hosted.items()] in (["active"], ["stopped"]), "it is the same item all along"


def test_a_call_that_asks_first(hosted: Hosted, client: anthropic.Anthropic) -> None:
    worker = hosted.worker()
    session_id = hosted.session([ask_for("bash")])
    for verdict, more in (("allow", {}), ("deny", {"deny_message": "not twice"})):
        with Listener(client, session_id) as listener:
            client.beta.sessions.events.send(session_id, events=[message("!bash echo ran >> trace", "---", "!say done")])
            idle = listener.wait_idle(reason="requires_action")
            [call] = idle.stop_reason.event_ids
            client.beta.sessions.events.send(session_id, events=[confirm(call, verdict, **more)])
            listener.wait_idle(reason="end_turn")
    listed = checked(client, session_id)
    allowed, denied = of_type(listed, "agent.tool_use")
    assert not answers(listed)[allowed.id].is_error
    [refusal] = of_type(listed, "agent.tool_result")
    assert (refusal.tool_use_id, refusal.is_error) == (denied.id, True) and "not twice" in text(refusal)
    worker.wait_logged("tool call denied")
    assert hosted.trace() == ["ran"]


def test_a_call_that_waits_survives_its_worker(hosted: Hosted, client: anthropic.Anthropic) -> None:
    first = hosted.worker()
    session_id = hosted.session([ask_for("bash")])
    with Listener(client, session_id) as listener:
        client.beta.sessions.events.send(session_id, events=[message("!bash echo ran >> trace", "---", "!say done")])
        [call] = listener.wait_idle(reason="requires_action").stop_reason.event_ids
        first.wait_logged("session tool runner starting")
        first.kill()
        hosted.wait_items("queued")
        client.beta.sessions.events.send(session_id, events=[confirm(call, "allow")])
        hosted.worker()
        listener.wait_idle(reason="end_turn")
    [result] = answers(checked(client, session_id)).values()
    assert not result.is_error, text(result)
    assert hosted.trace() == ["ran"]


def test_a_key_opens_its_own_environment_until_it_is_revoked(
    hosted: Hosted, client: anthropic.Anthropic, unique: str
) -> None:
    other = client.beta.environments.create(name=f"other {unique}", config={"type": "self_hosted"})
    foreign = hosted.keys("create", "--environment", other.id).strip()
    refused = hosted.worker(key=foreign)
    assert refused.wait_ended() != 0
    refused.wait_logged("belongs to another environment")

    second = hosted.new_key()
    listed = hosted.keys("list", "--environment", hosted.id)
    ids = re.findall(r"^(envkey_\w+) made \S+$", listed, re.MULTILINE)
    assert len(ids) == 2 and hosted.key not in listed and second not in listed, listed
    worker = hosted.worker()
    eventually(lambda: client.beta.environments.work.stats(hosted.id).workers_polling == 1, "a worker that polls")
    for key_id in ids:
        assert hosted.keys("revoke", key_id) == f"{key_id} revoked\n"
    for key in (hosted.key, second):
        with anthropic.Anthropic(base_url=hosted.service.url, auth_token=key, api_key=None) as worker_client:
            with pytest.raises(anthropic.AuthenticationError):
                worker_client.beta.environments.work.list(hosted.id)
    assert worker.wait_ended() != 0, "a worker whose key was revoked stops polling"
    worker.wait_logged("authentication_error")
    assert len(re.findall(r" revoked \S+$", hosted.keys("list", "--environment", hosted.id), re.MULTILINE)) == 2
