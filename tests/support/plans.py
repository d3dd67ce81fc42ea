"""Plans of a few records, and the configurations that ask for them."""

from pathlib import Path

from pipeline.dataset.plan import Plan
from pipeline.flow.solver import Solver
from pipeline.generation.generate import GenerateConfig


def make_plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "teacher": "gaussian",
        "teacher_sha256": "0" * 64,
        "shape": (1, 4, 4),
        "num_classes": 0,
        "seed": 0,
        "solver": Solver(),
        "num_states": 3,
        "velocities": True,
        "dtype": "float16",
        "shard_size": 8,
        "batch_size": 4,
        "block_size": 2,
    }
    return Plan.model_validate({**values, **changes})


def config(out: Path | str, **changes: object) -> GenerateConfig:
    values: dict[str, object] = {
        "teacher": "tests.support.problems:gaussian",
        "n": 20,
        "out": str(out),
        "states": 2,
        "executor": "inline",
        "shard_size": 4,
        "batch_size": 2,
        "block_size": 2,
    }
    return GenerateConfig.model_validate({**values, **changes})
