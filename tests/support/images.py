"""Images to measure, and folders of them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pictures(num: int, channels: int = 3, size: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth in part, so that resizers differ less than networks do, and not in whole, so that they differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (num, channels, size // 4, size // 4)).repeat(4, axis=2).repeat(4, axis=3)
    return (coarse + rng.integers(0, 56, coarse.shape)).astype(np.uint8)


def save_pngs(folder: Path, images: NDArray[np.uint8]) -> str:
    folder.mkdir()
    for number, image in enumerate(images.transpose(0, 2, 3, 1)):
        Image.fromarray(image).save(folder / f"{number:05d}.png")
    return str(folder)
