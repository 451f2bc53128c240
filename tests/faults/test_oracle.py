"""The judge judged: each check passes a good history and names what is wrong with a bad one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

import oracle
from effects import confirmed
from ledger import Sent, SessionLedger

Event = dict[str, Any]


def story() -> tuple[SessionLedger, list[Event], dict[str, int]]:
    """A turn with one call, as a client saw it over two connections."""
    said = [{"type": "text", "text": "message m1\n!bash mark1"}]
    done = [{"type": "text", "text": confirmed("mark1")}]
    history: list[Event] = [
        {"id": "e0", "type": "session.status_running"},
        {"id": "e1", "type": "user.message", "content": said},
        {"id": "e2", "type": "span.model_request_start"},
        {"id": "e3", "type": "agent.tool_use", "input": {"command": "mark1"}},
        {"id": "e4", "type": "span.model_request_end", "model_request_start_id": "e2"},
        {"id": "e5", "type": "agent.tool_result", "tool_use_id": "e3", "content": done},
        {"id": "e6", "type": "session.status_idle"},
    ]
    for place, event in enumerate(history):
        event["processed_at"] = f"2026-01-01T00:00:0{place}Z"
    waiting = {**history[1], "processed_at": None}
    session = SessionLedger("sesn_1", sent=[Sent("m1", ["e1"])], effects=["mark1"])
    session.streams = [[waiting, *copy.deepcopy(history[:3])], copy.deepcopy(history[4:])]
    return session, history, {"mark1": 1}


def test_a_good_story_breaks_no_promise() -> None:
    assert not list(oracle.judge(*story()))


def lose_a_message(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    del history[1]
    session.streams.clear()


def double_a_message(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    history.append({**history[1], "id": "e7", "processed_at": "2026-01-01T00:00:09Z"})


def double_an_unsure_message(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    session.sent[0] = Sent("m1", None, unsure=True)
    double_a_message(session, history, effects)


def list_twice(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    history[5]["id"] = "e4"


def turn_time_back(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    history[4]["processed_at"] = history[3]["processed_at"]


def leave_waiting(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    history[1]["processed_at"] = None


def skip_in_a_stream(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    del session.streams[1][1]


def repeat_in_a_stream(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    session.streams[1].insert(1, session.streams[1][0])


def invent_in_a_stream(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    session.streams[0].append({"id": "e9", "type": "agent.message", "processed_at": "2026-01-01T00:00:03Z"})


def leave_a_request_open(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    session.streams.clear()
    del history[4]


def leave_a_turn_open(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    session.streams.clear()
    del history[6]


def leave_a_call_open(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    session.streams.clear()
    del history[5]


def run_twice(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    effects["mark1"] = 2


def only_say_so(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    effects["mark1"] = 0


def run_without_a_call(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    session.streams.clear()
    del history[3], history[4]


def journal(session: SessionLedger, history: list[Event], *told: str) -> None:
    """A call a text, each of which appends its mark and shows the file."""
    for number, text in enumerate(told):
        mark = f"j{number}"
        session.journal.append(mark)
        use = {"id": f"u{number}", "type": "agent.tool_use", "input": {"command": f"echo {mark} >>journal; cat journal"}}
        content = [{"type": "text", "text": text}]
        result = {"id": f"r{number}", "type": "agent.tool_result", "tool_use_id": use["id"], "content": content}
        for event in (use, result):
            history.insert(-1, {**event, "processed_at": history[-1]["processed_at"]})
    for place, event in enumerate(history):
        event["processed_at"] = f"2026-01-01T00:00:{place:02}Z"
    session.streams.clear()


def lose_a_line(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> None:
    journal(session, history, "j0", "j1")


def test_files_may_be_lost_when_the_model_is_told() -> None:
    session, history, effects = story()
    journal(session, history, "j0", "j0 j1", f"{oracle.LOST_FILES} j2", "the worker is gone", "j2 j4")
    assert not list(oracle.judge(session, history, effects))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lose_a_message, "acknowledgements: acknowledged and lost: e1"),
        (double_a_message, "acknowledgements: a message that was acknowledged is there 2 times"),
        (double_an_unsure_message, "acknowledgements: a message that was posted once is there 2 times"),
        (list_twice, "order: an id is listed twice"),
        (turn_time_back, "order: times do not rise"),
        (leave_waiting, "order: still waiting"),
        (skip_in_a_stream, "streams: connection 1 went from place 4 to 6"),
        (repeat_in_a_stream, "streams: connection 1 went from place 4 to 4"),
        (invent_in_a_stream, "streams: streamed and lost: agent.message e9"),
        (leave_a_request_open, "ends: 1 model requests began and 0 ended"),
        (leave_a_turn_open, "ends: the last turn did not end"),
        (leave_a_call_open, "calls: never answered"),
        (lose_a_line, "files: lost from a file in silence: ['j0']"),
        (run_twice, "tools: ran 2 times"),
        (only_say_so, "tools: reported as run, ran 0 times"),
        (run_without_a_call, "tools: ran without a call"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_named(spoil: Callable[..., None], check: str) -> None:
    session, history, effects = story()
    spoil(session, history, effects)
    violations = list(oracle.judge(session, history, effects))
    assert any(check in violation for violation in violations), violations
