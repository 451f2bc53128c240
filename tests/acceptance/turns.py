"""Running turns through the SDK, and reading what they did.

A script for the `demo` model is ordinary message text: lines that start with `!` are its directives, `---` stands
between two model responses.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import anthropic

WAIT_SECONDS_MAX = float(os.environ.get("ACCEPTANCE_WAIT_SECONDS", "90"))
TOOLSET = {"type": "agent_toolset_20260401"}


def ask_for(*names: str) -> dict[str, Any]:
    """The toolset with these tools under `always_ask`."""
    configs = [{"name": name, "permission_policy": {"type": "always_ask"}} for name in names]
    return {**TOOLSET, "configs": configs}


def custom_tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "custom", "name": name, "description": "Tells the weather of a city.", "input_schema": schema}


def new_session(client: anthropic.Anthropic, environment_id: str, tools: list[dict[str, Any]] | None = None, **more: Any):
    agent = client.beta.agents.create(name="acceptance", model="demo", tools=[TOOLSET] if tools is None else tools)
    return client.beta.sessions.create(agent=agent.id, environment_id=environment_id, **more)


def message(*lines: str) -> dict[str, Any]:
    return {"type": "user.message", "content": [{"type": "text", "text": "\n".join(lines)}]}


class Listener:
    """An open stream, read by a thread of its own. When the constructor returns, nothing later is missed."""

    def __init__(self, client: anthropic.Anthropic, session_id: str, **options: Any) -> None:
        self.events: list[Any] = []
        self.failure: BaseException | None = None
        self.ended = False
        self._changed = threading.Condition()
        self._stream = client.beta.sessions.events.stream(session_id, **options)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        except BaseException as failure:
            self.failure = failure
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def wait_for(self, wanted: Callable[[list[Any]], Any], what: str = "") -> Any:
        """Waits until `wanted`, given the events so far, returns something true; returns that."""
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        with self._changed:
            while True:
                if found := wanted(self.events):
                    return found
                left = deadline - time.monotonic()
                if self.ended or left <= 0:
                    reason = f"the stream ended ({self.failure})" if self.ended else "time is up"
                    raise AssertionError(f"{reason}; waited for {what or wanted}; saw {described(self.events)}")
                self._changed.wait(left)

    def wait_idle(self, count: int = 1, reason: str | None = None) -> Any:
        """Waits for the `count`-th `session.status_idle` (with this stop reason); returns it."""

        def wanted(events: list[Any]) -> Any:
            idle = [event for event in events if event.type == "session.status_idle"]
            idle = [event for event in idle if reason is None or event.stop_reason.type == reason]
            return idle[count - 1] if len(idle) >= count else None

        return self.wait_for(wanted, f"idle number {count} with {reason or 'any reason'}")

    def wait_type(self, type_: str, count: int = 1) -> Any:
        def wanted(events: list[Any]) -> Any:
            found = [event for event in events if event.type == type_]
            return found[count - 1] if len(found) >= count else None

        return self.wait_for(wanted, f"{type_} number {count}")

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_turn(client: anthropic.Anthropic, session_id: str, *lines: str, reason: str = "end_turn") -> list[Any]:
    """Sends one message and returns every streamed event up to the idle that ends the turn."""
    with Listener(client, session_id) as listener:
        client.beta.sessions.events.send(session_id, events=[message(*lines)])
        listener.wait_idle(reason=reason)
        return list(listener.events)


def history(client: anthropic.Anthropic, session_id: str, **options: Any) -> list[Any]:
    return list(client.beta.sessions.events.list(session_id, **options))


def wait_status(client: anthropic.Anthropic, session_id: str, status: str) -> Any:
    """Waits until the session shows this status, without a stream."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        session = client.beta.sessions.retrieve(session_id)
        if session.status == status:
            return session
        if time.monotonic() > deadline:
            types = [event.type for event in history(client, session_id)]
            raise AssertionError(f"the session is {session.status}, not {status}; its history: {types}")
        threading.Event().wait(0.05)


def types(events: Iterable[Any]) -> list[str]:
    return [event.type for event in events]


def of_type(events: Iterable[Any], type_: str) -> list[Any]:
    return [event for event in events if event.type == type_]


def text(event: Any) -> str:
    """The text of an event's content blocks."""
    return "".join(block.text for block in event.content or [] if block.type == "text")


def results(events: Iterable[Any]) -> dict[str, Any]:
    """Tool results by the id of the call that they answer; a second result for one call is an error."""
    found: dict[str, Any] = {}
    for event in of_type(events, "agent.tool_result"):
        assert event.tool_use_id not in found, f"two results for {event.tool_use_id}"
        found[event.tool_use_id] = event
    return found


def described(events: Iterable[Any]) -> list[str]:
    """Types with what tells two events of one type apart, for messages of failed tests."""
    out = []
    for event in events:
        extra = ""
        if reason := getattr(event, "stop_reason", None):
            extra = f"{{{getattr(reason, 'type', reason)}}}"
        if event.type.startswith("user.") and getattr(event, "processed_at", None) is None:
            extra += "(waiting)"
        out.append(event.type + extra)
    return out
