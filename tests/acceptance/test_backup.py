"""A backup is taken from a running deployment and restored into a fresh one, where its sessions go on.

The database first, then the blobs: a blob is stored before the record that names it and outlives its last reference
by a day, so whatever the dump names is still there when the blobs are copied after it. The other way round, what was
stored in between would be named and missing.
"""

import shutil
from pathlib import Path

import postgres
import shapes
from conftest import new_environment
from deployment import Deployment
from turns import (
    Listener,
    ask_for,
    history,
    message,
    new_session,
    of_type,
    results,
    run_turn,
    text,
    wait_status,
)


def test_a_backup_of_a_running_deployment_goes_on_elsewhere(
    private_deployment: Deployment, cluster: postgres.Cluster, unique: str, tmp_path: Path
) -> None:
    first = private_deployment.start()
    client = first.client()
    environment_id = new_environment(client, unique)
    # One session at rest, with more in it than a row should hold; one that asks; one in a model call; one in a tool.
    rested = new_session(client, environment_id)
    run_turn(client, rested.id, "!bash head -c 100000 /dev/zero | tr '\\0' x", "---", "!say before")
    asking = new_session(client, environment_id, tools=[ask_for("bash")])
    run_turn(client, asking.id, "!bash echo confirmed", "---", "!say thanks", reason="requires_action")
    thinking, working = new_session(client, environment_id), new_session(client, environment_id)
    with Listener(client, thinking.id) as thoughts, Listener(client, working.id) as work:
        client.beta.sessions.events.send(thinking.id, events=[message("!wait 5000", "!say thought")])
        client.beta.sessions.events.send(working.id, events=[message("!bash sleep 5", "---", "!say worked")])
        thoughts.wait_type("span.model_request_start")
        work.wait_type("agent.tool_use")
    acknowledged = {session.id: history(client, session.id) for session in (rested, asking, thinking, working)}

    dump = tmp_path / "dump"
    cluster.program("pg_dump", "--format=custom", f"--file={dump}", first.database_url)
    # What happens after the dump is not in it, and does not hurt it.
    run_turn(client, rested.id, "!say too late")
    blobs = tmp_path / "blobs"
    shutil.copytree(first.s3.bucket, blobs)
    assert any(path.is_file() for path in blobs.rglob("*")), "nothing lies among the blobs"

    database_url = cluster.create_database()
    cluster.program("pg_restore", f"--dbname={database_url}", "--no-owner", "--exit-on-error", str(dump))
    # The disaster.
    for process in (*first.workers, *first.replicas):
        process.kill()
    second = Deployment(cluster, database_url=database_url)
    shutil.copytree(blobs, second.s3.bucket)
    try:
        client = second.start().client()
        assert history(client, rested.id) == acknowledged[rested.id], "a session at rest is as it was"
        for session in (thinking, working):
            wait_status(client, session.id, "idle")
            listed = history(client, session.id)
            shapes.check_history(listed)
            shapes.check_calls(listed)
            known = [event.id for event in acknowledged[session.id]]
            assert [event.id for event in listed[: len(known)]] == known
        assert [text(event) for event in of_type(history(client, thinking.id), "agent.message")] == ["thought"]
        assert [text(event) for event in of_type(history(client, working.id), "agent.message")] == ["worked"]

        call = of_type(acknowledged[asking.id], "agent.tool_use")[0].id
        with Listener(client, asking.id) as listener:
            confirmation = {"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"}
            client.beta.sessions.events.send(asking.id, events=[confirmation])
            listener.wait_idle(reason="end_turn")
        assert text(results(history(client, asking.id))[call]) == "confirmed"
        after = run_turn(client, rested.id, "!bash echo alive", "---", "!say after")
        [result] = results(after).values()
        # Its files come from the last snapshot in the dump; the model is told before the result if they are older.
        assert text(result).endswith("alive")
    finally:
        second.close()
        shutil.rmtree(tmp_path, ignore_errors=True)
