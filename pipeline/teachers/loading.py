"""The teachers: by name, by path, or from a factory of the user's own; from weights to a velocity field.

A new format of checkpoints is a file beside this and a line in `FORMATS`; a new checkpoint is an entry of
catalogue.yaml.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from pipeline.common import plugins
from pipeline.common.config import differences
from pipeline.common.errors import BadInput, reason, suggest
from pipeline.common.progress import say
from pipeline.networks import FlowNetworkConfig, Network
from pipeline.storage.cache import cache_folder
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import write_atomic
from pipeline.teachers import adm, catalogue, download, edm, run_folder, score_sde
from pipeline.teachers.catalogue import NamedTeacher
from pipeline.teachers.soundness import require_sound
from pipeline.teachers.teacher import Teacher, guided, of_network

ENTRY_POINTS = "traflow_pipeline.teachers"

# By format: what reads a file, and which of its weights that takes. The network's configuration is the entry's; formats
# that store their own ignore it.
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
    """`resolve(source)`, loaded: see there, and `TeacherSource.load`."""
    return resolve(source).load(device, guidance_scale, quiet)


def resolve_recorded(source: str, given: str | None, location: str, option: str) -> "TeacherSource":
    """`resolve(given)`, or without one `resolve(source)`, which a file of somebody else at `location` may have named.

    Raises:
        BadInput: `source` is a factory that this user has not named before; `option` is how to name it.
    """
    if given is not None:
        return resolve(given)
    found = resolve(source)
    if isinstance(found, _FactorySource) and not plugins.is_remembered(source, named_factories(), ENTRY_POINTS):
        raise BadInput(
            f"{location} names the teacher {source!r}, code that you have not named before; it was not imported: "
            f"if you trust it, name it with {option}"
        )
    return found


def named_factories() -> Path:
    """The folder of notes on the factories that this user has named, see `plugins`."""
    return cache_folder("factories")


@dataclass(frozen=True)
class TeacherSource(ABC):
    """A teacher that the user named by `text` and that is not loaded yet."""

    text: str

    @property
    @abstractmethod
    def absolute(self) -> str:
        """The source for a process with another working folder, now or after the run it names has trained on."""

    @property
    @abstractmethod
    def sha256(self) -> str | None:
        """The `sha256` of the teacher, where it is known without loading; None for a factory.

        Raises:
            BadInput: its file is missing or unreadable, or is a web page.
        """

    def load(self, device: torch.device | str = "cpu", guidance_scale: float = 1.0, quiet: bool = False) -> Teacher:
        """The teacher on `device`, under classifier-free guidance if `guidance_scale` is not 1.

        Unless `quiet`, a line says which of a file's weights were taken.

        Raises:
            BadInput: the source names no teacher, or one that cannot be guided.
            WorkFailed: a factory's teacher does not always answer the same, see `require_sound`.
        """
        with _readable(self.text):
            teacher = guided(self._load(torch.device(device)), guidance_scale)
        if teacher.weights and not quiet:
            say(f"teacher {teacher.name}: {teacher.weights}")
        return teacher

    @abstractmethod
    def _load(self, device: torch.device) -> Teacher:
        """The teacher without guidance; an OSError is the caller's to report."""


def resolve(source: str) -> TeacherSource:
    """Find what `source` names, without loading it.

    `source` is a name of `catalogue.named_teachers`; the path of a .yaml entry, of an EDM pickle (.pkl), or of a
    network or training run of this program; a factory "module:function", or the name of one in the entry point group
    "traflow_pipeline.teachers". A factory is called with the device and returns a `Teacher`; it is imported only when
    the teacher is loaded, and a source that names nothing is refused then.

    Raises:
        BadInput: the path holds no weights, or cannot be read.
    """
    with _readable(source):
        named, path = catalogue.find(source), Path(source)
        if named is not None:
            return _NamedSource(source, named)
        if source and path.exists():
            return _FileSource(source, run_folder.find_weights(path))
        return _FactorySource(source)


@dataclass(frozen=True)
class _NamedSource(TeacherSource):
    """An entry of the catalogue, or of the user's own."""

    named: NamedTeacher

    @property
    def absolute(self) -> str:
        return self.text if self.named.name == self.text else str(Path(self.text).absolute())

    @property
    def sha256(self) -> str:
        with _readable(self.text):
            return _identity(self.named, file_sha256(require_file(self.named)))

    def _load(self, device: torch.device) -> Teacher:
        entry, path = self.named.entry, require_file(self.named)
        sha256 = file_sha256(path)
        _check_pin(self.named, sha256)
        network, which = _read(entry.format, path, entry.network)
        # A format that stores no configuration took the entry's.
        wanted = None if entry.format in catalogue.FAMILIES else entry.network
        if wanted is not None and (fields := differences(_shape(network.config), _shape(wanted))):
            raise BadInput(f"{path}: wanted the network of {self.named.name}; it is another one ({fields})")
        return of_network(self.named.name, _identity(self.named, sha256), network, device, f"{which}, {path}")


