"""Scenario 1: credentials, headers and errors, for the present SDK and for older clients."""

import anthropic
import httpx
import pytest

from service import API_KEY, Service


def test_the_sdk_connects_with_address_and_key_alone(client: anthropic.Anthropic) -> None:
    assert client.beta.agents.list().data is not None


def test_a_trailing_slash_in_the_address_changes_nothing(service: Service) -> None:
    assert service.client(base_url=service.url + "/").beta.agents.list().data is not None


def test_the_key_works_as_auth_token_too(service: Service) -> None:
    assert service.client(api_key=None, auth_token=API_KEY).beta.agents.list().data is not None


def test_an_old_client_sends_x_api_key(service: Service) -> None:
    headers = {
        "X-Api-Key": API_KEY,
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "managed-agents-2026-04-01",
        "Accept": "application/json",
    }
    with httpx.Client(base_url=service.url, headers=headers) as old:
        answer = old.get("/v1/agents", params={"beta": "true"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["request-id"].startswith("req_")
    assert set(answer.json()) == {"data", "next_page"}


def test_an_empty_body_with_a_content_type_is_an_empty_body(service: Service, client: anthropic.Anthropic) -> None:
    agent = client.beta.agents.create(name="empty body", model="demo")
    with service.http() as http:
        answer = http.post(f"/v1/agents/{agent.id}/archive", headers={"content-type": "application/json"}, content=b"")
    assert answer.status_code == 200, answer.text


def test_a_wrong_key_is_told_so_with_a_request_id(service: Service) -> None:
    with pytest.raises(anthropic.AuthenticationError) as refused:
        service.client(api_key="sk-wrong").beta.agents.list()
    assert refused.value.status_code == 401
    assert refused.value.type == "authentication_error"
    assert (refused.value.request_id or "").startswith("req_")
    assert API_KEY not in str(refused.value)


def test_no_key_is_a_wrong_key(service: Service) -> None:
    answer = httpx.get(f"{service.url}/v1/agents")
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.json()["request_id"] == answer.headers["request-id"]


def test_an_unknown_path_is_a_typed_404(service: Service) -> None:
    with service.http() as http:
        answer = http.get("/v1/nothing_here")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
    assert answer.headers["request-id"]


def test_health_and_readiness_ask_for_no_key(service: Service) -> None:
    assert httpx.get(f"{service.url}/health").status_code == 200
    assert httpx.get(f"{service.url}/ready").status_code == 200


def test_the_demo_model_is_listed(client: anthropic.Anthropic) -> None:
    assert "demo" in [model.id for model in client.beta.models.list()]


def test_what_does_not_exist_yet_is_refused_by_name(service: Service) -> None:
    with service.http() as http:
        for family in ("vaults", "memory_stores", "skills", "deployments"):
            answer = http.get(f"/v1/{family}")
            assert answer.status_code in (404, 501), (family, answer.status_code)
            assert family in answer.json()["error"]["message"], answer.text
            if answer.status_code == 501:
                assert answer.headers["x-should-retry"] == "false"
