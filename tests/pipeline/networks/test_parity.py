"""Our networks against the original implementations, through files in the originals' own formats."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import networks
from pipeline.common.errors import BadInput
from pipeline.networks import DhariwalUNetConfig, SongUNetConfig
from pipeline.networks.unet import UNet
from pipeline.teachers import adm, catalogue, edm, score_sde
from tests.support.originals import (
    SCALED,
    TINY_ADM,
    TINY_EDM,
    TINY_SCORE_SDE,
    config_of,
    layouts,
    original,
    weight,
    write,
)
from tests.support.problems import tiny_config

assert_same = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
# By the name of its layout, the teacher in the catalogue.
PUBLISHED = {
    "edm-cifar10-uncond-vp": "edm-cifar10",
    "edm-cifar10-uncond-ve": "edm-cifar10-ve",
    "edm-cifar10-cond-vp": "edm-cifar10-cond",
    "edm-cifar10-cond-ve": "edm-cifar10-cond-ve",
    "edm-ffhq64-uncond-vp": "edm-ffhq64",
    "edm-ffhq64-uncond-ve": "edm-ffhq64-ve",
    "edm-imagenet64-cond-adm": "edm-imagenet64",
    "1rf": "1rf",
    "slimflow-3m": "slimflow-3m",
    "slimflow-7m": "slimflow-7m",
    "slimflow-15m": "slimflow-15m",
    "slimflow-28m": "slimflow-28m",
    "adm-imagenet64": "adm-imagenet64",
    "consistency-edm-imagenet64": "cm-imagenet64",
}


def raw(network: UNet, tensors: dict[str, Tensor], augment: Tensor | None = None) -> Tensor:
    """What the U-Net itself answers when it is fed as the original was."""
    time, label = tensors["time"], tensors.get("label")
    network.convention = FedDirectly(network.config.time_scale)
    with torch.no_grad():
        out: Tensor = network(tensors["x"], time, None, label, augment)
    return out


class FedDirectly:
    """No change of variables: the time is the one that the original network was told."""

    t_start = 1.0

    def __init__(self, time_scale: float) -> None:
        self.time_scale = time_scale

    def noise_label(self, t: Tensor) -> Tensor:
        return t / self.time_scale

    def velocity(self, predict: Any, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = predict(x)
        return out


@pytest.mark.parametrize("name", TINY_EDM)
def test_an_edm_pickle_gives_the_outputs_of_the_original(name: str, tmp_path: Path) -> None:
    tensors, network = original(name).tensors, edm.load(write(name, tmp_path / "net.pkl"))
    assert_same(raw(network, tensors, tensors.get("augment")), tensors["out"])
    if "augment" in tensors:
        assert_same(raw(network, tensors), tensors["out_without_augment"])


@pytest.mark.parametrize("name", TINY_EDM)
def test_the_velocity_of_an_edm_pickle_is_that_of_the_originals_denoiser(name: str, tmp_path: Path) -> None:
    tensors, network = original(name).tensors, edm.load(write(name, tmp_path / "net.pkl"))
    t = tensors["sigma"] / (1 + tensors["sigma"])
    at = t[:, None, None, None]
    x_t = (1 - at) * tensors["x_sigma"]
    with torch.no_grad():
        velocity = network(x_t, t, label=tensors.get("label"))
    assert_same(velocity, (x_t - tensors["denoised"]) / at)


@pytest.mark.parametrize("name", TINY_SCORE_SDE)
def test_a_score_sde_checkpoint_gives_the_outputs_of_the_originals_ema(name: str, tmp_path: Path) -> None:
    tensors, config = original(name).tensors, config_of(name)
    assert isinstance(config, SongUNetConfig)
    network = score_sde.load(write(name, tmp_path / "net.pth"), config)
    with torch.no_grad():
        velocity = network(tensors["x"], 1 - tensors["time"] / 999)
    torch.testing.assert_close(velocity, -tensors["out_ema"], rtol=1e-5, atol=3e-5)  # 1 - t is rounded
    assert_same(raw(network, tensors), tensors["out_ema"])
    assert (tensors["out"] - tensors["out_ema"]).abs().max() > 0.1


def test_a_network_of_256_pixels_with_pyramids_gives_the_outputs_of_the_originals_ema(tmp_path: Path) -> None:
    tensors, config = original(SCALED).tensors, config_of(SCALED)
    assert isinstance(config, SongUNetConfig)
    network = score_sde.load(write(SCALED, tmp_path / "net.pth"), config)
    with torch.no_grad():
        velocity = network(tensors["x"], 1 - tensors["time"].double() / 999)
    told = tensors["time"][:, None, None, None]
    torch.testing.assert_close((velocity * told).float(), -tensors["out_ema"] * told, rtol=1e-4, atol=1e-4)
    assert (told * (tensors["out"] - tensors["out_ema"])).abs().max() > 0.1


def test_slimflows_network_in_edms_layout_gives_the_outputs_of_edms(tmp_path: Path) -> None:
    made = original("edm-adm")
    expected = edm.load(write("edm-adm", tmp_path / "net.pkl"))
    names = {name: name.removeprefix("model.") for name in made.shapes if "augment" not in name}
    state = {f"module.{theirs}": made.state()[name] for name, theirs in names.items()}
    shadow = [tensor for name, tensor in state.items() if not name.endswith("resample_filter")]
    torch.save({"model": state, "ema": {"shadow_params": shadow}}, tmp_path / "net.pth")
    config = expected.config.model_copy(update={"augment_dim": 0, "convention": "rectified-flow", "time_scale": 999})
    assert isinstance(config, DhariwalUNetConfig)
    network = score_sde.load(tmp_path / "net.pth", config)
    assert_same(raw(network, made.tensors), raw(expected, made.tensors))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_that_every_name_has_are_taken_off(prefix: str, tmp_path: Path) -> None:
    config = config_of("adm")
    assert isinstance(config, DhariwalUNetConfig)
    state = original("adm").state()
    network = adm.convert(tmp_path, config, {prefix + name: tensor for name, tensor in state.items()})
    assert_same(raw(network, original("adm").tensors), original("adm").tensors["out"][:, :3])
    content = torch.load(write("rectified-flow", tmp_path / "net.pth"), weights_only=False)
    content["model"] = {prefix + name.removeprefix("module."): x for name, x in content["model"].items()}
    torch.save(content, tmp_path / "net.pth")
    song = config_of("rectified-flow")
    assert isinstance(song, SongUNetConfig)
    tensors = original("rectified-flow").tensors
    assert_same(raw(score_sde.load(tmp_path / "net.pth", song), tensors), tensors["out_ema"])


def test_a_configuration_that_its_file_cannot_hold_is_refused_before_it_is_built(tmp_path: Path) -> None:
    config, state = config_of("adm"), original("adm").state()
    assert isinstance(config, DhariwalUNetConfig)
    for change in ({"num_blocks": 10**7}, {"channels": 2**30}, {"channel_mult": (10**9, 2)}):
        with pytest.raises(BadInput, match=r"its network would have [\d,]+ blocks"):
            adm.convert(tmp_path, config.model_copy(update=change), state)
    path = tmp_path / "net.safetensors"
    networks.save_tensors(path, {"x": torch.zeros(4)}, {"network": tiny_config(num_blocks=10**7).model_dump_json()})
    with pytest.raises(BadInput, match="it stores 1 tensors of 4 values"):
        networks.load(path)


@pytest.mark.parametrize("name", TINY_ADM)
def test_openais_checkpoints_give_the_outputs_of_the_originals(name: str, tmp_path: Path) -> None:
    tensors, config = original(name).tensors, config_of(name)
    assert isinstance(config, DhariwalUNetConfig)
    network = adm.load(write(name, tmp_path / "net.pt"), config)
    assert_same(raw(network, tensors), tensors["out"][:, :3])


def in_legacy_order(state: dict[str, Tensor], channels_per_head: int) -> dict[str, Tensor]:
    """The rows of queries, keys and values as (head, three, dim)."""
    moved = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            by_kind = tensor.reshape(3, -1, channels_per_head, *tensor.shape[1:])
            moved[name] = by_kind.transpose(0, 1).reshape(tensor.shape)
    return state | moved


def test_the_other_attention_order_loads_as_well_and_is_far_off(tmp_path: Path) -> None:
    """The trap of consistency_models: only outputs of the original can tell the two orders apart."""
    tensors, config = original("consistency").tensors, config_of("consistency")
    assert isinstance(config, DhariwalUNetConfig)
    state = in_legacy_order(original("consistency").state(), config.channels_per_head)
    assert (raw(adm.convert(tmp_path, config, state), tensors) - tensors["out"]).abs().max() > 0.01
    assert_same(raw(adm.convert(tmp_path, config, state, "legacy"), tensors), tensors["out"])


@pytest.mark.parametrize("width", [32, 96])
def test_norms_can_have_32_groups_at_any_width_as_openais_do(width: int) -> None:
    config = DhariwalUNetConfig(
        resolution=4,
        image_channels=3,
        channels=width,
        channel_mult=(1,),
        num_blocks=1,
        attention_resolutions=(),
        channels_per_head=32,
    )
    assert networks.build(config).norm_out.num_groups < 32
    openai = config.model_copy(update={"min_channels_per_group": 1})
    assert networks.build(openai).norm_out.num_groups == 32


@pytest.mark.parametrize("published", PUBLISHED)
def test_every_tensor_of_a_published_checkpoint_has_its_place_in_the_network_of_the_catalogue(published: str) -> None:
    layout, entry = layouts()[published], catalogue.named_teachers()[PUBLISHED[published]].entry
    assert entry.network is not None
    tensors = {
        name.removeprefix("module."): torch.empty(shape, device="meta") if "filter" not in name else _filter(shape)
        for name, shape in layout["tensors"].items()
        if not name.endswith(score_sde.SIGMAS)
    }
    if entry.format == "edm":
        arguments = {key: value for key, value in layout["config"].items() if key != "class"}
        network = edm.convert(Path(published), arguments, tensors)
        unlike = {"dropout", "label_dropout"}
        assert network.config.model_dump(exclude=unlike) == entry.network.model_dump(exclude=unlike)
    elif entry.format == "score-sde":
        assert isinstance(entry.network, SongUNetConfig)
        network = score_sde.convert(Path(published), entry.network, tensors)
    else:
        assert isinstance(entry.network, DhariwalUNetConfig)
        network = adm.convert(Path(published), entry.network, tensors)
    count = sum(parameter.numel() for parameter in network.parameters())
    learned_sigma = 3 * (9 * 192 + 1) if published == "adm-imagenet64" else 0
    assert count + learned_sigma == layout["parameters"]
    assert entry.parameters == pytest.approx(count / 1e6, abs=0.05)


def _filter(shape: list[int]) -> Tensor:
    taps = torch.tensor([1.0, 1.0] if shape[-1] == 2 else [1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps)[None, None] / taps.sum() ** 2


@pytest.mark.parametrize("name", TINY_EDM + TINY_SCORE_SDE + TINY_ADM)
@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_a_tensor_that_is_missing_too_many_or_of_another_shape_is_named(name: str, fault: str) -> None:
    made = original(name)
    state = {key.removeprefix("module."): value for key, value in made.state().items()}
    state.pop(score_sde.SIGMAS, None)
    last = [key for key in state if key not in made.buffers][-1]
    if fault == "missing":
        del state[last]
        wanted = rf"net\.file: wanted a tensor {last} of \[.*\]; there is none"
    elif fault == "extra":
        state["surplus.weight"] = weight("surplus.weight", (2,))
        wanted = r"net\.file: 1 of its tensors have no place in such a network: surplus\.weight"
    else:
        state[last] = torch.cat([state[last], state[last]], dim=-1)
        wanted = rf"net\.file: wanted {last} of \[.*\]; it is \[.*\]"
    with pytest.raises(BadInput, match=wanted):
        convert(name, state)


def convert(name: str, state: dict[str, Tensor]) -> UNet:
    """Our network from the tensors in `state`, as if they were those of the fixture called `name`."""
    path = Path("net.file")
    if name in TINY_EDM:
        return edm.convert(path, {k: v for k, v in original(name).config.items() if k != "class"}, state)
    config = config_of(name)
    if isinstance(config, SongUNetConfig):
        return score_sde.convert(path, config, state)
    assert isinstance(config, DhariwalUNetConfig)
    return adm.convert(path, config, state)


def test_a_filter_other_than_the_one_the_arguments_name_is_refused() -> None:
    made = original("edm-ve")
    state = made.state()
    filters = [key for key in state if key.endswith("resample_filter")]
    state[filters[0]] = torch.full_like(state[filters[0]], 1 / math.prod(state[filters[0]].shape))
    with pytest.raises(BadInput, match=r"resample_filter has other values than this kind of network computes"):
        convert("edm-ve", state)
