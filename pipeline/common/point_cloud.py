"""Points in the plane as a picture: each pixel is the darker, the more points lie in it."""

import numpy as np
from numpy.typing import NDArray

SIDE = 96  # pixels
MARGIN = 0.1  # of the data's range, on either side
DARK = 8.0  # times the mean number of points of a pixel in the data's range: black


def draw_points(points: NDArray[np.float32], data_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Points [N, 2] as a grey picture [1, 1, S, S] of the square over `data_range`, x to the right and y upwards."""
    low, high = data_range
    margin = MARGIN * (high - low)
    bounds = [(low - margin, high + margin)] * 2
    finite = points[np.isfinite(points).all(axis=1)]
    counts, _, _ = np.histogram2d(finite[:, 1], finite[:, 0], bins=SIDE, range=bounds)
    darkness = counts / (DARK * max(len(points), 1) / SIDE**2)
    picture: NDArray[np.uint8] = (255 * (1 - darkness.clip(0, 1))).astype(np.uint8)[::-1]
    return np.ascontiguousarray(picture)[None, None]
