"""The networks of a run on one device, loaded when they are first needed."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pixelmill.models.build import load_network
from pixelmill.models.interface import Network
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.device import Device
from pixelmill.tasks.engine.tuning import BatchSizes

__all__ = ["Model", "Models"]

# Not measured, because each size tried would be compiled, which takes a minute
_COMPILED_GPU_SIZE = 32


@dataclass(eq=False, slots=True)
class Model:
    """A network and what is needed to run it.

    Attributes:
        spec: of the model.
        network: built from it.
        lock: around `forward`, which no two threads may be in; the device's.
        forward_s: seconds of forward passes and of reading their outputs.
        device_s: seconds of forward passes alone.
        num_batches: by size.
    """

    spec: ModelSpec
    network: Network
    lock: threading.Lock
    forward_s: float = 0.0
    device_s: float = 0.0
    num_batches: dict[int, int] = field(default_factory=dict)

    @property
    def is_eager(self) -> bool:
        """Whether a new batch size costs nothing; other engines compile for each."""
        return self.spec.engine == "torch"


class Models:
    """The models of a run.

    Args:
        specs: of the models.
        device: that they run on.
        sizes: of their batches.
    """

    def __init__(self, specs: Sequence[ModelSpec], device: Device, sizes: BatchSizes) -> None:
        self._specs = specs
        self._device = device
        self._sizes = sizes
        self._loaded: dict[int, Model] = {}
        self.load_s = 0.0

    def get(self, index: int) -> Model:
        """The model of an index among the specs."""
        model = self._loaded.get(index)
        if model is None:
            started = time.perf_counter()
            spec = self._specs[index]
            model = self._loaded[index] = Model(
                spec, load_network(spec, self._device.name), self._device.lock
            )
            self.load_s += time.perf_counter() - started
        return model

    def load_all(self) -> None:
        """Load those that are not loaded yet."""
        for index in range(len(self._specs)):
            self.get(index)

    def loaded(self) -> list[Model]:
        """Those that were needed so far."""
        return [self._loaded[index] for index in sorted(self._loaded)]

    def measure(self, model: Model, canvas: NDArray[np.uint8]) -> None:
        """On a GPU, find the fastest batch size before the first batch on a canvas size.

        Not on the work itself, as on a CPU: there each size may give other bits.
        """
        height, width = canvas.shape[:2]
        key, is_auto = model.spec.key, model.spec.batch_size == "auto"
        if not (self._device.is_gpu and is_auto) or self._sizes.is_settled(key, (height, width)):
            return
        fastest = _COMPILED_GPU_SIZE
        if model.is_eager:
            with model.lock:
                fastest = self._device.fastest_size(model.network, canvas)
        self._sizes.settle(key, (height, width), fastest)
