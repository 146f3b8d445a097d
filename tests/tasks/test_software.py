import re
import sys

from pixelmill.tasks import software


def test_code_libraries_and_processor_are_named():
    found = software.describe_software()
    assert re.fullmatch(r"\d+\.\d+\S*\+[0-9a-f]{12}", found["pixelmill"])
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "torchvision", "numpy", "processor"} <= found.keys()


def test_the_digest_follows_the_source(tmp_path, monkeypatch):
    folders = {name: tmp_path / name for name in ("configs", "models", "tasks")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "__init__.py").write_text("")

    class Spec:
        def __init__(self, name: str) -> None:
            self.origin = str(folders[name.rpartition(".")[2]] / "__init__.py")

    monkeypatch.setattr(software, "find_spec", Spec)

    def digest() -> str:
        software.code_digest.cache_clear()
        return software.code_digest()

    first = digest()
    assert digest() == first
    (folders["models"] / "new.py").write_text("x = 1\n")
    second = digest()
    (folders["models"] / "new.py").write_text("x = 2\n")
    third = digest()
    software.code_digest.cache_clear()
    assert len({first, second, third}) == 3
