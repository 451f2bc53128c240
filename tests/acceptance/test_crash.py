"""The server dies at every append of a turn, before and after it is durable, and is started again.

`AGENT_FAILPOINT=append:N:before|after` ends the process like a SIGKILL at its N-th append. N rises until a turn gets
through alive, so a new append in the path is found without changing this file.
"""

from collections.abc import Callable
from typing import Any

import anthropic
import pytest

import shapes
from conftest import new_environment
from service import Service
from test_tools import confirm
from turns import (
    TOOLSET,
    WAIT_SECONDS_MAX,
    Listener,
    ask_for,
    described,
    history,
    message,
    of_type,
    results,
    run_turn,
    text,
    wait_status,
)

APPENDS_MAX = 40
# One line a run, so that a second run shows.
SCRIPT = ["!bash echo ran >> counter; cat counter", "---", "!say done"]
COUNT = ["!bash touch counter; wc -l < counter", "---", "!say counted"]
LOST = (anthropic.APIConnectionError, anthropic.InternalServerError)


def send_once(client: anthropic.Anthropic, session_id: str, event: dict[str, Any], known: Callable[[Any], bool]) -> bool:
    """Sends `event` unless the history has it already; whether it was acknowledged."""
    if any(known(listed) for listed in history(client, session_id)):
        return True
    try:
        client.beta.sessions.events.send(session_id, events=[event])
        return True
    except LOST:
        return False


def is_message(event: Any) -> bool:
    return event.type == "user.message" and text(event) == "\n".join(SCRIPT)


def play(client: anthropic.Anthropic, session_id: str, asks: bool) -> None:
    """Drives the session to the end of its turn, from wherever it stands. Raises `LOST` when the server dies."""
    if not send_once(client, session_id, message(*SCRIPT), is_message):
        raise anthropic.APIConnectionError(request=None)  # type: ignore[arg-type]
    while True:
        session = wait_status(client, session_id, "idle")
        idle = of_type(history(client, session_id), "session.status_idle")
        if not idle or idle[-1].stop_reason.type != "requires_action":
            return
        assert asks, f"nothing was to be asked: {described(history(client, session.id))}"
        for call in idle[-1].stop_reason.event_ids:
            if not send_once(
                client, session_id, confirm(call, "allow"), lambda event: getattr(event, "tool_use_id", None) == call
            ):
                raise anthropic.APIConnectionError(request=None)  # type: ignore[arg-type]


def survives(service: Service, agent_id: str, environment_id: str, failpoint: str, asks: bool) -> bool:
    """Plays one turn over one death; False when the turn got through without dying."""
    client = service.client(max_retries=0)
    session = client.beta.sessions.create(agent=agent_id, environment_id=environment_id)
    service.kill()

    service.start(AGENT_FAILPOINT=failpoint)
    client = service.client(max_retries=0)
    listener = Listener(client, session.id)
    died = False
    try:
        play(client, session.id, asks)
    except LOST:
        service.wait_dead(WAIT_SECONDS_MAX)
        died = True
    listener.close()
    # Whoever saw an event, or was told that it is stored, may rely on it.
    seen = {event.id for event in listener.events if getattr(event, "processed_at", None) is not None}
    # What follows is no part of the turn: no failpoint any more.
    service.kill()
    service.start()
    client = service.client()
    if died:
        play(client, session.id, asks)

    listed = history(client, session.id)
    story = described(listed)
    shapes.check_history(listed)
    shapes.check_calls(listed)
    assert seen <= {event.id for event in listed}, "an event that was streamed is lost"
    assert len([event for event in listed if is_message(event)]) == 1, story
    assert len(of_type(listed, "agent.tool_use")) == 1, story
    assert len(of_type(listed, "user.tool_confirmation")) == (1 if asks else 0), story
    starts, ends = of_type(listed, "span.model_request_start"), of_type(listed, "span.model_request_end")
    assert [end.model_request_start_id for end in ends] == [start.id for start in starts], story
    assert [text(event) for event in of_type(listed, "agent.message")] == ["done"], story
    [result] = results(listed).values()

    [count] = results(run_count(client, session.id, asks)).values()
    runs = int(text(count))
    if result.is_error:
        assert "interrupted" in text(result).lower(), text(result)
        assert runs <= 1, f"ran {runs} times"
    else:
        assert runs == 1, f"reported as run, ran {runs} times"
        assert text(result) == "ran", text(result)
    return died


def run_count(client: anthropic.Anthropic, session_id: str, asks: bool) -> list[Any]:
    if not asks:
        return run_turn(client, session_id, *COUNT)
    with Listener(client, session_id) as listener:
        client.beta.sessions.events.send(session_id, events=[message(*COUNT)])
        idle = listener.wait_idle(reason="requires_action")
        client.beta.sessions.events.send(session_id, events=[confirm(idle.stop_reason.event_ids[0], "allow")])
        listener.wait_idle(reason="end_turn")
        return list(listener.events)


@pytest.mark.crash
@pytest.mark.parametrize("asks", [False, True], ids=["free", "confirmed"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_turn_survives_a_death_at_every_append(private_service: Service, unique: str, side: str, asks: bool) -> None:
    service = private_service.start()
    client = service.client()
    environment_id = new_environment(client, unique)
    agent = client.beta.agents.create(name="crash", model="demo", tools=[ask_for("bash") if asks else TOOLSET])
    failures: list[str] = []
    for number in range(1, APPENDS_MAX + 1):
        failpoint = f"append:{number}:{side}"
        try:
            if not survives(service, agent.id, environment_id, failpoint, asks):
                break
        except AssertionError as failure:
            failures.append(f"{failpoint}: {failure}")
            service.kill()
            service.start()
    else:
        failures.append(f"the turn still died at append {APPENDS_MAX}")
    assert number > 3, "the failpoint does not bite"
    assert not failures, "\n\n".join(failures)
