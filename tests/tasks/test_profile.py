import pytest

from pixelmill.configs.load import load_config
from pixelmill.models.build import resolve_model
from pixelmill.tasks.profile import measure_limits, profile_sample, spread_rows
from pixelmill.tasks.scenes import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 5, seed=5)
    return folder / "images"


@pytest.fixture(scope="module")
def config():
    config = load_config("demo")
    segmenter = next(model for model in config.models if model.name == "demo-segmenter")
    return config.model_copy(update={"models": (segmenter,)})


@pytest.fixture(scope="module")
def specs(config, tmp_path_factory):
    return tuple(resolve_model(model, tmp_path_factory.mktemp("base")) for model in config.models)


@pytest.mark.parametrize(("num_rows", "count"), [(0, 8), (1, 8), (5, 8), (100, 100), (1000, 24)])
def test_sampled_rows_are_different_and_as_many_as_there_are(num_rows, count):
    rows = spread_rows(num_rows, count)
    assert len(rows) == len(set(rows)) == min(num_rows, count)
    assert all(0 <= row < num_rows for row in rows)


def test_the_first_rows_of_a_sample_come_from_the_whole_listing():
    first = spread_rows(8000, 80)[:8]
    assert sorted(row // 1000 for row in first) == [*range(8)]


def test_a_sample_is_scored_and_compared_with_its_limits(scenes, specs, config, tmp_path):
    found = profile_sample(str(scenes), specs, config, str(tmp_path / "store"), device="cpu")
    assert found.num_images == 3  # two of five warm up
    assert found.images_per_s == pytest.approx(found.num_images / found.wall_s)
    names = [line.name for line in found.stages]
    assert {"decode", "forward", "post", "write"} <= set(names)
    assert sum(line.busy_s for line in found.stages if line.name not in ("load", "read")) <= (
        1.05 * found.wall_s
    )
    assert list(found.limits.forward) == [specs[0].key]
    assert found.limits.bound < min(found.limits.decode, *found.limits.forward.values())
    assert "-bound: " in found.bottleneck


def test_files_that_cannot_be_decoded_do_not_enter_the_limits(scenes, specs):
    sound = [path.read_bytes() for path in sorted(scenes.iterdir())[:2]]
    limits = measure_limits([*sound, b"no image"], specs, "cpu", max_pixels=10**6)
    assert limits.bound > 0
    with pytest.raises(ValueError, match="none of 1 files can be decoded"):
        measure_limits([b"no image"], specs, "cpu", max_pixels=10**6)


def test_a_folder_of_one_image_is_refused(scenes, specs, config, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.jpg").write_bytes(next(scenes.iterdir()).read_bytes())
    with pytest.raises(ValueError, match="needs 2 images at least"):
        profile_sample(str(tmp_path / "one"), specs, config, str(tmp_path / "store"))
