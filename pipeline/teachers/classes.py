"""The classes that a network was trained on: which number is which, and how many images each had."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from pipeline.common.plural import counted

SHOWN = 20  # classes in one line
MAX_ROWS = 10  # of pictures, one for each class; of more classes evenly spaced ones


class TrainedClass(BaseModel):
    """A class that was trained: its number `label`, what the data call it, and the number of its images, if known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: int = Field(ge=0)  # its number
    name: str = ""  # what the data call it
    num_images: int | None = Field(default=None, ge=1)  # in the data, if that is known

    def __str__(self) -> str:
        name = f"{self.label} {self.name}" if self.name else f"{self.label}"
        return name if self.num_images is None else f"{name} ({self.num_images})"


def describe(classes: Sequence[TrainedClass]) -> str:
    """ "2 classes: 0 cat (512), 1 dog (488)", with the images of each; of many classes the first and the last."""
    shown = [str(one) for one in classes]
    if len(shown) > SHOWN:
        shown = [*shown[: SHOWN // 2], "...", shown[-1]]
    return f"{counted(len(classes), 'class')}: {', '.join(shown)}"


def shown_classes(labels: Sequence[int], classes: Sequence[TrainedClass]) -> dict[int, str]:
    """Those of `labels` that get a row of pictures, with its title: the number, and the name that `classes` know."""
    names = {one.label: f"{one.label} {one.name}".strip() for one in classes}
    return {label: names.get(label, str(label)) for label in labels[:: -(-len(labels) // MAX_ROWS) or 1]}


def trained_labels(classes: Sequence[TrainedClass], num_classes: int) -> tuple[int, ...] | None:
    """The numbers of `classes` if some of `num_classes` are missing; None: all were trained, or it is unknown."""
    labels = tuple(one.label for one in classes if one.label < num_classes)
    return labels if 0 < len(labels) < num_classes else None


def ranges(labels: Iterable[int]) -> str:
    """Increasing labels as "0 to 2, 5, 7 to 18"."""
    spans: list[list[int]] = []
    for label in labels:
        if spans and label == spans[-1][1] + 1:
            spans[-1][1] = label
        else:
            spans.append([label, label])
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in spans)
