"""Holds the ledger of the clients and the counts of the outside world against what the replicas tell at the end.

A pure judgement, once `read` has the histories: `judge` gives every violation as one line.
"""

from collections.abc import Iterator
from typing import Any

import httpx

from effects import confirmed
from ledger import Ledger, SessionLedger

Event = dict[str, Any]

# How the server tells a model that files were lost with a worker.
LOST_FILES = "[Notice from the server: the worker that held this session's files was lost."


def read(http: httpx.Client, session_id: str) -> list[Event]:
    """The whole history, as one replica tells it."""
    events: list[Event] = []
    query: dict[str, Any] = {"order": "asc", "limit": 1000}
    while True:
        answer = http.get(f"/v1/sessions/{session_id}/events", params=query)
        answer.raise_for_status()
        page = answer.json()
        events += page["data"]
        if not page.get("next_page"):
            return events
        query["page"] = page["next_page"]


def judge(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> Iterator[str]:
    """Every promise that this session's history breaks."""
    for check in (order, acknowledgements, streams, ends, calls, files):
        for violation in check(session, history):
            yield f"{session.id}: {check.__name__}: {violation}"
    for violation in tools(session, history, effects):
        yield f"{session.id}: tools: {violation}"


def order(_: SessionLedger, history: list[Event]) -> Iterator[str]:
    """One order, without repetition, everything processed."""
    ids = [event["id"] for event in history]
    if len(ids) != len(set(ids)):
        yield "an id is listed twice"
    times = [event["processed_at"] for event in history]
    if None in times:
        yield f"still waiting: {[event['type'] for event in history if event['processed_at'] is None]}"
    elif any(not earlier < later for earlier, later in zip(times, times[1:])):
        yield "times do not rise"


def acknowledgements(session: SessionLedger, history: list[Event]) -> Iterator[str]:
    """What was acknowledged is there once; what was not is there at most once."""
    ids = {event["id"] for event in history}
    texts = [text(event) for event in history if event["type"] == "user.message"]
    for sent in session.sent:
        for lost in set(sent.acknowledged or ()) - ids:
            yield f"acknowledged and lost: {lost}"
        count = sum(f"message {sent.mark}" in text for text in texts)
        if sent.acknowledged is not None and count != 1:
            yield f"a message that was acknowledged is there {count} times"
        if count > 1:
            yield f"a message that was posted once is there {count} times"


def streams(session: SessionLedger, history: list[Event]) -> Iterator[str]:
    """Each connection showed a part of the history without a gap, in its order, and nothing else."""
    places = {event["id"]: place for place, event in enumerate(history)}
    for number, seen in enumerate(session.streams):
        for event in seen:
            if event["id"] not in places:
                yield f"streamed and lost: {event['type']} {event['id']}"
        shown = [places[event["id"]] for event in seen if event.get("processed_at") and event["id"] in places]
        if shown and shown != list(range(shown[0], shown[0] + len(shown))):
            wrong = next(at for at, (left, right) in enumerate(zip(shown, shown[1:])) if right != left + 1)
            yield f"connection {number} went from place {shown[wrong]} to {shown[wrong + 1]} of the history"


def ends(_: SessionLedger, history: list[Event]) -> Iterator[str]:
    """Every turn and every span came to an end."""
    starts = [event["id"] for event in history if event["type"] == "span.model_request_start"]
    closed = [event["model_request_start_id"] for event in history if event["type"] == "span.model_request_end"]
    if sorted(starts) != sorted(closed):
        yield f"{len(starts)} model requests began and {len(closed)} ended"
    statuses = [event["type"] for event in history if event["type"] in ("session.status_running", "session.status_idle")]
    if statuses and statuses[-1] != "session.status_idle":
        yield "the last turn did not end"


def calls(_: SessionLedger, history: list[Event]) -> Iterator[str]:
    """Every call has one answer, later than itself."""
    waiting: set[str] = set()
    for event in history:
        if event["type"] == "agent.tool_use":
            waiting.add(event["id"])
        elif event["type"] == "agent.tool_result":
            if event["tool_use_id"] not in waiting:
                yield f"an answer to {event['tool_use_id']}, which does not wait for one"
            waiting.discard(event["tool_use_id"])
    if waiting:
        yield f"never answered: {sorted(waiting)}"


def files(session: SessionLedger, history: list[Event]) -> Iterator[str]:
    """What a result showed of a file is still there for the next one, unless the model was told that files were lost."""
    uses = {event["id"]: str(event["input"]) for event in history if event["type"] == "agent.tool_use"}
    known: set[str] = set()
    for event in history:
        if event["type"] != "agent.tool_result":
            continue
        told = text(event)
        if LOST_FILES in told:
            known.clear()
        shown = {mark for mark in session.journal if mark in told}
        wrote = any(mark in uses.get(event["tool_use_id"], "") for mark in shown)
        if wrote:
            if lost := known - shown:
                yield f"lost from a file in silence: {sorted(lost)}"
            known |= shown


def tools(session: SessionLedger, history: list[Event], effects: dict[str, int]) -> Iterator[str]:
    """Nothing ran twice, and what is said to have run did."""
    results = {event["tool_use_id"]: event for event in history if event["type"] == "agent.tool_result"}
    uses = [event for event in history if event["type"] == "agent.tool_use"]
    for mark in session.effects:
        count = effects.get(mark, 0)
        made = [use for use in uses if mark in str(use["input"])]
        if count > 1:
            yield f"ran {count} times: {mark}"
        if len(made) > 1:
            yield f"{len(made)} calls of one script: {mark}"
        if count and not made:
            yield f"ran without a call: {mark}"
        for use in made:
            result = results.get(use["id"])
            if result is not None and confirmed(mark) in text(result) and count != 1:
                yield f"reported as run, ran {count} times: {mark}"


def text(event: Event) -> str:
    return "".join(block.get("text", "") for block in event.get("content") or [])
