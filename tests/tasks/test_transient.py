import pytest

from pixelmill.tasks.transient import is_transient


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (MemoryError(), True),
        (OSError(28, "No space left on device"), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ValueError(), False),
    ],
)
def test_which_errors_are_transient(error, transient):
    assert is_transient(error) is transient
