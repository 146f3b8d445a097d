import math

import pandas as pd
import pytest

from pixelmill.tasks.metrics.results import Evaluation, ImageRow, ModelEvaluation
from pixelmill.tasks.report.gallery import choose_images, ranking_name


def table(count):
    return pd.DataFrame(
        {
            "path": [f"{k:03d}.jpg" for k in range(count)],
            "image_id": [f"{k * 7919 % 997:032x}" for k in range(count)],
            "source_uri": [f"/photos/{k:03d}.jpg" for k in range(count)],
        }
    )


def evaluated(**values):
    models = tuple(
        ModelEvaluation(
            model_key=key,
            task="detection",
            kind="boxes",
            headline=(),
            metrics=(),
            per_image=tuple(
                ImageRow(f"{k:03d}.jpg", None, {"TP": 1.0, "F1": value})
                for k, value in enumerate(row)
            ),
        )
        for key, row in values.items()
    )
    return Evaluation("harbour", "", models)


def choose(images, evaluation=None, *, failed=None, empty=(), count=20):
    return choose_images(
        images, evaluation, failed=failed or {}, empty_ids=frozenset(empty), count=count
    )


def by_reason(picks, reason):
    return [pick.path for pick in picks if reason in pick.reasons]


def test_worst_and_best_are_chosen_by_the_value_that_ranks():
    picks = choose(table(100), evaluated(a=[k / 100 for k in range(100)]))
    assert by_reason(picks, "weakest") == [f"{k:03d}.jpg" for k in range(8)]
    assert by_reason(picks, "strongest") == [f"{k:03d}.jpg" for k in range(99, 95, -1)]
    assert len(by_reason(picks, "random")) == 8
    assert len(picks) == 20


def test_models_take_turns():
    rising, falling = [k / 100 for k in range(100)], [1 - k / 100 for k in range(100)]
    picks = choose(table(100), evaluated(a=rising, b=falling), count=10)
    assert by_reason(picks, "weakest") == ["000.jpg", "099.jpg", "001.jpg", "098.jpg"]


def test_undefined_values_do_not_rank():
    values = [math.nan] * 50 + [k / 100 for k in range(50)]
    picks = choose(table(100), evaluated(a=values))
    assert by_reason(picks, "weakest")[0] == "050.jpg"


def test_choice_does_not_depend_on_the_order_of_rows():
    images = table(60)
    evaluation = evaluated(a=[(k * 37 % 60) / 60 for k in range(60)])
    assert choose(images, evaluation) == choose(images[::-1], evaluation)


def test_random_is_the_order_of_the_digests():
    images = table(50)
    picks = choose(images, count=5)
    assert [pick.image_id for pick in picks] == sorted(images["image_id"])[:5]
    assert all(pick.reasons == ("random",) for pick in picks)


def test_failed_and_empty_have_a_tenth_each():
    images = table(100)
    failed = {f"x{k}.jpg": f"/photos/x{k}.jpg" for k in range(30)}
    picks = choose(images, failed=failed, empty=images["image_id"][:30])
    assert by_reason(picks, "failed") == ["x0.jpg", "x1.jpg"]
    assert len(by_reason(picks, "empty")) == 2
    assert len(picks) == 20


def test_copies_of_an_image_are_shown_once():
    images = table(3)
    copy = images.assign(path=["copy.jpg", "copy2.jpg", "copy3.jpg"])
    assert len(choose(pd.concat([images, copy]))) == 3


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 500])
def test_bound_holds_and_is_reached(count):
    images = table(100)
    picks = choose(
        images,
        evaluated(a=[k / 100 for k in range(100)]),
        failed={"x.jpg": "/x.jpg"},
        empty=images["image_id"][50:60],
        count=count,
    )
    assert len(picks) == min(count, 101)
    assert len({pick.path for pick in picks}) == len(picks)


def test_only_failed_images_are_shown_when_there_are_no_others():
    picks = choose(table(0), failed={"x.jpg": "/x.jpg"}, count=5)
    assert [(pick.path, pick.image_id, pick.source_uri) for pick in picks] == [
        ("x.jpg", None, "/x.jpg")
    ]


def test_value_that_ranks_is_known_by_name_else_the_first():
    (model,) = evaluated(a=[0.5]).models
    assert ranking_name(model) == "F1"
    (bare,) = evaluated(a=[]).models
    assert ranking_name(bare) is None
