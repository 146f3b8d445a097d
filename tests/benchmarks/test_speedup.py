import pytest
from pixelbench.speedup import Pace, Speedup
from pixelbench.tables import workers_page


def test_ratios_are_of_rounds_that_were_played_side_by_side():
    rates = {1: [10.0, 20.0, 40.0], 2: [19.0, 30.0, 80.0]}
    rounds = {
        count: [Pace(rate, 0.015, 0.02) for rate in values] for count, values in rates.items()
    }
    speedup = Speedup("light segmenter", 480, 12, 2, rounds)
    assert speedup.images_per_s(2) == 30.0
    assert speedup.ratios(2) == pytest.approx([1.5, 1.9, 2.0])
    page = workers_page(speedup)
    assert "| 1 | 20.0 | 10.0 - 40.0 | 1.00 | 1.00 - 1.00 | 15.0 | 2.0 % |" in page
    assert "| 2 | 30.0 | 19.0 - 80.0 | 1.90 | 1.50 - 2.00 | 15.0 | 2.0 % |" in page
    assert "more workers than 2 measure oversubscription" in page
