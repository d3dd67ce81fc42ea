"""EDM (Karras et al. 2022, arXiv 2206.00364; NVlabs/edm): a pickle whose classes come with their source code.

The stock loader executes that code. Here nothing in the file is executed: an unpickler that knows a few harmless names
collects tensors and constructor arguments, and a network of ours takes them.
"""

import io
import mmap
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.common.errors import BadInput
from pipeline.common.faults import explain
from pipeline.networks import DhariwalUNetConfig, SongUNetConfig
from pipeline.networks.layers import Attention
from pipeline.networks.unet import UNet
from pipeline.teachers.conversion import Conversion, Placeholder, describe

Config = SongUNetConfig | DhariwalUNetConfig
# The constructors' defaults (NVlabs/edm, training/networks.py): a file holds only the arguments that were given.
SONG_DEFAULTS = {"model_channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,)}
DHARIWAL_DEFAULTS = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}
# Our names of their arguments that shape a network; arguments not listed here must have their FIXED value.
ARGUMENTS = {
    "img_resolution": "resolution",
    "img_channels": "image_channels",
    "label_dim": "num_classes",
    "sigma_data": "sigma_data",
    "augment_dim": "augment_dim",
    "model_channels": "channels",
    "channel_mult": "channel_mult",
    "num_blocks": "num_blocks",
    "attn_resolutions": "attention_resolutions",
    "dropout": "dropout",
    "label_dropout": "label_dropout",
    "embedding_type": "time_embedding",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "resample_filter",
}
FIXED: dict[str, object] = {"channel_mult_emb": 4}
IGNORED = {"use_fp16", "sigma_min", "sigma_max", "model_type", "channel_mult_noise"}


def load(path: Path) -> UNet:
    """The network `ema` in the EDM pickle at `path`, whose file says itself how it is built.

    Raises:
        BadInput: no such file, a name in it that a network has no use for, or tensors that do not fit.
    """
    root = _unpickle(path)
    if not isinstance(root, Mapping) or not isinstance(root.get("ema"), _Object):
        raise BadInput(f"{path}: wanted an EDM pickle, a dictionary with a network 'ema'; found {describe(root)}")
    net: _Object = root["ema"]
    arguments = net.state.get("_init_kwargs")
    if net.class_name != "EDMPrecond" or not isinstance(arguments, Mapping):
        raise BadInput(f"{path}: wanted a network of class EDMPrecond; found {net.class_name or 'one without a name'}")
    try:
        tensors = dict(_tensors(net, ""))
    except RecursionError:
        raise BadInput(f"{path}: wanted an EDM pickle; its network is a part of itself") from None
    return convert(path, arguments, tensors)


