"""The teachers: by name, by path, or from a function of the user's own; from weights to a velocity field.

A new format of checkpoints is a file beside this and a line in `FORMATS`; a new checkpoint is an entry of
catalogue.yaml.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from pipeline.common import plugins
from pipeline.common.config import differences
from pipeline.common.errors import BadInput, one_line, reason
from pipeline.common.progress import say
from pipeline.networks import Network
from pipeline.networks.unet import UNetConfig
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import write_atomic
from pipeline.teachers import adm, catalogue, download, edm, run_folder, score_sde
from pipeline.teachers.catalogue import Known
from pipeline.teachers.teacher import Teacher, guided, of_network

ENTRY_POINTS = "traflow_pipeline.teachers"

# By format: the network in a file, and which of the file's weights it has. The configuration is that of the entry; a
# file that knows its own may be read without.
FORMATS: dict[str, tuple[Callable[[Path, Any], Network], str]] = {
    "safetensors": (lambda path, _: run_folder.load(path), "the weights in the file"),
    "edm": (lambda path, _: edm.load(path), "the EMA weights"),
    "score-sde": (score_sde.load, "the EMA weights"),
    "adm": (adm.load, "the weights in the file"),
    "adm-legacy": (partial(adm.load, order="legacy"), "the weights in the file"),
}


def load_teacher(
    source: str, device: torch.device | str = "cpu", guidance_scale: float = 1.0, quiet: bool = False
) -> Teacher:
    """The teacher that `source` names, under classifier-free guidance if `guidance_scale` is not 1.

    Which of a file's weights it has is printed, unless it is to be `quiet`.

    `source` is a name of `catalogue.known`; the path of an entry of one's own (.yaml), of an EDM pickle (.pkl), of a
    network or training run of this program; a factory "module:function", or the name of one in the entry point group
    "traflow_pipeline.teachers". A factory is called with the device and returns a `Teacher`.

    Raises:
        BadInput: `source` is none of these, what it names is not a teacher, or cannot be guided.
    """
    with _readable(source):
        teacher = guided(_load(source, torch.device(device)), guidance_scale)
    if teacher.weights and not quiet:
        say(f"teacher {teacher.name}: {teacher.weights}")
    return teacher


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Turns the errors of the file system into `BadInput`."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"teacher {source}: {error.filename} cannot be read or written ({reason(error)})") from error


def _load(source: str, device: torch.device) -> Teacher:
    known = catalogue.find(source)
    if known is not None:
        return _load_known(known, device)
    path = Path(source)
    if source and path.exists():
        weights = run_folder.find_weights(path)
        _refuse_page(weights)
        network, which = _read(_format_of(weights), weights, None)
        return of_network(path.stem, file_sha256(weights), network, device, f"{which}, {weights}")
    made = _find_factory(source)
    if made is not None:
        return _call_factory(source, made, device)
    raise BadInput(
        f"no teacher {source!r}: wanted one of {', '.join(catalogue.known())}, the path of a .safetensors file, "
        "training run, EDM .pkl or .yaml entry, or module:factory"
    )


def _load_known(known: Known, device: torch.device) -> Teacher:
    entry, path = known.entry, require_file(known)
    sha256 = file_sha256(path)
    _check_pin(known, sha256)
    network, which = _read(entry.format, path, entry.network)
    # Of a format that does not know its own network, the entry's was taken.
    wanted = None if entry.format in catalogue.FAMILIES else entry.network
    if wanted is not None and (fields := differences(_shape(network.config), _shape(wanted))):
        raise BadInput(f"{path}: wanted the network of {known.name}; it is another one ({fields})")
    return of_network(known.name, _identity(known, sha256), network, device, f"{which}, {path}")


def require_file(known: Known) -> Path:
    """The path of a teacher's file.

    Raises:
        BadInput: it is not there, or is a web page that was saved in its place.
    """
    path, source = known.path, known.entry.source
    if not path.is_file():
        if source is None:
            raise BadInput(f"teacher {known.name}: wanted its file {path}; it is not there")
        raise BadInput(
            f"teacher {known.name}: wanted its file {path}; it is not there: run traflow-pipeline teachers fetch "
            f"{known.called}, or put the file from {download.page(source)} there"
        )
    _refuse_page(path)
    return path


def _refuse_page(path: Path) -> None:
    if download.is_html(path):
        raise BadInput(f"{path}: wanted a checkpoint; it is a web page: remove it and fetch it again")


def fetch_known(name: str) -> Known:
    """Download the file of the teacher called `name`, unless it is here, and write down its sha256 beside it.

    Raises:
        BadInput: no such teacher, or one that is not fetched from anywhere; or the file is not the pinned one.
        WorkFailed: it could not be had.
    """
    with _readable(name):
        known = catalogue.find(name)
        if known is None or known.entry.source is None:
            fetchable = [key for key, other in catalogue.known().items() if other.entry.source]
            raise BadInput(f"teachers fetch: wanted one of {', '.join(fetchable)}; got {name!r}")
        if not known.path.is_file():
            download.fetch(known.entry.source, known.path)
        sha256 = file_sha256(require_file(known))
        _check_pin(known, sha256)
        if not known.pin.is_file():
            write_atomic(known.pin, f"{sha256}  {known.path.name}\n".encode())
    return known


def _check_pin(known: Known, sha256: str) -> None:
    """Raises `BadInput` if the file is not the one that its entry names, or that was fetched first."""
    pin = known.pin.read_bytes().decode(errors="replace") if known.pin.is_file() else sha256
    pinned = known.entry.sha256 or pin.strip().partition(" ")[0]
    if pinned != sha256:
        advice = "" if known.entry.sha256 else f", and {known.pin.name} too if its publisher replaced it,"
        raise BadInput(
            f"{known.path}: wanted the file whose sha256 is {pinned or 'nothing'}, as when it was fetched; "
            f"it is {sha256}: remove it{advice} and run traflow-pipeline teachers fetch {known.called}"
        )


def _read(format_name: str, path: Path, config: UNetConfig | None) -> tuple[Network, str]:
    load, which = FORMATS[format_name]
    return load(path, config), which


def _format_of(weights: Path) -> str:
    if weights.suffix in (".pth", ".pt"):
        raise BadInput(
            f"{weights}: such a file does not say how its network is built: describe it in a .yaml entry (see README)"
        )
    return "edm" if weights.suffix == ".pkl" else "safetensors"


def _shape(config: UNetConfig) -> dict[str, Any]:
    """What of a configuration decides the velocity: all but how it was trained."""
    return config.model_dump(mode="json", exclude={"dropout", "label_dropout"})


def _identity(known: Known, sha256: str) -> str:
    """Of a user's own entry, the network it describes is a part."""
    if not known.is_own or known.entry.network is None:
        return sha256
    return hashlib.sha256(f"{sha256} {known.entry.network.model_dump_json()}".encode()).hexdigest()


