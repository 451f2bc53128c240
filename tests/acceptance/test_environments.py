"""Scenario 3: environments."""

import anthropic
import pytest
from anthropic.types.beta import BetaEnvironmentArchivedError, BetaInvalidMetadataError

import shapes


def test_an_environment_lives_and_is_archived(client: anthropic.Anthropic, unique: str) -> None:
    made = client.beta.environments.create(name=unique, config={"type": "cloud"}, description="first", metadata={"a": "1"})
    shapes.check(made)
    assert made.config.type == "cloud"
    assert made.id in [each.id for each in client.beta.environments.list()]

    updated = client.beta.environments.update(made.id, description="second", metadata={"a": "", "b": "2"})
    assert updated.description == "second"
    assert updated.metadata == {"b": "2"}, "an empty string deletes"
    assert client.beta.environments.retrieve(made.id).description == "second"

    archived = client.beta.environments.archive(made.id)
    shapes.check(archived)
    assert archived.archived_at
    assert made.id not in [each.id for each in client.beta.environments.list()]
    with pytest.raises(BetaEnvironmentArchivedError):
        client.beta.environments.update(made.id, description="third")


def test_a_name_is_taken_until_its_environment_is_archived(client: anthropic.Anthropic, unique: str) -> None:
    first = client.beta.environments.create(name=unique)
    with pytest.raises(anthropic.ConflictError):
        client.beta.environments.create(name=unique)
    client.beta.environments.archive(first.id)
    assert client.beta.environments.create(name=unique).id != first.id


def test_the_kind_of_an_environment_is_for_life(client: anthropic.Anthropic, unique: str) -> None:
    made = client.beta.environments.create(name=unique, config={"type": "self_hosted"})
    assert made.config.type == "self_hosted"
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.environments.update(made.id, config={"type": "cloud"})
    assert refused.value.error_code == "invalid_config_type_change"


def test_bad_metadata_is_named(client: anthropic.Anthropic, unique: str) -> None:
    with pytest.raises(BetaInvalidMetadataError):
        client.beta.environments.create(name=unique, metadata={"k" * 65: "v"})


def test_packages_are_refused_by_name(client: anthropic.Anthropic, unique: str) -> None:
    config = {"type": "cloud", "packages": {"pip": ["requests"]}}
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.environments.create(name=unique, config=config)
    assert "packages" in (refused.value.api_message or "")


def test_a_deleted_environment_is_gone(client: anthropic.Anthropic, unique: str) -> None:
    made = client.beta.environments.create(name=unique)
    deleted = client.beta.environments.delete(made.id)
    assert (deleted.id, deleted.type) == (made.id, "environment_deleted")
    with pytest.raises(anthropic.NotFoundError):
        client.beta.environments.retrieve(made.id)


def test_an_archived_environment_starts_nothing(client: anthropic.Anthropic, environment_id: str) -> None:
    agent = client.beta.agents.create(name="archived environment", model="demo")
    client.beta.environments.archive(environment_id)
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.create(agent=agent.id, environment_id=environment_id)


def test_a_self_hosted_environment_counts_its_queue(client: anthropic.Anthropic, unique: str) -> None:
    made = client.beta.environments.create(name=unique, config={"type": "self_hosted"})
    agent = client.beta.agents.create(name="queued", model="demo")
    client.beta.sessions.create(agent=agent.id, environment_id=made.id)
    stats = client.beta.environments.work.stats(made.id)
    shapes.check(stats)
    assert stats.workers_polling == 0
    assert stats.depth == 1
    with pytest.raises(anthropic.PermissionDeniedError):
        client.beta.environments.work.poll(made.id)
