from pathlib import Path

import pytest
import torch

from pipeline import networks
from pipeline.common.errors import BadInput, WorkFailed
from tests.support.problems import tiny_network
from trainer.checkpoints import posthoc_ema, snapshots
from trainer.checkpoints.checkpoint import State, collect
from trainer.checkpoints.ema import Ema, EmaConfig

BATCH = 8
WIDTHS = (0.05, 0.1, 0.2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 64 steps in which a network drifted: snapshots of two averages every 8 steps, and a third one whole."""
    network = tiny_network()
    averages = [Ema(network, EmaConfig(name=f"at-{round(100 * width):02}", sigma_rel=width)) for width in WIDTHS]
    optimizer = torch.optim.AdamW(network.parameters())
    for step in range(1, 65):
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.sin(torch.tensor(step / 8.0)))
        for average in averages:
            average.update(network, BATCH, step * BATCH)
        if step % 8 == 0:
            state = State(network, averages[:2], optimizer, torch.amp.GradScaler("cpu", enabled=False))
            snapshots.save(tmp_path, state, collect(state), step, BATCH)
    networks.save(tmp_path / "kept.safetensors", averages[2].network)
    return tmp_path


def test_an_average_of_another_width_is_made_from_the_snapshots_of_two(run: Path) -> None:
    error = posthoc_ema.average(run, 0.2, run / "made.safetensors")
    made, kept = networks.load(run / "made.safetensors"), networks.load(run / "kept.safetensors")
    assert made.config == kept.config
    assert error < 0.1
    for name, tensor in kept.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], tensor, rtol=0, atol=0.01)


def test_the_average_that_was_kept_is_given_back(run: Path) -> None:
    assert posthoc_ema.average(run, 0.1, run / "made.safetensors", step=32) < 1e-6
    wanted = networks.load(run / "snapshots" / "step-000032" / "at-10.safetensors")
    made = networks.load(run / "made.safetensors")
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], tensor)


def test_what_cannot_be_averaged_is_said(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(BadInput, match="wanted snapshots of averages; it has none: train with averages"):
        posthoc_ema.average(tmp_path_factory.mktemp("empty"), 0.1, run / "made.safetensors")
    with pytest.raises(BadInput, match=r"one of 8, 16, .*; got 9"):
        posthoc_ema.average(run, 0.1, run / "made.safetensors", step=9)
    assert not (run / "made.safetensors").exists()


def test_a_damaged_snapshot_is_named_and_folders_of_others_are_left_alone(run: Path) -> None:
    (run / "snapshots" / "step-best").mkdir()
    assert list(snapshots.read(run)) == list(range(8, 65, 8))
    weights = run / "snapshots" / "step-000016" / "at-05.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BadInput, match=r"step-000016/at-05\.safetensors: its bytes are not those that were written"):
        posthoc_ema.average(run, 0.1, run / "made.safetensors")
    (weights.with_name("snapshot.json")).write_text('{"num_images": -1}')
    with pytest.raises(BadInput, match=r"step-000016: not a whole snapshot"):
        posthoc_ema.average(run, 0.1, run / "made.safetensors")


def test_what_cannot_be_written_is_one_line(run: Path) -> None:
    with pytest.raises(BadInput, match=r"made.safetensors: cannot be written"):
        posthoc_ema.average(run, 0.1, _file(run / "run") / "made.safetensors")
    network = tiny_network()
    average = Ema(network, EmaConfig(name="narrow", sigma_rel=0.1))
    state = State(
        network, [average], torch.optim.AdamW(network.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    )
    with pytest.raises(WorkFailed, match=r"step-000008: cannot be written \(.+\)"):
        snapshots.save(_file(run / "run"), state, collect(state), 8, BATCH)


def _file(path: Path) -> Path:
    path.touch()
    return path
