"""An S3 stand-in, a proxy before it that answers as badly as real object stores may, and stores.

Besides, small networks and a checkpoint of one.
"""

import http.client
import os
import runpy
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pyarrow
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything imports PyTorch: several processes with a thread per core each would wait for
    # one another actively, and take many times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Arrow goes by the same variable, but there is what it refuses to several threads only
    pyarrow.set_cpu_count(2)

SLOW_DOWN = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""

# (number of the request since the faults were set, method, path with query) -> one of FAULTS
FaultPlan = Callable[[int, str, str], str | None]
FAULTS = (
    "500",  # an internal error
    "503",  # throttled
    "drop",  # the connection ends before the request is looked at
    "lost",  # the request goes through, its answer does not
    "cut",  # the answer's body ends early
    "stall",  # the request is never answered
)


class FaultyS3:
    """An HTTP proxy before an S3 stand-in, in threads of this process.

    Attributes:
        seen: number of requests by fate: a fault's name, or "ok".
    """

    def __init__(self, target: str, stall_s: float) -> None:
        self.seen: Counter[str] = Counter()
        self._plan: FaultPlan = lambda number, method, path: None
        self._number = 0
        self._lock = threading.Lock()
        self._target = urlsplit(target).netloc
        self._stall_s = stall_s
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, plan: FaultPlan) -> None:
        """From now on, requests fail as planned, counted from 0."""
        with self._lock:
            self._plan, self._number = plan, 0
            self.seen.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _fate(self, method: str, path: str) -> str | None:
        with self._lock:
            number, self._number = self._number, self._number + 1
            fault = self._plan(number, method, path)
            self.seen[fault or "ok"] += 1
            return fault

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes):
        connection = http.client.HTTPConnection(self._target, timeout=30)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() != "connection"}
            connection.request(request.command, request.path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # unbuffered, each answer would wait 40 ms for an acknowledgement

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = outer._fate(self.command, self.path)
                if fault in ("drop", "stall"):
                    time.sleep(outer._stall_s if fault == "stall" else 0)
                    self.close_connection = True
                elif fault in ("500", "503"):
                    self.answer(int(fault), [("Content-Type", "application/xml")], SLOW_DOWN)
                else:
                    status, headers, content = outer._forward(self, body)
                    if fault == "lost":
                        self.close_connection = True
                    else:
                        self.answer(status, headers, content, is_cut=fault == "cut")

            def answer(self, status, headers, content, *, is_cut=False) -> None:
                self.send_response_only(status)
                told = dict(headers).get("Content-Length", str(len(content)))
                for name, value in headers:
                    hop_by_hop = ("connection", "transfer-encoding", "content-length")
                    if name.lower() not in hop_by_hop:
                        self.send_header(name, value)
                self.send_header("Content-Length", told)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if is_cut else content)
                if is_cut:
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture(scope="session")
def small_arguments():
    """Of each of our architectures, so that it is quickly built, traced and run."""
    backbone = {"backbone": "resnet18"}
    two_stage = backbone | {"hidden": 8, "num_proposals": 20}
    return {
        "retinamask": {"mask_head": True, "width": 8, "fpn_channels": 8},
        "ssd": backbone,
        "yolo_v1": {"variant": "tiny", "width": 8, "image_size": 64},
        "yolo_v2": {"variant": "tiny", "width": 4, "head_width": 8},
        "yolo_v3": {"variant": "tiny", "width": 4},
        "rcnn": backbone | {"crop_size": 32, "context": 2, "num_proposals": 20},
        "fast_rcnn": two_stage,
        "faster_rcnn": two_stage,
        "mask_rcnn": two_stage | {"fpn_channels": 8, "mask_channels": 8},
        "full_resolution": {"width": 4, "depth": 3},
        "encoder_decoder": {"width": 4, "depth": 2},
        "unet": {"width": 4, "depth": 2},
        "unet_plus_plus": {"width": 4, "depth": 2, "deep_supervision": True},
        "pspnet": backbone | {"pool_channels": 8},
        "gcn": backbone | {"kernel": 5},
        "frrn": {"width": 4},
        "semantic_fpn": backbone | {"pyramid_channels": 8, "channels": 32},
        "classifier": backbone,
        "localiser": backbone | {"hidden": 8},
        "show_and_tell": backbone | {"embed_dim": 8, "hidden_dim": 8},
        "show_attend_tell": {"width": 8, "embed_dim": 8, "hidden_dim": 8, "attention_dim": 8},
    }


@pytest.fixture(scope="session")
def write_unet():
    """Function (path, canvases) that writes a small U-Net, random but always the same."""
    import torch

    from pixelmill.configs.schema import PreprocessConfig
    from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
    from pixelmill.models.unet import UNet

    def write(path: Path, canvases: tuple[tuple[int, int], ...]) -> Path:
        torch.manual_seed(0)
        meta = CheckpointMeta(
            name="unet",
            task="semantic_segmentation",
            architecture="unet",
            arguments={"num_classes": 3, "width": 4, "depth": 1},
            classes=("a", "b", "c"),
            preprocess=PreprocessConfig(canvases=canvases),
        )
        save_checkpoint(path, UNet(num_classes=3, width=4, depth=1), meta)
        return path

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where files are shared out, those with slow tests go first: none is left for the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def predicted() -> SimpleNamespace:
    """predicted.py: tests are not a package."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("predicted.py"))))


@pytest.fixture(scope="session")
def s3_server():
    """An S3 stand-in in this process; its address is in the environment, as a user's would be."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    changes = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    yield changes
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


@pytest.fixture
def s3_root(s3_server, request):
    """A new bucket."""
    import boto3

    bucket = request.node.name.lower().replace("_", "-").replace("[", "-").rstrip("]")[:60]
    client = boto3.client("s3", endpoint_url=s3_server["AWS_ENDPOINT_URL"], region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}/nightly"
    client.close()


@pytest.fixture
def faulty_s3(s3_server, monkeypatch):
    """A proxy that the environment names as S3; it passes everything on until told otherwise."""
    proxy = FaultyS3(s3_server["AWS_ENDPOINT_URL"], stall_s=2.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()
