"""What no honest client would send, on every route: the answer is a typed refusal, and the server goes on.

The routes come from `agent-service openapi`, so that a new one is swept without changing this file.
"""

import gzip
import itertools
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from service import Service, executable
from turns import history, message, new_session, of_type, run_turn, text

pytestmark = pytest.mark.hostile

FOREIGN = {
    "agent": "agent_01aaaaaaaaaaaaaaaaaaaaaa",
    "environment": "env_01aaaaaaaaaaaaaaaaaaaaaa",
    "session": "sesn_01aaaaaaaaaaaaaaaaaaaaaa",
    "thread": "sthr_01aaaaaaaaaaaaaaaaaaaaaa",
    "work": "work_01aaaaaaaaaaaaaaaaaaaaaa",
}
BAD_SEGMENTS = ["%00", "%ff%fe", "..%2f..%2fetc%2fpasswd", "a" * 5000, "%F0%9F%8E%89", "sesn_", "'%20OR%201=1--", "%0d%0aX:%201", "-1"]
BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "truncated": b'{"name": ',
    "a list": b"[]",
    "null": b"null",
    "a text": b'"x"',
    "a number": b"1e400",
    "invalid UTF-8": b'{"name": "\xff\xfe"}',
    "a lone surrogate": b'{"name": "\\ud800"}',
    "an unknown field": b'{"no_such_field": 1}',
    "twice the same field": b'{"name": "a", "name": "b"}',
    "deep": b"[" * 100_000,
    "deep in a field": b'{"metadata": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "something behind the end": b'{"name": "a"} trailing',
}
BAD_QUERIES = [
    "limit=0",
    "limit=-1",
    "limit=many",
    "limit=99999999999999999999",
    "page=garbage",
    "page=%00",
    "page=%ff",
    "no_such_parameter=1",
    "order=sideways",
    "created_at%5Bgte%5D=yesterday",
    "types%5B%5D=session.nonsense",
    "statuses%5B%5D=nonsense",
    "limit=1&limit=2",
    "include_archived=perhaps",
]


