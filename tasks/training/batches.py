"""Which images make up each step, and their way to the network.

All randomness follows from the seed of the config, the epoch and the image, so that neither the
number of worker processes nor an interruption changes what is learnt from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from pixelmill.configs.schema import TrainConfig
from pixelmill.models.targets import Target
from pixelmill.tasks.augment import Size, augment, canvas_size, make_transform
from pixelmill.tasks.datasets import Dataset

__all__ = ["Batch", "Batches", "Pick", "mix_seed", "normalise", "plan_epoch"]


@dataclass(frozen=True, slots=True)
class Pick:
    """An image of a batch.

    Attributes:
        index: of the dataset's names.
        scale: of `canvas_scales`, the same in a batch.
        seed: of its random changes.
    """

    index: int
    scale: float
    seed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Images (B, 3, H, W) uint8 RGB, and the truth of each."""

    images: Tensor
    targets: list[Target]


def mix_seed(*parts: int) -> int:
    """A seed in [0, 2^63) that every part changes entirely."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def plan_epoch(
    sizes: Sequence[Size], config: TrainConfig, epoch: int, rank: int = 0
) -> list[list[Pick]]:
    """Batches of one epoch in random order; a batch has canvases of one size.

    Args:
        sizes: canvas of each image, at scale 1.
        config: its seed, batch_size, devices and canvas_scales.
        epoch: from 1.
        rank: of this device; each takes its share of every batch.
    """
    generator = torch.Generator().manual_seed(mix_seed(config.seed, epoch))
    by_size: dict[Size, list[int]] = {}
    for index in torch.randperm(len(sizes), generator=generator).tolist():
        by_size.setdefault(sizes[index], []).append(index)
    batches = [
        indices[start : start + config.batch_size]
        for indices in by_size.values()
        for start in range(0, len(indices), config.batch_size)
    ]
    # Batch normalisation learns nothing good from a single image, and every device needs some
    least = max(2, config.devices)
    batches = [each for each in batches if len(each) >= least] or [
        each for each in batches if len(each) >= config.devices
    ]
    plan = []
    for place in torch.randperm(len(batches), generator=generator).tolist():
        drawn = int(torch.randint(len(config.canvas_scales), (1,), generator=generator))
        scale = config.canvas_scales[drawn]
        mine = batches[place][rank :: config.devices]
        plan.append([Pick(i, scale, mix_seed(config.seed, epoch, i, 1)) for i in mine])
    return plan


class _Images(TorchDataset[tuple[Tensor, Target]]):
    """What a pick stands for, read and changed."""

    def __init__(self, dataset: Dataset, config: TrainConfig) -> None:
        self.dataset = dataset
        self.config = config
        self._transform = lru_cache(maxsize=None)(self._make)

    def _make(self, scale: float) -> v2.Transform:
        return make_transform(self.config, scale)

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __getitem__(self, pick: Pick) -> tuple[Tensor, Target]:
        example = self.dataset.read(self.dataset.names[pick.index])
        # v2 draws from torch's own generator, which dropout does, too
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pick.seed)
            choice = int(torch.randint(len(example.targets), (1,)))
            return augment(example.image, example.targets[choice], self._transform(pick.scale))


def _collate(pairs: Sequence[tuple[Tensor, Target]]) -> Batch:
    images, targets = zip(*pairs, strict=True)
    return Batch(torch.stack(images), list(targets))


class Batches:
    """The batches of each epoch, from any step on.

    Args:
        dataset: what is trained on.
        config: of the training.
        rank: of this device.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, rank: int = 0) -> None:
        self.config = config
        self.rank = rank
        # of one canvas it is known without looking
        if config.crop is not None or len(config.preprocess.canvases) == 1:
            self.sizes = [canvas_size((1, 1), config)] * len(dataset.names)
        else:
            self.sizes = [canvas_size(size, config) for size in dataset.sizes()]
        self._plan: list[list[Pick]] = []
        self._loader: DataLoader[tuple[Tensor, Target]] = DataLoader(
            _Images(dataset, config),
            batch_sampler=cast("Any", _Plan(self)),  # picks, not indices
            num_workers=config.workers,
            collate_fn=_collate,
            # fork would copy the threads of torch and of Prefect half-way
            multiprocessing_context="forkserver" if config.workers else None,
            persistent_workers=config.workers > 0,
            # else the loader would draw from the network's
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(plan_epoch(self.sizes, self.config, 1))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch.

        Args:
            epoch: from 1.
            start: number of batches that are left out at the beginning.
        """
        self._plan = plan_epoch(self.sizes, self.config, epoch, self.rank)[start:]
        return iter(cast("Any", self._loader))  # what _collate makes

    @property
    def planned(self) -> list[list[Pick]]:
        """Of the epoch that was asked for last."""
        return self._plan


class _Plan:
    """A batch sampler: the loader asks it anew in every epoch."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Pick]]:
        return iter(self.batches.planned)

    def __len__(self) -> int:
        return len(self.batches.planned)


def normalise(images: Tensor, config: TrainConfig) -> Tensor:
    """(B, 3, H, W) uint8 RGB -> float as the network is scored with, channels last."""
    preprocess = config.preprocess
    pixels = images.float() / 255
    if preprocess.channels == "bgr":
        pixels = pixels.flip(1)
    mean = pixels.new_tensor(preprocess.mean).view(3, 1, 1)
    std = pixels.new_tensor(preprocess.std).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
