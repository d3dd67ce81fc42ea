"""The three stages as functions, in this process. Each takes its config model, or the same keys as keywords."""

from pathlib import Path
from typing import Any

from eval import evaluate as evaluation
from eval.config import EvaluateConfig
from eval.report import files
from eval.results import Report
from pipeline.common.config import Model
from pipeline.common.errors import BadInput
from pipeline.generation import generate as generation
from pipeline.generation.generate import GenerateConfig
from traflow_pipeline.settings import build_settings
from traflow_pipeline.trajectory_dataset import TrajectoryDataset
from trainer import train as training
from trainer.config import TrainConfig


def generate(settings: GenerateConfig | None = None, /, *, config: str | None = None, **keys: Any) -> TrajectoryDataset:
    """Integrate a teacher's ODE from noise to data and store the trajectories, as `traflow-pipeline generate` does.

    Give a `GenerateConfig`, or its `keys` over those of `config`, a name in configs/ or the path of a YAML file:
    `generate(teacher="digits", n="16k", out="data")`. Shards that are complete are kept.

    Raises:
        BadInput: unknown or missing keys, or `out` holds another plan.
        WorkFailed: shards failed; the others are committed.
        KeyboardInterrupt: a signal asked to stop; finished shards are committed.
    """
    return TrajectoryDataset(generation.generate(_settings(GenerateConfig, "generate", settings, config, keys)))


def train(settings: TrainConfig | None = None, /, *, config: str | None = None, **keys: Any) -> Path:
    """Train a student on trajectories, or a teacher on images, as `traflow-pipeline train` does.

    Give a `TrainConfig`, or its `keys` over those of `config` (see `generate`). An existing run is resumed.

    Returns:
        The folder of the last checkpoint.

    Raises:
        BadInput: unknown or missing keys, data that do not fit the recipe, or `out` holds another run.
        WorkFailed: a loss is not finite, a shard is damaged, or a checkpoint cannot be written.
        Stopped: a signal asked to stop; a checkpoint was saved.
    """
    return training.train(_settings(TrainConfig, "train", settings, config, keys))


def evaluate(settings: EvaluateConfig | None = None, /, *, config: str | None = None, **keys: Any) -> Report | None:
    """Score a student beside its teacher and write the report into `out`, as `traflow-pipeline evaluate` does.

    Give an `EvaluateConfig`, or its `keys` over those of `config` (see `generate`).

    Returns:
        The report; None on every rank of torchrun but the first.

    Raises:
        BadInput: unknown or missing keys; a checkpoint, reference and features that do not fit together; or `out` holds
            a report over other samples.
        WorkFailed: samples are not finite, or a required metric could not be computed.
    """
    settings = _settings(EvaluateConfig, "evaluate", settings, config, keys)
    files.check_same(settings, str(settings.mirror or settings.out))
    return evaluation.evaluate(settings)


def _settings(
    model: type[Model], stage: str, settings: Model | None, config: str | None, keys: dict[str, Any]
) -> Model:
    if settings is None:
        return build_settings(model, stage, config, keys, title=f"{stage}()")
    if not isinstance(settings, model):
        raise BadInput(f"{stage}(): wanted a {model.__name__} or keywords, got {type(settings).__name__}")
    if config is not None or keys:
        raise BadInput(f"{stage}(): wanted a {model.__name__} or keywords, got both; use its model_copy(update=...)")
    return settings