def routes() -> list[tuple[str, str]]:
    output = subprocess.run([executable(), "openapi"], capture_output=True, text=True, check=True, timeout=60).stdout
    paths = json.loads(output)["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods if method in ("get", "post", "delete", "patch", "put")]
    assert len(found) > 25, "the description names too few routes"
    return [(method, path) for method, path in found if path.startswith("/v1/")]


def filled(path: str, value: Any) -> str:
    """`path` with every parameter replaced by `value` of its name."""
    out = []
    for segment in path.split("/"):
        out.append(value(segment.strip("{}")) if segment.startswith("{") else segment)
    return "/".join(out)


def foreign(name: str) -> str:
    return next((id_ for kind, id_ in FOREIGN.items() if name.startswith(kind)), "x_01aaaaaaaaaaaaaaaaaaaaaa")


def refused(answer: httpx.Response, what: str) -> None:
    """Fails unless this is a refusal that a client can understand."""
    assert 400 <= answer.status_code < 500 or answer.status_code == 501, f"{what}: {answer.status_code} {answer.text[:300]}"
    typed(answer, what)


def typed(answer: httpx.Response, what: str) -> None:
    assert answer.headers.get("request-id", "").startswith("req_"), f"{what}: {answer.status_code} without request-id"
    body = answer.json()
    assert body["type"] == "error", what
    assert body["error"]["type"].endswith("_error") or body["error"]["type"] == "request_too_large", (what, body)
    assert body["error"]["message"], what
    assert body["request_id"] == answer.headers["request-id"], what


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with service.http() as http:
        yield http
        # Whatever was sent, the server still serves.
        assert http.get("/health").status_code == 200
        assert http.get("/v1/agents", params={"limit": 1}).status_code == 200


def send(http: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    """Like `http.request`, reading a stream's body only when it was refused."""
    with http.stream(method, path, **options) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return httpx.Response(answer.status_code, headers=answer.headers)
        answer.read()
        return answer


def test_foreign_ids_are_refused_on_every_route(http: httpx.Client) -> None:
    for method, path in routes():
        if "{" in path:
            body = {"json": {}} if method != "GET" else {}
            refused(send(http, method, filled(path, foreign), **body), f"{method} {path}")


def test_bad_segments_are_refused_on_every_route(http: httpx.Client) -> None:
    for (method, path), segment in itertools.product(routes(), BAD_SEGMENTS):
        if "{" in path:
            refused(send(http, method, filled(path, lambda _: segment)), f"{method} {path} with {segment[:30]}")


def test_bad_bodies_are_refused_on_every_route(http: httpx.Client) -> None:
    for (method, path), (name, body) in itertools.product(routes(), BAD_BODIES.items()):
        if method in ("POST", "PATCH"):
            headers = {"content-type": "application/json"}
            refused(send(http, method, filled(path, foreign), content=body, headers=headers), f"{method} {path} with {name}")


def test_bad_bodies_for_real_ids_never_fail_the_server(http: httpx.Client, client: anthropic.Anthropic, environment_id: str) -> None:
    for method, path in routes():
        if method not in ("POST", "PATCH") or "{" not in path:
            continue
        for name, body in BAD_BODIES.items():
            if name == "empty":
                continue
            session = new_session(client, environment_id)
            thread = list(client.beta.sessions.threads.list(session.id))[0]
            real = {"agent": session.agent.id, "environment": environment_id, "session": session.id, "thread": thread.id}
            target = filled(path, lambda part: next((id_ for kind, id_ in real.items() if part.startswith(kind)), foreign(part)))
            answer = send(http, method, target, content=body, headers={"content-type": "application/json"})
            refused(answer, f"{method} {path} with {name}")


def test_bad_queries_are_refused_on_every_route(http: httpx.Client, client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    thread = list(client.beta.sessions.threads.list(session.id))[0]
    real = {"agent": session.agent.id, "environment": environment_id, "session": session.id, "thread": thread.id}
    for (method, path), query in itertools.product(routes(), BAD_QUERIES):
        if method == "GET":
            target = filled(path, lambda part: next((id_ for kind, id_ in real.items() if part.startswith(kind)), foreign(part)))
            refused(send(http, method, f"{target}?{query}"), f"{method} {path}?{query}")


def test_unknown_methods_are_refused_on_every_route(http: httpx.Client) -> None:
    for path in sorted({path for _, path in routes()}):
        refused(send(http, "PUT", filled(path, foreign), json={}), f"PUT {path}")


def test_no_key_no_answer_on_every_route(service: Service) -> None:
    with httpx.Client(base_url=service.url) as stranger:
        for method, path in routes():
            answer = send(stranger, method, filled(path, foreign))
            assert answer.status_code == 401, f"{method} {path}: {answer.status_code}"
            typed(answer, f"{method} {path}")


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "", "x", [], [1], {}, {"a": 1}, "\u0000", "x" * 200_000], ids=repr)
def test_no_wrong_type_fails_the_server(http: httpx.Client, environment_id: str, value: Any) -> None:
    fields = {
        "/v1/agents": ["name", "model", "system", "description", "tools", "mcp_servers", "skills", "multiagent", "metadata"],
        "/v1/environments": ["name", "description", "config", "metadata", "scope"],
        "/v1/sessions": ["agent", "environment_id", "title", "metadata", "resources", "vault_ids", "initial_events", "budget"],
    }
    good = {
        "/v1/agents": {"name": "fine", "model": "demo"},
        "/v1/environments": {"name": "fine"},
        "/v1/sessions": {"agent": "agent_1", "environment_id": environment_id},
    }
    for path, names in fields.items():
        for name in names:
            answer = http.post(path, json={**good[path], name: value})
            if answer.status_code == 200:
                created = answer.json()
                http.post(f"{path}/{created['id']}/archive")
            else:
                refused(answer, f"{path} with {name}")


def test_a_body_too_large_is_refused(http: httpx.Client) -> None:
    body = b'{"name": "' + b"x" * (33 * 1024 * 1024) + b'", "model": "demo"}'
    try:
        answer = http.post("/v1/agents", content=body, headers={"content-type": "application/json"})
    except (httpx.WriteError, httpx.ReadError):
        return  # The server may hang up on a body that it does not read.
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "request_too_large"
    typed(answer, "too large")


def test_a_bomb_of_gzip_is_refused(http: httpx.Client) -> None:
    bomb = gzip.compress(b'{"name": "' + b"x" * (64 * 1024 * 1024) + b'"}')
    answer = http.post("/v1/agents", content=bomb, headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert answer.status_code == 413
    assert answer.json()["error"]["details"]["error_code"] == "request_body_too_large_after_decoding"


@pytest.mark.parametrize(
    ("encoding", "code"), [("gzip", "request_body_encoding_invalid"), ("snappy", "request_body_encoding_unsupported")]
)
def test_a_bad_encoding_is_named(http: httpx.Client, encoding: str, code: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = http.post("/v1/agents", content=b"not encoded at all", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["error_code"] == code


def test_an_honest_gzip_body_is_read(http: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = http.post("/v1/agents", content=gzip.compress(b'{"name": "zipped", "model": "demo"}'), headers=headers)
    assert answer.status_code == 200, answer.text


def test_cursors_of_another_list_are_refused(http: httpx.Client, client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    other = new_session(client, environment_id)
    run_turn(client, session.id, "!say hello")
    lists = ["/v1/agents", "/v1/sessions", f"/v1/sessions/{session.id}/events", f"/v1/sessions/{other.id}/events"]
    cursors = {path: http.get(path, params={"limit": 1}).json()["next_page"] for path in lists[:3]}
    assert all(cursors.values()), cursors
    for (source, cursor), target in itertools.product(cursors.items(), lists):
        answer = http.get(target, params={"page": cursor})
        if source == target:
            assert answer.status_code == 200
        else:
            refused(answer, f"a cursor of {source} on {target}")
            assert answer.status_code == 400


def test_nul_and_odd_text_come_back_or_are_refused(http: httpx.Client, client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    odd = ["a\u0000b", "\u202etxt.exe", "\ufeffx", "e\u0301", "\U0001f3f4\u200d\u2620\ufe0f", "\u0007\u001b[31m"]
    for said in odd:
        answer = http.post(f"/v1/sessions/{session.id}/events", json={"events": [message(f"!say fine\n{said}")]})
        if answer.status_code == 200:
            [stored] = answer.json()["data"]
            assert stored["content"][0]["text"] == f"!say fine\n{said}"
        else:
            refused(answer, repr(said))
    for title in odd:
        answer = http.post(f"/v1/sessions/{session.id}", json={"title": title})
        if answer.status_code == 200:
            assert http.get(f"/v1/sessions/{session.id}").json()["title"] == title
        else:
            refused(answer, repr(title))


def test_hostile_headers_are_refused(service: Service) -> None:
    for key in ("x" * 7000, "\u00e9".encode("latin-1"), "a b", "Bearer", "' OR '1'='1"):
        for header in ("x-api-key", "authorization"):
            answer = httpx.get(f"{service.url}/v1/agents", headers={header: key})
            assert answer.status_code == 401, (header, key)
            typed(answer, header)


def test_tool_input_is_data_and_nothing_else(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    calls = [
        '!tool bash {"command": 1}',
        "!tool bash {}",
        '!tool read {"file_path": "a\\u0000b"}',
        '!tool write {"file_path": "", "content": "x"}',
        '!tool edit {"file_path": "nothing", "old_string": "", "new_string": ""}',
        '!tool grep {"pattern": "("}',
        '!tool glob {"pattern": "/**"}',
    ]
    events = run_turn(client, session.id, *calls, "---", "!say still here")
    answers = of_type(events, "agent.tool_result")
    assert len(answers) == len(calls)
    assert all(answer.is_error for answer in answers), [text(answer)[:80] for answer in answers]
    assert history(client, session.id)[-1].type == "session.status_idle"


def test_fifty_megabytes_of_output_are_cut(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    events = run_turn(client, session.id, "!bash head -c 50000000 /dev/zero | tr '\\0' x; echo; echo end", "---", "!say done")
    [answer] = of_type(events, "agent.tool_result")
    assert len(text(answer)) < 150 * 1024
    assert text(answer).endswith("end"), "the last part is kept"
