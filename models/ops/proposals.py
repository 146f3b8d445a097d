"""Regions that may hold an object, found without learning: selective search and sliding windows.

J. R. R. Uijlings, K. E. A. van de Sande, T. Gevers, A. W. M. Smeulders: Selective Search for Object
Recognition, IJCV 2013, https://doi.org/10.1007/s11263-013-0620-5, section 3.
Pedro F. Felzenszwalb, Daniel P. Huttenlocher: Efficient Graph-Based Image Segmentation, IJCV 2004,
https://doi.org/10.1023/B:VISI.0000022288.19776.77, section 3.

Differences from selective search: one colour space, RGB, with both of the similarities of its
"fast" mode, instead of two spaces or more; candidates come in the order of the hierarchy, the
largest first, without the random factor that mixes its levels, so that nothing is left to chance;
a large image is searched at a smaller size.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PROPOSERS", "Proposer", "segment", "selective_search", "sliding_windows"]

Proposer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

_COLOUR_BINS = 25
_TEXTURE_BINS = 10
# Half of the eight directions; the others are their opposites
_ANGLES = tuple(np.pi * eighth / 4 for eighth in range(4))
# Row and column of a pixel's neighbours, each pair once
_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))


def selective_search(
    image: NDArray[np.uint8],
    *,
    scales: Sequence[float] = (100.0,),
    sigma: float = 0.8,
    min_pixels: int = 50,
    max_side: int = 320,
) -> NDArray[np.float32]:
    """Boxes around the regions that arise when similar neighbours are joined, again and again.

    Args:
        image: (H, W, 3) uint8.
        scales: preferences for large first regions, k of Felzenszwalb and Huttenlocher; each adds
            its own candidates.
        sigma: of the smoothing before the segmentation, in pixels.
        min_pixels: of a first region.
        max_side: an image with a longer side is searched at this one.

    Returns:
        (P, 4) float32 x_min, y_min, x_max, y_max, max exclusive, all different; the whole image is
        always among them.
    """
    height, width = image.shape[:2]
    step = -(-max(height, width) // max_side)
    pixels = _shrink(image.astype(np.float32), step)
    texture = _texture(pixels)
    found = []
    for scale in scales:
        labels = segment(pixels, scale=scale, sigma=sigma, min_pixels=min_pixels)
        for with_colour in (True, False):
            found.append(_group(pixels, texture, labels, with_colour=with_colour))
    boxes = np.concatenate(found) * np.float32(step)
    boxes = np.minimum(boxes, np.asarray((width, height, width, height), np.float32))
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)]


def sliding_windows(
    image: NDArray[np.uint8],
    *,
    sides: Sequence[float] = (48, 96, 192),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    step: float = 0.5,
) -> NDArray[np.float32]:
    """Boxes of some sizes and shapes all over an image.

    Args:
        image: (H, W, 3); only its size is read.
        sides: square roots of the areas, pixels.
        ratios: height over width.
        step: from one window to the next, in its own sides; the last one ends at the border.

    Returns:
        (P, 4) float32 boxes inside the image; a window larger than it is cut.
    """
    height, width = image.shape[:2]
    boxes = []
    for side in sides:
        for ratio in ratios:
            wide, high = min(side / ratio**0.5, width), min(side * ratio**0.5, height)
            left, top = _positions(width, wide, step), _positions(height, high, step)
            y, x = (each.ravel() for each in np.meshgrid(top, left, indexing="ij"))
            boxes.append(np.stack((x, y, x + wide, y + high), axis=1))
    return np.concatenate(boxes).astype(np.float32)


PROPOSERS: Mapping[str, Proposer] = {
    "selective_search": selective_search,
    "sliding_windows": sliding_windows,
}


def segment(
    pixels: NDArray[np.float32], *, scale: float, sigma: float, min_pixels: int
) -> NDArray[np.int64]:
    """Cut an image where neighbours differ by more than either side's own pixels do.

    Args:
        pixels: (H, W, C) in 0 to 255.
        scale: a region of n pixels may differ by scale / n more within itself; the larger, the
            larger the regions.
        sigma: of the smoothing, in pixels.
        min_pixels: smaller regions are joined with the neighbour that differs least.

    Returns:
        (H, W) int64 region of each pixel, from 0.

    Source: Felzenszwalb and Huttenlocher, 2004, algorithm 1 and equation 5; differences are
    Euclidean over the channels, as in their published implementation.
    """
    height, width = pixels.shape[:2]
    smooth = _blur(_blur(pixels, sigma, axis=0), sigma, axis=1)
    one, other, weight = _edges(smooth)
    order = np.argsort(weight, kind="stable")
    one, other, weight = one[order], other[order], weight[order]
    parent = list(range(height * width))
    size = [1] * len(parent)
    limit = [scale] * len(parent)
    for a, b, difference in zip(one.tolist(), other.tolist(), weight.tolist(), strict=True):
        # find, written out: this loop sees every pair of neighbours
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and difference <= limit[a] and difference <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = difference + scale / size[a]
    roots = _roots(parent)
    (apart,) = np.nonzero(roots[one] != roots[other])
    for a, b in zip(roots[one[apart]].tolist(), roots[other[apart]].tolist(), strict=True):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and min(size[a], size[b]) < min_pixels:
            parent[b] = a
            size[a] += size[b]
    _, labels = np.unique(_roots(parent), return_inverse=True)
    return labels.reshape(height, width)


def _shrink(pixels: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means of blocks of step x step pixels; the last ones repeat the border."""
    if step == 1:
        return pixels
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step, -1)
    return blocks.mean(axis=(1, 3))


