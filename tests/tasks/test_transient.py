import errno
import os

import pytest

from pixelmill.tasks.transient import RefusedError, explain_refusal, is_transient


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (MemoryError(), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (RefusedError("no such bucket"), False),
        (ValueError(), False),
    ],
)
def test_which_errors_are_transient(error, transient):
    assert is_transient(error) is transient


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make it writable"),
        (errno.EACCES, "make it writable"),
    ],
)
def test_what_every_write_would_meet_is_told_with_its_remedy(number, remedy):
    told = explain_refusal(OSError(number, os.strerror(number), "/store/part"))
    assert told is not None
    assert remedy in told
    assert "/store/part" in told


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("bug")])
def test_other_errors_have_no_such_remedy(error):
    assert explain_refusal(error) is None
