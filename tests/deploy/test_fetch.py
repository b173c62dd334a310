"""The rendered init container that fetches a model, run against a hub of this test's own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.finding import CHART
from tests.deploy.rendering import objects, pod_templates, render

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickled",
}


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """As much of a hub's API as a download needs."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/Qwen/Qwen3-8B/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in FILES.items()
            ]
            self._send(json.dumps(tree).encode())
        elif path.startswith("/api/models/Qwen/Qwen3-8B"):
            siblings = [{"rfilename": name} for name in FILES]
            said = {"id": "Qwen/Qwen3-8B", "sha": COMMIT, "siblings": siblings}
            self._send(json.dumps(said).encode())
        elif "/resolve/" in path and name in FILES:
            self._send(FILES[name], body=body)
        else:
            self.send_error(404)

    def _send(self, data: bytes, *, body: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag(data)}"')
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def fetch_container(example: str, group: str) -> dict[str, Any]:
    pods = pod_templates(objects(render(CHART / "examples" / f"{example}.yaml")))
    (container,) = pods[group]["spec"]["initContainers"]
    found: dict[str, Any] = container
    return found


@pytest.mark.parametrize(
    ("group", "left_out"),
    [("decode", {"pytorch_model.bin"}), ("gateway", {"pytorch_model.bin", "model.safetensors"})],
)
def test_a_hubs_model_is_fetched_without_pickles(
    hub: str, group: str, left_out: set[str], tmp_path: Path
) -> None:
    container = fetch_container("batch", group)
    folder = container["volumeMounts"][1]["mountPath"]
    command = [str(tmp_path / "model") if part == folder else part for part in container["command"]]
    command[0] = str(Path(sys.executable).parent / command[0])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HOME": str(tmp_path), "HF_ENDPOINT": hub, "HF_TOKEN": "hf_test"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    fetched = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir() if p.is_file()}
    assert fetched == {name: data for name, data in FILES.items() if name not in left_out}


def test_a_buckets_model_is_fetched_by_the_aws_command() -> None:
    worker, head = fetch_container("agents", "decode"), fetch_container("agents", "head")
    bucket = "s3://models/Llama-3.3-70B-Instruct"
    folder = "/models/Llama-3.3-70B-Instruct"
    assert worker["command"][:5] == ["aws", "s3", "sync", bucket, folder]
    assert "*.safetensors" in worker["command"]
    assert "*.safetensors" not in head["command"]
    # Everything is left out first, so that pickles never come.
    assert worker["command"].index("--exclude") < worker["command"].index("--include")
    assert worker["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
