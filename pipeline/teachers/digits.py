"""The embedded teacher: a 1-rectified flow on 8x8 digits; `digits.md` beside the weights says how it was made."""

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.teachers import checkpoint
from pipeline.teachers.teacher import Teacher

WEIGHTS = Path(__file__).with_name("digits.safetensors")


def load(device: torch.device) -> Teacher:
    """An unconditional flow over [1, 8, 8]."""
    return replace(checkpoint.load(WEIGHTS, device), name="digits")
