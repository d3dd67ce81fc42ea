"""Files of others are data: whatever they ask for, nothing in them runs."""

import collections
import io
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.common.errors import BadInput
from pipeline.networks import DhariwalUNetConfig, SongUNetConfig
from pipeline.teachers import adm, edm, run_folder, score_sde
from pipeline.teachers.conversion import load_archive
from tests.support.originals import Persistent, config_of, easy_dict, original, persistence, write, write_edm

CONFIG = SongUNetConfig(resolution=8, image_channels=3)


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def smuggle(path: Path, call: Calls) -> None:
    """An EDM pickle with `call` deep inside its network."""
    state = {"_parameters": {}, "_buffers": {}, "_modules": {"model": Persistent("SongUNet", {"hidden": call})}}
    with persistence(), path.open("wb") as file:
        pickle.dump({"ema": Persistent("EDMPrecond", state)}, file)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (partial, "functools.partial"),
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
    ],
)
def test_a_call_smuggled_into_an_edm_pickle_is_named_and_not_made(
    function: Callable[..., Any], named: str, tmp_path: Path
) -> None:
    smuggle(tmp_path / "net.pkl", Calls(function, f"touch {tmp_path}/made"))
    with pytest.raises(BadInput, match=rf"net\.pkl: .* it asks for {named}; nothing was executed"):
        edm.load(tmp_path / "net.pkl")
    assert not (tmp_path / "made").exists()


def test_a_call_smuggled_into_the_bytes_of_a_storage_is_not_made(tmp_path: Path) -> None:
    """Torch's own reading of a pickled tensor unpickles a second file, and that one without care."""
    inner = tmp_path / "inner.pt"
    torch.save(Calls(os.system, f"touch {tmp_path}/made"), inner)
    smuggle(tmp_path / "net.pkl", Calls(torch.storage._load_from_bytes, inner.read_bytes()))
    with pytest.raises(BadInput, match=r"net\.pkl: wanted an EDM pickle; UnpicklingError"):
        edm.load(tmp_path / "net.pkl")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("inner", [torch._utils._rebuild_tensor, torch.storage.TypedStorage, collections.Counter])
def test_a_pickle_cannot_reach_real_functions_through_the_bytes_of_a_storage(inner: object, tmp_path: Path) -> None:
    """Torch's careful reader hands out its own functions and classes, whose attributes a pickle could set."""
    buffer = io.BytesIO()
    torch.save(inner, buffer)
    smuggle(tmp_path / "net.pkl", Calls(torch.storage._load_from_bytes, buffer.getvalue()))
    with pytest.raises(BadInput, match="it asks for something else than numbers in the bytes of a tensor"):
        edm.load(tmp_path / "net.pkl")


BUILD_DEFAULTS = b"N}X\x0c\x00\x00\x00__defaults__)s\x86b"
BUILD_ITSELF = b"q\x00(h\x00)}Ntb)R"


@pytest.mark.parametrize("build", [BUILD_DEFAULTS, BUILD_ITSELF])
def test_a_pickle_cannot_change_the_functions_it_is_given(build: bytes, tmp_path: Path) -> None:
    """BUILD sets attributes, or the state, of what lies on the stack: here of the function that makes parameters."""
    name = b"ctorch._utils\n_rebuild_parameter\n"
    (tmp_path / "net.pkl").write_bytes(b"\x80\x02" + name + build + b".")
    before = torch._utils._rebuild_parameter.__defaults__, edm._parameter.__defaults__
    with pytest.raises(BadInput):
        edm.load(tmp_path / "net.pkl")
    assert (torch._utils._rebuild_parameter.__defaults__, edm._parameter.__defaults__) == before


def test_a_network_that_is_a_part_of_itself_is_refused(tmp_path: Path) -> None:
    state: dict[str, Any] = {"_init_kwargs": {}}
    state["_modules"] = {"model": torch.nn.ModuleDict()}
    state["_modules"]["model"].__dict__["_modules"] = state["_modules"]
    with persistence(), (tmp_path / "net.pkl").open("wb") as file:
        pickle.dump({"ema": Persistent("EDMPrecond", state)}, file)
    with pytest.raises(BadInput, match="its network is a part of itself"):
        edm.load(tmp_path / "net.pkl")


def test_dictionaries_of_dnnlib_are_dictionaries(tmp_path: Path) -> None:
    made = original("edm-ve")
    with easy_dict() as kind:
        path = write_edm(tmp_path / "net.pkl", made, wrap=kind)
    assert edm.load(path).config.channels == 16


