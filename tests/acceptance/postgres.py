"""A private PostgreSQL cluster for one test run, from the binaries that Debian's package installs.

It listens on a loopback port of its own, keeps its data in a temporary folder, and is stopped with the run.
Losing power is not what these tests are about, so it does not wait for the disk.
"""

import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile


class Unavailable(Exception):
    """Why no cluster can be started on this machine."""


def binaries() -> str:
    """The folder of the newest installed server binaries."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    if not found:
        raise Unavailable("no PostgreSQL server is installed (apt-get install postgresql)")
    return os.path.dirname(found[-1])


class Cluster:
    """A running cluster; `create_database` gives each server under test a database of its own."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="acceptance-postgres-")
        self.port = free_port()
        self._binaries = binaries()
        self._databases = 0
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            # The server refuses to run as root.
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                raise Unavailable("root needs the account postgres to start PostgreSQL") from None
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as_user = ["runuser", "-u", "postgres", "--"]
        self._data = data = os.path.join(self.folder, "data")
        self._run("initdb", "--pgdata", data, "--username", "postgres", "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder} "
            "-c fsync=off -c full_page_writes=off -c max_connections=200"
        )
        self._options = options
        self.start()

    def start(self) -> None:
        log = os.path.join(self.folder, "log")
        self._run("pg_ctl", "--pgdata", self._data, "--log", log, "--wait", "--options", self._options, "start")

    def halt(self, mode: str) -> None:
        """Ends the server and keeps its data; `fast` says goodbye to its clients, `immediate` does not."""
        self._run("pg_ctl", "--pgdata", self._data, "--mode", mode, "--wait", "stop")

    def create_database(self) -> str:
        """A new, empty database; returns its URL."""
        self._databases += 1
        name = f"acceptance_{self._databases}"
        self._run("createdb", "--host", "127.0.0.1", "--port", str(self.port), "--username", "postgres", name)
        return f"postgres://postgres@127.0.0.1:{self.port}/{name}"

    def query(self, url: str, statement: str) -> list[list[str]]:
        """Rows of a statement on the database at `url`, as text."""
        return [line.split("\t") for line in self.program("psql", "-XAtqF", "\t", "-c", statement, url).splitlines()]

    def program(self, name: str, *arguments: str) -> str:
        """What one of the installed client programs prints."""
        done = subprocess.run(
            [os.path.join(self._binaries, name), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed: {done.stderr}")
        return done.stdout

    def stop(self) -> None:
        self.halt("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, os.path.join(self._binaries, program), *arguments]
        # pg_ctl's child keeps the pipes of its parent: only files and /dev/null may be inherited.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder, timeout=60
            )
            if done.returncode != 0:
                output.seek(0)
                raise RuntimeError(f"{program} failed: {output.read().decode(errors='replace')}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
