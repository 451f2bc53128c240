"""A session's files follow it from worker to worker, and what could not is told to the model.

Two workers of the pool, each with a folder of its own. Each is killed as a machine is lost: its folder is of no use
to the other.
"""

import re
import threading
import time
from collections.abc import Iterator

import anthropic
import httpx
import pytest

import shapes
from conftest import database_url, new_environment
from deployment import WORKER_KEY, PoolWorker
from processes import wait_for
from service import Service
from turns import WAIT_SECONDS_MAX, Listener, history, message, new_session, results, run_turn, text

NOTICE = "[Notice from the server: the worker that held this session's files was lost."


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest, database: str) -> Iterator[Service]:
    """A server without a worker of its own, and with a place for snapshots."""
    service = Service(database_url(request, database), {"AGENT_WORKER_KEY": WORKER_KEY})
    if database == "postgresql":
        service.settings["OBJECT_STORE_URL"] = str(service.folder / "objects")
    service.start()
    yield service
    service.close()


class Workers:
    """Workers of the pool that come and go."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.all: list[PoolWorker] = []

    def start(self) -> PoolWorker:
        self.all.append(PoolWorker(self.service.url).start())
        return self.all[-1]

    def close(self) -> None:
        for worker in self.all:
            worker.close()


@pytest.fixture
def workers(pool: Service) -> Iterator[Workers]:
    workers = Workers(pool)
    yield workers
    workers.close()


def metric(service: Service, name: str, outcome: str) -> float:
    page = httpx.get(service.metrics_url, timeout=60).text
    found = re.search(rf'^{name}{{[^}}]*outcome="{outcome}"[^}}]*}} ([0-9.]+)$', page, re.MULTILINE)
    assert found, f"no {name} of {outcome} in:\n{page}"
    return float(found.group(1))


def snapshots(service: Service) -> float:
    return metric(service, "agent_workspace_snapshots_total", "kept")


def restores(service: Service) -> float:
    return metric(service, "agent_workspace_restores_total", "whole")


def wait_kept(service: Service, more_than: float) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while snapshots(service) <= more_than:
        assert time.monotonic() < deadline, f"no snapshot was kept:\n{service.tail()}"
        threading.Event().wait(0.05)


def outputs(client: anthropic.Anthropic, session_id: str) -> list[str]:
    return ["\n".join(block.text for block in result.content) for result in results(history(client, session_id)).values()]


def test_files_follow_the_session(pool: Service, workers: Workers, unique: str) -> None:
    client = pool.client()
    first = workers.start()
    session = new_session(client, new_environment(client, unique))
    before = snapshots(pool)
    run_turn(
        client,
        session.id,
        "!bash mkdir -p deep/er && echo kept > deep/er/file && ln -s er/file deep/link && chmod 640 deep/er/file"
        " && head -c 3000000 /dev/zero | tr '\\\\0' x > large && echo temporary > /tmp/note && echo out > /mnt/session/outputs/o",
        "---",
        "!say done",
    )
    wait_kept(pool, before)
    first.kill()
    second = workers.start()
    run_turn(
        client,
        session.id,
        "!bash cat deep/link; stat -c %a deep/er/file; stat -c %s large; md5sum < large; cat /tmp/note /mnt/session/outputs/o",
        "---",
        "!say done",
    )
    said = outputs(client, session.id)[-1]
    assert NOTICE not in said, said
    assert said.split("\n")[:3] == ["kept", "640", "3000000"], said
    assert said.split("\n")[-2:] == ["temporary", "out"], said
    assert second.running
    shapes.check_history(history(client, session.id))


def test_a_worker_goes_on_with_its_own_files(pool: Service, workers: Workers, unique: str) -> None:
    client = pool.client()
    worker = workers.start()
    session = new_session(client, new_environment(client, unique))
    before, restored = snapshots(pool), restores(pool)
    run_turn(client, session.id, "!bash echo here > file", "---", "!say done")
    wait_kept(pool, before)
    worker.stop()
    worker.start()
    run_turn(client, session.id, "!bash cat file", "---", "!say done")
    assert outputs(client, session.id)[-1] == "here"
    assert restores(pool) == restored, "nothing was made anew"


def test_lost_files_are_told_once(pool: Service, workers: Workers, unique: str) -> None:
    client = pool.client()
    first = workers.start()
    session = new_session(client, new_environment(client, unique))
    before = snapshots(pool)
    run_turn(client, session.id, "!bash echo one > file", "---", "!say done")
    wait_kept(pool, before)
    with Listener(client, session.id) as listener:
        # The worker dies in the middle of a call: what it wrote is in no snapshot.
        sleep = f"sleep 9{int(unique, 16) % 100000:05}"
        script = [
            f"!bash echo two > file; {sleep}",
            # Never begun by the first worker, so the second simply runs it.
            '!tool read {"file_path": "file"}',
            "---",
            "!bash cat file",
            "---",
            "!say done",
        ]
        client.beta.sessions.events.send(session.id, events=[message(*script)])
        wait_for(sleep, True)
        first.kill()
        workers.start()
        listener.wait_idle(reason="end_turn")
    said = outputs(client, session.id)
    assert "interrupted" in said[1] and "outcome is unknown" in said[1], said
    assert said[2].startswith(NOTICE) and said[2].splitlines()[1] == "one", said
    assert "the last call of bash, write or edit" in said[2], said
    assert said[3] == "one", said
    shapes.check_history(history(client, session.id))
    shapes.check_calls(history(client, session.id))


def test_files_come_back_to_a_worker_that_has_older_ones(pool: Service, workers: Workers, unique: str) -> None:
    client = pool.client()
    first = workers.start()
    session = new_session(client, new_environment(client, unique))
    before = snapshots(pool)
    run_turn(client, session.id, "!bash echo one > file; echo gone > removed", "---", "!say done")
    wait_kept(pool, before)
    first.kill()
    second = workers.start()
    before = snapshots(pool)
    run_turn(client, session.id, "!bash echo two > file; rm removed", "---", "!say done")
    wait_kept(pool, before)
    second.kill()
    first.start()
    run_turn(client, session.id, "!bash cat file; ls", "---", "!say done")
    assert outputs(client, session.id)[-1] == "two\nfile"
