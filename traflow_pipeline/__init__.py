"""Distil a pre-trained flow into a few-step generator, from Python: `import traflow_pipeline as tp`.

The names in `__all__` are public. Everything else in `pipeline`, `trainer`, `eval` and this package may change.

    tp.generate(config="quickstart")                # trajectories of a teacher: a TrajectoryDataset
    tp.train(config="quickstart")                   # a student: the path of its checkpoint
    tp.load_student("runs/quickstart/train").sample(16, steps=2).save("digits.png")

Importing this package alone is cheap: torch is imported when a name is first used. Errors are `BadInput`, `WorkFailed`
and `Stopped`, each with a message of one line.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traflow_pipeline.api import (
        BadInput,
        EvaluateConfig,
        GenerateConfig,
        Report,
        Samples,
        Stopped,
        StudentSampler,
        Teacher,
        TrainConfig,
        Trajectories,
        Trajectory,
        TrajectoryDataset,
        WorkFailed,
        evaluate,
        generate,
        load_student,
        load_teacher,
        open_dataset,
        train,
    )

__all__ = [
    "BadInput",
    "EvaluateConfig",
    "GenerateConfig",
    "Report",
    "Samples",
    "Stopped",
    "StudentSampler",
    "Teacher",
    "TrainConfig",
    "Trajectories",
    "Trajectory",
    "TrajectoryDataset",
    "WorkFailed",
    "evaluate",
    "generate",
    "load_student",
    "load_teacher",
    "open_dataset",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from traflow_pipeline.installation import check_rooms, prepare_threads

    check_rooms()
    prepare_threads()
    return getattr(import_module("traflow_pipeline.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
