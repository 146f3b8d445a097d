from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.defaults import merge_preprocess, usual_canvases

KNOWN = PreprocessConfig(
    resize="center_crop", crop_from=256, canvases=((224, 224),), mean=(0.5, 0.5, 0.5),
    interpolation="bicubic",
)  # fmt: skip


def test_what_is_asked_for_goes_before_what_is_known_field_by_field() -> None:
    asked = PreprocessConfig(canvases=((64, 64),), resize="stretch")
    merged = merge_preprocess(KNOWN, asked)
    assert merged == PreprocessConfig(
        resize="stretch", canvases=((64, 64),), mean=(0.5, 0.5, 0.5), interpolation="bicubic"
    )


def test_either_alone_is_taken_as_it_is() -> None:
    assert merge_preprocess(KNOWN, None) == KNOWN
    assert merge_preprocess(None, KNOWN) == KNOWN
    assert merge_preprocess(None, None) is None


def test_canvases_lie_and_stand_and_stay_below_the_longest_side() -> None:
    canvases = usual_canvases(800, 1333, 32)
    assert canvases[0] == (800, 800)
    assert {(800, 1088), (1088, 800), (800, 1344)} <= set(canvases)
    assert all(side % 32 == 0 and side <= 1344 for canvas in canvases for side in canvas)
