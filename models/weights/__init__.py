"""Weights trained by this project, as safetensors, with their model cards."""

from pathlib import Path

__all__ = ["embedded_path"]


def embedded_path(name: str) -> Path:
    """File of the embedded weights `name`, as `embedded:<name>` in a config means them.

    Raises:
        FileNotFoundError: there are none of that name.
    """
    folder = Path(__file__).parent
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in folder.glob("*.safetensors")))
        raise FileNotFoundError(f"embedded weights must be one of {known or 'none'}, got {name!r}")
    return path
