"""A private S3 server for one deployment: a folder behind a loopback port, and faults on demand."""

from pathlib import Path

from loopback import LoopbackServer
from service import executable

BUCKET = "agent-service"


class S3Server(LoopbackServer):
    """The example `s3_server` of the crate `store`; what it holds outlives it until `close`."""

    def __init__(self, port: int) -> None:
        super().__init__("s3", port)
        self.settings = {
            "OBJECT_STORE_URL": f"s3://{BUCKET}",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "garage",
            "AWS_ACCESS_KEY_ID": "access",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def command(self) -> list[str]:
        program = Path(executable()).parent / "examples" / "s3_server"
        if not program.exists():
            raise FileNotFoundError(f"{program} does not exist: cargo build -p store --example s3_server")
        return [str(program), str(self.folder), str(self.port)]

    @property
    def bucket(self) -> Path:
        """Where its objects lie."""
        return self.folder / BUCKET
