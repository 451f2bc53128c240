"""Scenarios 4, 12 and 19: what a session is made of, its end, and what may be changed on the way."""

import anthropic
import pytest

import shapes
from turns import (
    TOOLSET,
    Listener,
    custom_tool,
    history,
    message,
    new_session,
    of_type,
    results,
    run_turn,
    text,
    types,
    wait_status,
)


def test_a_session_keeps_the_agent_that_it_was_made_with(client: anthropic.Anthropic, environment_id: str) -> None:
    agent = client.beta.agents.create(name="snapshot", model="demo", system="one", tools=[TOOLSET])
    by_id = client.beta.sessions.create(agent=agent.id, environment_id=environment_id, title="t", metadata={"k": "v"})
    shapes.check(by_id)
    assert (by_id.status, by_id.title, by_id.metadata) == ("idle", "t", {"k": "v"})
    assert (by_id.agent.id, by_id.agent.version, by_id.agent.system) == (agent.id, 1, "one")

    client.beta.agents.update(agent.id, system="two")
    assert client.beta.sessions.retrieve(by_id.id).agent.system == "one"
    latest = client.beta.sessions.create(agent=agent.id, environment_id=environment_id)
    assert (latest.agent.version, latest.agent.system) == (2, "two")
    pinned = client.beta.sessions.create(
        agent={"type": "agent", "id": agent.id, "version": 1}, environment_id=environment_id
    )
    assert (pinned.agent.version, pinned.agent.system) == (1, "one")


def test_unknown_parts_are_named(client: anthropic.Anthropic, environment_id: str) -> None:
    agent = client.beta.agents.create(name="parts", model="demo")
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.beta.sessions.create(agent="agent_01aaaaaaaaaaaaaaaaaaaaaa", environment_id=environment_id)
    assert refused.value.status_code in (400, 404)
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.beta.sessions.create(agent=agent.id, environment_id="env_01aaaaaaaaaaaaaaaaaaaaaa")
    assert refused.value.status_code in (400, 404)
    for field, value in (
        ("resources", [{"type": "github_repository", "url": "https://github.com/a/b"}]),
        ("vault_ids", ["vlt_1"]),
        ("budget", {"type": "limit", "max_list_cost": {"amount": "100", "currency": "USD"}}),
    ):
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.beta.sessions.create(agent=agent.id, environment_id=environment_id, **{field: value})
        assert field in (refused.value.api_message or ""), field


def test_lists_filter_and_page(client: anthropic.Anthropic, environment_id: str) -> None:
    agent = client.beta.agents.create(name="listed", model="demo")
    made = [client.beta.sessions.create(agent=agent.id, environment_id=environment_id).id for _ in range(3)]
    listed = client.beta.sessions.list(agent_id=agent.id, limit=2)
    assert [session.id for session in listed.data] == made[:0:-1]
    shapes.check_all(listed.data)
    assert [session.id for session in client.beta.sessions.list(agent_id=agent.id, limit=2)] == made[::-1]
    assert [session.id for session in client.beta.sessions.list(agent_id=agent.id, order="asc")] == made
    assert list(client.beta.sessions.list(agent_id=agent.id, statuses=["running"])) == []
    assert len(list(client.beta.sessions.list(agent_id=agent.id, agent_version=1, statuses=["idle", "running"]))) == 3
    client.beta.sessions.archive(made[0])
    assert [session.id for session in client.beta.sessions.list(agent_id=agent.id)] == made[:0:-1]
    assert len(list(client.beta.sessions.list(agent_id=agent.id, include_archived=True))) == 3


def test_title_and_metadata_are_patched(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, title="old", metadata={"a": "1", "b": "2"})
    updated = client.beta.sessions.update(session.id, title="new", metadata={"a": None, "c": "3"})
    assert (updated.title, updated.metadata) == ("new", {"b": "2", "c": "3"})
    assert types(history(client, session.id)) == ["session.updated"]
    client.beta.sessions.update(session.id, title="new")
    assert len(history(client, session.id)) == 1, "no change, no event"
    assert client.beta.sessions.update(session.id, title=None).title is None
    shapes.check_history(history(client, session.id))


