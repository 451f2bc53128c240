"""Scenario 2: agents and their versions."""

import anthropic
import pytest

import shapes
from service import Service
from turns import TOOLSET, custom_tool


def test_versions_rise_with_effective_changes_only(client: anthropic.Anthropic) -> None:
    first = client.beta.agents.create(name="versions", model="demo", system="one", tools=[TOOLSET])
    shapes.check(first)
    assert first.version == 1
    assert first.model.id == "demo"

    second = client.beta.agents.update(first.id, version=1, system="two")
    shapes.check(second)
    assert (second.version, second.system) == (2, "two")

    same = client.beta.agents.update(first.id, version=2, system="two")
    assert same.version == 2
    assert same.updated_at == second.updated_at

    assert client.beta.agents.retrieve(first.id).system == "two"
    assert client.beta.agents.retrieve(first.id, version=1).system == "one"
    versions = list(client.beta.agents.versions.list(first.id))
    assert [version.version for version in versions] == [2, 1]
    shapes.check_all(versions)


def test_a_stale_version_is_one_call_and_a_conflict(service: Service) -> None:
    calls: list[str] = []
    http_client = anthropic.DefaultHttpxClient(event_hooks={"request": [lambda request: calls.append(request.method)]})
    client = service.client(http_client=http_client)
    agent = client.beta.agents.create(name="stale", model="demo", system="one")
    client.beta.agents.update(agent.id, version=1, system="two")
    calls.clear()
    with pytest.raises(anthropic.ConflictError) as refused:
        client.beta.agents.update(agent.id, version=1, system="two")
    assert calls == ["POST"], "the SDK was not told to give up"
    assert refused.value.type == "conflict_error"
    assert client.beta.agents.retrieve(agent.id).version == 2


def test_omitted_keeps_and_null_clears(client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(
        name="fields", model="demo", system="s", description="d", tools=[TOOLSET], metadata={"a": "1", "b": "2"}
    )
    kept = client.beta.agents.update(agent.id, name="renamed")
    assert (kept.name, kept.system, kept.description) == ("renamed", "s", "d")
    assert kept.metadata == {"a": "1", "b": "2"}
    cleared = client.beta.agents.update(agent.id, system=None, description="", tools=[], metadata={"a": None, "c": "3"})
    assert (cleared.system, cleared.description, cleared.tools) == (None, None, [])
    assert cleared.metadata == {"b": "2", "c": "3"}
    assert cleared.version == 3


def test_tools_come_back_in_full(client: anthropic.Anthropic) -> None:
    tools = [
        {**TOOLSET, "configs": [{"name": "bash", "permission_policy": {"type": "always_ask"}}]},
        custom_tool("get_weather"),
    ]
    agent = client.beta.agents.create(name="tools", model="demo", tools=tools)
    shapes.check(agent)
    toolset, custom = agent.tools
    assert toolset.default_config.enabled is True
    assert toolset.default_config.permission_policy.type == "always_allow"
    [bash] = [config for config in toolset.configs if config.name == "bash"]
    assert (bash.type, bash.enabled, bash.permission_policy.type) == ("bash", True, "always_ask")
    assert custom.name == "get_weather"
    assert custom.input_schema.to_dict()["required"] == ["city"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": ""}, "name"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"system": "x" * 100_001}, "system"),
        ({"description": "x" * 2_049}, "description"),
        ({"metadata": {f"k{index}": "v" for index in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"extra_body": {"colour": "blue"}}, "colour"),
        ({"tools": [custom_tool("bash"), TOOLSET]}, "bash"),
        ({"tools": [custom_tool("two words")]}, "name"),
        ({"tools": [{**TOOLSET, "configs": [{"name": "web_search", "enabled": True}]}]}, "web_search"),
        ({"skills": [{"type": "custom", "skill_id": "skill_1"}]}, "skills"),
        ({"mcp_servers": [{"type": "url", "name": "m", "url": "https://example.com"}]}, "mcp_servers"),
        ({"multiagent": {"type": "coordinator", "agents": [{"type": "self"}]}}, "multiagent"),
    ],
)
def test_a_bad_agent_is_refused_by_name(client: anthropic.Anthropic, change: dict, named: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.beta.agents.create(**{"name": "bad", "model": "demo", **change})
    assert refused.value.type == "invalid_request_error"
    assert named in (refused.value.api_message or "")


def test_archived_agents_are_hidden_frozen_and_start_nothing(client: anthropic.Anthropic, environment_id: str) -> None:
    agent = client.beta.agents.create(name="archive", model="demo")
    archived = client.beta.agents.archive(agent.id)
    assert archived.archived_at is not None
    assert client.beta.agents.archive(agent.id).archived_at == archived.archived_at
    assert agent.id not in [each.id for each in client.beta.agents.list(limit=100)]
    assert agent.id in [each.id for each in client.beta.agents.list(limit=100, include_archived=True)]
    with pytest.raises(anthropic.BadRequestError):
        client.beta.agents.update(agent.id, name="again")
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.create(agent=agent.id, environment_id=environment_id)


def test_pages_cover_the_list_once(client: anthropic.Anthropic) -> None:
    created = [client.beta.agents.create(name=f"page {index}", model="demo").id for index in range(5)]
    page = client.beta.agents.list(limit=2)
    assert len(page.data) == 2 and page.next_page
    listed = [agent.id for agent in client.beta.agents.list(limit=2)]
    assert len(listed) == len(set(listed))
    assert [id_ for id_ in listed if id_ in created] == created[::-1], "newest first"


def test_an_unknown_agent_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        client.beta.agents.retrieve("agent_01aaaaaaaaaaaaaaaaaaaaaa")
    assert refused.value.type == "not_found_error"
