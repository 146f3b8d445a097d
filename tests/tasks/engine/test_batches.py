"""Full and padded batches, and who is to blame when one fails; the network is a few lines."""

import dataclasses
import threading
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.interface import ClassOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.batches import Batches, View, Work, gives_same_bits, score_piecewise
from pixelmill.tasks.engine.device import DeviceLostError
from pixelmill.tasks.engine.networks import Model
from pixelmill.tasks.engine.tuning import BatchSizes
from pixelmill.tasks.engine.views import place_whole
from pixelmill.tasks.store import ImageRow, open_backend

PREPROCESS = PreprocessConfig(canvases=((8, 8), (8, 16)))


class Network:
    """Says the colour of each canvas; black is what batches are filled up with.

    Args:
        dislikes: colours on which the whole batch fails.
        fits: images that its memory has room for.
    """

    def __init__(self, dislikes=(), fits: int = 1000) -> None:
        self.dislikes = dislikes
        self.fits = fits
        self.shapes: list[tuple[int, ...]] = []

    device = torch.device("cpu")

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        if len(images) > self.fits:
            raise torch.OutOfMemoryError(f"no room for {len(images)} images")
        return images[:, 0, 0, 0].clone()

    def read_out(self, raw, canvas):
        for colour in raw.tolist():
            if colour in self.dislikes:
                raise ValueError(f"{colour} is not to my taste")
        return [ClassOutput(torch.tensor([float(colour)])) for colour in raw.tolist()]

    def predict(self, images):
        return self.read_out(self.forward(images), images.shape[1:3])


def make_model(network, batch_size: int | Literal["auto"] = 4) -> Model:
    spec = ModelSpec(
        name="fake",
        task="classification",
        architecture="fake",
        arguments={},
        weights_path="w",
        weights_sha256="0" * 64,
        classes=("colour",),
        preprocess=PREPROCESS,
        precision="fp32",
        batch_size=batch_size,
    )
    return Model(spec, network, threading.Lock())


@pytest.fixture
def sizes(tmp_path):
    return BatchSizes(open_backend(tmp_path), "cpu")


@pytest.fixture
def make_batches(sizes):
    return lambda batch_size=4: Batches(lambda index: make_model(Network(), batch_size), sizes)


def make_work(row: int, num_views: int = 1) -> Work:
    image = ImageRow(f"{row:032x}", "c", f"{row}.jpg", f"{row}.jpg", 8, 8, 1, "1")
    spec = make_model(None).spec
    return Work(row, image, spec, (place_whole((8, 8), PREPROCESS),) * num_views)


def canvas(colour: int, width: int = 8):
    return np.full((8, width, 3), colour, np.uint8)


def view(row: int, width: int = 8, model: int = 0) -> View:
    return View(model, make_work(row), 0, canvas(row, width))


def rows(batches) -> list[list[int]]:
    return [[each.work.row for each in batch.views] for batch in batches]


def test_a_full_batch_comes_out_at_once_and_the_rest_at_the_end(make_batches):
    batches = make_batches()
    assert [rows(batches.add(view(row))) for row in range(6)] == [
        [],
        [],
        [],
        [[0, 1, 2, 3]],
        [],
        [],
    ]
    (rest,) = batches.flush()
    assert rows([rest]) == [[4, 5]]
    assert (rest.size, rest.check) == (4, 2)
    assert batches.flush() == []


def test_only_canvases_of_one_size_and_model_share_a_batch(make_batches):
    batches = make_batches(2)
    for each in (view(0, 16), view(1), view(2, model=1)):
        assert batches.add(each) == []
    assert rows(batches.add(view(3, 16))) == [[0, 3]]
    assert rows(batches.add(view(4))) == [[1, 4]]
    assert rows(batches.add(view(5, model=1))) == [[2, 5]]


def test_a_batch_of_one_is_filled_up_to_two(make_batches):
    batches = make_batches(1)
    batches.add(view(0))
    assert [batch.size for batch in batches.flush()] == [2]


def test_the_rest_is_filled_up_to_what_gave_the_same_bits(make_batches, sizes):
    for verdict, size in ((True, 2), (False, 8)):
        batches = make_batches(8)
        batches.add(view(0))
        sizes.judge(make_model(None, 8).spec.key, (8, 8), 8, 2, verdict)
        (batch,) = batches.flush()
        assert (batch.size, batch.check) == (size, None)


def test_an_engine_that_compiles_for_each_size_gets_one_size(sizes):
    model = make_model(Network(), "auto")
    compiled = dataclasses.replace(
        model, spec=model.spec.model_copy(update={"engine": "torch-compile"})
    )
    batches = Batches(lambda index: compiled, sizes)
    out = [batch for row in range(41) for batch in batches.add(view(row))] + batches.flush()
    assert [len(batch.views) for batch in out] == [8, 8, 8, 8, 8, 1]
    assert {(batch.size, batch.check) for batch in out} == {(8, None)}


def test_where_the_size_has_shrunk_more_than_one_batch_comes_out(make_batches, sizes):
    batches = make_batches(8)
    for row in range(5):
        assert batches.add(view(row)) == []
    sizes.limit(make_model(None).spec.key, (8, 8), 2)
    assert rows(batches.add(view(5))) == [[0, 1], [2, 3], [4, 5]]
    batches.add(view(6))
    assert rows(batches.flush()) == [[6]]


def test_each_model_and_canvas_is_prepared_once_before_its_first_batch(sizes):
    model, prepared = make_model(Network()), []
    batches = Batches(
        lambda index: model, sizes, lambda model, canvas: prepared.append(canvas.shape)
    )
    for each in (view(0), view(1), view(2, 16)):
        batches.add(each)
    assert prepared == [(8, 8, 3), (8, 16, 3)]


def test_work_is_done_with_its_last_view_or_with_the_first_that_fails():
    work, bad = make_work(0, num_views=2), make_work(1, num_views=3)
    output = ClassOutput(torch.zeros(1))
    assert not work.take(0, output)
    assert work.take(1, output)
    assert not bad.take(0, output)
    assert bad.take(1, ValueError("no"))
    assert not bad.take(2, output)
    assert str(bad.error) == "no"


def piecewise(network, colours, size: int = 4):
    """Colours said and errors made, by place, of a batch that fails as a whole; sizes that fit."""
    model, fitted = make_model(network), []
    canvases = [canvas(colour) for colour in colours]
    try:
        network.predict(
            torch.from_numpy(np.stack(canvases + canvases[:1] * (size - len(canvases))))
        )
    except Exception as err:
        results = score_piecewise(model, canvases, size, error=err, run_short=fitted.append)
    else:
        raise AssertionError("it does not fail")
    said = {i: float(each.probs) for i, each in enumerate(results) if isinstance(each, ClassOutput)}
    errors = {i: str(each) for i, each in enumerate(results) if isinstance(each, Exception)}
    assert len(said) + len(errors) == len(colours)
    return said, errors, fitted


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sets(st.integers(1, 6), max_size=4))
def test_exactly_the_bad_images_of_a_batch_fail(colours, dislikes):
    network = Network({*dislikes, colours[0]})
    said, errors, fitted = piecewise(network, colours)
    assert errors == {
        place: f"{colour} is not to my taste"
        for place, colour in enumerate(colours)
        if colour in network.dislikes
    }
    assert said == {place: colour for place, colour in enumerate(colours) if place not in errors}
    assert {shape[0] for shape in network.shapes} == {4}  # halves of a batch are filled up too
    assert fitted == []


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("fits", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(size: int, fits: int):
    if fits >= size:
        return
    said, errors, fitted = piecewise(Network(fits=fits), range(1, size + 1), size)
    assert said == {place: place + 1 for place in range(size)}
    assert errors == {}
    assert fitted
    assert max(fitted) <= fits


def test_a_bad_image_is_found_where_memory_is_short_too():
    said, errors, _ = piecewise(Network(dislikes={5}, fits=2), range(1, 9), 8)
    assert list(errors) == [4]
    assert len(said) == 7


@pytest.mark.parametrize("network", [Network(fits=0), Network(dislikes={0, 1})])
def test_a_network_that_cannot_score_even_an_empty_image_is_not_the_images_fault(network):
    with pytest.raises((torch.OutOfMemoryError, ValueError)) as caught:
        piecewise(network, [1])
    assert "empty image" in caught.value.__notes__[0]


def test_no_image_is_looked_for_when_the_device_is_lost():
    network = Network()
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        score_piecewise(make_model(network), [canvas(1)], 4, error=error, run_short=print)
    assert network.shapes == []


def test_a_network_that_forgets_an_image_is_broken():
    class Forgetful(Network):
        def read_out(self, raw, canvas):
            return super().read_out(raw, canvas)[1:]

    canvases = [canvas(1), canvas(2)]
    with pytest.raises(ValueError, match="3 outputs for 4 images"):
        score_piecewise(
            make_model(Forgetful()), canvases, 4, error=ValueError("?"), run_short=print
        )


@pytest.mark.parametrize("rounding", [0, 2**-20])
@pytest.mark.parametrize("where", ["forward", "read_out"])
def test_sizes_that_round_differently_are_told_apart(rounding: float, where: str):
    class Rounding(Network):
        def forward(self, images):
            raw = super().forward(images).float()
            return raw + rounding * (len(images) > 2) if where == "forward" else raw

        def read_out(self, raw, canvas):
            added = rounding * (len(raw) > 2) if where == "read_out" else 0
            return [ClassOutput(torch.tensor([colour + added])) for colour in raw.tolist()]

    network = Rounding()
    canvases = [canvas(colour) for colour in (3, 4, 5, 6)]
    raw = network.forward(torch.from_numpy(np.stack(canvases)))
    outputs = network.read_out(raw, (8, 8))
    assert gives_same_bits(make_model(network), canvases, raw, outputs, 2) == (rounding == 0)


def test_outputs_that_cannot_be_compared_are_not_the_same():
    class Opaque(Network):
        def forward(self, images):
            return object()

        def read_out(self, raw, canvas):
            return [ClassOutput(torch.zeros(1))] * 4

    network = Opaque()
    outputs = network.read_out(None, (8, 8))
    assert not gives_same_bits(make_model(network), [canvas(1)] * 4, object(), outputs, 2)
