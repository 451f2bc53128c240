"""Scenarios 5, 10, 11 and 16: turns as a stream shows them and as the history keeps them."""

from concurrent.futures import ThreadPoolExecutor

import anthropic
import pytest
from anthropic.lib.sessions import accumulate_managed_agents_event

import shapes
from turns import Listener, described, history, message, new_session, of_type, run_turn, text, types

PLAIN_TURN = [
    "session.status_running",
    "session.thread_status_running",
    "user.message",
    "span.model_request_start",
    "agent.message",
    "span.model_request_end",
    "session.thread_status_idle{end_turn}",
    "session.usage",
    "session.status_idle{end_turn}",
]


def test_a_plain_turn_has_the_documented_order(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as listener:
        sent = client.beta.sessions.events.send(session.id, events=[message("!say hello there")])
        listener.wait_idle()
        streamed = list(listener.events)
    [echo] = sent.data
    shapes.check_all(streamed)
    assert described(streamed) in (PLAIN_TURN, ["user.message(waiting)", *PLAIN_TURN])
    assert {event.id for event in of_type(streamed, "user.message")} == {echo.id}
    assert text(of_type(streamed, "agent.message")[0]) == "hello there"

    listed = history(client, session.id)
    shapes.check_history(listed)
    assert described(listed) == PLAIN_TURN
    assert [event.id for event in listed] == [event.id for event in streamed if event.processed_at is not None]
    descending = history(client, session.id, order="desc")
    assert [event.id for event in descending] == [event.id for event in reversed(listed)]


def test_spans_pair_and_usage_adds_up(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    events = run_turn(client, session.id, "!bash echo one", "---", "!say done")
    starts, ends = of_type(events, "span.model_request_start"), of_type(events, "span.model_request_end")
    assert [end.model_request_start_id for end in ends] == [start.id for start in starts]
    assert not any(end.is_error for end in ends)
    total = sum(end.model_usage.output_tokens for end in ends)
    assert total > 0
    assert client.beta.sessions.retrieve(session.id).usage.output_tokens == total
    [usage] = of_type(events, "session.usage")
    assert usage.usage.output_tokens == total


def test_status_is_true_before_the_answer_leaves(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!wait 1500", "!say slow")])
        assert client.beta.sessions.retrieve(session.id).status == "running"
        listener.wait_idle()
        assert client.beta.sessions.retrieve(session.id).status == "idle"


def test_a_dropped_stream_misses_nothing(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    first = Listener(client, session.id)
    client.beta.sessions.events.send(session.id, events=[message("!bash sleep 2; echo one", "---", "!say done")])
    first.wait_type("agent.tool_use")
    first.close()
    # The order that clients are told to follow: open, list, then read, and drop what is known by its id.
    with Listener(client, session.id) as second:
        known = {event.id: event for event in history(client, session.id)}
        second.wait_idle()
        for event in [*first.events, *second.events]:
            if event.processed_at is not None:
                known[event.id] = event
    assert set(known) == {event.id for event in history(client, session.id)}
    assert "done" in [text(event) for event in of_type(known.values(), "agent.message")]


def test_two_streams_see_the_same(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as one, Listener(client, session.id) as two:
        client.beta.sessions.events.send(session.id, events=[message("!bash echo hi", "---", "!say done")])
        one.wait_idle()
        two.wait_idle()
    assert [(event.id, event.processed_at) for event in one.events] == [(event.id, event.processed_at) for event in two.events]


def test_a_second_turn_keeps_the_history(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    run_turn(client, session.id, "!say first")
    before = history(client, session.id)
    run_turn(client, session.id, "!say second")
    after = history(client, session.id)
    assert [event.id for event in after[: len(before)]] == [event.id for event in before]
    assert described(after) == PLAIN_TURN * 2
    shapes.check_history(after)


def test_messages_sent_at_once_are_processed_in_order(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as listener:
        batch = [message("!say one"), message("!say two"), message("!say three")]
        sent = client.beta.sessions.events.send(session.id, events=batch)
        listener.wait_for(lambda events: "three" in "".join(text(event) for event in of_type(events, "agent.message")))
        listener.wait_for(lambda events: events[-1].type == "session.status_idle")
    listed = history(client, session.id)
    shapes.check_history(listed)
    assert [event.id for event in of_type(listed, "user.message")] == [event.id for event in sent.data]
    said = "".join(text(event) for event in of_type(listed, "agent.message"))
    assert said.index("one") < said.index("two") < said.index("three")


def test_a_crowd_that_posts_to_one_session_is_served_and_does_not_starve_it(
    client: anthropic.Anthropic, environment_id: str
) -> None:
    """Nobody is told to try again, and the session answers while they post."""
    session = new_session(client, environment_id)
    insistent = client.with_options(max_retries=0)

    def post(poster: int) -> list[str]:
        batches = [[message(f"!say {poster} {number}")] for number in range(15)]
        sent = [insistent.beta.sessions.events.send(session.id, events=batch).data for batch in batches]
        return [event.id for [event] in sent]

    with Listener(client, session.id) as listener:
        with ThreadPoolExecutor(24) as crowd:
            posted = [id for posts in crowd.map(post, range(24)) for id in posts]
        listener.wait_for(lambda events: {event.id for event in of_type(events, "user.message")} >= set(posted))
        streamed = list(listener.events)
    waiting = [index for index, event in enumerate(streamed) if event.type == "user.message" and event.processed_at is None]
    assert "agent.message" in types(streamed[: waiting[-1]])
    assert len(posted) == len(set(posted)) == 24 * 15


def test_a_batch_is_atomic(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.events.send(session.id, events=[message("!say one"), {"type": "user.telepathy"}])
    assert history(client, session.id) == []
    assert client.beta.sessions.retrieve(session.id).status == "idle"


def test_events_are_filtered_and_paged(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    run_turn(client, session.id, "!bash echo hi", "---", "!say done")
    listed = history(client, session.id)
    calls = history(client, session.id, types=["agent.tool_use", "agent.tool_result"])
    assert types(calls) == ["agent.tool_use", "agent.tool_result"]
    page = client.beta.sessions.events.list(session.id, limit=3)
    assert len(page.data) == 3 and page.next_page
    assert [event.id for event in history(client, session.id, limit=3)] == [event.id for event in listed]
    middle = listed[4].processed_at
    assert [event.id for event in history(client, session.id, created_at_gte=middle)] == [event.id for event in listed[4:]]
    assert [event.id for event in history(client, session.id, created_at_lt=middle)] == [event.id for event in listed[:4]]
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.events.list(session.id, page=page.next_page, order="desc")


def test_previews_accumulate_to_the_final_message(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id, event_deltas=["agent.message"]) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!stream 40")])
        listener.wait_idle()
        events = list(listener.events)
    [start] = of_type(events, "event_start")
    deltas = of_type(events, "event_delta")
    [final] = of_type(events, "agent.message")
    shapes.check_all(events)
    assert start.event.id == final.id
    assert deltas and {delta.event_id for delta in deltas} == {final.id}
    accumulated = None
    for event in events:
        if event.type == "agent.message":
            break
        accumulated = accumulate_managed_agents_event(accumulated, event)
    assert accumulated is not None
    assert [block.text for block in accumulated.content] == [block.text for block in final.content]
    assert "event_start" not in types(history(client, session.id)), "previews are never stored"


def test_without_asking_there_are_no_previews(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    assert not {"event_start", "event_delta"} & set(types(run_turn(client, session.id, "!stream 10")))


def test_thinking_is_announced_and_never_shown(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id, event_deltas=["agent.message", "agent.thinking"]) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!think about it", "!say done")])
        listener.wait_idle()
        events = list(listener.events)
    [thinking] = of_type(events, "agent.thinking")
    assert set(thinking.to_dict()) == {"id", "type", "processed_at"}
    starts = [(start.event.type, start.event.id) for start in of_type(events, "event_start")]
    assert ("agent.thinking", thinking.id) in starts
    assert types(events).index("agent.thinking") < types(events).index("agent.message")


def test_an_unknown_preview_is_refused_by_name(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.sessions.events.stream(session.id, event_deltas=["agent.tool_use"])
    assert "event_deltas" in (refused.value.api_message or "")
