"""Which kernels a training runs on: compiled or not, in which precision, timed by cuDNN or not."""

import torch

from pipeline.common.errors import BadInput
from pipeline.flow.numerics import check_precision
from pipeline.teachers.compilation import missing_compiler
from trainer.config import TrainConfig, TrainerConfig


def check_kernels(config: TrainConfig, device: torch.device) -> None:
    """Raises `BadInput` if `device` lacks the precision, or this machine the compiler, that were asked for."""
    check_precision(config.trainer.precision, device)
    compiles(config, device)


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
    missing = missing_compiler(device)
    if asked and missing:
        raise BadInput(f"trainer.compile: wanted {missing}; there is none here: install it, or set it to false")
    return asked if asked is not None else device.type == "cuda" and can and not missing