def _blur(pixels: NDArray[np.float32], sigma: float, *, axis: int) -> NDArray[np.float32]:
    """Smoothed by a Gaussian along one axis; the border repeats."""
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    length = pixels.shape[axis]
    margins = [(0, 0)] * pixels.ndim
    margins[axis] = (reach, reach)
    padded = np.pad(pixels, margins, mode="edge")
    shifted = (padded.take(range(start, start + length), axis) for start in range(len(kernel)))
    return np.sum([weight * each for weight, each in zip(kernel, shifted, strict=True)], axis=0)


def _positions(length: int, side: float, step: float) -> NDArray[np.float64]:
    steps = int(np.ceil((length - side) / (step * side)))
    return np.minimum(np.arange(steps + 1) * step * side, length - side)


def _edges(
    pixels: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Every pair of neighbours among eight, as flat places, and how much they differ."""
    places = np.arange(pixels.shape[0] * pixels.shape[1]).reshape(pixels.shape[:2])
    ones, others, weights = [], [], []
    for step in _STEPS:
        near, far = _neighbours(step)
        ones.append(places[near].ravel())
        others.append(places[far].ravel())
        weights.append(np.sqrt(((pixels[near] - pixels[far]) ** 2).sum(axis=2)).ravel())
    return np.concatenate(ones), np.concatenate(others), np.concatenate(weights)


def _neighbours(step: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Windows of an image and of the same image one step on."""
    (down, right) = step
    rows = slice(None, -1 if down else None), slice(down, None)
    if right < 0:
        return (rows[0], slice(1, None)), (rows[1], slice(None, -1))
    columns = slice(None, -1 if right else None), slice(right, None)
    return (rows[0], columns[0]), (rows[1], columns[1])


def _roots(parent: Sequence[int]) -> NDArray[np.int64]:
    roots = np.asarray(parent)
    while True:
        above = roots[roots]
        if np.array_equal(above, roots):
            return roots
        roots = above


def _texture(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, 8 * C) how much the image rises in each of eight directions."""
    down, across = np.gradient(_blur(_blur(pixels, 1.0, axis=0), 1.0, axis=1), axis=(0, 1))
    slopes = [across * np.cos(angle) + down * np.sin(angle) for angle in _ANGLES]
    rises = [np.maximum(sign * slope, 0) for slope in slopes for sign in (1, -1)]
    return np.concatenate(rises, axis=2)


def _histograms(
    values: NDArray[np.float32], labels: NDArray[np.int64], num_bins: int, top: float
) -> NDArray[np.float64]:
    """(regions, channels * bins) of each region's pixels; a row sums to 1."""
    num_channels = values.shape[2]
    bins = np.minimum(values * (num_bins / max(top, 1e-6)), num_bins - 1).astype(np.int64)
    columns = bins + num_bins * np.arange(num_channels)
    width = num_channels * num_bins
    flat = (labels[..., None] * width + columns).ravel()
    counts = np.bincount(flat, minlength=(int(labels.max()) + 1) * width).reshape(-1, width)
    return counts / counts.sum(axis=1, keepdims=True)


def _group(
    pixels: NDArray[np.float32],
    texture: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    with_colour: bool,
) -> NDArray[np.float32]:
    """(2 R - 1, 4) boxes of R regions and of all that they are joined to, the last one first.

    Source: Uijlings et al., 2013, algorithm 1, equations 1 to 6.
    """
    num_regions, num_pixels = int(labels.max()) + 1, labels.size
    total = 2 * num_regions - 1
    looks = _histograms(texture, labels, _TEXTURE_BINS, float(texture.max()))
    if with_colour:
        # both sum to 1, so that the overlap of the joined rows is the sum of the two overlaps
        looks = np.concatenate((_histograms(pixels, labels, _COLOUR_BINS, 255.0), looks), axis=1)
    histograms = np.zeros((total, looks.shape[1]))
    histograms[:num_regions] = looks
    sizes = np.zeros(total)
    sizes[:num_regions] = np.bincount(labels.ravel())
    boxes = np.zeros((total, 4))
    boxes[:num_regions] = _bounds(labels, num_regions)

    def similarity(region: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        overlap = np.minimum(histograms[others], histograms[region]).sum(axis=1)
        joined = sizes[others] + sizes[region]
        low = np.minimum(boxes[others, :2], boxes[region, :2])
        high = np.maximum(boxes[others, 2:], boxes[region, 2:])
        gap = (high - low).prod(axis=1) - joined
        return overlap + (1 - joined / num_pixels) + (1 - gap / num_pixels)

    neighbours = _adjacent(labels, num_regions)
    queue: list[tuple[float, int, int]] = []

    def offer(region: int, others: Sequence[int]) -> None:
        if others:
            values = similarity(region, np.asarray(others)).tolist()
            for other, value in zip(others, values, strict=True):
                heapq.heappush(queue, (-value, other, region))

    for region in range(num_regions):
        offer(region, sorted(each for each in neighbours[region] if each < region))
    alive = [True] * num_regions
    while len(alive) < total:
        _, one, other = heapq.heappop(queue)
        if not (alive[one] and alive[other]):
            continue
        made = len(alive)
        alive[one] = alive[other] = False
        alive.append(True)
        sizes[made] = sizes[one] + sizes[other]
        weights = sizes[[one, other]] / sizes[made]
        histograms[made] = weights @ histograms[[one, other]]
        boxes[made, :2] = np.minimum(boxes[one, :2], boxes[other, :2])
        boxes[made, 2:] = np.maximum(boxes[one, 2:], boxes[other, 2:])
        around = (neighbours[one] | neighbours[other]) - {one, other}
        neighbours.append(around)
        for each in around:
            neighbours[each] -= {one, other}
            neighbours[each].add(made)
        offer(made, sorted(around))
    return boxes[::-1].astype(np.float32)


def _bounds(labels: NDArray[np.int64], num_regions: int) -> NDArray[np.float64]:
    """(R, 4) box around each region."""
    rows, columns = np.indices(labels.shape)
    boxes = np.zeros((num_regions, 4))
    boxes[:, :2] = np.inf
    for column, places in enumerate((columns, rows)):
        np.minimum.at(boxes[:, column], labels, places)
        np.maximum.at(boxes[:, 2 + column], labels, places + 1)
    return boxes


def _adjacent(labels: NDArray[np.int64], num_regions: int) -> list[set[int]]:
    """The regions that touch each region."""
    pairs = []
    for step in _STEPS:
        near, far = _neighbours(step)
        pairs.append(np.stack((labels[near].ravel(), labels[far].ravel()), axis=1))
    touching = np.concatenate(pairs)
    touching = np.unique(np.sort(touching[touching[:, 0] != touching[:, 1]], axis=1), axis=0)
    neighbours: list[set[int]] = [set() for _ in range(num_regions)]
    for one, other in touching.tolist():
        neighbours[one].add(other)
        neighbours[other].add(one)
    return neighbours
