"""A tiny teacher that takes its time where the environment says so, so that what disturbs its work finds it at work."""

import os
import time
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.teachers.loading import load_teacher
from pipeline.teachers.teacher import Teacher

FILE, PAUSE = "TRAFLOW_TEST_TEACHER", "TRAFLOW_TEST_PAUSE"


def slow(device: torch.device) -> Teacher:
    """A factory: the teacher in the file that FILE names, which waits PAUSE seconds in each call."""
    teacher = load_teacher(os.environ[FILE], device, quiet=True)

    def velocity(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        time.sleep(float(os.environ.get(PAUSE, "0")))
        return teacher.velocity(x, t, label)

    return replace(teacher, velocity=velocity)
