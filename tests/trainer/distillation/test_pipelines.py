"""A network of diffusers becomes a student by a second time: it starts as its teacher's Euler step, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks.diffusers.adapter import AdapterConfig
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.networks.diffusers.weights import BaseWeights
from tests.support.pipelines import BUILDERS
from tests.support.prompts import conditions_of, load_unchecked, source_of
from trainer.checkpoints.ema import Ema
from trainer.checkpoints.ema_config import EmaConfig
from trainer.distillation.models import differentiate
from trainer.distillation.queries import IN_S, Query
from trainer.distillation.student import from_pipeline

BASE = BaseWeights(path="nowhere", sha256="0" * 64)
LORA = AdapterConfig(rank=2)
T, S, LABEL = torch.tensor([0.8, 0.5]), torch.tensor([0.3, 0.0]), torch.tensor([1, 0])


def network_of(folder: Path, workplace: Path) -> DiffusersNetwork:
    source = source_of(folder)
    network = load_unchecked(source, conditions_of(source, workplace)).network
    assert isinstance(network, DiffusersNetwork)
    return network


def states(network: DiffusersNetwork) -> Tensor:
    return torch.randn(2, *network.config.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - {"sd-v", "flux-schnell"}))
def test_a_student_starts_as_its_teachers_euler_step_and_learns_its_second_time(
    name: str, adapter: AdapterConfig | None, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    network = network_of(pipelines(name), tmp_path)
    x = states(network)
    with torch.no_grad():
        velocity = network(x, T, label=LABEL)
    student, _ = from_pipeline(network, adapter, BASE)
    student.train()
    step = x + (S - T).view(-1, 1, 1, 1) * velocity
    with torch.no_grad():
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        student.requires_grad_(False)  # torch has other kernels for weights that take gradients
        assert student(x, T, S, LABEL).equal(step)
    for parameter in trained:
        parameter.requires_grad_(True)
    student(x, T, S, LABEL).square().mean().backward()
    gates = [embedder.gate for embedder in network.embedders]
    assert all(gate.grad is not None and gate.grad.abs().sum() > 0 for gate in gates)
    for gate in gates:
        gate.data.fill_(0.5)
    with torch.no_grad():
        assert not student(x, T, S, LABEL).equal(student(x, T, S + 0.1, LABEL))


@pytest.mark.parametrize("name", ["dit", "sd3"])
def test_gradients_from_activations_that_are_made_again_are_the_same(
    name: str, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    found = []
    for again in (False, True):
        student, _ = from_pipeline(network_of(pipelines(name), tmp_path), LORA, BASE)
        torch.manual_seed(0)
        for trained in filter(lambda parameter: parameter.requires_grad, student.parameters()):
            trained.data = 0.1 * torch.randn(trained.shape)
        if again:
            student.network.checkpoint_gradients()
        student(states(student.network), T, S, LABEL).square().mean().backward()
        found.append([p.grad for p in student.parameters() if p.requires_grad])
    for once, twice in zip(*found, strict=True):
        torch.testing.assert_close(once, twice)


def test_forward_mode_is_the_derivative_in_the_second_time(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    student, _ = from_pipeline(network_of(pipelines("sd3"), tmp_path), None, BASE)
    for embedder in student.network.embedders:
        embedder.gate.data.fill_(0.5)
    x = states(student.network)
    with torch.no_grad():
        _, slope = differentiate(student, Query(x, T, S, LABEL, tangent=IN_S))
        step = 5e-5
        wanted = (student(x, T, S + step, LABEL) - student(x, T, S - step, LABEL)) / (2 * step)
    torch.testing.assert_close(slope, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))


def test_an_adapters_state_is_the_adapter_the_second_time_and_its_gate(
    pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    student, _ = from_pipeline(network_of(pipelines("sd3"), tmp_path), LORA, BASE)
    network = student.network
    names = network.state_dict().keys()
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert names == trained
    assert {"gate", "weight", "bias"} == {name.rpartition(".")[2] for name in names}
    averaged = Ema(network, EmaConfig())
    frozen = [(a, b) for a, b in zip(averaged.network.parameters(), network.parameters(), strict=True) if a is b]
    assert len(frozen) == len(list(network.parameters())) - len(trained), "the weights beneath are shared"


def test_an_adapter_without_a_layer_is_refused(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no layer of SD3Transformer2DModel is called to_x"):
        from_pipeline(network_of(pipelines("sd3"), tmp_path), AdapterConfig(targets=("to_x",)), BASE)


def test_an_adapter_of_the_timestep_embedder_is_refused(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="in the timestep embedder too"):
        from_pipeline(network_of(pipelines("sd3"), tmp_path), AdapterConfig(targets=("linear_2",)), BASE)


def test_a_student_in_bf16_sees_every_time(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    student, _ = from_pipeline(network_of(pipelines("flux-dev"), tmp_path), LORA, BASE)
    x = states(student.network)[:1].expand(2, -1, -1, -1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        near = student.mean_velocity(x, torch.tensor([0.75, 0.7501]), torch.zeros(2), LABEL[1:].expand(2))
    assert not near[0].equal(near[1])


def test_a_students_file_knows_its_network(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    network = network_of(pipelines("sd3"), tmp_path)
    from_pipeline(network, None, BASE)
    networks.save(tmp_path / "student.safetensors", network)
    loaded = networks.load(tmp_path / "student.safetensors")
    assert isinstance(loaded, DiffusersNetwork)
    loaded.conditions, x = network.conditions, states(network)
    with torch.no_grad():
        network.requires_grad_(False)
        assert loaded.requires_grad_(False)(x, T, S, LABEL).equal(network(x, T, S, LABEL))


@pytest.mark.parametrize("changes", [{"num_layers": 10**9}, {"num_attention_heads": 10**6}, {"patch_size": "one"}])
def test_a_file_that_claims_another_network_is_refused_before_it_is_built(
    changes: dict[str, object], pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    network = network_of(pipelines("sd3"), tmp_path)
    network.config = network.config.model_copy(update={"model": network.config.model | changes})
    networks.save(tmp_path / "student.safetensors", network)
    with pytest.raises(BadInput, match="its metadata is missing or wrong"):
        networks.load(tmp_path / "student.safetensors")