@dataclass(frozen=True)
class _FileSource(TeacherSource):
    """A file of weights, or a training run with its newest checkpoint."""

    weights: Path

    @property
    def absolute(self) -> str:
        return str(self.weights.resolve())

    @property
    def sha256(self) -> str:
        with _readable(self.text):
            return file_sha256(self.weights)

    def _load(self, device: torch.device) -> Teacher:
        _refuse_page(self.weights)
        network, which = _read(_format_of(self.weights), self.weights, None)
        name = Path(self.text).stem
        info = run_folder.read_training(self.weights)
        return of_network(
            name,
            file_sha256(self.weights),
            network,
            device,
            f"{which}, {self.weights}",
            info.classes,
            info.data_range,
        )


@dataclass(frozen=True)
class _FactorySource(TeacherSource):
    """A factory of the user's own, or nothing at all."""

    @property
    def absolute(self) -> str:
        return self.text

    @property
    def sha256(self) -> None:
        return None

    def _load(self, device: torch.device) -> Teacher:
        if ":" in self.text:
            factory: plugins.Factory | None = plugins.import_function(self.text, "teacher")
        else:
            factory = plugins.import_entry_point(ENTRY_POINTS, self.text, "teacher")
        if factory is None:
            raise BadInput(
                f"no teacher {self.text!r}: wanted one of {', '.join(catalogue.named_teachers())}, the path of a "
                ".safetensors file, training run, EDM .pkl or .yaml entry, or module:factory"
                + suggest(self.text, catalogue.named_teachers())
            )
        teacher = plugins.call_factory(factory, device, Teacher, self.text, "teacher")
        plugins.remember(self.text, named_factories(), ENTRY_POINTS)
        require_sound(teacher, device)
        return teacher


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Turn an OSError into `BadInput`."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"teacher {source}: {error.filename} cannot be read or written ({reason(error)})") from error


def require_file(named: NamedTeacher) -> Path:
    """The path of a teacher's file.

    Raises:
        BadInput: it is not there, or is a web page that was saved in its place.
    """
    path, source = named.path, named.entry.source
    if not path.is_file():
        if source is None:
            raise BadInput(f"teacher {named.name}: wanted its file {path}; it is not there")
        raise BadInput(
            f"teacher {named.name}: wanted its file {path}; it is not there: run traflow-pipeline teachers fetch "
            f"{quote(named.argument)}, or put the file from {download.page(source)} there"
        )
    _refuse_page(path)
    return path


def _refuse_page(path: Path) -> None:
    if download.is_html(path):
        raise BadInput(f"{path}: wanted a checkpoint; it is a web page: remove it and fetch it again")


def fetch_file(name: str) -> NamedTeacher:
    """Download the file of the teacher called `name`, unless it exists, and pin its sha256 beside it.

    Raises:
        BadInput: no such teacher, or it has no source; or the file is not the pinned one.
        WorkFailed: the download failed.
    """
    with _readable(name):
        named = catalogue.find(name)
        if named is None or named.entry.source is None:
            fetchable = [key for key, other in catalogue.named_teachers().items() if other.entry.source]
            raise BadInput(
                f"teachers fetch: wanted one of {', '.join(fetchable)}; got {name!r}{suggest(name, fetchable)}"
            )
        if not named.path.is_file():
            download.fetch(named.entry.source, named.path)
        sha256 = file_sha256(require_file(named))
        _check_pin(named, sha256)
        if not named.pin.is_file():
            write_atomic(named.pin, f"{sha256}  {named.path.name}\n".encode())
    return named


def _check_pin(named: NamedTeacher, sha256: str) -> None:
    """Raises `BadInput` if the file is not the one that its entry names, or that was fetched first."""
    pin = named.pin.read_bytes().decode(errors="replace") if named.pin.is_file() else sha256
    pinned = named.entry.sha256 or pin.strip().partition(" ")[0]
    if pinned != sha256:
        advice = "" if named.entry.sha256 else f", and {named.pin.name} too if its publisher replaced it,"
        raise BadInput(
            f"{named.path}: wanted the file whose sha256 is {pinned or 'nothing'}, as when it was fetched; "
            f"it is {sha256}: remove it{advice} and run traflow-pipeline teachers fetch {quote(named.argument)}"
        )


def _read(format_name: str, path: Path, config: FlowNetworkConfig | None) -> tuple[Network, str]:
    load, which = FORMATS[format_name]
    return load(path, config), which


def _format_of(weights: Path) -> str:
    if weights.suffix in (".pth", ".pt"):
        raise BadInput(
            f"{weights}: such a file does not say how its network is built: describe it in a .yaml entry (see README)"
        )
    return "edm" if weights.suffix == ".pkl" else "safetensors"


def _shape(config: FlowNetworkConfig) -> dict[str, object]:
    """The fields of a configuration that decide the velocity: all but those of training."""
    return config.model_dump(mode="json", exclude={"dropout", "label_dropout"})


def _identity(named: NamedTeacher, sha256: str) -> str:
    """The `sha256` of a teacher: of its file, and of the network that a user's own entry describes."""
    if not named.is_own or named.entry.network is None:
        return sha256
    return hashlib.sha256(f"{sha256} {named.entry.network.model_dump_json()}".encode()).hexdigest()
