import re
from pathlib import Path

import pytest

from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.tasks.datasets import Dataset, DataSource
from pixelmill.tasks.metrics.results import Metric
from pixelmill.tasks.training.fit import EpochReport, Fit
from pixelmill.tasks.training.record import draw_curves, model_card

EPOCHS = tuple(
    EpochReport(n, 9, {"box": 1 / n, "<class>": 2.0}, 0.1 / n, {"AP": n / 9} if n % 2 else {}, 60.0)
    for n in (1, 2, 3)
)


@pytest.fixture
def config():
    return TrainConfig(
        name="blood",
        task="detection",
        architecture="ssd",
        preprocess=PreprocessConfig(canvases=((300, 300),)),
        images="/home/somebody/blood/images",
        truth="/home/somebody/blood/truth.json",
        data_licence="MIT",
        epochs=9,
        learning_rate=0.25,
    )


def make_card(config, best_epoch, metrics):
    source = DataSource(Path(config.images), Path(config.truth))
    names = tuple(f"{i}.jpg" for i in range(40))
    dataset = Dataset(source, names, names[:12], ("red", "white"), (), lambda name: None)  # type: ignore[arg-type,return-value]
    return model_card(config, dataset, Fit(EPOCHS, best_epoch, 0, 26_285_486, "CPU"), metrics)


def test_the_page_draws_every_number_and_fetches_nothing():
    page = draw_curves("blood & <iron>", EPOCHS)
    assert page.count("<svg") == 3
    assert "blood &amp; &lt;iron&gt;" in page
    assert "&lt;class&gt;" in page
    assert "<class>" not in page
    assert not re.search(r"(src|href)=|url\(|<script", page)


def test_a_training_without_checks_has_no_plot_of_metrics():
    epochs = [EpochReport(1, 1, {"box": 1.0}, 0.1, {}, 1.0)]
    assert draw_curves("a", epochs).count("<svg") == 2


def test_the_card_says_what_was_done_and_how_good_it_is(config):
    metrics = (Metric("box AP50", 0.91234, "at IoU 0.50", (0.88, 0.95)),)
    card = make_card(config, None, metrics)
    assert "40 to train on and 12 kept apart" in card
    assert "| box AP50 | 0.912 | [0.880, 0.950] |" in card
    assert "- box AP50: at IoU 0.50" in card
    assert "of the last step" in card
    assert "Licence of the data: MIT" in card
    assert "learning_rate: 0.25" in card
    assert "3 of 9 epochs in 3" in card
    assert "lightning-fabric" in card
    assert "somebody" not in card


def test_the_card_admits_a_choice_by_the_same_images(config):
    assert "of epoch 2, the best by these very images" in make_card(config, 2, ())
    assert "no image was kept apart" in make_card(config, None, ())
