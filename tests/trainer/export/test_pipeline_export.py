"""A pipeline's student as a stock pipeline and as a LoRA: what they draw is Algorithm 1, on their grid."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.flow.path import uniform_times
from pipeline.networks.diffusers.adapter import AdapterConfig
from pipeline.networks.diffusers.network import DiffusersNetwork
from tests.support.prompts import conditions_of, load_unchecked, source_of
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.model import Model
from trainer.distillation.student import Student, from_pipeline, sample
from trainer.export.exporter import export
from trainer.export.pipeline import write_lora, write_pipeline

FLOWS = ["sd3", "flux-dev", "sana", "lumina2", "auraflow", "z-image", "qwen-image"]


def student_of(folder: Path, workplace: Path, adapter: AdapterConfig | None) -> tuple[Model, DiffusersNetwork]:
    """A student far from its start, and its description."""
    source = source_of(folder)
    network = load_unchecked(source, conditions_of(source, workplace)).network
    assert isinstance(network, DiffusersNetwork)
    from_pipeline(network, adapter, source.base_weights)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            scale = 0.5 if name.endswith("gate") else 0.05
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    info = CheckpointInfo(step=1, trains="student", recipe="trajectory", teacher=source.text, config={})
    network.requires_grad_(False)
    return Model(workplace / "ema.safetensors", info), network


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("name", FLOWS)
def test_a_stock_pipeline_draws_what_algorithm_1_draws(
    name: str, num_steps: int, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    model, network = student_of(pipelines(name), tmp_path, None)
    _, error = write_pipeline(model, network, num_steps, tmp_path)
    assert error < 1e-5


def test_a_stock_pipeline_has_the_adapter_in_its_weights(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    model, network = student_of(pipelines("sd3"), tmp_path, AdapterConfig(rank=2, alpha=3))
    _, error = write_pipeline(model, network, 4, tmp_path)
    assert error < 1e-5


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("name", FLOWS)
def test_a_lora_draws_what_algorithm_1_draws(
    name: str, num_steps: int, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    model, network = student_of(pipelines(name), tmp_path, AdapterConfig(rank=2, alpha=3))
    _, error = write_lora(model, network, num_steps, tmp_path)
    assert error < 1e-5


def test_a_fresh_process_loads_the_pipeline_and_draws_the_same(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    model, network = student_of(pipelines("sd3"), tmp_path, None)
    write_pipeline(model, network, 4, tmp_path)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "noise.npy", noise.numpy())
    wanted: Tensor = sample(Student(network), noise, uniform_times(4), torch.zeros(1, dtype=torch.int64))
    program = """
import sys, numpy, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
latents = torch.from_numpy(numpy.load("noise.npy"))
size = dict(height=8, width=8, output_type="latent")
drawn = pipeline("a cat", latents=latents, num_inference_steps=4, guidance_scale=1.0, **size)
numpy.save("drawn.npy", drawn.images.numpy())
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path, check=True, capture_output=True)
    drawn = torch.from_numpy(np.load(tmp_path / "drawn.npy"))
    # The pipeline encodes its prompt in float32, the table holds it in bfloat16.
    assert float((drawn - wanted).abs().max() / wanted.abs().max()) < 2e-2


@pytest.mark.parametrize(
    ("kind", "num_steps", "message"),
    [("diffusers", None, "wanted --steps N"), ("safetensors", 2, "--steps is for --format diffusers and lora")],
)
def test_steps_are_for_the_formats_that_take_them(
    kind: str, num_steps: int | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        export(tmp_path, kind, tmp_path / "out", num_steps)


def test_what_cannot_be_exact_is_refused(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    model, network = student_of(pipelines("sd3"), tmp_path, None)
    with pytest.raises(BadInput, match="all its weights were: take diffusers"):
        write_lora(model, network, 2, tmp_path)
    with pytest.raises(BadInput, match="the width of its timestep embedder"):
        write_pipeline(model, network, 10_000, tmp_path)
    model, network = student_of(pipelines("sd"), tmp_path, None)
    with pytest.raises(BadInput, match="wanted the student of a flow"):
        write_pipeline(model, network, 2, tmp_path)


def test_the_index_names_a_scheduler_of_the_library(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    model, network = student_of(pipelines("flux-dev"), tmp_path, None)
    name, _ = write_pipeline(model, network, 2, tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers", name]
