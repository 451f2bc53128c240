"""Nginx as `deploy/nginx` sets it up: streams at once, retries where they are safe and nowhere else."""

import http.server
import json
import threading
import uuid
from collections.abc import Iterator

import httpx
import pytest

from conftest import new_environment
from deployment import Deployment, Nginx, fixed_port
from turns import Listener, history, message, new_session, of_type, run_turn, text, wait_status

pytestmark = pytest.mark.usefixtures("nginx_installed")


class Upstream:
    """A replica that does what no real one does on demand: refuses, breaks off, counts what reached it."""

    def __init__(self, port: int, answer: str) -> None:
        self.reached: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        reached, kept = self.reached, self.headers

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(self) -> None:
                reached.append((self.command, self.path))
                kept.append({name.lower(): value for name, value in self.headers.items()})
                self.rfile.read(int(self.headers.get("content-length") or 0))
                if answer == "break":
                    self.close_connection = True
                    return
                body = json.dumps({"served": answer}).encode()
                self.send_response(503 if answer == "draining" else 200)
                if answer == "draining":
                    self.send_header("retry-after", "1")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = serve

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Nginx, Upstream, Upstream]]:
    """Nginx before one upstream that does as the test says and one that answers."""
    ports = [fixed_port(), fixed_port()]
    odd, good = Upstream(ports[0], request.param), Upstream(ports[1], "well")
    nginx = Nginx(ports).start()
    yield nginx, odd, good
    nginx.close()
    odd.close()
    good.close()


STREAMS = ["/v1/sessions/sesn_1/events/stream", "/v1/sessions/sesn_1/threads/sthr_1/stream"]


def test_nginx_accepts_the_configuration() -> None:
    nginx = Nginx([fixed_port(), fixed_port()])
    assert "[warn]" not in nginx.check()
    nginx.close()


@pytest.mark.parametrize("pair", ["draining"], indirect=True)
@pytest.mark.parametrize("path", STREAMS)
def test_opening_a_stream_is_tried_elsewhere(pair: tuple[Nginx, Upstream, Upstream], path: str) -> None:
    nginx, odd, _ = pair
    # The one that answers 503 is asked by at least one of two, and nobody hears of it.
    for _ in range(2):
        assert httpx.get(nginx.url + path).json() == {"served": "well"}
    assert odd.reached


@pytest.mark.parametrize("pair", ["draining"], indirect=True)
def test_any_other_503_is_an_answer(pair: tuple[Nginx, Upstream, Upstream]) -> None:
    nginx, _, good = pair
    answers = [httpx.request(method, nginx.url + "/v1/sessions") for method in ("GET", "GET", "POST", "POST")]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
    assert len(good.reached) == 2


@pytest.mark.parametrize("pair", ["break"], indirect=True)
def test_a_post_that_was_sent_is_never_sent_again(pair: tuple[Nginx, Upstream, Upstream]) -> None:
    nginx, odd, good = pair
    paths = [f"/v1/sessions/sesn_{number}/events" for number in range(8)]
    answers = [httpx.post(nginx.url + path, json={}) for path in paths]
    broken = [path for path, answer in zip(paths, answers) if answer.status_code == 502]
    assert broken and sorted(odd.reached + good.reached) == sorted(("POST", path) for path in paths)
    refused = next(answer for answer in answers if answer.status_code == 502)
    assert refused.json()["error"] == {"type": "api_error", "message": "no replica answered"}
    # What may be sent twice is.
    for path in paths:
        assert httpx.get(nginx.url + path).status_code == 200


@pytest.mark.parametrize("pair", ["well"], indirect=True)
def test_what_clients_may_not_say_or_reach(pair: tuple[Nginx, Upstream, Upstream]) -> None:
    nginx, odd, good = pair
    httpx.get(nginx.url + "/v1/sessions", headers={"x-agent-track": "canary", "x-request-id": "chosen"})
    [headers] = odd.headers + good.headers
    assert "x-agent-track" not in headers
    assert headers["x-request-id"] != "chosen"
    for path in ("/v1/internal/workspaces/ended", "/v1//internal/workspaces/ended", "/v1/%69nternal/x", "/metrics"):
        refused = httpx.post(nginx.url + path)
        assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found_error"), path
    assert httpx.post(nginx.workers_url + "/v1/internal/workspaces/ended").status_code == 200
    assert httpx.get(nginx.workers_url + "/metrics").status_code == 404
    large = httpx.post(nginx.url + "/v1/sessions", content=b"x" * (34 << 20))
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    assert httpx.post(nginx.url + "/v1/files", content=b"x" * (34 << 20)).status_code == 200
    assert not [path for _, path in odd.reached + good.reached if "metrics" in path]


def test_a_stream_arrives_as_it_is_written(deployment: Deployment, unique: str) -> None:
    client = deployment.client()
    session = new_session(client, new_environment(client, unique))
    headers = {"accept": "application/json"}
    with deployment.http().stream(
        "GET", f"/v1/sessions/{session.id}/events/stream?event_deltas[]=agent.message", headers=headers
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = response.iter_raw()
        # The greeting alone, before there is anything to fill a buffer with.
        assert next(chunks) == b": connected\n\n"
        client.beta.sessions.events.send(session.id, events=[message("!say first", "!wait 60000")])
        seen = b""
        # The model is not done for a minute; what it began with is here.
        while b"span.model_request_start" not in seen:
            seen += next(chunks)
    assert client.beta.sessions.retrieve(session.id).status == "running"
    client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])


def test_a_reload_cuts_no_stream(deployment: Deployment, unique: str) -> None:
    client = deployment.client()
    session = new_session(client, new_environment(client, unique))
    with Listener(client, session.id) as listener:
        deployment.nginx.reload()
        # A client that connects now is served by the new processes.
        run_turn(deployment.client(), session.id, "!say after")
        listener.wait_idle(reason="end_turn")


def test_a_killed_replica_costs_reads_nothing_and_no_post_is_doubled(private_deployment: Deployment, unique: str) -> None:
    deployment = private_deployment.start()
    client = deployment.client(max_retries=0)
    session = new_session(client, new_environment(client, unique))
    done = threading.Event()
    failed: list[str] = []
    sent: list[str] = []
    unsure: list[str] = []

    def read() -> None:
        with deployment.http() as http:
            while not done.is_set():
                answer = http.get(f"/v1/sessions/{session.id}")
                if answer.status_code != 200:
                    failed.append(f"{answer.status_code}: {answer.text}")

    def write() -> None:
        with deployment.http() as http:
            while not done.is_set():
                words = f"!say {uuid.uuid4().hex}"
                answer = http.post(f"/v1/sessions/{session.id}/events", json={"events": [message(words)]})
                (sent if answer.status_code == 200 else unsure).append(words)

    threads = [threading.Thread(target=target) for target in (read, read, write, write)]
    for thread in threads:
        thread.start()
    try:
        for replica in deployment.replicas:
            reached = len(sent)
            replica.kill()
            while len(sent) < reached + 5:
                threading.Event().wait(0.01)
            replica.start()
            # Nginx passes it over for a moment more, and must not lose the next one meanwhile.
            deployment.nginx.wait_served_by(replica)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failed, failed
    # A message that waits is listed last and moves once it is its turn: between two pages, it would be seen twice.
    wait_status(client, session.id, "idle")
    said = [text(event) for event in of_type(history(client, session.id), "user.message")]
    assert len(said) == len(set(said)), "a message is there twice"
    assert set(sent) <= set(said) <= set(sent) | set(unsure)
    assert len(unsure) <= 2 * len(deployment.replicas), "only what was under way may be lost"
