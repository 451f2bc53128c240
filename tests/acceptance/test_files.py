"""Files: upload, list, download, delete; what a session is given and what it makes, with the official SDK."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest

import shapes
from conftest import database_url, new_environment
from deployment import WORKER_KEY, PoolWorker
from service import Service
from turns import WAIT_SECONDS_MAX, history, new_session, results, run_turn


def test_a_file_is_uploaded_listed_downloaded_and_deleted(client: anthropic.Anthropic) -> None:
    content = b"name,age\nAda,36\n" * 100_000
    file = client.beta.files.upload(file=("people \u00fc.csv", content, "text/csv"), expires_in_seconds=3_600)
    assert file.filename == "people \u00fc.csv"
    assert (file.mime_type, file.size_bytes, file.downloadable, file.scope) == ("text/csv", len(content), True, None)
    assert file.expires_at is not None and (file.expires_at - file.created_at).total_seconds() == 3_600
    assert client.beta.files.retrieve_metadata(file.id) == file
    assert client.beta.files.download(file.id).read() == content

    assert client.beta.files.delete(file.id).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.beta.files.download(file.id)


def test_a_list_is_paged(client: anthropic.Anthropic) -> None:
    uploaded = [client.beta.files.upload(file=(f"{number}.txt", b"x", "text/plain")).id for number in range(5)]
    listed = [file.id for file in client.beta.files.list(limit=2)]
    assert listed[:5] == uploaded[::-1]
    assert [file.id for file in client.beta.files.list(ids=[uploaded[3], "file_none"])] == [uploaded[3]]
    assert list(client.beta.files.list(scope_id="sesn_none")) == []
    for file in uploaded:
        client.beta.files.delete(file)


def test_the_pages_of_older_clients(service: Service, client: anthropic.Anthropic) -> None:
    uploaded = [client.beta.files.upload(file=(f"{number}.txt", b"x", "text/plain")).id for number in range(3)]
    with service.http() as http:
        first = http.get("/v1/files", params={"limit": 2, "beta": "true"}).json()
        assert (first["has_more"], first["last_id"]) == (True, uploaded[1])
        second = http.get("/v1/files", params={"limit": 1, "after_id": first["last_id"]}).json()
        assert second["first_id"] == uploaded[0]
    for file in uploaded:
        client.beta.files.delete(file)


UPLOADS = "/mnt/session/uploads"
MISSING = "No such file or directory"


def said(client: anthropic.Anthropic, session_id: str) -> str:
    """The text of the session's last tool result."""
    last = list(results(history(client, session_id)).values())[-1]
    return "\n".join(block.text for block in last.content)


def upload(client: anthropic.Anthropic, name: str, content: bytes) -> str:
    return client.beta.files.upload(file=(name, content, "text/csv")).id


def scoped(client: anthropic.Anthropic, session_id: str) -> dict[str, Any]:
    """The session's files by name."""
    return {file.filename: file for file in client.beta.files.list(scope_id=session_id)}


def wait(service: Service, wanted: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := wanted()):
        assert time.monotonic() < deadline, f"{what} never came:\n{service.tail()}"
        threading.Event().wait(0.05)
    return found


