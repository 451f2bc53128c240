"""How much longer a turn takes while Redis fails, seen by a client that posts to one replica and streams from another.

    .venv/bin/python tests/faults/redis_delay.py --rounds 40

Each fault strikes when the stream is open and just before the message is posted, and ends with the turn. Prints p50 and
the longest for each, and what the longest is more than the longest of the whole Redis in the same run (goal: 1 s).
"""

import argparse
import contextlib
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "acceptance"))

import anthropic  # noqa: E402

import postgres  # noqa: E402
from deployment import Deployment  # noqa: E402
from redis_server import RedisServer  # noqa: E402
from service import API_KEY  # noqa: E402


@contextlib.contextmanager
def whole(redis: RedisServer) -> Iterator[None]:
    yield


@contextlib.contextmanager
def stopped(redis: RedisServer) -> Iterator[None]:
    redis.kill()
    yield
    redis.start()


@contextlib.contextmanager
def stalled(redis: RedisServer) -> Iterator[None]:
    redis.signal(signal.SIGSTOP)
    yield
    redis.signal(signal.SIGCONT)


@contextlib.contextmanager
def flushed(redis: RedisServer) -> Iterator[None]:
    redis.ask("FLUSHALL")
    redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
    yield


def turn(deployment: Deployment, agent_id: str, environment_id: str, fault, rng: random.Random) -> float:
    """Seconds from a post to the end of its turn on a stream of another replica."""
    post, follow = rng.sample(deployment.replicas, 2)
    with anthropic.Anthropic(base_url=post.url, api_key=API_KEY, max_retries=0) as poster, anthropic.Anthropic(
        base_url=follow.url, api_key=API_KEY, max_retries=0
    ) as follower:
        session = poster.beta.sessions.create(agent=agent_id, environment_id=environment_id)
        with follower.beta.sessions.events.stream(session.id) as stream, fault(deployment.redis):
            message = {"type": "user.message", "content": [{"type": "text", "text": "!say hello"}]}
            began = time.monotonic()
            poster.beta.sessions.events.send(session.id, events=[message])
            for event in stream:
                if event.type == "session.status_idle":
                    return time.monotonic() - began
    raise RuntimeError("the stream ended before the turn did")


def main() -> int:
    arguments = argparse.ArgumentParser(prog="redis_delay", description="Measures turns while Redis fails.")
    arguments.add_argument("--rounds", type=int, default=40, help="turns for each fault (40)")
    options = arguments.parse_args()
    cluster, rng = postgres.Cluster(), random.Random(1)
    deployment = Deployment(cluster, workers=0)
    try:
        client = deployment.start().client()
        agent = client.beta.agents.create(name="delay", model="demo")
        environment = client.beta.environments.create(name="delay", config={"type": "cloud"})
        taken: dict[str, list[float]] = {}
        # In turns, so that the machine's own moods meet all of them.
        for _ in range(options.rounds):
            for fault in (whole, stopped, stalled, flushed):
                taken.setdefault(fault.__name__, []).append(turn(deployment, agent.id, environment.id, fault, rng))
        floor = max(taken["whole"])
        for name, seconds in taken.items():
            longest, middle = max(seconds), statistics.median(seconds)
            print(f"Redis {name}: p50 {middle * 1000:.0f} ms, longest {longest * 1000:.0f} ms, {(longest - floor) * 1000:+.0f} ms")
        return 0
    finally:
        deployment.close()
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
