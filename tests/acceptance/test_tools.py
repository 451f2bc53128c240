"""Scenarios 6 to 9: built-in tools, custom tools, confirmations, interrupts."""

import anthropic
import pytest

import shapes
from turns import (
    TOOLSET,
    Listener,
    ask_for,
    custom_tool,
    described,
    history,
    message,
    new_session,
    of_type,
    results,
    run_turn,
    text,
    types,
)


def answer(call_id: str, said: str) -> dict:
    return {
        "type": "user.custom_tool_result",
        "custom_tool_use_id": call_id,
        "content": [{"type": "text", "text": said}],
    }


def confirm(call_id: str, result: str, **more: str) -> dict:
    return {"type": "user.tool_confirmation", "tool_use_id": call_id, "result": result, **more}


def test_a_file_is_written_and_read(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    events = run_turn(
        client,
        session.id,
        '!tool write {"file_path": "notes.txt", "content": "first line\\nsecond line\\n"}',
        "---",
        '!tool edit {"file_path": "notes.txt", "old_string": "second", "new_string": "last"}',
        "---",
        "!bash cat notes.txt",
        '!tool read {"file_path": "notes.txt"}',
        '!tool grep {"pattern": "last"}',
        '!tool glob {"pattern": "*.txt"}',
        "---",
        "!say done",
    )
    shapes.check_all(events)
    listed = history(client, session.id)
    shapes.check_history(listed)
    shapes.check_calls(listed)
    said = results(listed)
    uses = of_type(listed, "agent.tool_use")
    assert [use.name for use in uses] == ["write", "edit", "bash", "read", "grep", "glob"]
    assert {use.evaluated_permission for use in uses} == {"allow"}
    assert {use.evaluation.type for use in uses} == {"always_allow"}
    texts = {use.name: text(said[use.id]) for use in uses}
    assert not any(result.is_error for result in said.values()), texts
    assert texts["write"].startswith("wrote 23 bytes to")
    assert "1 replacement" in texts["edit"]
    assert texts["bash"] == "first line\nlast line"
    assert texts["read"] == "first line\nlast line\n"
    assert texts["grep"].endswith("notes.txt:2:last line")
    assert texts["glob"].endswith("/notes.txt")


def test_the_order_of_a_tool_turn(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    run_turn(client, session.id, "!bash echo hi", "---", "!say done")
    assert described(history(client, session.id)) == [
        "session.status_running",
        "session.thread_status_running",
        "user.message",
        "span.model_request_start",
        "agent.tool_use",
        "span.model_request_end",
        "agent.tool_result",
        "span.model_request_start",
        "agent.message",
        "span.model_request_end",
        "session.thread_status_idle{end_turn}",
        "session.usage",
        "session.status_idle{end_turn}",
    ]


def test_the_shell_remembers_across_calls_and_turns(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    run_turn(client, session.id, "!bash mkdir -p sub && cd sub && export COLOUR=blue", "---", "!say done")
    events = run_turn(client, session.id, "!bash basename $PWD; echo $COLOUR", "---", "!say done")
    [result] = results(events).values()
    assert text(result) == "sub\nblue"


def test_a_failing_command_is_an_error_result_with_its_output(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    events = run_turn(client, session.id, "!bash echo before; exit 3", "---", "!say done")
    [result] = results(events).values()
    assert result.is_error is True
    assert "before" in text(result)


@pytest.mark.parametrize(
    "call",
    [
        '!tool read {"file_path": "/etc/passwd"}',
        '!tool read {"file_path": "../../../../etc/passwd"}',
        '!tool write {"file_path": "/etc/agent-service-was-here", "content": "x"}',
        '!tool glob {"pattern": "../*"}',
    ],
)
def test_file_tools_stay_in_the_workspace(client: anthropic.Anthropic, environment_id: str, call: str) -> None:
    session = new_session(client, environment_id)
    events = run_turn(client, session.id, call, "---", "!say done")
    [result] = results(events).values()
    assert result.is_error is True
    assert "root:" not in text(result)


def test_a_tool_that_is_not_offered_is_refused(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, tools=[{**TOOLSET, "configs": [{"name": "bash", "enabled": False}]}])
    events = run_turn(client, session.id, "!bash echo hi", "---", "!say done")
    [use] = of_type(events, "agent.tool_use")
    assert use.evaluated_permission == "deny"
    assert results(events)[use.id].is_error is True


def test_custom_tools_are_answered_one_by_one(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, tools=[custom_tool("get_weather")])
    with Listener(client, session.id) as listener:
        calls = ['!tool get_weather {"city": "Paris"}', '!tool get_weather {"city": "Rome"}', "---", "!say done"]
        client.beta.sessions.events.send(session.id, events=[message(*calls)])
        idle = listener.wait_idle(reason="requires_action")
        uses = of_type(listener.events, "agent.custom_tool_use")
        assert [use.input for use in uses] == [{"city": "Paris"}, {"city": "Rome"}]
        assert idle.stop_reason.event_ids == [use.id for use in uses]
        assert client.beta.sessions.retrieve(session.id).status == "idle"

        client.beta.sessions.events.send(session.id, events=[answer(uses[0].id, "sunny")])
        remainder = listener.wait_idle(count=2, reason="requires_action")
        assert remainder.stop_reason.event_ids == [uses[1].id]

        client.beta.sessions.events.send(session.id, events=[answer(uses[1].id, "rain")])
        listener.wait_idle(reason="end_turn")
    listed = history(client, session.id)
    shapes.check_history(listed)
    shapes.check_calls(listed)
    assert of_type(listed, "session.status_running")[1:], "the last answer resumes the session"


def test_an_answer_sent_twice_is_one_answer(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, tools=[custom_tool("get_weather")])
    run_turn(client, session.id, '!tool get_weather {"city": "Paris"}', "---", "!say done", reason="requires_action")
    [use] = of_type(history(client, session.id), "agent.custom_tool_use")
    with Listener(client, session.id) as listener:
        first = client.beta.sessions.events.send(session.id, events=[answer(use.id, "sunny")])
        listener.wait_idle(reason="end_turn")
    again = client.beta.sessions.events.send(session.id, events=[answer(use.id, "sunny")])
    assert [event.id for event in again.data] == [event.id for event in first.data]
    with pytest.raises(anthropic.ConflictError):
        client.beta.sessions.events.send(session.id, events=[answer(use.id, "rain")])
    assert len(of_type(history(client, session.id), "user.custom_tool_result")) == 1


def test_an_answer_to_nothing_is_refused(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    for event in (answer("sevt_01aaaaaaaaaaaaaaaaaaaaaa", "?"), confirm("sevt_01aaaaaaaaaaaaaaaaaaaaaa", "allow")):
        with pytest.raises(anthropic.BadRequestError):
            client.beta.sessions.events.send(session.id, events=[event])
    assert history(client, session.id) == []


def test_bash_asks_first(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, tools=[ask_for("bash")])
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!bash echo allowed > proof", "---", "!say done")])
        idle = listener.wait_idle(reason="requires_action")
        [use] = of_type(listener.events, "agent.tool_use")
        assert (use.evaluated_permission, use.evaluation.type) == ("ask", "always_ask")
        assert idle.stop_reason.event_ids == [use.id]
        assert "agent.tool_result" not in types(listener.events)
        client.beta.sessions.events.send(session.id, events=[confirm(use.id, "allow")])
        listener.wait_idle(reason="end_turn")
    assert results(listener.events)[use.id].is_error in (False, None)

    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!bash rm proof", "---", "!say done")])
        listener.wait_idle(reason="requires_action")
        [use] = of_type(listener.events, "agent.tool_use")
        client.beta.sessions.events.send(session.id, events=[confirm(use.id, "deny", deny_message="not my proof")])
        listener.wait_idle(reason="end_turn")
    denial = results(listener.events)[use.id]
    assert denial.is_error is True
    assert "not my proof" in text(denial)
    listed = history(client, session.id)
    shapes.check_history(listed)
    shapes.check_calls(listed)

    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!bash cat proof", "---", "!say done")])
        listener.wait_idle(reason="requires_action")
        [use] = of_type(listener.events, "agent.tool_use")
        client.beta.sessions.events.send(session.id, events=[confirm(use.id, "allow")])
        listener.wait_idle(reason="end_turn")
    assert text(results(listener.events)[use.id]) == "allowed", "what was denied did not run"


def test_what_is_allowed_runs_beside_what_is_asked(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, tools=[ask_for("bash")])
    with Listener(client, session.id) as listener:
        calls = ["!bash echo asked", '!tool write {"file_path": "free.txt", "content": "x"}', "---", "!say done"]
        client.beta.sessions.events.send(session.id, events=[message(*calls)])
        idle = listener.wait_idle(reason="requires_action")
        asked, free = of_type(listener.events, "agent.tool_use")
        assert idle.stop_reason.event_ids == [asked.id]
        listener.wait_for(lambda events: free.id in results(events), "the result of the call that runs freely")
        client.beta.sessions.events.send(session.id, events=[confirm(asked.id, "allow")])
        listener.wait_idle(reason="end_turn")
    shapes.check_calls(history(client, session.id))


def test_an_interrupt_stops_a_long_call_and_the_next_message_runs(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!bash sleep 120", "---", "!say never")])
        listener.wait_type("agent.tool_use")
        both = [{"type": "user.interrupt"}, message("!say after")]
        sent = client.beta.sessions.events.send(session.id, events=both)
        assert types(sent.data) == ["user.interrupt", "user.message"]
        listener.wait_for(lambda events: [e for e in of_type(events, "agent.message") if text(e) == "after"])
        listener.wait_for(lambda events: events[-1].type == "session.status_idle")
    listed = history(client, session.id)
    shapes.check_history(listed)
    shapes.check_calls(listed)
    [result] = results(listed).values()
    assert result.is_error is True
    assert "never" not in [text(event) for event in of_type(listed, "agent.message")]
    order = types(listed)
    assert order.index("user.interrupt") < order.index("session.status_idle")


def test_an_interrupt_cuts_a_model_response(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[message("!wait 60000", "!say never")])
        listener.wait_type("span.model_request_start")
        client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
        idle = listener.wait_idle()
        assert idle.stop_reason.type == "end_turn"
    listed = history(client, session.id)
    shapes.check_history(listed)
    [end] = of_type(listed, "span.model_request_end")
    assert end.is_error is True
    assert "agent.message" not in types(listed)


def test_an_interrupt_closes_what_waits_for_an_answer(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id, tools=[custom_tool("get_weather")])
    run_turn(client, session.id, '!tool get_weather {"city": "Paris"}', "---", "!say never", reason="requires_action")
    with Listener(client, session.id) as listener:
        client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
        listener.wait_idle(reason="end_turn")
    listed = history(client, session.id)
    shapes.check_history(listed)
    assert len(of_type(listed, "span.model_request_start")) == 1, "the model is not sampled"


def test_an_interrupt_of_an_idle_session_changes_nothing(client: anthropic.Anthropic, environment_id: str) -> None:
    session = new_session(client, environment_id)
    client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
    assert client.beta.sessions.retrieve(session.id).status == "idle"
    run_turn(client, session.id, "!say fine")


def test_idle_sessions_do_not_keep_the_worker_from_others(client: anthropic.Anthropic, environment_id: str) -> None:
    # More than the worker of an embedded server serves at once; each stays idle behind its turn.
    sessions = [new_session(client, environment_id) for _ in range(20)]
    for number, session in enumerate(sessions):
        events = run_turn(client, session.id, f"!bash echo {number} > kept", "---", "!say done")
        assert [result.is_error for result in results(events).values()] != [True]
    events = run_turn(client, sessions[0].id, "!bash cat kept", "---", "!say done")
    [result] = results(events).values()
    assert text(result) == "0", "the files of a session stay when its worker lets it go"
