"""Which kernels a training runs on: compiled or not, TF32 or full float32, timed by cuDNN or not."""

import shutil

import torch

from pipeline.common.errors import BadInput
from trainer.config import TrainConfig, TrainerConfig


def choose_kernels(settings: TrainerConfig) -> None:
    """Set torch's switches for CUDA as `settings` says; on a CPU they change nothing."""
    torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.backends.cudnn.benchmark = settings.cudnn_benchmark


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Whether the network is compiled: as asked, or by default on CUDA where that can work.

    Raises:
        BadInput: it was asked for, and there is no compiler.
    """
    asked = config.trainer.compile
    can = not any(term.differentiates_forward for term in config.recipe.terms)
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    if asked and not has_compiler:
        raise BadInput(
            "trainer.compile: wanted a C compiler (gcc or clang) on the PATH; install one or set it to false"
        )
    return asked if asked is not None else device.type == "cuda" and can and has_compiler
