"""The clients: each opens sessions, follows them, talks to them, and writes down what it was told.

They speak HTTP as the API describes it, with the patience of the official SDK's helpers: what is safe to ask again
they ask again, a stream that ends is opened again after half a second, doubling to ten. A message is posted once, or
with an `Idempotency-Key` until there is an answer.
"""

import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from effects import Effects
from ledger import Ledger, Sent, SessionLedger
from service import API_KEY

HEADERS = {"x-api-key": API_KEY, "anthropic-version": "2023-06-01"}
# Longer than the pause between two pings, so that silence is a fault; longer than Nginx waits for a replica.
TIMEOUT = httpx.Timeout(45, connect=5)
TURN_SECONDS_MAX = 60.0
PREVIEWS = ("ping", "event_start", "event_delta")
# Answers that say: not now. Anything else that is no success is a fault of the server.
TRANSIENT = (429, 500, 502, 503, 504)


def named(what: str, answer: httpx.Response) -> str:
    """How a refusal is counted: one that says when to come back apart from one that does not."""
    told = "" if "retry-after" in answer.headers else " without retry-after"
    return f"{what}: {answer.status_code}{told}"


class Stopped(Exception):
    """The run is over."""


class Client(threading.Thread):
    """One client, with a random choice of its own."""

    def __init__(self, url: str, agents: dict[str, str], environment_id: str, effects: Effects, ledger: Ledger, seed: int) -> None:
        super().__init__(daemon=True)
        self._http = httpx.Client(base_url=url, headers=HEADERS, timeout=TIMEOUT, limits=httpx.Limits(max_connections=None))
        self._agents, self._environment_id = agents, environment_id
        self._effects, self._ledger = effects, ledger
        self._random = random.Random(seed)
        self.stopping = threading.Event()
        self.failures: list[str] = []

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._live()
        except Stopped:
            pass
        except BaseException as failure:
            self.failures.append(f"a client failed: {failure!r}")
            raise

    def _live(self) -> None:
        """One session from its creation on."""
        kind = self._random.choices(["free", "asks", "provider"], [6, 1, 2])[0]
        body = {"agent": self._agents[kind], "environment_id": self._environment_id}
        created = self._ask("create a session", lambda: self._http.post("/v1/sessions", json=body))
        session = self._ledger.session(created["id"])
        follower = Follower(self._http, session, self._ledger)
        follower.start()
        try:
            for _ in range(self._random.randint(2, 5)):
                if self.stopping.is_set() or not self._turn(session, kind):
                    return
        finally:
            follower.finishing.set()

    def _turn(self, session: SessionLedger, kind: str) -> bool:
        """One message, and what belongs to it; whether the session may be talked to further."""
        lines, then = self._script(session, kind)
        self._say(session, *lines)
        if then == "interrupt":
            self.stopping.wait(self._random.uniform(0.1, 1.5))
            self._send(session, Sent(""), {"type": "user.interrupt"})
        if then == "again":
            self.stopping.wait(self._random.uniform(0.0, 1.0))
            self._say(session, "!say and again")
        return self._wait_idle(session)

    def _script(self, session: SessionLedger, kind: str) -> tuple[list[str], str]:
        def effect(before: str = "") -> str:
            mark = uuid.uuid4().hex
            session.effects.append(mark)
            return f"!bash {before}{self._effects.command(mark)}"

        pick = self._random
        if kind == "provider":
            return ["tell me something"], "nothing"
        if kind == "asks":
            return [effect(), "---", "!say asked"], "nothing"
        shape = pick.choices(
            ["say", "stream", "wait", "effect", "files", "two", "slow", "read", "large", "fail", "interrupt", "again"],
            [2, 2, 4, 4, 4, 2, 2, 1, 1, 1, 1, 1],
        )[0]
        match shape:
            case "say":
                return ["!say hello"], "nothing"
            case "stream":
                return ["!pace 20", f"!stream {pick.randint(10, 80)}"], "nothing"
            case "wait":
                return [f"!wait {pick.randint(300, 4000)}", "!say waited"], "nothing"
            case "effect":
                return [effect(), "---", "!say done"], "nothing"
            case "files":
                mark = uuid.uuid4().hex
                session.journal.append(mark)
                return [f"!bash echo {mark} >>journal; cat journal", "---", "!say written"], "nothing"
            case "two":
                return [effect(), effect(), "---", effect(), "---", "!say done"], "nothing"
            case "slow":
                return [effect(f"sleep {pick.uniform(0.5, 3):.1f}; "), "---", "!wait 500", "!say done"], "nothing"
            case "read":
                return ['!tool glob {"pattern": "*"}', "---", "!say looked"], "nothing"
            case "large":
                # More than a row holds: it goes where blobs go.
                return ["!bash head -c 100000 /dev/zero | tr '\\0' x", "---", "!say large"], "nothing"
            case "fail":
                return [f"!fail {pick.choice(['overloaded', 'rate_limited', 'cut'])} 1", "!say recovered"], "nothing"
            case "interrupt":
                return [effect("sleep 1; "), "---", f"!wait {pick.randint(500, 5000)}", "!say perhaps"], "interrupt"
        return [f"!wait {pick.randint(100, 1500)}", "!say first"], "again"

    def _say(self, session: SessionLedger, *lines: str) -> None:
        mark = uuid.uuid4().hex
        text = "\n".join([f"message {mark}", *lines])
        sent = Sent(mark)
        session.sent.append(sent)
        self._send(session, sent, {"type": "user.message", "content": [{"type": "text", "text": text}]})
        self._ledger.turn_sent()

    def _send(self, session: SessionLedger, sent: Sent, event: dict[str, Any]) -> None:
        """Posts an event, half of them with a key and then until there is an answer."""
        keyed = self._random.random() < 0.5
        headers = {"Idempotency-Key": str(uuid.uuid4())} if keyed else {}
        while True:
            try:
                answer = self._http.post(f"/v1/sessions/{session.id}/events", json={"events": [event]}, headers=headers)
            except httpx.HTTPError as failure:
                sent.unsure = True
                self._ledger.refused(f"post events: {type(failure).__name__}")
            else:
                if answer.status_code == 200:
                    sent.acknowledged = [taken["id"] for taken in answer.json()["data"]]
                    self._ledger.posted(keyed, "idempotent-replayed" in answer.headers)
                    return
                if answer.status_code not in TRANSIENT:
                    failure = f"{answer.status_code}: {answer.text[:300]}"
                    self.failures.append(f"{session.id}: an event was refused with {failure}")
                    return
                # A 503 of the server's own says that it was not taken, one of a proxy says nothing.
                sent.unsure = True
                self._ledger.refused(named("post events", answer))
            if not keyed or self.stopping.wait(self._random.uniform(0.1, 0.5)):
                return

    def _wait_idle(self, session: SessionLedger) -> bool:
        """Waits for the end of the turn, confirming what is asked; False when it takes longer than a turn may."""
        deadline = time.monotonic() + TURN_SECONDS_MAX
        confirmed: set[str] = set()
        while time.monotonic() < deadline:
            status = self._ask("retrieve a session", lambda: self._http.get(f"/v1/sessions/{session.id}"))["status"]
            if status == "idle":
                asked = self._asked(session) - confirmed
                if not asked:
                    return True
                for call in asked:
                    event = {"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"}
                    sent = Sent("")
                    self._send(session, sent, event)
                    if sent.acknowledged:
                        confirmed.add(call)
            if self.stopping.wait(0.15):
                raise Stopped
        return False

    def _asked(self, session: SessionLedger) -> set[str]:
        """Calls that wait for a confirmation."""
        query = {"order": "desc", "limit": 1, "types[]": "session.status_idle"}
        page = self._ask("list", lambda: self._http.get(f"/v1/sessions/{session.id}/events", params=query))
        reasons = [event["stop_reason"] for event in page["data"]]
        return {call for reason in reasons if reason["type"] == "requires_action" for call in reason["event_ids"]}

    def _ask(self, what: str, request: Callable[[], httpx.Response]) -> Any:
        """Asks until there is an answer: for what may be asked twice."""
        while True:
            try:
                answer = request()
                if answer.status_code == 200:
                    return answer.json()
                if answer.status_code not in TRANSIENT:
                    self.failures.append(f"{what}: {answer.status_code}: {answer.text[:300]}")
                    raise Stopped
                self._ledger.refused(named(what, answer))
            except httpx.HTTPError as failure:
                self._ledger.refused(f"{what}: {type(failure).__name__}")
            if self.stopping.wait(self._random.uniform(0.1, 0.5)):
                raise Stopped


class Follower(threading.Thread):
    """One session's stream, opened again whenever it ends."""

    def __init__(self, http: httpx.Client, session: SessionLedger, ledger: Ledger) -> None:
        super().__init__(daemon=True)
        self._http, self._session, self._ledger = http, session, ledger
        self.finishing = threading.Event()

    def run(self) -> None:
        pause = 0.5
        while not self.finishing.is_set():
            if self._follow():
                pause = 0.5
            if self.finishing.wait(pause):
                return
            pause = min(pause * 2, 10.0)

    def _follow(self) -> bool:
        """Reads one connection to its end; whether it was ever open."""
        opened = False
        try:
            with self._http.stream("GET", f"/v1/sessions/{self._session.id}/events/stream") as response:
                if response.status_code != 200:
                    self._ledger.refused(named("open a stream", response))
                    return False
                opened = True
                seen: list[dict[str, Any]] = []
                self._session.streams.append(seen)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        if event["type"] not in PREVIEWS:
                            seen.append(event)
                    if self.finishing.is_set():
                        return True
        except httpx.HTTPError as failure:
            self._ledger.refused(f"read a stream: {type(failure).__name__}")
        return opened
