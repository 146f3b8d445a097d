"""Names of files that others wrote down, which must not lead out of their folder.

Truth files, subset lists and manifests come with data sets from anywhere. What they name is looked
for below one folder and nowhere else; a name that means another place is an error, not a file.
"""

import re
from pathlib import Path

__all__ = ["name_fault", "place_inside"]

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|[A-Za-z]:$|\\\\")


def name_fault(name: str) -> str | None:
    """What is wrong with a relative path that another wrote; None if nothing is.

    Args:
        name: '/'-separated; backslashes are taken for separators too, as they are on Windows.
    """
    if "\0" in name:
        return f"{name!r} has a NUL character; remove it"
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        return f"{name!r} is absolute; write it relative to the folder of the images"
    if ".." in re.split(r"[\\/]", name):
        return f"{name!r} leads out of its folder by '..'; write it relative to that folder"
    return None


def place_inside(folder: Path, name: str) -> Path:
    """The file of a name below a folder.

    Args:
        folder: which the file must be in, links resolved.
        name: relative to it.

    Raises:
        ValueError: the name, or a link on its way, leads elsewhere.
    """
    if fault := name_fault(name):
        raise ValueError(fault)
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{name!r} is a link out of {folder}; put the file itself there, or name the folder "
            "that it is in"
        )
    return path
