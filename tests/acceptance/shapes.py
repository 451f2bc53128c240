"""Whether what the server sends is what the SDK's types say.

The SDK builds its objects without checking them: a missing field reads as `None` and a wrong one as whatever came.
Here the same classes are made to validate, so that a wrong shape is found where it is sent and not where it hurts.
"""

from collections.abc import Iterable
from typing import Any

import pydantic


def check(thing: Any) -> None:
    """Fails unless `thing`, an object of the SDK, satisfies its own class."""
    raw = thing.to_dict(mode="json")
    try:
        type(thing).model_validate(raw)
    except pydantic.ValidationError as error:
        raise AssertionError(f"{type(thing).__name__} is not well formed: {error}\n{raw}") from None


def check_all(things: Iterable[Any]) -> None:
    for thing in things:
        check(thing)


def check_history(events: list[Any]) -> None:
    """What holds for every list of events in ascending order: shapes, unique ids, strictly rising times."""
    check_all(events)
    ids = [event.id for event in events]
    assert len(ids) == len(set(ids)), "an id is listed twice"
    times = [event.processed_at for event in events if event.processed_at is not None]
    assert all(earlier < later for earlier, later in zip(times, times[1:])), f"times do not rise: {times}"
    waiting = [event.processed_at is None for event in events]
    assert waiting == sorted(waiting), "a waiting event is listed before a processed one"


def check_calls(events: list[Any]) -> None:
    """Every call of a finished turn has exactly one answer, and the answer comes later."""
    answers = {"agent.tool_result": "tool_use_id", "user.custom_tool_result": "custom_tool_use_id", "user.tool_result": "tool_use_id"}
    open_calls: set[str] = set()
    for event in events:
        if event.type in ("agent.tool_use", "agent.custom_tool_use"):
            open_calls.add(event.id)
        elif event.type in answers:
            call = getattr(event, answers[event.type])
            assert call in open_calls, f"{event.type} answers {call}, which is not open"
            open_calls.remove(call)
        elif event.type == "span.model_request_start":
            assert not open_calls, f"a model request starts while {open_calls} are open"
    assert not open_calls, f"never answered: {open_calls}"
