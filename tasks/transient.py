"""Which errors may go away by themselves."""

__all__ = ["RefusedError", "is_transient"]


class RefusedError(OSError):
    """A store has answered that it will never do what it was asked."""


PERMANENT = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    RefusedError,
)


def is_transient(error: BaseException) -> bool:
    """Whether a later try may succeed: storage, network, memory; not a missing file or a bug."""
    if isinstance(error, PERMANENT):
        return False
    if isinstance(error, OSError | MemoryError):
        return True
    # obstore's errors and torch's OutOfMemoryError, without importing either
    kind = type(error)
    return kind.__module__.startswith("obstore") or kind.__name__ == "OutOfMemoryError"
