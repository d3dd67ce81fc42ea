"""The three stages as one run, as small as they can be."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.support.problems import save_tiny_teacher

EVALUATION: dict[str, Any] = {
    "features": "tests.support.spaces:pixels",
    "num_samples": 16,
    "num_ranges": 1,
    "steps": [1],
    "teacher_solver": {"name": "euler", "num_steps": 2},
    "baselines": [],
    "num_trajectories": 8,
    "device": "cpu",
}


def write_config(folder: Path) -> Path:
    """The three stages, as small as they can be."""
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    sections: dict[str, Any] = {
        "generate": {
            "teacher": str(save_tiny_teacher(folder / "tiny.safetensors")),
            "n": 32,
            "states": 2,
            "executor": "inline",
            "solver": {"name": "rk4", "num_steps": 3},
            "shard_size": 16,
            "batch_size": 8,
            "block_size": 8,
        },
        "train": {"device": "cpu", "trainer": {"num_steps": 2, "batch_size": 8, "log_every": 1}},
        "evaluate": {"reference": str(folder / "images.npz"), **EVALUATION},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path
