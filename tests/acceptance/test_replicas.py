"""Three replicas, two workers, one Nginx: whatever a client asks, any replica answers."""

import anthropic
import pytest

import processes
import shapes
from conftest import new_environment
from deployment import Deployment
from turns import (
    TOOLSET,
    Listener,
    ask_for,
    described,
    history,
    message,
    new_session,
    of_type,
    results,
    run_turn,
    text,
    wait_status,
)


@pytest.fixture
def clients(deployment: Deployment) -> list[anthropic.Anthropic]:
    """The SDK at each replica itself."""
    return [replica.client() for replica in deployment.replicas]


def test_every_replica_tells_one_history(clients: list[anthropic.Anthropic], unique: str) -> None:
    session = new_session(clients[0], new_environment(clients[0], unique))
    for number, client in enumerate(clients):
        run_turn(client, session.id, f"!bash echo turn {number}", "---", f"!say said {number}")
    told = [history(client, session.id) for client in clients]
    assert told[0] == told[1] == told[2]
    shapes.check_history(told[0])
    shapes.check_calls(told[0])
    assert [text(event) for event in of_type(told[0], "agent.message")] == ["said 0", "said 1", "said 2"]
    assert [text(result) for result in results(told[0]).values()] == ["turn 0", "turn 1", "turn 2"]


def test_every_replica_streams_what_another_appends(clients: list[anthropic.Anthropic], unique: str) -> None:
    session = new_session(clients[0], new_environment(clients[0], unique))
    listeners = [Listener(client, session.id) for client in clients]
    clients[1].beta.sessions.events.send(session.id, events=[message("!bash echo hi", "---", "!say done")])
    for listener in listeners:
        listener.wait_idle(reason="end_turn")
    streamed = [described(listener.events) for listener in listeners]
    for listener in listeners:
        listener.close()
    assert streamed[0] == streamed[1] == streamed[2]


def test_an_interrupt_reaches_the_owner_through_any_replica(clients: list[anthropic.Anthropic], unique: str) -> None:
    environment_id = new_environment(clients[0], unique)
    for client in clients:
        session = new_session(clients[0], environment_id)
        with Listener(clients[0], session.id) as listener:
            # The replica that takes the message takes the session.
            clients[0].beta.sessions.events.send(session.id, events=[message("!wait 600000", "!say never")])
            listener.wait_type("span.model_request_start")
            client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
            listener.wait_idle(reason="end_turn")
        assert not of_type(history(client, session.id), "agent.message")


def test_an_interrupt_through_any_replica_ends_every_descendant(clients: list[anthropic.Anthropic], unique: str) -> None:
    environment_id = new_environment(clients[0], unique)
    for number, client in enumerate(clients):
        session = new_session(clients[0], environment_id)
        sleeps = [f"sleep 83{number}{kind}71" for kind in range(3)]
        with Listener(clients[0], session.id) as listener:
            command = f"{sleeps[0]} & setsid {sleeps[1]} & {sleeps[2]}"
            clients[0].beta.sessions.events.send(session.id, events=[message(f"!bash {command}")])
            for sleep in sleeps:
                processes.wait_for(sleep, running=True)
            client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
            listener.wait_idle(reason="end_turn")
        for sleep in sleeps:
            processes.wait_for(sleep, running=False)


def test_a_confirmation_is_taken_by_any_replica(clients: list[anthropic.Anthropic], unique: str) -> None:
    session = new_session(clients[0], new_environment(clients[0], unique), tools=[ask_for("bash")])
    with Listener(clients[1], session.id) as listener:
        clients[0].beta.sessions.events.send(session.id, events=[message("!bash echo yes", "---", "!say done")])
        idle = listener.wait_idle(reason="requires_action")
        [call] = idle.stop_reason.event_ids
        confirmation = {"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"}
        clients[2].beta.sessions.events.send(session.id, events=[confirmation])
        listener.wait_idle(reason="end_turn")
    [result] = results(history(clients[0], session.id)).values()
    assert text(result) == "yes"


def test_a_definition_made_here_is_used_there(clients: list[anthropic.Anthropic], unique: str) -> None:
    agent = clients[0].beta.agents.create(name=unique, model="demo", tools=[TOOLSET])
    environment_id = new_environment(clients[1], unique)
    session = clients[2].beta.sessions.create(agent=agent.id, environment_id=environment_id)
    clients[0].beta.agents.update(agent.id, version=agent.version, system="changed")
    assert clients[1].beta.agents.retrieve(agent.id).system == "changed"
    clients[1].beta.sessions.events.send(session.id, events=[message("!say ok")])
    wait_status(clients[2], session.id, "idle")


def test_a_killed_owner_is_followed_by_another(private_deployment: Deployment, unique: str) -> None:
    deployment = private_deployment.start()
    owner, *others = deployment.replicas
    client = others[0].client()
    session = new_session(client, new_environment(client, unique))
    with Listener(client, session.id) as listener:
        owner.client().beta.sessions.events.send(session.id, events=[message("!wait 2000", "!say at last")])
        listener.wait_type("span.model_request_start")
        before = deployment.owner(session.id)
        owner.kill()
        listener.wait_idle(reason="end_turn")
    assert before and not deployment.owner(session.id)
    listed = history(client, session.id)
    shapes.check_history(listed)
    starts, ends = of_type(listed, "span.model_request_start"), of_type(listed, "span.model_request_end")
    assert [end.model_request_start_id for end in ends] == [start.id for start in starts], "every span is closed"
    assert [end.is_error for end in ends] == [True, False]
    assert [text(event) for event in of_type(listed, "agent.message")] == ["at last"]
