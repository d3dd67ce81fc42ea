"""Kernels are chosen by the device and the recipe, unless the configuration says."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import BadInput
from trainer.config import TrainConfig, TrainerConfig
from trainer.kernels import choose_kernels, compiles

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(recipe: str = "anchored", **trainer: Any) -> TrainConfig:
    return TrainConfig(data="data", out=Path("run"), recipe=recipe, trainer=TrainerConfig(num_steps=1, **trainer))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _restored_kernels() -> Iterator[None]:
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    cudnn.allow_tf32, cudnn.benchmark = before


def test_a_network_is_compiled_on_cuda_where_the_recipe_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.kernels.missing_compiler", lambda device: "")
    assert compiles(config(), CUDA)
    assert not compiles(config(), CPU)
    assert not compiles(config("lagrangian"), CUDA)
    assert compiles(config(compile=True), CPU)
    assert not compiles(config(compile=False), CUDA)


def test_without_a_compiler_nothing_is_compiled_and_asking_for_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not compiles(config(), CUDA)
    with pytest.raises(BadInput, match=r"wanted a C\+\+ compiler; there is none here: install it, or set it to"):
        compiles(config(compile=True), CPU)


def test_tf32_and_cudnns_timing_are_on_unless_they_are_switched_off() -> None:
    choose_kernels(TrainerConfig(num_steps=1))
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark
    choose_kernels(TrainerConfig(num_steps=1, tf32=False, cudnn_benchmark=False))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark
