"""Full and padded batches, and who is to blame when one fails; the network is a few lines."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.interface import ClassOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.batches import Batches, Work, is_out_of_memory
from pixelmill.tasks.engine.views import place_whole
from pixelmill.tasks.store import ImageRow

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

    def predict(self, images):
        self.shapes.append(tuple(images.shape))
        if len(images) > self.fits:
            raise torch.OutOfMemoryError(f"no room for {len(images)} images")
        colours = images[:, 0, 0, 0].tolist()
        for colour in colours:
            if colour in self.dislikes:
                raise ValueError(f"{colour} is not to my taste")
        return [ClassOutput(torch.tensor([float(colour)])) for colour in colours]


def make_batches(network, batch_size: int = 4) -> Batches:
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
    return Batches(spec, network)


def make_work(row: int, num_views: int = 1) -> Work:
    image = ImageRow(f"{row:032x}", "c", f"{row}.jpg", f"{row}.jpg", 8, 8, 1, "1")
    return Work(row, image, (place_whole((8, 8), PREPROCESS),) * num_views)


def canvas(colour: int, width: int = 8):
    return np.full((8, width, 3), colour, np.uint8)


def score(batches: Batches, colours) -> tuple[dict[int, float], dict[int, str]]:
    """Colours said and errors made, by row."""
    done = []
    for row, colour in enumerate(colours):
        done += batches.add(make_work(row), 0, canvas(colour))
    done += batches.flush()
    assert sorted(work.row for work in done) == list(range(len(colours)))
    said = {}
    for work in done:
        for output in work.outputs:
            if isinstance(output, ClassOutput):
                said[work.row] = float(output.probs)
    return said, {work.row: str(work.error) for work in done if work.error is not None}


def test_a_full_batch_is_scored_at_once_and_the_rest_is_filled_up_at_the_end():
    network = Network()
    batches = make_batches(network)
    works = [make_work(row) for row in range(6)]
    done = [batches.add(work, 0, canvas(10 + row)) for row, work in enumerate(works)]
    assert done == [[], [], [], works[:4], [], []]
    assert batches.rows == {4, 5}
    assert batches.flush() == works[4:]
    assert batches.rows == set()
    assert batches.flush() == []
    assert network.shapes == [(4, 8, 8, 3)] * 2
    outputs = [work.outputs[0] for work in works]
    assert [float(each.probs) for each in outputs if isinstance(each, ClassOutput)] == [
        10, 11, 12, 13, 14, 15,
    ]  # fmt: skip


def test_canvases_of_one_size_share_a_batch():
    network = Network()
    batches = make_batches(network, batch_size=2)
    wide, narrow = [make_work(0), make_work(1)], [make_work(2), make_work(3)]
    assert batches.add(wide[0], 0, canvas(1, 16)) == []
    assert batches.add(narrow[0], 0, canvas(2)) == []
    assert batches.add(wide[1], 0, canvas(3, 16)) == wide
    assert batches.add(narrow[1], 0, canvas(4)) == narrow
    assert network.shapes == [(2, 8, 16, 3), (2, 8, 8, 3)]


def test_a_batch_of_one_is_filled_up_to_two():
    network = Network()
    score(make_batches(network, batch_size=1), [1])
    assert network.shapes == [(2, 8, 8, 3)]


def test_an_image_is_done_with_its_last_view():
    batches = make_batches(Network(), batch_size=2)
    work = make_work(0, num_views=3)
    assert batches.add(work, 0, canvas(1)) == []
    assert batches.add(work, 1, canvas(2)) == []
    assert not work.is_done
    assert batches.add(work, 2, canvas(3)) == []
    assert batches.flush() == [work]
    outputs = [each for each in work.outputs if isinstance(each, ClassOutput)]
    assert [float(each.probs) for each in outputs] == [1, 2, 3]


def test_an_image_of_which_one_view_fails_is_done_once():
    batches = make_batches(Network(dislikes={9}), batch_size=2)
    bad, good = make_work(0, num_views=3), make_work(1)
    assert batches.add(bad, 0, canvas(1)) == []
    assert batches.add(bad, 1, canvas(9)) == [bad]
    assert batches.add(bad, 2, canvas(2)) == []
    assert batches.add(good, 0, canvas(3)) == [good]
    assert str(bad.error) == "9 is not to my taste"
    assert good.error is None


@given(st.lists(st.integers(1, 6), max_size=12), st.sets(st.integers(1, 6), max_size=4))
def test_exactly_the_bad_images_of_a_batch_fail(colours, dislikes):
    network = Network(dislikes)
    said, errors = score(make_batches(network), colours)
    assert errors == {
        row: f"{colour} is not to my taste"
        for row, colour in enumerate(colours)
        if colour in dislikes
    }
    assert said == {row: colour for row, colour in enumerate(colours) if row not in errors}
    assert {shape[0] for shape in network.shapes} <= {4}  # halves of a batch are filled up too


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("fits", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(batch_size: int, fits: int):
    network = Network(fits=fits)
    said, errors = score(make_batches(network, batch_size), range(1, 12))
    assert said == {row: row + 1 for row in range(11)}
    assert errors == {}


def test_a_bad_image_is_found_where_memory_is_short_too():
    said, errors = score(make_batches(Network(dislikes={5}, fits=2), 8), range(1, 9))
    assert list(errors) == [4]
    assert len(said) == 7


@pytest.mark.parametrize("network", [Network(fits=0), Network(dislikes={0, 1})])
def test_a_network_that_cannot_score_even_an_empty_image_is_not_the_images_fault(network):
    batches = make_batches(network)
    batches.add(make_work(0), 0, canvas(1))
    with pytest.raises((torch.OutOfMemoryError, ValueError)) as caught:
        batches.flush()
    assert "empty image" in caught.value.__notes__[0]


def test_a_network_that_forgets_an_image_is_broken():
    class Forgetful(Network):
        def predict(self, images):
            return super().predict(images)[1:]

    batches = make_batches(Forgetful())
    batches.add(make_work(0), 0, canvas(1))
    with pytest.raises(ValueError, match="3 outputs for 4 images"):
        batches.flush()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("memory"), False),
    ],
)
def test_what_says_that_memory_is_short(error, expected):
    assert is_out_of_memory(error) == expected
