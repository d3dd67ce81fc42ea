"""Samples of a student: arrays in the data's range, as bytes or as a picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import BadInput, reason
from pipeline.common.image_grid import is_drawable, save_square, to_bytes

ARRAYS = ".npy"


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples of any shape; those of shape [C, H, W] with 1 or 3 channels are images too."""

    arrays: NDArray[np.float32]  # [N, *shape], values in about data_range
    labels: NDArray[np.int64] | None  # [N], in [0, num_classes); None without classes
    data_range: tuple[float, float]  # the values that become black and white

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def images(self) -> NDArray[np.uint8]:
        """The samples as bytes, [N, H, W, C].

        Raises:
            BadInput: their shape is not an image's.
        """
        return self._bytes().transpose(0, 2, 3, 1)

    def save(self, path: str | Path) -> None:
        """Write `arrays` to a .npy file, or a grid of the images to a .png (any ending that Pillow knows).

        Raises:
            BadInput: `path` cannot be written, or they are no images.
        """
        path = Path(path)
        if path.suffix != ARRAYS:
            save_square(path, self._bytes())
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, self.arrays)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({reason(error)})") from error

    def _bytes(self) -> NDArray[np.uint8]:
        """[N, C, H, W]."""
        shape = self.arrays.shape[1:]
        if not is_drawable(shape):
            raise BadInput(
                f"samples of shape {list(shape)}: wanted images [C, H, W] of 1 or 3 channels; use `arrays`, or save "
                f"to a {ARRAYS} file"
            )
        return to_bytes(self.arrays, self.data_range)
