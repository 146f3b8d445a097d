"""Which code and which libraries computed something."""

import functools
import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

__all__ = ["code_digest", "describe_software"]

# What decodes, resizes and computes; another version of one may change a result's last bits
_LIBRARIES = (
    "torch", "torchvision", "torchcodec", "simplejpeg", "pillow", "numpy", "openvino",
    "onnxruntime", "timm", "transformers", "segmentation-models-pytorch",
)  # fmt: skip
# The orchestration changes no result
_FOLDERS = ("configs", "models", "tasks")


@functools.cache
def describe_software() -> dict[str, str]:
    """Name -> version: ours with a digest of its source, Python, libraries and the processor."""
    found = {"pixelmill": f"{version('pixelmill')}+{code_digest()[:12]}"}
    found["python"] = platform.python_version()
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"processor": _processor()}


@functools.cache
def code_digest() -> str:
    """SHA-256 of the source that results follow from, of a checkout as of an installed wheel."""
    digest = hashlib.sha256()
    for folder in _FOLDERS:
        spec = find_spec(f"pixelmill.{folder}")
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{folder}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """The CPU's model name, where it is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
