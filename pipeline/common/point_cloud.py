"""Points in the plane as a picture: a dot for each, darker where they overlap."""

import numpy as np
from numpy.typing import NDArray

SIDE = 256  # pixels
MARGIN = 0.1  # of the data's range, on either side
DOT = np.array([[0.3, 0.7, 0.3], [0.7, 0.9, 0.7], [0.3, 0.7, 0.3]])  # its darkness, where 1 is black


def draw_points(points: NDArray[np.float32], data_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Points [N, 2] as a grey picture [1, 1, S, S] of the square over `data_range`, x to the right and y upwards."""
    low, high = data_range
    margin = MARGIN * (high - low)
    bounds = [(low - margin, high + margin)] * 2
    finite = points[np.isfinite(points).all(axis=1)]
    counts = np.pad(np.histogram2d(finite[:, 1], finite[:, 0], bins=SIDE, range=bounds)[0], 1)
    darkness = sum(weight * counts[i : i + SIDE, j : j + SIDE] for (i, j), weight in np.ndenumerate(DOT))
    picture: NDArray[np.uint8] = (255 * (1 - np.clip(darkness, 0, 1))).astype(np.uint8)[::-1]
    return np.ascontiguousarray(picture)[None, None]
