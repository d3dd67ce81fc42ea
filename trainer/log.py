"""The log of a training: JSON lines, and on request TensorBoard and Weights & Biases."""

import json
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipeline.common.errors import BadInput
from pipeline.common.image_grid import Images, draw_rows
from pipeline.common.progress import say
from pipeline.storage.store import write_atomic
from trainer.config import TrainConfig


class Sink(Protocol):
    """A destination of values and pictures."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def pictures(self, step: int, rows: dict[str, Images]) -> None: ...

    def close(self) -> None: ...


class Log:
    """Writes every value to every sink; all ranks but the first have no sinks."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = sinks

    @property
    def takes_pictures(self) -> bool:
        """Whether any sink shows pictures."""
        return len(self.sinks) > 1

    def write(self, step: int, **values: float) -> None:
        """Log `values` after `step` steps."""
        for sink in self.sinks:
            sink.write(step, values)

    def pictures(self, step: int, rows: dict[str, Images]) -> None:
        """Log rows of pictures after `step` steps."""
        for sink in self.sinks:
            sink.pictures(step, rows)

    def close(self) -> None:
        """Flush and close every sink."""
        for sink in self.sinks:
            sink.close()


def open_log(config: TrainConfig, step: int) -> Log:
    """The log of a run that continues after `step` steps.

    Raises:
        BadInput: the package of a sink that was asked for is missing.
    """
    sinks: list[Sink] = [JsonLog(config.out / "log.jsonl", step)]
    if config.tensorboard:
        sinks.append(TensorBoard(config.out / "tensorboard", step))
    if config.wandb:
        sinks.append(WeightsAndBiases(config, step))
    return Log(sinks)


def check_sinks(config: TrainConfig) -> None:
    """Raises `BadInput` unless the packages of the sinks that are asked for are installed."""
    packages = {"tensorboard": config.tensorboard, "wandb": config.wandb is not None}
    for name, is_wanted in packages.items():
        if is_wanted and find_spec(name) is None:
            raise BadInput(f"{name}: wanted its package; pip install {name}")


class JsonLog:
    """Appends to `path`, with the time in Unix seconds; lines of steps after `start_step` are dropped first.

    A run that was killed left them.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        kept = [line for line in read_log(path) if line["step"] <= start_step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")

    def pictures(self, step: int, rows: dict[str, Images]) -> None:
        """Pictures are not logged as text."""

    def close(self) -> None:
        """Every line is already written."""


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log, without damaged ones, which are counted aloud; a last line cut short by a crash is not."""
    if not path.exists():
        return []
    *whole, last = path.read_bytes().decode(errors="replace").split("\n")
    lines = [parse_line(text) for text in (*whole, *filter(None, [last]))]
    if damaged := lines[: len(whole)].count(None):
        say(f"warning: {path}: {damaged} of {len(whole)} lines are damaged and left out")
    return [line for line in lines if line is not None]


def parse_line(text: str) -> dict[str, float] | None:
    """The values of a line; None unless they are numbers, with the step among them."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    return values if all(isinstance(value, int | float) for value in values.values()) else None


class TensorBoard:
    """Scalars and image grids, for `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BadInput("tensorboard: wanted its package; pip install tensorboard") from error
        # The reader drops events of later steps, left by a run that was killed.
        self.writer: Any = SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def pictures(self, step: int, rows: dict[str, Images]) -> None:
        import numpy as np

        self.writer.add_image("samples", np.asarray(draw_rows(rows)), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Scalars and image grids, in the project that the configuration names; a resumed run continues the same one."""

    def __init__(self, config: TrainConfig, start_step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise BadInput("wandb: wanted its package; pip install wandb") from error
        name = config.out.resolve().name
        self.wandb: Any = wandb
        self.run: Any = wandb.init(
            project=config.wandb,
            name=name,
            id=name,
            resume="allow",
            dir=config.out,
            config=config.model_dump(mode="json"),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def pictures(self, step: int, rows: dict[str, Images]) -> None:
        self.run.log({"samples": self.wandb.Image(draw_rows(rows))}, step=step)

    def close(self) -> None:
        self.run.finish()
