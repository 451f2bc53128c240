"""Scenarios 15 and 18: the model fails, the server restarts."""

import anthropic
import pytest

import processes
import shapes
from conftest import new_environment
from service import Service
from turns import Listener, described, history, message, new_session, of_type, results, run_turn, text, types, wait_status


@pytest.mark.parametrize(
    ("failure", "error_type"), [("overloaded", "model_overloaded_error"), ("rate_limited", "model_rate_limited_error")]
)
def test_a_transient_failure_is_rescheduled(
    client: anthropic.Anthropic, environment_id: str, failure: str, error_type: str
) -> None:
    session = new_session(client, environment_id)
    events = run_turn(client, session.id, f"!fail {failure} 1", "!say recovered")
    shapes.check_all(events)
    [error] = of_type(events, "session.error")
    assert (error.error.type, error.error.retry_status.type) == (error_type, "retrying")
    order = types(events)
    for earlier, later in [
        ("span.model_request_end", "session.error"),
        ("session.error", "session.thread_status_rescheduled"),
        ("session.thread_status_rescheduled", "session.status_rescheduled"),
        ("session.status_rescheduled", "agent.message"),
    ]:
        assert order.index(earlier) < order.index(later), described(events)
    starts, ends = of_type(events, "span.model_request_start"), of_type(events, "span.model_request_end")
    assert len({start.id for start in starts}) == 2, "a retry has a span of its own"
    assert [end.is_error for end in ends] == [True, False]
    assert "recovered" in text(of_type(events, "agent.message")[0])
    shapes.check_history(history(client, session.id))


def test_a_lasting_failure_exhausts_the_turn_and_not_the_session(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    events = run_turn(client, session.id, "!fail overloaded 99", reason="retries_exhausted")
    errors = of_type(events, "session.error")
    assert errors[-1].error.retry_status.type == "exhausted"
    assert {error.error.retry_status.type for error in errors[:-1]} <= {"retrying"}
    assert client.beta.sessions.retrieve(session.id).status == "idle"
    shapes.check_history(history(client, session.id))
    assert text(of_type(run_turn(client, session.id, "!say works again"), "agent.message")[0]) == "works again"


def test_a_restart_in_mid_turn_loses_nothing(private_service: Service, unique: str) -> None:
    service = private_service.start()
    client = service.client()
    session = new_session(client, new_environment(client, unique))
    run_turn(client, session.id, "!say before")
    # An argument that no other process on this machine has.
    command = f"sleep 300.{int(unique, 16)}"
    client.beta.sessions.events.send(session.id, events=[message(f"!bash {command}", "---", "!say resumed")])
    processes.wait_for(command, running=True)
    acknowledged = history(client, session.id)
    service.kill()
    # What a tool started dies with the server.
    processes.wait_for(command, running=False)

    service.start()
    client = service.client()
    wait_status(client, session.id, "idle")
    listed = history(client, session.id)
    shapes.check_history(listed)
    shapes.check_calls(listed)
    assert [event.id for event in listed[: len(acknowledged)]] == [event.id for event in acknowledged]
    [result] = results(listed).values()
    assert result.is_error is True and "interrupted" in text(result).lower()
    assert "resumed" in [text(event) for event in of_type(listed, "agent.message")]
    assert text(of_type(run_turn(client, session.id, "!say after"), "agent.message")[0]) == "after"


def test_a_model_call_cut_by_a_restart_is_made_again(private_service: Service, unique: str) -> None:
    service = private_service.start()
    client = service.client()
    session = new_session(client, new_environment(client, unique))
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!wait 3000", "!say at last")])
        listener.wait_type("span.model_request_start")
    service.kill()

    service.start()
    client = service.client()
    wait_status(client, session.id, "idle")
    listed = history(client, session.id)
    shapes.check_history(listed)
    assert [text(event) for event in of_type(listed, "agent.message")] == ["at last"]
    starts, ends = of_type(listed, "span.model_request_start"), of_type(listed, "span.model_request_end")
    assert len(starts) == 2
    assert [end.model_request_start_id for end in ends] == [start.id for start in starts], "every span is closed"


def test_a_waiting_call_survives_a_restart(private_service: Service, unique: str) -> None:
    from test_tools import answer
    from turns import custom_tool

    service = private_service.start()
    client = service.client()
    session = new_session(client, new_environment(client, unique), tools=[custom_tool("get_weather")])
    run_turn(client, session.id, '!tool get_weather {"city": "Paris"}', "---", "!say thanks", reason="requires_action")
    before = history(client, session.id)
    service.kill()

    service.start()
    client = service.client()
    assert [event.id for event in history(client, session.id)] == [event.id for event in before]
    [use] = of_type(before, "agent.custom_tool_use")
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[answer(use.id, "sunny")])
        listener.wait_idle(reason="end_turn")
    shapes.check_calls(history(client, session.id))


def test_an_orderly_stop_ends_streams_and_exits_clean(private_service: Service, unique: str) -> None:
    service = private_service.start()
    client = service.client()
    session = new_session(client, new_environment(client, unique))
    run_turn(client, session.id, "!say hello")
    with Listener(client, session.id) as listener:
        assert service.stop() == 0
        listener.wait_for(lambda _: listener.ended, "the end of the stream")
    assert listener.failure is None, "a drain ends streams; it does not break them"
    service.start()
    assert len(history(service.client(), session.id)) == 9


def test_agents_and_environments_survive_too(private_service: Service, unique: str) -> None:
    service = private_service.start()
    client = service.client()
    environment_id = new_environment(client, unique)
    agent = client.beta.agents.create(name="kept", model="demo", system="kept")
    service.kill()
    client = service.start().client()
    assert client.beta.agents.retrieve(agent.id).system == "kept"
    assert client.beta.environments.retrieve(environment_id).name == unique
