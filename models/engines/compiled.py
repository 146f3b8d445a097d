"""torch.compile: kernels made for one network and shape, after a minute of compilation."""

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pixelmill.models.engines.cache import cache_folder
from pixelmill.models.engines.export import Shape, export_trunk
from pixelmill.models.engines.pixels import PixelTrunk

__all__ = ["CompiledTrunk", "compile_pays"]

# Work must repay compilation this many times over: its time and its gain are only estimates
_MARGIN = 3.0


def compile_pays(num_images: int, *, eager_s: float, speedup: float, compile_s: float) -> bool:
    """Whether compiling saves clearly more time than it takes.

    Args:
        num_images: planned for one process, which compiles once.
        eager_s: seconds per image without it.
        speedup: eager over compiled seconds per image.
        compile_s: seconds of compilation, for all canvases together.
    """
    return num_images * eager_s * (1 - 1 / speedup) > _MARGIN * compile_s


class CompiledTrunk:
    """Compiles the trunk for each shape when it first comes.

    On a GPU with CUDA graphs, which replay a batch's kernels in one launch.

    Args:
        trunk: on its device, in its precision.
    """

    def __init__(self, trunk: PixelTrunk) -> None:
        # On the workers' shared disk, if the user's cache is: 65 s of compilation become 5
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
        self.device = trunk.mean.device
        self._trunk = trunk
        self._graphs: dict[Shape, Any] = {}

    def __call__(self, images: Tensor) -> Any:
        """See `Trunk`."""
        shape = tuple(images.shape)
        if shape not in self._graphs:
            # Exported first: each shape then is a program of its own, and the limit of programs
            # that torch.compile keeps for one function is never reached
            module = export_trunk(self._trunk, shape, any_batch=False).module()
            on_gpu = self.device.type == "cuda"
            mode = "reduce-overhead" if on_gpu else "default"
            self._graphs[shape] = torch.compile(module, dynamic=False, mode=mode)
        torch.compiler.cudagraph_mark_step_begin()
        raw = self._graphs[shape](images)
        if self.device.type != "cuda":
            return raw
        # a replay writes to the same memory each time
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, raw)
