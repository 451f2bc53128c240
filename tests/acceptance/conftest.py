"""Fixtures: the databases, the servers on them, and what most scenarios begin with."""

import os
import shutil
import uuid
from collections.abc import Iterator

import anthropic
import pytest

import postgres
from deployment import Deployment
from service import Service

DATABASES = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    try:
        cluster = postgres.Cluster()
    except postgres.Unavailable as reason:
        # CI has no excuse; a developer's machine is told what it misses.
        if os.environ.get("CI"):
            raise
        pytest.skip(str(reason))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session", params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    return request.param


def database_url(request: pytest.FixtureRequest, database: str) -> str | None:
    return request.getfixturevalue("cluster").create_database() if database == "postgresql" else None


@pytest.fixture(scope="session")
def shared_service(
    request: pytest.FixtureRequest, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One server for every scenario that leaves it as it found it."""
    settings = {}
    if database == "postgresql":
        # Beside SQLite large content lies in the data folder.
        settings["OBJECT_STORE_URL"] = str(tmp_path_factory.mktemp("object-store"))
    service = Service(database_url(request, database), settings).start()
    yield service
    service.close()


@pytest.fixture
def service(shared_service: Service, request: pytest.FixtureRequest) -> Iterator[Service]:
    yield shared_service
    assert shared_service.running, f"the server died during {request.node.name}:\n{shared_service.tail()}"


@pytest.fixture
def private_service(request: pytest.FixtureRequest, database: str) -> Iterator[Service]:
    """A server of this test's own, for whoever kills or reconfigures it. It is not started yet."""
    service = Service(database_url(request, database))
    yield service
    service.close()


@pytest.fixture(scope="session")
def nginx_installed() -> None:
    if not os.environ.get("CI") and not shutil.which("nginx"):
        pytest.skip("nginx is not installed (apt-get install nginx)")


@pytest.fixture(scope="session")
def shared_deployment(cluster: postgres.Cluster, nginx_installed: None) -> Iterator[Deployment]:
    """Three replicas behind Nginx for every test that leaves them as it found them."""
    deployment = Deployment(cluster).start()
    yield deployment
    deployment.close()


@pytest.fixture
def deployment(shared_deployment: Deployment, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    yield shared_deployment
    dead = [replica.tail() for replica in shared_deployment.replicas if not replica.running]
    assert not dead, f"a replica died during {request.node.name}:\n{dead}"


@pytest.fixture
def private_deployment(cluster: postgres.Cluster, nginx_installed: None) -> Iterator[Deployment]:
    """Replicas of this test's own, for whoever kills them. They are not started yet."""
    deployment = Deployment(cluster)
    yield deployment
    deployment.close()


@pytest.fixture
def client(service: Service) -> anthropic.Anthropic:
    return service.client()


@pytest.fixture
def unique() -> str:
    """A short text that no other test uses."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
def environment_id(client: anthropic.Anthropic, unique: str) -> str:
    return new_environment(client, unique)


def new_environment(client: anthropic.Anthropic, name: str) -> str:
    return client.beta.environments.create(name=name, config={"type": "cloud"}).id


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Shows what the server printed beside the failure that it may explain."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for name in ("service", "private_service", "deployment", "private_deployment"):
            service = getattr(item, "funcargs", {}).get(name)
            if isinstance(service, Deployment):
                report.sections.append(("what replicas and nginx said", service.tail()))
            if isinstance(service, Service):
                report.sections.append(("server output", "\n".join(list(service.output)[-25:])))
