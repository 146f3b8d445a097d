"""Images that kill the process that scores them, in real processes that really die."""

import importlib
import multiprocessing
import signal
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pixelmill.configs.schema import BoxPostprocess, DetectionModel, PreprocessConfig
from pixelmill.models.build import resolve_model
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.device import Device, DeviceLostError
from pixelmill.tasks.engine.score import score_shard
from pixelmill.tasks.engine.watchdog import EXIT_CODE
from pixelmill.tasks.store import publish

# A network that shows the decode function each image's mean colour
NETWORK = """
    import torch

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return images.mean(dim=(2, 3))

    def build():
        return Mean()
"""
DECODE = """
    import os
    import numpy as np

    def decode(outputs, canvas):
        results = []
        for red, green, blue in outputs[0]:
            if red > 0.9 and green < 0.1:
                os.abort()
            if green > 0.9 and red < 0.1:
                raise ValueError("green is not to my taste")
            if blue > 0.9 and red < 0.1 and len(outputs[0]) > 2:
                raise MemoryError("too much blue at once")
            results.append((np.array([[0, 0, 8, 8]]), np.array([0.9]), np.array([0])))
        return results
"""
COLOURS = {"grey": (90, 90, 90), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def picky_spec(tmp_path, monkeypatch):
    """A model that dies of red, refuses green, and has little memory for blue."""
    (tmp_path / "picky_network.py").write_text(textwrap.dedent(NETWORK))
    (tmp_path / "picky_decode.py").write_text(textwrap.dedent(DECODE))
    torch.save({"unused": torch.zeros(1)}, tmp_path / "picky.pt")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = DetectionModel(
        name="picky",
        architecture="picky_network:build",
        weights="picky.pt",
        decode="picky_decode.py:decode",
        classes=("thing",),
        preprocess=PreprocessConfig(
            resize="stretch", canvases=((16, 16),), mean=(0, 0, 0), std=(1, 1, 1)
        ),
        postprocess=BoxPostprocess(),
        batch_size=4,
    )
    return resolve_model(config, tmp_path)


def paint(folder, colours):
    """Files of one colour each, all different."""
    folder.mkdir()
    paths = []
    for index, colour in enumerate(colours):
        pixels = np.full((20, 20 + index, 3), COLOURS[colour], np.uint8)
        paths.append(folder / f"{index:02d}-{colour}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


# A decoder that does something to images of a certain width
DECODER = """
    import time
    import numpy as np
    from pixelmill.tasks.engine import stages
    from pixelmill.tasks.engine.score import score_shard

    decode_image = stages.decode_image

    def decode(data, **limits):
        decoded = decode_image(data, **limits)
        if decoded.pixels.shape[1] == BAD_WIDTH:
            MISBEHAVE
        return decoded

    def score(root, run_id, shard_index, **options):
        stages.decode_image = decode
        score_shard(root, run_id, shard_index, **options)
"""


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    """Function from code for images of a width to a `score_shard` that can be sent."""

    def make(code: str, width: int):
        text = textwrap.dedent(DECODER).replace("MISBEHAVE", code).replace("BAD_WIDTH", str(width))
        (tmp_path / "misbehaving_decoder.py").write_text(text)
        return importlib.import_module("misbehaving_decoder").score

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    sys.modules.pop("misbehaving_decoder", None)


def score_until_committed(
    store, run_id, *, score=score_shard, exit_code=-signal.SIGABRT, limit=20, **options
) -> int:
    """Score in new processes as often as they die; how often that was."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pixelmill.tasks.engine.score"])
    for deaths in range(limit):
        process = context.Process(
            target=score, args=(store.root, run_id, 0), kwargs={"device": "cpu", **options}
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            return deaths
        assert process.exitcode == exit_code
    raise AssertionError(f"not committed after {limit} deaths")


HANG = "time.sleep(1000)"
HOARD = "hoard = []\n        while True: hoard.append(np.ones(2**23)); time.sleep(0.01)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "config", "reason", "overlap"),
    [
        (HANG, {"ingest": {"max_decode_s": 1}}, "deadline", False),
        (HANG, {"ingest": {"max_decode_s": 1}}, "deadline", True),
        (HOARD, {"compute": {"memory": 3 * 2**29}}, "memory", False),
    ],
)
def test_an_image_that_hangs_its_decoder_or_eats_memory_is_quarantined(
    tmp_path, store, make_run, picky_spec, misbehaving, code: str, config, reason: str, overlap
) -> None:
    paths = paint(tmp_path / "images", ["grey"] * 13)
    run_id = make_run(store, [picky_spec], paths, **config)
    score = misbehaving(code, 26)
    deaths = score_until_committed(
        store, run_id, score=score, exit_code=EXIT_CODE, may_exit=True, overlap=overlap
    )
    assert deaths <= 3
    publish(store)
    assert len(store.images()) == 12
    (failure,) = store.failures().itertuples()
    assert failure.path == paths[6].name
    assert (failure.stage, failure.reason, failure.retryable) == ("worker", reason, False)
    assert not list(store.backend.list("_commit/crumbs"))


def test_an_image_that_came_back_too_late_fails_where_the_process_may_not_end(
    tmp_path, store, make_run, picky_spec, monkeypatch
) -> None:
    def slow(data, **limits):
        decoded = decode_image(data, **limits)
        time.sleep(0.3 if decoded.pixels.shape[1] == 22 else 0)
        return decoded

    monkeypatch.setattr("pixelmill.tasks.engine.stages.decode_image", slow)
    paths = paint(tmp_path / "images", ["grey"] * 4)
    run_id = make_run(store, [picky_spec], paths, ingest={"max_decode_s": 0.25})
    outcome = score_shard(store.root, run_id, 0, device="cpu")
    assert outcome.num_scored[picky_spec.key] == 3
    publish(store)
    (failure,) = store.failures().itertuples()
    assert failure.path == paths[2].name
    assert (failure.stage, failure.reason) == ("decode", "deadline")


def test_a_lost_device_leaves_its_images_suspected(tmp_path, store, make_run, picky_spec) -> None:
    text = (
        "def decode(outputs, canvas):\n    raise RuntimeError('CUDA error: misaligned address')\n"
    )
    (tmp_path / "picky_decode.py").write_text(text)
    config = DetectionModel(
        name="broken",
        architecture="picky_network:build",
        weights="picky.pt",
        decode="picky_decode.py:decode",
        classes=("thing",),
        preprocess=picky_spec.preprocess,
    )
    spec = resolve_model(config, tmp_path)
    run_id = make_run(store, [spec], paint(tmp_path / "images", ["grey"] * 2))
    with pytest.raises(DeviceLostError, match="misaligned"):
        score_shard(store.root, run_id, 0, device="cpu")
    assert len(list(store.backend.list("_commit/crumbs"))) == 1


@pytest.mark.slow
def test_an_image_that_kills_is_quarantined_after_three_deaths_and_its_copies_with_it(
    tmp_path, store, make_run, picky_spec
) -> None:
    paths = paint(tmp_path / "images", ["grey"] * 6 + ["red"] + ["grey"] * 6)
    paths.append(tmp_path / "images" / "copy.png")
    paths[-1].write_bytes(paths[6].read_bytes())
    run_id = make_run(store, [picky_spec], paths)
    assert score_until_committed(store, run_id) == 3
    publish(store)
    assert len(store.images()) == 12
    failures = store.failures()
    assert failures.path.tolist() == [paths[6].name, paths[-1].name]
    assert failures.image_id.nunique() == 1
    assert set(failures.reason) == {"killed_worker"}
    assert not failures.retryable.any()
    assert not list(store.backend.list("_commit/crumbs"))


def test_an_image_that_the_network_fails_on_fails_alone(
    tmp_path, store, make_run, picky_spec
) -> None:
    paths = paint(tmp_path / "images", ["grey", "green", "grey", "grey", "grey"])
    run_id = make_run(store, [picky_spec], paths)
    outcome = score_shard(store.root, run_id, 0, device="cpu")
    assert outcome.num_scored[picky_spec.key] == 4
    publish(store)
    (failure,) = store.failures().itertuples()
    assert failure.path == paths[1].name
    assert (failure.stage, failure.reason) == ("forward", "ValueError")
    assert failure.message == "green is not to my taste"
    assert failure.model_key == picky_spec.key


def test_a_night_with_copies_of_bad_images_leaves_nothing_for_the_next(
    tmp_path, store, picky_spec, score_night
) -> None:
    folder = tmp_path / "images"
    (green, _) = paint(folder, ["green", "grey"])
    for name in ("copy", "again"):
        (folder / f"{name}.png").write_bytes(green.read_bytes())
        (folder / f"{name}.jpg").write_bytes(b"no picture at all")
    first = score_night(store, str(folder), [picky_spec])
    assert first.num_planned == 6
    assert store.failures().groupby("stage").image_id.nunique().to_dict() == {
        "decode": 1,
        "forward": 1,
    }
    assert len(store.catalog()) == 6
    second = score_night(store, str(folder), [picky_spec])
    assert second.record is None
    assert second.num_quarantined == 5


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    tmp_path, store, make_run, picky_spec
) -> None:
    paths = paint(tmp_path / "images", ["blue"] * 5)
    run_id = make_run(store, [picky_spec], paths)
    outcome = score_shard(store.root, run_id, 0, device="cpu")
    assert outcome.num_scored[picky_spec.key] == 5
    assert outcome.num_failed == 0


def test_a_batch_that_cannot_even_be_copied_is_halved_and_the_next_shard_starts_with_that(
    tmp_path, store, make_run, picky_spec, monkeypatch
) -> None:
    sizes: list[int] = []
    upload = Device.upload

    def short(self, canvases, size, to):
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("no room")
        return upload(self, canvases, size, to)

    monkeypatch.setattr(Device, "upload", short)
    paths = paint(tmp_path / "images", ["grey"] * 8)
    run_id = make_run(store, [picky_spec], paths, shard_of=lambda index: index // 4)
    for shard in range(2):
        outcome = score_shard(store.root, run_id, shard, device="cpu")
        assert outcome.num_scored[picky_spec.key] == 4
        assert outcome.num_failed == 0
    assert sizes == [4, 2, 2]


def test_a_network_that_can_score_nothing_fails_the_shard_and_not_the_images(
    tmp_path, store, make_run, picky_spec
) -> None:
    (tmp_path / "picky_decode.py").write_text("def decode(outputs, canvas):\n    return 1 / 0\n")
    config = DetectionModel(
        name="broken",
        architecture="picky_network:build",
        weights="picky.pt",
        decode="picky_decode.py:decode",
        classes=("thing",),
        preprocess=picky_spec.preprocess,
    )
    spec = resolve_model(config, tmp_path)
    run_id = make_run(store, [spec], paint(tmp_path / "images", ["grey"] * 2))
    with pytest.raises(ZeroDivisionError) as caught:
        score_shard(store.root, run_id, 0, device="cpu")
    assert "empty image" in caught.value.__notes__[0]
    assert store.committed_shards(run_id) == set()
    assert not list(store.backend.list("_commit/crumbs"))
