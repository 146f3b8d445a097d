"""Batch sizes: found by measurement, cut by what memory holds, remembered in the store.

What is known of a (device, model, canvas) is one small JSON object. Losing it, or having two
workers write it at once, costs measuring again and nothing else.

A result may not depend on batch mates. Networks give the same bits for every batch of one size,
but not always for two sizes: PyTorch and the libraries below it choose other kernels for them. So
a batch is filled up to its model's size, or to a smaller one only after that gave the same bits.
"""

import functools
import json
import logging
import threading
from dataclasses import asdict, dataclass, field
from typing import Literal

from pixelmill.tasks.store import Backend, open_backend
from pixelmill.tasks.transient import is_transient

__all__ = ["DEFAULT_SIZE", "LEAST_SIZE", "BatchSizes", "batch_sizes"]

logger = logging.getLogger(__name__)

Size = tuple[int, int]

DEFAULT_SIZE = 8
# For a single image PyTorch takes other convolutions on the CPU: its `use_mkldnn` asks for more
# than one image or 20,480 numbers
LEAST_SIZE = 2

_FOLDER = "_commit/tuning"
_SAMPLES = 3
# A smaller batch has to be so much faster to be worth it
_GAIN = 1.02


@dataclass(slots=True)
class _Known:
    """What is known of one model on one canvas and kind of device.

    Attributes:
        fastest: size that was measured to be.
        limit: largest size that fits into memory, if one did not.
        same_bits: whether two sizes give the same, by "<larger>/<smaller>".
        seconds: per image, by size, while `fastest` is looked for; not remembered.
    """

    fastest: int | None = None
    limit: int | None = None
    same_bits: dict[str, bool] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)


class BatchSizes:
    """The batch sizes of a kind of device; safe to use from threads.

    Args:
        backend: of the store that remembers them.
        device: kind of device.
    """

    def __init__(self, backend: Backend, device: str) -> None:
        self._backend = backend
        self._device = device
        self._lock = threading.RLock()
        self._known: dict[tuple[str, Size], _Known] = {}

    def is_settled(self, model_key: str, canvas: Size) -> bool:
        """Whether the fastest size is known."""
        with self._lock:
            return self._find(model_key, canvas).fastest is not None

    def full(
        self, model_key: str, canvas: Size, wanted: int | Literal["auto"]
    ) -> tuple[int, int | None]:
        """The size of the next full batch.

        Args:
            model_key: of the model.
            canvas: (height, width).
            wanted: by the configuration. While "auto" is not settled, the sizes to be measured
                have their turns.

        Returns:
            The size, and a smaller one that is to be compared with it, if any.
        """
        with self._lock:
            known = self._find(model_key, canvas)
            check = None
            if wanted != "auto":
                size = max(wanted, LEAST_SIZE)
            elif known.fastest is not None:
                size = known.fastest
            else:
                size, check = self._explore(known)
            if known.limit is not None and known.limit < size:
                return known.limit, None
            return size, check

    def partial(
        self, model_key: str, canvas: Size, full: int, count: int
    ) -> tuple[int, int | None]:
        """The size of a batch of fewer images: the next power of two that gives the same bits.

        Returns:
            The size, and a smaller one that is to be compared with it, if any.
        """
        small = max(LEAST_SIZE, 1 << (count - 1).bit_length())
        if small >= full:
            return max(full, count), None
        with self._lock:
            verdict = self._find(model_key, canvas).same_bits.get(f"{full}/{small}")
        if verdict is None:
            return full, small
        return (small if verdict else full), None

    def judge(self, model_key: str, canvas: Size, larger: int, smaller: int, same: bool) -> None:
        """Remember whether two sizes give the same bits."""
        with self._lock:
            known = self._find(model_key, canvas)
            known.same_bits[f"{larger}/{smaller}"] = same
            self._save(model_key, canvas, known)

    def observe(self, model_key: str, canvas: Size, size: int, seconds: float) -> None:
        """Take the time of a full batch, while the fastest size is looked for on real work."""
        with self._lock:
            known = self._find(model_key, canvas)
            if known.fastest is not None:
                return
            known.seconds.setdefault(size, []).append(seconds / size)
            candidate, check = self._explore(known)
            if check is None and len(known.seconds.get(candidate, ())) >= _SAMPLES:
                self.settle(model_key, canvas, candidate)

    def settle(self, model_key: str, canvas: Size, fastest: int) -> None:
        """Remember the fastest size."""
        with self._lock:
            known = self._find(model_key, canvas)
            known.fastest = fastest
            logger.info("%s scores %s canvases fastest by %d", model_key, canvas, fastest)
            self._save(model_key, canvas, known)

    def limit(self, model_key: str, canvas: Size, size: int) -> None:
        """Remember the largest size that fits into memory, after a larger one did not."""
        with self._lock:
            known = self._find(model_key, canvas)
            if known.limit is None or size < known.limit:
                known.limit = size
                logger.warning("%s: memory holds batches of %d at %s", model_key, size, canvas)
                self._save(model_key, canvas, known)

    def _explore(self, known: _Known) -> tuple[int, int | None]:
        """The size to try, and the one to compare with it: from the default down while it pays.

        Larger batches are no faster on a CPU, whose caches they leave, and give other bits.
        """
        best = DEFAULT_SIZE
        while True:
            if len(known.seconds.get(best, ())) < _SAMPLES:
                return best, None
            smaller = best // 2
            if smaller < LEAST_SIZE:
                return best, None
            verdict = known.same_bits.get(f"{DEFAULT_SIZE}/{smaller}")
            if verdict is None:
                return DEFAULT_SIZE, smaller
            if not verdict:
                return best, None
            samples = known.seconds.get(smaller, ())
            if len(samples) < _SAMPLES:
                return smaller, None
            if min(known.seconds[best]) < _GAIN * min(samples):
                return best, None
            best = smaller

    def _find(self, model_key: str, canvas: Size) -> _Known:
        known = self._known.get((model_key, canvas))
        if known is None:
            known = self._known[model_key, canvas] = self._load(model_key, canvas)
        return known

    def _load(self, model_key: str, canvas: Size) -> _Known:
        try:
            return _Known(**json.loads(self._backend.get(self._key(model_key, canvas))))
        except (FileNotFoundError, ValueError, TypeError):  # none, or not one of this version
            return _Known()

    def _save(self, model_key: str, canvas: Size, known: _Known) -> None:
        content = {name: value for name, value in asdict(known).items() if name != "seconds"}
        try:
            self._backend.put(self._key(model_key, canvas), json.dumps(content).encode())
        except Exception as err:
            if not is_transient(err):
                raise
            logger.warning("could not remember a batch size: %s", err)

    def _key(self, model_key: str, canvas: Size) -> str:
        return f"{_FOLDER}/{self._device}/{model_key}/{canvas[0]}x{canvas[1]}.json"


@functools.lru_cache(maxsize=8)
def batch_sizes(root: str, dataset_id: str, device: str) -> BatchSizes:
    """The batch sizes that a store remembers, kept by this process for the next shard."""
    del dataset_id  # only there to ask anew where another store has taken the place
    return BatchSizes(open_backend(root), device)