def test_a_network_does_not_follow_later_changes_of_its_file(tmp_path: Path) -> None:
    path = write("adm", tmp_path / "net.pt")
    config = config_of("adm")
    assert isinstance(config, DhariwalUNetConfig)
    network = adm.load(path, config)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: {"model": {"a": call}, "ema": {}}])
def test_a_call_smuggled_into_a_checkpoint_is_named_and_not_made(wrap: Callable[[Calls], Any], tmp_path: Path) -> None:
    torch.save(wrap(Calls(os.system, f"touch {tmp_path}/made")), tmp_path / "net.pth")
    with pytest.raises(BadInput, match=r"net\.pth: .* it asks for posix\.system; nothing was executed"):
        score_sde.load(tmp_path / "net.pth", CONFIG)
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_from_before_zip_archives_is_read_as_well(tmp_path: Path) -> None:
    content = {"a": torch.arange(3.0), "lr": np.float64(2e-4)}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    loaded = load_archive(tmp_path / "net.pth")
    assert isinstance(loaded, dict)
    torch.testing.assert_close(loaded["a"], content["a"])


def test_a_truncated_pickle_and_a_truncated_checkpoint_are_named(tmp_path: Path) -> None:
    for name, load in (("edm-ve", edm.load), ("slimflow", load_archive)):
        path = write(name, tmp_path / name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(BadInput, match=rf"{name}: wanted .*; is it whole\?"):
            load(path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><p>quota", b"\x80\x04K\x01.", b"\x80\x04}."])
def test_what_is_no_network_is_named_on_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(content)
    for load in (edm.load, load_archive):
        with pytest.raises(BadInput, match=f"{path}: wanted") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_network_of_another_kind_is_said_to_be_one(tmp_path: Path) -> None:
    path, made = tmp_path / "net.pkl", original("edm-ve")
    with persistence(), path.open("wb") as file:
        pickle.dump({"ema": Persistent("VPPrecond", {"_init_kwargs": {}})}, file)
    with pytest.raises(BadInput, match="wanted a network of class EDMPrecond; found VPPrecond"):
        edm.load(path)
    with pytest.raises(BadInput, match="wanted model_type SongUNet or DhariwalUNet; found 'MyUNet'"):
        edm.load(write_edm(path, made, model_type="MyUNet"))
    with pytest.raises(BadInput, match=r"arguments that ours has not: \{'num_experts': 8\}"):
        edm.load(write_edm(path, made, num_experts=8))
    torch.save({"step": 1}, tmp_path / "net.pth")
    with pytest.raises(BadInput, match="wanted a checkpoint with 'model' and 'ema' of shadow_params; found keys step"):
        score_sde.load(tmp_path / "net.pth", CONFIG)


def test_ema_tensors_that_do_not_match_the_parameters_are_refused(tmp_path: Path) -> None:
    path = write("slimflow", tmp_path / "net.pth")
    content = torch.load(path, weights_only=False)
    content["ema"]["shadow_params"].append(torch.zeros(1))
    torch.save(content, path)
    with pytest.raises(BadInput, match="wanted as many EMA tensors as parameters, 212; there are 213"):
        score_sde.load(path, CONFIG)
    content["ema"]["shadow_params"] = content["ema"]["shadow_params"][:0:-1]
    torch.save(content, path)
    with pytest.raises(BadInput, match=r"wanted an EMA tensor of \[64, 16\] for all_modules\.0\.weight"):
        score_sde.load(path, CONFIG)


@pytest.mark.parametrize("opcode", [b"r\xff\xff\xff\x3f", b"p1000000000\n", b"\x95\x00\x00\x00\x00\x01\x00\x00\x00"])
def test_a_few_bytes_do_not_ask_for_gigabytes(opcode: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.pkl"
    path.write_bytes(b"\x80\x04N" + opcode + b".")
    with pytest.raises(BadInput, match=r"wanted an EDM pickle; ValueError: \w+ \d+ at byte 3 of|exceeds|remain"):
        edm.load(path)
    path.write_bytes(b"\x80\x05\x96" + (2**32).to_bytes(8, "little") + b".")
    with pytest.raises(BadInput, match="is it whole"):
        edm.load(path)


def test_a_folder_of_diffusers_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(BadInput, match=r"a folder of the diffusers library, .* module:factory"):
        run_folder.find_weights(tmp_path)
