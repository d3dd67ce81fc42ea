"""What the labels of a network stand for where they are prompts, and the sizes of its pictures."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

Size = tuple[int, int]  # of a picture in pixels: (height, width)


class Conditions(Protocol):
    """What the labels of a data set stand for: row i is a prompt, and row -1 the negative prompt."""

    def __len__(self) -> int:
        """The number of prompts, without the negative one."""

    def row(self, number: int) -> Mapping[str, Tensor]:
        """The condition of a row, on the CPU."""
