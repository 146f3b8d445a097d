"""The stage that decodes on a GPU, gathered into batches; a fake on the CPU stands for nvJPEG."""

import functools
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pixelmill.tasks.engine import score, stages
from pixelmill.tasks.engine.gpu_decode import decode_on_gpu
from pixelmill.tasks.engine.score import score_shard
from pixelmill.tasks.store import Store, publish


class FakeDecoder:
    """Decodes batches on the CPU, and remembers how many files each had."""

    def __init__(self) -> None:
        self.sizes = []
        self.most = 99

    def __call__(self, files, device):
        self.sizes.append(len(files))
        if len(files) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        images = [Image.open(io.BytesIO(each.numpy().tobytes())) for each in files]
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]


@pytest.fixture
def decoder(monkeypatch):
    fake = FakeDecoder()
    on_fake = functools.partial(decode_on_gpu, decode_batch=fake)
    monkeypatch.setattr(stages, "decode_on_gpu", on_fake)
    monkeypatch.setattr(stages, "_GPU_FILES", 4)
    monkeypatch.setattr(score, "require_gpu_decoder", lambda device: None)
    return fake


@pytest.fixture
def on_gpu(small_spec):
    """Function name -> its spec with `decode: gpu`."""

    def make(name):
        spec = small_spec(name)
        preprocess = spec.preprocess.model_copy(update={"decode": "gpu"})
        return spec.model_copy(update={"preprocess": preprocess})

    return make


@pytest.fixture
def mixed(tmp_path, pictures):
    """Paths of eleven good JPEGs, a PNG, a cut JPEG and a text."""
    paths = sorted(pictures.iterdir())
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.open(paths[3]).save(folder / "picture.png")
    (folder / "cut.jpg").write_bytes(paths[7].read_bytes()[:-50])
    (folder / "text.jpg").write_bytes(b"no picture at all")
    odd = [folder / name for name in ("picture.png", "cut.jpg", "text.jpg")]
    return [*paths[:3], *odd, *paths[4:]]


@pytest.mark.parametrize("overlap", [False, True])
def test_batches_keep_their_order_and_carry_errors_by_image(
    store, make_run, on_gpu, mixed, decoder, overlap
):
    spec = on_gpu("detector")
    run_id = make_run(store, [spec], mixed)
    outcome = score_shard(store.root, run_id, 0, device="cpu", overlap=overlap)
    assert outcome.num_scored == {spec.key: 12}
    assert decoder.sizes == [3, 2, 4, 2]  # of four, without those that are for the CPU
    assert float(outcome.stats["gpu_decode_s"]) > 0
    assert outcome.stats["num_decoded"] == 12
    publish(store)
    failures = store.failures().sort_values("path")
    assert list(zip(failures.path, failures.reason, strict=True)) == [
        ("cut.jpg", "truncated"),
        ("text.jpg", "unknown_format"),
    ]
    names = [path.name for path in mixed]
    catalog = list(store.catalog().path)
    assert sorted(catalog) == sorted(names)
    status = dict(zip(store.images().path, store.images().status, strict=True))
    assert status.pop("picture.png") == "ok"
    assert set(status.values()) == {"unverified"}


def test_models_with_other_pixels_have_them_beside_the_gpu(
    tmp_path, make_run, small_spec, on_gpu, mixed, decoder, read_results
):
    other = small_spec("segmenter")
    runs = {"alone": [other], "beside": [on_gpu("detector"), other]}
    found = {}
    for name, specs in runs.items():
        store = Store(tmp_path / name, create=True)
        run_id = make_run(store, specs, mixed)
        outcome = score_shard(store.root, run_id, 0, device="cpu")
        assert outcome.stats["num_decoded"] == 12
        assert set(outcome.num_scored.values()) == {12}
        assert outcome.num_failed == 2 * len(specs)
        found[name] = read_results(store)
        assert len(store.catalog()) == len(mixed)
    assert found["alone"]
    assert found["alone"].items() <= found["beside"].items()


def test_a_batch_that_does_not_fit_is_halved(store, make_run, on_gpu, pictures, decoder):
    decoder.most = 1
    spec = on_gpu("detector")
    run_id = make_run(store, [spec], sorted(pictures.iterdir())[:4])
    outcome = score_shard(store.root, run_id, 0, device="cpu")
    assert (outcome.num_scored, decoder.sizes) == ({spec.key: 4}, [4, 2, 1, 1, 2, 1, 1])


def test_an_image_that_does_not_fit_alone_fails_and_may_be_tried_again(
    store, make_run, on_gpu, pictures, decoder
):
    decoder.most = 0
    run_id = make_run(store, [on_gpu("detector")], sorted(pictures.iterdir())[:2])
    assert score_shard(store.root, run_id, 0, device="cpu").num_failed == 2
    publish(store)
    failures = store.failures()
    assert set(failures.reason) == {"memory"}
    assert failures.retryable.all()


def test_a_worker_without_a_gpu_refuses_other_pixels(store, make_run, on_gpu, pictures):
    run_id = make_run(store, [on_gpu("detector")], sorted(pictures.iterdir()))
    with pytest.raises(ValueError, match="decode: gpu needs workers with a CUDA GPU"):
        score_shard(store.root, run_id, 0, device="cpu")