def test_a_running_session_is_neither_archived_nor_deleted(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!bash sleep 60")])
        listener.wait_type("agent.tool_use")
        for refuse in (client.beta.sessions.archive, client.beta.sessions.delete):
            with pytest.raises(anthropic.BadRequestError) as refused:
                refuse(session.id)
            assert "running" in (refused.value.api_message or "")
        client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
        listener.wait_idle()
    client.beta.sessions.delete(session.id)


def test_an_archived_session_is_read_only(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    run_turn(client, session.id, "!say hello")
    before = history(client, session.id)
    archived = client.beta.sessions.archive(session.id)
    shapes.check(archived)
    assert archived.archived_at is not None
    assert archived.status == "terminated"
    after = history(client, session.id)
    assert types(after)[: len(before)] == types(before)
    assert "session.status_terminated" in types(after)[len(before) :]
    shapes.check_history(after)
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.beta.sessions.events.send(session.id, events=[message("!say again")])
    assert refused.value.status_code in (400, 409)
    assert len(history(client, session.id)) == len(after)


def test_an_open_stream_hears_of_the_deletion_and_ends(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    run_turn(client, session.id, "!say hello")
    with Listener(client, session.id) as listener:
        deleted = client.beta.sessions.delete(session.id)
        assert (deleted.id, deleted.type) == (session.id, "session_deleted")
        listener.wait_type("session.deleted")
        listener.wait_for(lambda _: listener.ended, "the end of the stream")
    assert listener.failure is None
    assert types(listener.events)[-1] == "session.deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.retrieve(session.id)
    with pytest.raises(anthropic.NotFoundError):
        history(client, session.id)


def test_initial_events_start_the_session(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, initial_events=[message("!say first"), message("!say second")])
    assert session.status == "running"
    wait_status(client, session.id, "idle")
    events = history(client, session.id)
    shapes.check_history(events)
    assert [text(event) for event in of_type(events, "user.message")] == ["!say first", "!say second"]
    said = "".join(text(event) for event in of_type(events, "agent.message"))
    assert said.index("first") < said.index("second")
    assert types(events)[0] in ("session.status_running", "user.message")


def test_initial_events_are_all_or_nothing(client: anthropic.Anthropic, environment_id: str) -> None:
    agent = client.beta.agents.create(name="all or nothing", model="demo")
    bad = [message("!say fine"), {"type": "user.interrupt"}]
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.sessions.create(agent=agent.id, environment_id=environment_id, initial_events=bad)
    assert "initial_events" in (refused.value.api_message or "")
    assert list(client.beta.sessions.list(agent_id=agent.id)) == []


def test_overrides_are_for_this_session_alone(client: anthropic.Anthropic, environment_id: str) -> None:
    agent = client.beta.agents.create(name="base", model="demo", system="base system", tools=[TOOLSET])
    session = client.beta.sessions.create(
        agent={
            "type": "agent_with_overrides",
            "id": agent.id,
            "system": "other system",
            "tools": [custom_tool("get_weather")],
        },
        environment_id=environment_id,
    )
    shapes.check(session)
    assert (session.agent.id, session.agent.version) == (agent.id, 1)
    assert session.agent.system == "other system"
    assert [tool.type for tool in session.agent.tools] == ["custom"]
    assert client.beta.agents.retrieve(agent.id).system == "base system"
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.sessions.create(
            agent={"type": "agent_with_overrides", "id": agent.id, "model": None}, environment_id=environment_id
        )
    assert refused.value.error_code == "agent_model_required"


def test_tools_are_changed_while_idle(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, tools=[custom_tool("get_weather")])
    updated = client.beta.sessions.update(session.id, agent={"tools": [TOOLSET]})
    assert [tool.type for tool in updated.agent.tools] == ["agent_toolset_20260401"]
    [event] = of_type(history(client, session.id), "session.updated")
    assert event.agent is not None
    shapes.check(event)
    events = run_turn(client, session.id, "!bash echo changed")
    [result] = results(events).values()
    assert text(result) == "changed"


def test_tools_are_not_changed_while_running(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!bash sleep 60")])
        listener.wait_type("agent.tool_use")
        with pytest.raises(anthropic.BadRequestError):
            client.beta.sessions.update(session.id, agent={"tools": []})
        client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
        listener.wait_idle()


def test_the_primary_thread_is_listed_and_readable(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    run_turn(client, session.id, "!say hello")
    [thread] = list(client.beta.sessions.threads.list(session.id))
    shapes.check(thread)
    assert thread.parent_thread_id is None
    assert client.beta.sessions.threads.retrieve(thread.id, session_id=session.id).id == thread.id
    events = list(client.beta.sessions.threads.events.list(thread.id, session_id=session.id))
    assert "agent.message" in types(events)
