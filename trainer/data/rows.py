"""Tensors that belong together row by row."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor


class Rows:
    """A dataclass of tensors whose leading dimension is the row; a field is None where there is nothing."""

    def to(self, device: torch.device) -> Self:
        """These rows on `device`, copied without waiting where they are pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """These rows in pinned memory, for asynchronous copies to a GPU."""
        return self._each(lambda x: x.pin_memory())

    def rows(self, rows: slice) -> Self:
        """Some of these rows."""
        return self._each(lambda x: x[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: None if x is None else change(x) for name, x in vars(self).items()})
