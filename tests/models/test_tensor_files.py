import pytest
import torch

from pixelmill.models.tensor_files import read_header, read_tensors, save_tensors

TENSORS = {"a": torch.arange(3), "b": torch.ones(2, 2)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    save_tensors(path, TENSORS, "ours", '{"n": 1}')
    return path


def test_header_and_tensors_come_back(path) -> None:
    assert read_header(path, "ours", remedy="") == '{"n": 1}'
    assert {name: each.tolist() for name, each in read_tensors(path).items()} == {
        name: each.tolist() for name, each in TENSORS.items()
    }
    assert list(read_tensors(path, "b")) == ["b"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_header_of_others_is_told_with_the_remedy(path) -> None:
    with pytest.raises(ValueError, match="no 'theirs' entry in its header; ask them"):
        read_header(path, "theirs", remedy="ask them")


def test_what_is_no_such_file_is_told(path) -> None:
    path.with_name("y").write_bytes(b"no tensors")
    for read in (read_tensors, lambda where: read_header(where, "ours", remedy="")):
        with pytest.raises(ValueError, match="expected a safetensors file"):
            read(path.with_name("y"))
        with pytest.raises(FileNotFoundError, match="got no file at"):
            read(path.with_name("z"))
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read_tensors(path, "c")
