"""`pixelmill audit`: what it prints, and the exit code that a scheduler goes by."""

import json

import pytest

from pixelmill.flows import cli
from pixelmill.tasks.store import Store, layout


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return end.value.code, capsys.readouterr().out


@pytest.fixture
def root(tmp_path):
    return Store(tmp_path / "out", create=True).root


def test_a_sound_store_is_told_and_exits_with_0(capsys, root):
    code, out = run(capsys, "audit", root)
    assert (code, out.splitlines()[-1]) == (0, "sound")


def test_damage_is_told_with_its_remedy_exits_with_1_and_is_mended(capsys, root):
    Store(root).backend.put("images/notes.txt", b"mine")
    code, out = run(capsys, "audit", root, "--fast")
    assert code == 1
    assert "damage  foreign_object  images/notes.txt" in out
    assert "moved to _commit/quarantine" in out
    code, out = run(capsys, "audit", root, "--repair", "--json")
    assert code == 0
    assert json.loads(out)["repaired"]["num_moved"] == 1
    assert Store(root).backend.get(f"{layout.QUARANTINE}/images/notes.txt") == b"mine"


def test_a_wrong_grace_is_wrong_usage(capsys, root):
    assert run(capsys, "audit", root, "--grace", "soon")[0] == 2
