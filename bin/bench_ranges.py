"""What a conversion fetches of a training checkpoint in object storage: weights, their average and the optimizer's two
moments lie in one file, and only the weights are kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench_common import ROOT, say


class Ranges(BaseHTTPRequestHandler):
    """One file by ranges, as object storage gives it; counts the bytes that leave."""

    protocol_version = "HTTP/1.1"
    file: Path
    sent: list[int]

    def do_HEAD(self) -> None:
        self._answer(200, self.file.stat().st_size)

    def do_GET(self) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last) + 1
        self._answer(206, stop - start, f"bytes {start}-{stop - 1}/{self.file.stat().st_size}")
        with open(self.file, "rb") as file:
            os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)
        self.sent.append(stop - start)

    def _answer(self, status: int, length: int, content: str = "") -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(length)), ("Accept-Ranges", "bytes"), ("Content-Range", content)):
            if value:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(path: Path) -> Iterator[tuple[str, list[int]]]:
    """(the URL of a file, the counts of bytes that were sent of it)."""
    sent: list[int] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Ranges,), {"file": path, "sent": sent}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{path.name}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bench_ranges(checkpoint: Path, out: Path) -> tuple[int, int, int]:
    """(bytes fetched, bytes of the weights that were written, bytes of the file) of one conversion by URL."""
    with served(checkpoint) as (url, sent):
        command = [sys.executable, "-m", "converter", "convert", url, str(out), "--quiet"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    kept = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    size = checkpoint.stat().st_size
    say(
        f"{checkpoint.name}: {sum(sent) / 1e9:.2f} GB fetched in {len(sent)} ranges, {kept / 1e9:.2f} GB kept, "
        f"of {size / 1e9:.2f} GB ({sum(sent) / size:.0%})"
    )
    return sum(sent), kept, size


if __name__ == "__main__":
    bench_ranges(Path(sys.argv[1]), Path(sys.argv[2]))
