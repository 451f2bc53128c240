"""A private Redis for one deployment: nothing on disk, a loopback port of its own, and faults on demand."""

import socket

from loopback import LoopbackServer


class RedisServer(LoopbackServer):
    """One `redis-server`; what it holds does not outlive it."""

    def __init__(self, port: int) -> None:
        super().__init__("redis", port)
        self.url = f"redis://127.0.0.1:{port}"

    def command(self) -> list[str]:
        settings = {"bind": "127.0.0.1", "port": str(self.port), "save": "", "appendonly": "no", "dir": str(self.folder)}
        return ["redis-server", *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def ask(self, *words: str) -> bytes:
        """One command, and the first of what is answered."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            head = b"*%d\r\n" % len(words)
            connection.sendall(head + b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words))
            return connection.recv(65536)
