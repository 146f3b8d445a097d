"""Which errors may go away by themselves, and which stay until somebody does something."""

import errno

__all__ = ["RefusedError", "explain_refusal", "is_transient"]


class RefusedError(OSError):
    """A store has answered that it will never do what it was asked."""


PERMANENT = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    RefusedError,
)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def is_transient(error: BaseException) -> bool:
    """Whether a later try may succeed: storage, network, memory; not a missing file or a bug."""
    if isinstance(error, PERMANENT) or explain_refusal(error) is not None:
        return False
    if isinstance(error, OSError | MemoryError):
        return True
    # obstore's errors and torch's OutOfMemoryError, without importing either
    kind = type(error)
    return kind.__module__.startswith("obstore") or kind.__name__ == "OutOfMemoryError"


def explain_refusal(error: BaseException) -> str | None:
    """What to do about an error that every further write to the store would meet.

    Returns:
        A sentence for people; None if the error is of another kind.
    """
    if not isinstance(error, OSError):
        return None
    if error.errno in _FULL:
        return f"the disk is full: free some space and run the same command again ({error})"
    if error.errno in _READ_ONLY:
        return (
            "no permission, or a read-only file system: make it writable and run the same command "
            f"again ({error})"
        )
    return str(error) if isinstance(error, RefusedError) else None
