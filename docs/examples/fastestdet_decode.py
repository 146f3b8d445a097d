"""Reads the output of FastestDet (https://github.com/dog-qiuqiu/FastestDet, 2022).

In the config:  decode: fastestdet_decode.py:decode
"""

import numpy as np

Array = np.ndarray


def decode(outputs: list[Array], canvas: tuple[int, int]) -> list[tuple[Array, Array, Array]]:
    """One (boxes_xyxy, scores, labels) per image, boxes in pixels of the canvas.

    Args:
        outputs: the network's arrays; here one, (B, 5 + K, rows, columns): objectness, four
            numbers of the box, and the probabilities of K classes, at every cell of a grid.
        canvas: (height, width) of the network's input in pixels.
    """
    results = []
    for grid in outputs[0]:
        num_rows, num_columns = grid.shape[1:]
        objectness, shift_x, shift_y, width, height = grid[:5]
        x = (np.arange(num_columns)[None, :] + np.tanh(shift_x)) / num_columns * canvas[1]
        y = (np.arange(num_rows)[:, None] + np.tanh(shift_y)) / num_rows * canvas[0]
        half_width = canvas[1] / (1 + np.exp(-width)) / 2
        half_height = canvas[0] / (1 + np.exp(-height)) / 2
        corners = (x - half_width, y - half_height, x + half_width, y + half_height)
        boxes_xyxy = np.stack(corners, axis=-1)
        scores = objectness**0.6 * grid[5:] ** 0.4
        labels, rows, columns = np.nonzero(scores > 0.005)  # a cell may hold several classes
        results.append((boxes_xyxy[rows, columns], scores[labels, rows, columns], labels))
    return results