def convert(path: Path, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> UNet:
    """Our network from theirs: the constructor's arguments and the state_dict that `path` holds.

    Raises:
        BadInput: they do not fit each other, or make a network that is none of ours.
    """
    return fill(path, _config(path, arguments), tensors)


def fill(path: Path, config: Config, tensors: Mapping[str, Tensor]) -> UNet:
    """The network of `config` from the state_dict of theirs, with names that begin with "model.", in `path`.

    Raises:
        BadInput: they do not fit.
    """
    into = Conversion(path, tensors, config)
    _embeddings(into, config)
    deepest = len(config.channel_mult) - 1
    encoder = _names(config, "enc", range(deepest + 1), config.num_blocks, "down")
    decoder = _names(config, "dec", range(deepest, -1, -1), config.num_blocks + 1, "up")
    bottom = _size(config, deepest)
    middle = (f"model.dec.{bottom}_in0", f"model.dec.{bottom}_in1")
    for part, names in {"encoder": encoder, "middle": middle, "decoder": decoder}.items():
        for ours, theirs in zip(into.blocks(part), names, strict=True):
            _block(into, ours, theirs)
    size = _size(config, 0)
    is_song = isinstance(config, SongUNetConfig)
    into.layer("conv_in", f"model.enc.{size}_conv")
    into.layer("norm_out", f"model.dec.{size}_aux_norm" if is_song else "model.out_norm")
    into.layer("conv_out", f"model.dec.{size}_aux_conv" if is_song else "model.out_conv")
    if isinstance(config, SongUNetConfig):
        _pyramids(into, config)
    return into.finish()


def _config(path: Path, arguments: Mapping[str, Any]) -> Config:
    """Our configuration of the network that theirs was built with."""
    model = arguments.get("model_type", "DhariwalUNet")
    if model not in ("SongUNet", "DhariwalUNet"):
        raise BadInput(f"{path}: wanted model_type SongUNet or DhariwalUNet; found {model!r}")
    given = {**(SONG_DEFAULTS if model == "SongUNet" else DHARIWAL_DEFAULTS), **arguments}
    unknown = {k: v for k, v in given.items() if k not in ARGUMENTS.keys() | IGNORED and FIXED.get(k) != v}
    if unknown:
        raise BadInput(f"{path}: its network has arguments that ours has not: {unknown}")
    values = {ours: given[theirs] for theirs, ours in ARGUMENTS.items() if theirs in given}
    fixed = {"convention": "edm", "time_scale": 1.0}
    kind = SongUNetConfig if model == "SongUNet" else DhariwalUNetConfig
    try:
        return kind.model_validate(values | fixed)
    except ValidationError as error:
        raise BadInput(f"{path}: its network's arguments make none of ours: {explain(error, kind)}") from error


def _embeddings(into: Conversion, config: Config) -> None:
    into.layer("embed_t.layer0", "model.map_layer0")
    into.layer("embed_t.layer1", "model.map_layer1")
    freqs = "embed_t.features.freqs"
    if freqs in into.wanted:
        into.put(freqs, into.take("model.map_noise.freqs", into.wanted[freqs].shape))
    if config.num_classes:
        into.layer("embed_label", "model.map_label")
    if config.augment_dim:
        into.layer("embed_augment", "model.map_augment")


def _size(config: Config, level: int) -> str:
    """Their name of a level: its size, "8x8"; their images are square."""
    side = config.shape[1] >> level
    return f"{side}x{side}"


def _names(config: Config, part: str, levels: range, num_blocks: int, resampling: str) -> Iterator[str]:
    """Their names of the blocks of the encoder ("enc") or the decoder ("dec") in our order."""
    for level in levels:
        size = _size(config, level)
        if level != levels[0]:
            yield f"model.{part}.{size}_{resampling}"
        for i in range(num_blocks):
            yield f"model.{part}.{size}_block{i}"


def _block(into: Conversion, ours: str, theirs: str) -> None:
    block = into.block(ours)
    for layer in ("norm0", "conv0", "affine", "norm1", "conv1"):
        into.layer(f"{ours}.{layer}", f"{theirs}.{layer}")
    into.layer(f"{ours}.skip", f"{theirs}.skip")
    if block.resample.direction != "none":
        into.constant(f"{theirs}.conv0.resample_filter", block.resample.filter)
        into.constant(f"{theirs}.skip.resample_filter", block.resample.filter)
    if isinstance(block.attention, Attention):
        heads = block.attention.num_heads
        into.layer(f"{ours}.attention.norm", f"{theirs}.norm2")
        # Their rows are (head, dim, three), ours (three, head, dim).
        into.layer(
            f"{ours}.attention.qkv",
            f"{theirs}.qkv",
            lambda x: x.reshape(heads, -1, 3, *x.shape[1:]).movedim(2, 0).flatten(0, 2),
        )
        into.layer(f"{ours}.attention.proj", f"{theirs}.proj")


def _pyramids(into: Conversion, config: SongUNetConfig) -> None:
    """Their auxiliary layers, which stand at the level the image has reached."""
    sizes = [_size(config, level) for level in range(len(config.channel_mult))]
    convolved, filtered = ("residual", "residual") if config.encoder == "residual" else ("skip", "down")
    for level, ours in enumerate(into.network.inputs, start=1):
        into.layer(f"inputs.{ours}.conv", f"model.enc.{sizes[level]}_aux_{convolved}")
        resample = into.resample(f"inputs.{ours}.resample")
        into.constant(f"model.enc.{sizes[level]}_aux_{filtered}.resample_filter", resample.filter)
    # Ours are in the order of the levels, each with the doubling that in theirs belongs to the level above it.
    for level, ours in enumerate(into.network.outputs, start=1):
        into.layer(f"outputs.{ours}.norm", f"model.dec.{sizes[level]}_aux_norm")
        into.layer(f"outputs.{ours}.conv", f"model.dec.{sizes[level]}_aux_conv")
        resample = into.resample(f"outputs.{ours}.resample")
        into.constant(f"model.dec.{sizes[level - 1]}_aux_up.resample_filter", resample.filter)


class _Object(Placeholder):
    """An object of a class whose source code the file brings along."""

    def __init__(self, class_name: str, state: object) -> None:
        self.class_name = class_name
        self.__setstate__(state)


def _tensors(module: Placeholder, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module and its children, by the names of its state_dict."""
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _mapping(module.state.get(kind)).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor
    for name, child in _mapping(module.state.get("_modules")).items():
        if isinstance(child, Placeholder):
            yield from _tensors(child, f"{prefix}{name}.")


def _mapping(state: object) -> Mapping[str, Any]:
    return state if isinstance(state, Mapping) else {}


def _persistent(meta: object) -> _Object:
    """An object of `torch_utils.persistence`, without its class: `meta` also holds source code, which stays text."""
    fields = _mapping(meta)
    return _Object(str(fields.get("class_name", "")), fields.get("state"))


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    tensor: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-untyped-call]
    return tensor


def _storage(payload: bytes) -> torch.storage.TypedStorage | torch.UntypedStorage:
    """The nested file of a storage, which torch itself would unpickle unsafely."""
    storage = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage | torch.UntypedStorage):
        raise _Forbidden("something else than numbers in the bytes of a tensor")  # torch.load also returns functions
    return storage


class _Forbidden(Exception):
    pass


# By module and name, all that a pickle may call; each is one of the harmless functions above.
KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}
# What these modules make, a network of ours has no use for: a placeholder stands for any name of theirs.
UNUSED = ("torch.nn.modules.", "numpy.")


SIZED = ("FRAME", "PUT", "BINPUT", "LONG_BINPUT")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Fresh things each time, because a pickle can also set attributes of what it is given.
        if (module, name) in KNOWN:
            return lambda *arguments: KNOWN[module, name](*arguments)
        if (module, name) == ("dnnlib.util", "EasyDict"):
            return type(name, (dict,), {"__slots__": ()})
        if f"{module}.".startswith(UNUSED):
            return type(name, (Placeholder,), {})
        raise _Forbidden(f"{module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise _Forbidden("a persistent id")


def _check_sizes(file: BinaryIO) -> None:
    """Raises ValueError if an opcode of the pickle names more bytes, or a larger place in the memo, than `file` has.

    The unpickler allocates either before it looks: nine bytes could ask for gigabytes. `genops` reads the map as a
    file, and checks the lengths of strings itself.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for opcode, argument, position in pickletools.genops(content):  # type: ignore[arg-type]
            if opcode.name in SIZED and (argument or 0) > len(content):
                raise ValueError(f"{opcode.name} {argument} at byte {position} of {len(content)}")


def _unpickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            _check_sizes(file)
            return _Unpickler(file).load()
    except OSError:
        raise
    except _Forbidden as error:
        raise BadInput(f"{path}: wanted an EDM pickle of tensors; it asks for {error}; nothing was executed") from error
    except Exception as error:  # a damaged pickle raises whatever its last opcode met
        detail = " ".join(str(error).split())[:150]
        raise BadInput(f"{path}: wanted an EDM pickle; {type(error).__name__}: {detail}; is it whole?") from error
