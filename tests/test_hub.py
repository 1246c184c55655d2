"""A hub that fails half-way is tried again (by huggingface_hub); one that never gets to the end is a sentence, and so
is one whose files are called like places outside the cache."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.toy_model import save_toy_model

REVISION = "0" * 40
LOAD = """
from pipeline.errors import PipelineError
from pipeline.stage import ModelSource
from stages.engines.models import load_model
try:
    load_model(ModelSource("toys/llama", "{revision}"), device="cpu").save_pretrained("{out}")
except PipelineError as error:
    print("SAID", error)
"""


class ToyHub(ThreadingHTTPServer):
    """Serves the files of one model as the hub does, and breaks off in the middle of the weights `breaks` times."""

    daemon_threads = True

    def __init__(self, folder: Path, breaks: int) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.breaks = folder, breaks
        self.num_tries = 0


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: ToyHub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        file = self.server.folder / self.path.rpartition("/")[2]
        if f"/resolve/{REVISION}/" not in self.path or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        whole = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        if with_body:
            self.wfile.write(self.part(file.name, whole))

    def part(self, name: str, whole: bytes) -> bytes:
        """What is sent: half of the weights as long as breaks are left."""
        if name != "model.safetensors":
            return whole
        self.server.num_tries += 1
        self.close_connection = True
        return whole if self.server.num_tries > self.server.breaks else whole[: len(whole) // 2]

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def toy_model(tmp_path: Path) -> Path:
    return save_toy_model(tmp_path / "model")


def load_from(hub: ToyHub, folder: Path) -> str:
    """What a process says that loads the model from this hub into `folder/out`."""
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(folder / "cache")}
    unproxied = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    code = LOAD.format(revision=REVISION, out=folder / "out")
    done = subprocess.run(
        [sys.executable, "-c", code], env=unproxied | place, capture_output=True, text=True, timeout=200
    )
    hub.shutdown()
    return done.stdout + done.stderr


@pytest.fixture
def hub(toy_model: Path, request: pytest.FixtureRequest) -> Iterator[ToyHub]:
    with ToyHub(toy_model, request.param) as server:
        yield server


@pytest.mark.long
@pytest.mark.parametrize("hub", [2], indirect=True)
def test_a_download_that_breaks_off_is_tried_again_and_ends_whole(hub: ToyHub, toy_model: Path, tmp_path: Path) -> None:
    said = load_from(hub, tmp_path)
    assert "SAID" not in said
    assert (tmp_path / "out/model.safetensors").read_bytes() == (toy_model / "model.safetensors").read_bytes()
    assert hub.num_tries == 3


@pytest.mark.long
@pytest.mark.parametrize("hub", [10**6], indirect=True)
def test_a_hub_that_never_gets_to_the_end_is_tried_again_and_then_a_sentence(hub: ToyHub, tmp_path: Path) -> None:
    said = load_from(hub, tmp_path)
    assert "SAID the model at toys/llama cannot be read: " in said
    assert "HF_HUB_OFFLINE=1" in said and "Traceback" not in said
    assert hub.num_tries > 3


@pytest.mark.long
@pytest.mark.parametrize("hub", [0], indirect=True)
def test_a_file_of_the_hub_that_is_called_like_a_place_elsewhere_is_refused(
    hub: ToyHub, toy_model: Path, tmp_path: Path
) -> None:
    (toy_model / "model.safetensors").rename(toy_model / "evil.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../../evil.safetensors"}}
    (toy_model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "SAID the model at toys/llama cannot be read: Invalid filename" in load_from(hub, tmp_path)
    assert list(tmp_path.rglob("evil*")) == [toy_model / "evil.safetensors"]