def weights_sha256(source: str) -> str | None:
    """The `sha256` of the teacher called `source`, where its file tells without being loaded; a factory's does not.

    Raises:
        BadInput: the file is not there.
    """
    with _readable(source):
        known = catalogue.find(source)
        if known is not None:
            return _identity(known, file_sha256(require_file(known)))
        path = Path(source)
        return file_sha256(run_folder.find_weights(path)) if path.exists() else None


def absolute_source(source: str) -> str:
    """`source` as any process can load it, now and when the run it names has gone on: the path of its weights."""
    with _readable(source):
        known, path = catalogue.find(source), Path(source)
        if known is not None:
            return source if known.name == source else str(path.absolute())
        return str(run_folder.find_weights(path).resolve()) if path.exists() else source


def _find_factory(source: str) -> Callable[[torch.device], Any] | None:
    """The function that `source` names as "module:function" or as an entry point."""
    if ":" in source:
        return plugins.find(source, "teacher")
    # Looking through every installed package takes a moment.
    points = list(entry_points(group=ENTRY_POINTS, name=source))
    try:
        return points[0].load() if points else None
    except (Exception, SystemExit) as error:  # importing runs the user's own code
        raise BadInput(f"teacher {source}: wanted module:factory; {type(error).__name__}: {one_line(error)}") from error


def _call_factory(source: str, make: Callable[[torch.device], Any], device: torch.device) -> Teacher:
    try:
        teacher = make(device)
    except Exception as error:  # it is the user's own code
        raise BadInput(
            f"teacher {source}: the factory failed with {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(teacher, Teacher):
        raise BadInput(f"teacher {source}: wanted a pipeline.teachers.teacher.Teacher, got {type(teacher).__name__}")
    return teacher
