import contextlib
import logging

from pixelmill.flows.progress import collected_logs


class Heard(logging.Logger):
    """What a run was told."""

    def __init__(self) -> None:
        super().__init__("run")
        self.told: list[str] = []

    def handle(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def test_runs_that_overlap_hear_all_and_the_last_leaves_the_logger_as_it_was():
    ours, first, second = logging.getLogger("pixelmill"), Heard(), Heard()
    before = (ours.propagate, ours.level, list(ours.handlers))
    runs = [contextlib.ExitStack(), contextlib.ExitStack()]
    runs[0].enter_context(collected_logs(first))
    runs[1].enter_context(collected_logs(second))
    logging.getLogger("pixelmill.a").info("both")
    runs[0].close()
    assert not ours.propagate
    logging.getLogger("pixelmill.a").info("one")
    runs[1].close()
    assert first.told == ["pixelmill.a: both"]
    assert second.told == ["pixelmill.a: both", "pixelmill.a: one"]
    assert (ours.propagate, ours.level, list(ours.handlers)) == before
