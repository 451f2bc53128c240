"""A request that names an `Idempotency-Key` has one effect, though the server dies before it has answered."""

import anthropic
import pytest

from conftest import new_environment
from service import Service
from test_crash import LOST
from turns import TOOLSET, WAIT_SECONDS_MAX, described, history, message, of_type, text, wait_status

KEY = {"Idempotency-Key": "3f0c9a52-the-first-message"}
SAY = message("!say done")


@pytest.mark.crash
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_message_whose_answer_was_lost_is_sent_again_and_stored_once(
    private_service: Service, unique: str, side: str
) -> None:
    service = private_service.start()
    client = service.client()
    environment_id = new_environment(client, unique)
    agent = client.beta.agents.create(name="retries", model="demo", tools=[TOOLSET])
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment_id)
    service.kill()

    service.start(AGENT_FAILPOINT=f"append:1:{side}")
    client = service.client(max_retries=0)
    with pytest.raises(LOST):
        client.beta.sessions.events.send(session.id, events=[SAY], extra_headers=KEY)
    service.wait_dead(WAIT_SECONDS_MAX)

    service.start()
    client = service.client()
    again = client.beta.sessions.events.with_raw_response.send(session.id, events=[SAY], extra_headers=KEY)
    assert again.headers.get("idempotent-replayed") == ("true" if side == "after" else None)
    once_more = client.beta.sessions.events.with_raw_response.send(session.id, events=[SAY], extra_headers=KEY)
    assert once_more.headers["idempotent-replayed"] == "true"
    assert once_more.text() == again.text()

    wait_status(client, session.id, "idle")
    listed = history(client, session.id)
    [stored] = of_type(listed, "user.message")
    assert [event.id for event in again.parse().data] == [stored.id]
    assert [text(event) for event in of_type(listed, "agent.message")] == ["done"], described(listed)


def test_a_session_is_created_once_and_a_key_is_good_for_one_request(service: Service, unique: str) -> None:
    client = service.client(max_retries=0)
    environment_id = new_environment(client, unique)
    agent = client.beta.agents.create(name="retries", model="demo", tools=[TOOLSET])
    key = {"Idempotency-Key": unique}
    first = client.beta.sessions.create(agent=agent.id, environment_id=environment_id, extra_headers=key)
    second = client.beta.sessions.create(agent=agent.id, environment_id=environment_id, extra_headers=key)
    assert second == first
    assert [session.id for session in client.beta.sessions.list(agent_id=agent.id)] == [first.id]
    with pytest.raises(anthropic.ConflictError) as refused:
        client.beta.sessions.create(agent=agent.id, environment_id=environment_id, title="t", extra_headers=key)
    assert "Idempotency-Key" in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_file_is_uploaded_once(service: Service, unique: str) -> None:
    client = service.client(max_retries=0)
    key = {"Idempotency-Key": unique}
    first = client.beta.files.upload(file=(f"{unique}.csv", b"a,b", "text/csv"), extra_headers=key)
    # The SDK draws another boundary for each.
    second = client.beta.files.upload(file=(f"{unique}.csv", b"a,b", "text/csv"), extra_headers=key)
    assert second == first
    assert [file.id for file in client.beta.files.list() if file.filename == f"{unique}.csv"] == [first.id]
    with pytest.raises(anthropic.ConflictError):
        client.beta.files.upload(file=(f"{unique}.csv", b"a;b", "text/csv"), extra_headers=key)
    client.beta.files.delete(first.id)
