"""The outside world that tools change: a counter of effects, which sees every one and forgets none.

A tool reaches it as it reaches anything, through its worker's egress proxy. So a call that ran twice is seen here,
whatever became of its worker, its workspace and its result.
"""

import collections
import http.server
import threading


class Effects:
    """Counts what was asked of it, by mark."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        counts = self.counts
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mark = self.path.rsplit("/", 1)[-1]
                with lock:
                    counts[mark] += 1
                body = confirmed(mark).encode()
                try:
                    self.send_response(200)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # Whoever asked was killed. What was asked is done.

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def command(self, mark: str) -> str:
        """A line of bash that has this effect once, and prints what `confirmed` says."""
        request = f"GET http://127.0.0.1:{self.port}/{mark} HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n"
        return f"p=${{http_proxy#*//}}; p=${{p%/}}; exec 3<>/dev/tcp/${{p%:*}}/${{p##*:}}; printf '{request}' >&3; cat <&3"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def confirmed(mark: str) -> str:
    return f"done {mark}"
