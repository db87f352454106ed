"""Pulling from the hub, against a small server that answers as the hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.unit.model_store.tiny_gguf import GgufRecipe

from headrace.workers.model_store.gguf_convert import convert_gguf

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PULL = """
import sys
from pathlib import Path
from rich.console import Console
from headrace.errors import ModelError
from headrace.workers.model_store.store import pull, resolve
try:
    pulled = pull(sys.argv[1], Path(sys.argv[2]), Console(width=300))
except ModelError as error:
    sys.exit(f"ModelError: {error}")
assert resolve(sys.argv[1], Path(sys.argv[2])) == pulled
print(sorted(path.name for path in pulled.path.iterdir()))
"""


@dataclass
class Hub:
    """One repository: its files, which of them were sent, which break off half-way; and how the hub answers at all."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    breaks: set[str] = field(default_factory=set)
    status: int = 200


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if hub.status != 200:
                self.send_response(hub.status)
                self.send_header("X-Error-Message", "Invalid credentials in Authorization header")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif path.startswith("/api/models/some-org/model/tree/"):
                self._json([{"type": "file", "path": p, "size": len(c), "oid": _etag(c)} for p, c in hub.files.items()])
            elif path.startswith("/api/models/some-org/model"):
                files = [{"rfilename": path} for path in hub.files]
                self._json({"id": "some-org/model", "sha": COMMIT, "siblings": files})
            elif path.startswith("/some-org/model/resolve/"):
                self._file(path.split("/", 5)[5])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def _json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _file(self, name: str) -> None:
            content = hub.files[name]
            self.send_response(200)
            for key, value in {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                hub.sent.append(name)
                self.wfile.write(content[: len(content) // 2] if name in hub.breaks else content)

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, recipe: GgufRecipe, written: Callable[[GgufRecipe], Path]) -> Iterator[Hub]:
    folder = tmp_path / "published"
    folder.mkdir()
    convert_gguf(written(recipe), folder)
    hub = Hub(files={path.name: path.read_bytes() for path in folder.iterdir()})
    hub.files |= {"README.md": b"x", "onnx/model.safetensors": b"x", "consolidated.safetensors": b"x", "model.py": b"x"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def run_pull(url: str, cache: Path, repo_id: str = "some-org/model") -> subprocess.CompletedProcess[str]:
    """Pull in a process of its own, because the hub's client reads its address when it is imported."""
    environment = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    command = [sys.executable, "-c", PULL, repo_id, str(cache)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_comes_with_the_files_that_serving_needs_and_its_size_is_told_first(hub: Hub, tmp_path: Path) -> None:
    pulled = run_pull(hub.url, tmp_path / "cache")
    assert pulled.returncode == 0, pulled.stderr
    wanted = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert pulled.stdout.splitlines()[-1] == str(wanted)
    assert sorted(hub.sent) == wanted
    size_bytes = sum(len(hub.files[name]) for name in wanted)
    assert f"from the Hugging Face hub, commit {COMMIT}: {size_bytes / 1000:.1f} kB to download" in pulled.stdout


def test_what_stands_on_an_encoder_comes_with_it_and_other_folders_do_not(hub: Hub, tmp_path: Path) -> None:
    below = {"1_Pooling/config.json": b"{}", "2_Dense/config.json": b"{}", "2_Dense/model.safetensors": b"x"}
    hub.files |= {"modules.json": b"[]"} | below | {"1_Pooling/a/config.json": b"{}", "openvino/config.json": b"{}"}
    hub.files["2_Dense/model.safetensors"] = hub.files["model.safetensors"]
    pulled = run_pull(hub.url, tmp_path / "cache")
    assert pulled.returncode == 0, pulled.stderr
    folder = tmp_path / "cache" / "hub" / "complete" / "some-org--model"
    assert {str(path.relative_to(folder)) for path in folder.glob("*/**/*") if path.is_file()} == set(below)
    assert (folder / "modules.json").is_file()


def test_an_interrupted_pull_is_not_taken_for_finished_and_goes_on_later(hub: Hub, tmp_path: Path) -> None:
    hub.breaks.add("model.safetensors")
    broken = run_pull(hub.url, tmp_path / "cache")
    assert broken.returncode == 1
    assert broken.stderr.splitlines()[-1].startswith("ModelError: ")
    assert not list((tmp_path / "cache").glob("hub/complete/*"))
    hub.breaks.clear()
    hub.sent.clear()
    assert run_pull(hub.url, tmp_path / "cache").returncode == 0
    assert hub.sent == ["model.safetensors"]


def test_a_model_that_the_hub_does_not_have_is_told_as_such(hub: Hub, tmp_path: Path) -> None:
    missing = run_pull(hub.url, tmp_path / "cache", "some-org/other")
    assert "ModelError: the Hugging Face hub has no public model some-org/other; check the spelling" in missing.stderr


def test_a_repository_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    refused = run_pull(hub.url, tmp_path / "cache")
    assert "ModelError: some-org/model on the Hugging Face hub has no safetensors files" in refused.stderr
    assert hub.sent == []


def test_a_repository_with_an_older_tokenizer_only_is_refused_before_anything_comes(hub: Hub, tmp_path: Path) -> None:
    hub.files["tokenizer.model"] = hub.files.pop("tokenizer.json")
    refused = run_pull(hub.url, tmp_path / "cache")
    assert "ModelError: some-org/model on the Hugging Face hub has no tokenizer.json" in refused.stderr
    assert "save_pretrained" in refused.stderr
    assert hub.sent == []


def test_a_dead_network_is_told_in_words(tmp_path: Path) -> None:
    dead = run_pull("http://127.0.0.1:9", tmp_path / "cache")
    assert "ModelError: cannot pull some-org/model from the Hugging Face hub: it cannot be reached (" in dead.stderr
    assert dead.stderr.endswith("; check the internet connection\n")


@pytest.mark.parametrize(("status", "advice"), [(401, "check HF_TOKEN, and the spelling"), (500, "try again later")])
def test_a_hub_that_does_not_answer_as_it_should_is_told_in_words(
    hub: Hub, tmp_path: Path, status: int, advice: str
) -> None:
    hub.status = status
    refused = run_pull(hub.url, tmp_path / "cache")
    assert refused.stderr.splitlines()[-1] == (
        f"ModelError: cannot pull some-org/model from the Hugging Face hub: it answers with status {status}; {advice}"
    )


def test_a_client_that_was_told_to_stay_offline_says_so(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = run_pull(hub.url, tmp_path / "cache")
    assert offline.stderr.endswith("from the Hugging Face hub: HF_HUB_OFFLINE is set\n")