def test_a_session_is_given_files_and_makes_some(
    service: Service, client: anthropic.Anthropic, environment_id: str
) -> None:
    original = upload(client, "data.csv", b"name,age\nAda,36\n")
    session = new_session(
        client, environment_id, resources=[{"type": "file", "file_id": original, "mount_path": "/data.csv"}]
    )
    [given] = session.resources
    shapes.check_all([given])
    assert (given.type, given.mount_path) == ("file", f"{UPLOADS}/data.csv")
    assert given.file_id != original
    assert client.beta.sessions.retrieve(session.id).resources == [given]
    run_turn(client, session.id, f"!bash cat {UPLOADS}/data.csv", "---", "!say done")
    assert said(client, session.id) == "name,age\nAda,36"
    run_turn(client, session.id, f"!bash echo x 2>&1 >{UPLOADS}/data.csv", "---", "!say done")
    assert "Read-only" in said(client, session.id) or "denied" in said(client, session.id)

    # Another one comes, and both go, while the session goes on.
    resources = client.beta.sessions.resources
    second = resources.add(session.id, type="file", file_id=upload(client, "more.csv", b"more"), mount_path="/in/more.csv")
    assert [resource.id for resource in resources.list(session.id)] == [given.id, second.id]
    assert [resource.id for resource in resources.list(session.id, limit=1)] == [given.id, second.id]
    assert resources.retrieve(given.id, session_id=session.id) == given
    run_turn(client, session.id, f"!bash cat {UPLOADS}/in/more.csv", "---", "!say done")
    assert said(client, session.id) == "more"
    with pytest.raises(anthropic.BadRequestError):
        resources.update(given.id, session_id=session.id, authorization_token="token")
    with pytest.raises(anthropic.BadRequestError):
        client.beta.files.delete(given.file_id)
    assert resources.delete(second.id, session_id=session.id).type == "session_resource_deleted"
    run_turn(client, session.id, f"!bash ls {UPLOADS}; cat {UPLOADS}/in/more.csv", "---", "!say done")
    assert said(client, session.id).startswith("data.csv") and MISSING in said(client, session.id)

    # What it makes comes out.
    run_turn(client, session.id, "!bash echo first >/mnt/session/outputs/report.txt", "---", "!say done")
    report = wait(service, lambda: scoped(client, session.id).get("report.txt"), "the report")
    assert (report.downloadable, report.mime_type, report.scope.id) == (True, "text/plain", session.id)
    assert client.beta.files.download(report.id).read() == b"first\n"
    assert sorted(scoped(client, session.id)) == ["data.csv", "report.txt"]
    run_turn(client, session.id, "!bash echo second >/mnt/session/outputs/report.txt", "---", "!say done")
    changed = wait(
        service, lambda: [file for file in [scoped(client, session.id).get("report.txt")] if file and file.id != report.id], "a change"
    )
    assert client.beta.files.download(changed[0].id).read() == b"second\n"
    with pytest.raises(anthropic.NotFoundError):
        client.beta.files.download(report.id)

    client.beta.sessions.delete(session.id)
    for gone in (given.file_id, changed[0].id):
        with pytest.raises(anthropic.NotFoundError):
            client.beta.files.retrieve_metadata(gone)
    assert client.beta.files.download(original).read() == b"name,age\nAda,36\n"


def test_what_cannot_be_mounted_is_refused(client: anthropic.Anthropic, environment_id: str, unique: str) -> None:
    file_id = upload(client, "data.csv", b"x")
    for path in ("/../x", "/a/../x", "/folder/"):
        with pytest.raises(anthropic.BadRequestError) as refused:
            new_session(client, environment_id, resources=[{"type": "file", "file_id": file_id, "mount_path": path}])
        assert "resources[0].mount_path" in (refused.value.api_message or "")
    with pytest.raises(anthropic.NotFoundError):
        new_session(client, environment_id, resources=[{"type": "file", "file_id": "file_01aaaaaaaaaaaaaaaaaaaaaa"}])
    own = client.beta.environments.create(name=f"own {unique}", config={"type": "self_hosted"})
    with pytest.raises(anthropic.BadRequestError) as refused:
        new_session(client, own.id, resources=[{"type": "file", "file_id": file_id}])
    assert "self-hosted" in (refused.value.api_message or "")


@pytest.fixture
def pool(request: pytest.FixtureRequest, database: str) -> Iterator[Service]:
    """A server without a worker of its own, and with a place for files."""
    service = Service(database_url(request, database), {"AGENT_WORKER_KEY": WORKER_KEY})
    if database == "postgresql":
        service.settings["OBJECT_STORE_URL"] = str(service.folder / "objects")
    service.start()
    yield service
    service.close()


def test_another_worker_mounts_the_same_and_sends_nothing_twice(pool: Service, unique: str) -> None:
    client = pool.client()
    first = PoolWorker(pool.url).start()
    try:
        given = upload(client, "data.csv", b"given")
        session = new_session(client, new_environment(client, unique), resources=[{"type": "file", "file_id": given}])
        path = session.resources[0].mount_path
        assert path == f"{UPLOADS}/{given}"
        run_turn(client, session.id, f"!bash cat {path} | tee /mnt/session/outputs/copy.txt", "---", "!say done")
        before = wait(pool, lambda: scoped(client, session.id).get("copy.txt"), "the copy")
        # In good order, so that the next one has all files.
        first.stop()
    finally:
        first.close()
    second = PoolWorker(pool.url).start()
    try:
        turn = ("!bash cat /mnt/session/outputs/copy.txt; echo new >/mnt/session/outputs/new.txt", "---")
        run_turn(client, session.id, *turn, f"!bash cat {path}", "---", "!say done")
        assert [text for text in [said(client, session.id)]] == ["given"]
        wait(pool, lambda: scoped(client, session.id).get("new.txt"), "a new file")
        files = list(client.beta.files.list(scope_id=session.id))
        assert sorted(file.filename for file in files) == ["copy.txt", "data.csv", "new.txt"]
        assert scoped(client, session.id)["copy.txt"].id == before.id
    finally:
        second.close()
