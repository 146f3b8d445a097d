import json

import pytest

from pixelmill.tasks.store import Store, layout


@pytest.fixture(scope="module")
def scored(scenes, score_plainly, tmp_path_factory):
    """Eight scenes by two models, published."""
    return score_plainly(scenes / "images", tmp_path_factory.mktemp("scored") / "store")


def test_a_store_through_its_life(run, scored):
    """Compact, promote, roll back, prune: each tells what it did."""
    key, other = sorted(scored.models())
    task = scored.models()[key].task
    code, out, _ = run("compact", scored.root)
    assert code == 0
    assert " are " in out
    assert len(scored.images()) == 16

    assert run("promote", scored.root) == (0, "no model was ever promoted\n", "")
    assert run("promote", scored.root, key) == (0, f"current:{task} is {key}\n", "")
    code, out, _ = run("promote", scored.root)
    assert out.splitlines()[-1] == f"current:{task} is {key}"
    assert f"promote   {task}  {key}" in out
    assert len(scored.images(f"current:{task}")) == 8

    code, _, err = run("prune", scored.root, "--older-than", "2999-01-01")
    assert code == 2
    assert f"promoted models are among them: {key}" in err
    code, out, _ = run("prune", scored.root, "--older-than", "2999-01-01", "--keep-promoted",
                       "--dry-run")  # fmt: skip
    assert out.startswith(f"{other}: 8 images of 1 dates")
    assert out.endswith("1 models would be removed\n")
    assert len(scored.images()) == 16
    assert run("prune", scored.root, "--model", other)[0] == 0
    assert set(Store(scored.root).images().model) == {key}

    code, out, _ = run("prune", scored.root, "--garbage")
    assert (code, out) == (0, "0 files were removed\n")
    code, out, _ = run("prune", scored.root, "--garbage", "--grace", "1s", "--dry-run")
    assert out.endswith("files would be removed\n")

    assert run("rollback", scored.root, task) == (0, f"current:{task} is no model\n", "")
    assert run("rollback", scored.root, task)[0] == 2
    assert run("prune", scored.root, "--model", key)[0] == 0
    assert Store(scored.root).images().empty


@pytest.fixture
def root(tmp_path):
    return Store(tmp_path / "out", create=True).root


def test_a_sound_store_is_told_and_exits_with_0(run, root):
    code, out, _ = run("audit", root)
    assert (code, out.splitlines()[-1]) == (0, "sound")


def test_damage_is_told_with_its_remedy_exits_with_1_and_is_mended(run, root):
    Store(root).backend.put("images/notes.txt", b"mine")
    code, out, _ = run("audit", root, "--fast")
    assert code == 1
    assert "damage  foreign_object  images/notes.txt" in out
    assert "moved to _commit/quarantine" in out
    code, out, _ = run("audit", root, "--repair", "--json")
    assert code == 0
    assert json.loads(out)["repaired"]["num_moved"] == 1
    assert Store(root).backend.get(f"{layout.QUARANTINE}/images/notes.txt") == b"mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("audit", "nowhere"), "no Pixelmill store"),
        (("audit", "nowhere", "--grace", "soon"), "--grace: "),
        (("compact", "nowhere"), "no Pixelmill store"),
        (("compact", "nowhere", "--target-mb", "0"), "at least 1"),
        (("prune", "nowhere"), "say what to remove"),
        (("prune", "nowhere", "--older-than", "soon"), "YYYY-MM-DD or like 90d, got 'soon'"),
        (("prune", "nowhere", "--model", "m", "--keep-promoted", "--force"), "exclude each other"),
        (("prune", "nowhere", "--garbage", "--grace", "a day"), "a duration such as"),
        (("promote", "nowhere"), "no Pixelmill store"),
        (("rollback", "nowhere", "detection"), "no Pixelmill store"),
    ],
)
def test_wrong_usage_is_told_in_a_line(run, monkeypatch, tmp_path, arguments, told):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["audit", "compact", "prune", "promote", "rollback"])
def test_every_command_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: pixelmill {command}" in out
