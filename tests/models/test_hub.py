"""Folders of the Hub, from a server of this process; nothing of the real one is asked."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save

from pixelmill.configs.schema import ClassificationModel, PreprocessConfig
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.digests import weights_digest
from pixelmill.models.hub import fetch_folder, folder_files, read_folder_config, weights_in

hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PREPROCESS = PreprocessConfig(
    resize="stretch", canvases=((32, 32),), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


@pytest.fixture
def repository():
    """Files of the one repository `me/net` that there is."""
    return {
        "config.json": json.dumps({"model_type": "x"}).encode(),
        "model.safetensors": save({"a": torch.ones(2)}),
        "pytorch_model.bin": b"a pickle",
        "README.md": b"hello",
    }


@pytest.fixture
def server(repository, tmp_path, monkeypatch):
    """Its address is the Hub's, and the Hub's cache is empty."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            place = self.path.partition("?")[0]
            asked.append(place)
            if place.startswith("/api/models/me/net/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(content),
                     "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in repository.items()
                ]  # fmt: skip
                self.send(json.dumps(tree).encode())
            elif place.startswith("/api/models/me/net"):
                siblings = [{"rfilename": name} for name in repository]
                about = {"id": "me/net", "modelId": "me/net", "sha": COMMIT, "siblings": siblings}
                self.send(json.dumps(about).encode())
            elif place.startswith(f"/me/net/resolve/{COMMIT}/"):
                self.send(repository[place.rpartition("/")[2]])
            else:
                self.send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

        def send(self, content: bytes, status: int = 200, headers=None) -> None:
            self.send_response(status)
            known = {
                "Content-Length": str(len(content)),
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Content-Type": "application/json",
            }
            for name, value in (known | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    point_to(monkeypatch, f"http://127.0.0.1:{running.server_address[1]}", tmp_path)
    yield asked
    running.shutdown()
    thread.join()
    running.server_close()


def point_to(monkeypatch, url: str, tmp_path) -> None:
    monkeypatch.setattr(hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)


def test_a_folder_is_fetched_once_without_what_is_not_read(server, repository) -> None:
    folder = fetch_folder("hf:me/net")
    assert folder.name == COMMIT
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == repository["model.safetensors"]
    assert [path.name for path in folder_files(folder)] == ["config.json", "model.safetensors"]


def test_pickles_are_fetched_where_there_is_nothing_else(server, repository) -> None:
    del repository["model.safetensors"]
    folder = fetch_folder(f"hf:me/net@{COMMIT}")
    assert [path.name for path in weights_in(folder)] == ["pytorch_model.bin"]


def test_what_is_not_there_is_said_with_its_remedies(server) -> None:
    with pytest.raises(OSError, match=r"cannot fetch hf:me/other .*hf auth login.*models fetch"):
        fetch_folder("hf:me/other")


@pytest.mark.parametrize("reference", ["hf:net", "hf:a/b/c", "hf:me/net@", "hf:../../etc"])
def test_other_references_are_refused(reference) -> None:
    with pytest.raises(ValueError, match="expected hf:<owner>/<name>"):
        fetch_folder(reference)


def test_without_a_network_it_is_said_how_to_bring_the_folder(tmp_path, monkeypatch) -> None:
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(OSError, match=r"cannot fetch hf:me/net .*connected machine and copy"):
        fetch_folder("hf:me/net")


def test_a_model_of_the_hub_is_scored_and_its_key_follows_what_is_read(
    server, repository, tmp_path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=32, patch_size=16,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "made")
    for name in ("config.json", "model.safetensors"):
        repository[name] = (tmp_path / "made" / name).read_bytes()
    model = ClassificationModel(name="net", weights="hf:me/net", preprocess=PREPROCESS)
    spec = resolve_model(model, tmp_path)
    assert spec.revision == COMMIT
    build_network(spec)
    copied = resolve_model(model.model_copy(update={"weights": "made"}), tmp_path)
    assert copied.key == spec.key  # the same files under no revision
    (tmp_path / "made" / "README.md").write_text("corrected")
    assert weights_digest(tmp_path / "made") == spec.weights_sha256
    (tmp_path / "made" / "generation_config.json").write_text("{}")
    assert weights_digest(tmp_path / "made") != spec.weights_sha256


def test_folders_of_others_are_told_apart(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a config\.json"):
        read_folder_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_folder_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        folder_files(tmp_path)
