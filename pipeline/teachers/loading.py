"""The teachers: by name, by path, or from a factory of the user's own; from weights to a velocity field.

A new format of checkpoints is a file beside this and a line in `FORMATS`; a new checkpoint is an entry of
catalogue.yaml.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pipeline.common import plugins
from pipeline.common.config import differences
from pipeline.common.errors import BadInput, reason
from pipeline.common.module_files import advise
from pipeline.common.progress import say
from pipeline.common.suggestions import suggest
from pipeline.dataset.conditions import ConditionTable, Prompts
from pipeline.dataset.plan import ConditionSet, Plan
from pipeline.flow.numerics import Precision
from pipeline.networks import FlowNetwork, FlowNetworkConfig
from pipeline.networks.conditions import Conditions, Size
from pipeline.networks.diffusers.weights import BaseWeights, files_sha256
from pipeline.storage.cache import cache_folder
from pipeline.storage.hashing import file_sha256
from pipeline.storage.store import Store, write_atomic
from pipeline.teachers import adm, catalogue, download, edm, run_folder, score_sde
from pipeline.teachers.catalogue import NamedTeacher
from pipeline.teachers.soundness import require_sound
from pipeline.teachers.teacher import Decode, Teacher, guided, of_network

if TYPE_CHECKING:
    from pipeline.teachers.diffusers.folder import PipelineFolder

DIFFUSERS = "diffusers:"
ENTRY_POINTS = "traflow_pipeline.teachers"

# By format: what reads a file, and which of its weights that takes. The network's configuration is the entry's; formats
# that store their own ignore it.
FORMATS: dict[str, tuple[Callable[[Path, Any], FlowNetwork], str]] = {
    "safetensors": (lambda path, _: run_folder.load(path), "the weights in the file"),
    "edm": (lambda path, _: edm.load(path), "the EMA weights"),
    "score-sde": (score_sde.load, "the EMA weights"),
    "adm": (adm.load, "the weights in the file"),
    "adm-legacy": (partial(adm.load, order="legacy"), "the weights in the file"),
}


def load_teacher(
    source: str,
    device: torch.device | str = "cpu",
    guidance_scale: float = 1.0,
    quiet: bool = False,
    size: Size | None = None,
    conditions: Conditions | None = None,
) -> Teacher:
    """`resolve(source)`, loaded: see there, and `TeacherSource.load`."""
    return resolve(source).load(device, guidance_scale, quiet, size, conditions)


def resolve_recorded(source: str, given: str | None, location: str, option: str) -> "TeacherSource":
    """`resolve(given)`, or without one `resolve(source)`, which a file of somebody else at `location` may have named.

    Raises:
        BadInput: `source` has gone, or is a factory that this user has not named before; `option` is how to name it,
            such as "--teacher ".
    """
    if given is not None:
        return resolve(given)
    found = resolve(source)
    if not isinstance(found, _FactorySource) or plugins.is_remembered(source, named_factories(), ENTRY_POINTS):
        return found
    names = f"{location} names the teacher {source!r}"
    if ":" not in source and plugins.find(source, ENTRY_POINTS) is None:
        raise BadInput(f"{names}, which is not there: {option}PATH says where it is")
    distrust = plugins.distrust(source, named_factories(), ENTRY_POINTS, option + quote(source))
    raise BadInput(f"{names}{distrust}")


def find_decoder(source: str | None, device: torch.device | str = "cpu") -> Decode | None:
    """What turns latents of the teacher at `source`, which a file may have named, into pictures.

    None without one, or where the teacher has gone. No code of a user's is imported.
    """
    if source is None or not source.startswith(DIFFUSERS):
        return None
    try:
        return resolve(source).decoder(torch.device(device))
    except BadInput as error:
        say(f"note: {error}")
        return None


def named_factories() -> Path:
    """The folder of notes on the factories that this user has named, see `plugins`."""
    return cache_folder("factories")


class PromptSource(Protocol):
    """What turns prompts into conditions."""

    @property
    def libraries(self) -> str:
        """Those that compute, with their versions."""

    def row(self, prompts: Prompts, number: int) -> Mapping[str, Tensor]:
        """Row `number` of the table of `prompts`, -1 for the negative prompt, on the CPU."""


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

    @property
    def is_function(self) -> bool:
        """Whether the velocity is code of the user's, of which no digest tells whether it has changed."""
        return False

    def load(
        self,
        device: torch.device | str = "cpu",
        guidance_scale: float = 1.0,
        quiet: bool = False,
        size: Size | None = None,
        conditions: Conditions | None = None,
        precision: Precision = "fp32",
    ) -> Teacher:
        """The teacher on `device`, under classifier-free guidance if `guidance_scale` is not 1.

        Its weights are held as the computation in `precision` allows. Unless `quiet`, a line says which of a file's
        weights were taken. `size` is of the pictures that a pipeline of diffusers draws, and `conditions` what its
        labels stand for.

        Raises:
            BadInput: the source names no teacher, one that cannot be guided, or one that takes no size or conditions.
            WorkFailed: a factory's teacher does not always answer the same, see `require_sound`; or a pipeline's own
                sampler integrates another velocity, see `self_check`.
        """
        with _readable(self.text):
            teacher = self._load_guided(torch.device(device), guidance_scale, size, conditions, precision)
        if teacher.weights and not quiet:
            say(f"teacher {teacher.name}: {teacher.weights}")
        return teacher

    def load_planned(
        self,
        plan: Plan,
        store: Store,
        device: torch.device | str = "cpu",
        quiet: bool = False,
        precision: Precision = "fp32",
    ) -> Teacher:
        """The teacher as `plan` has it, with the conditions of its labels that lie in `store`.

        Raises:
            BadInput, WorkFailed: as `load`.
        """
        table = None if plan.conditions is None else ConditionTable(store, plan.conditions)
        return self.load(device, plan.guidance_scale, quiet, self._size(plan.shape), table, precision)

    def shown_shape(self, plan: Plan) -> tuple[int, ...]:
        """The shape of a sample of `plan` as it is shown: of latents, that of the picture."""
        size = self._size(plan.shape) if plan.latents else None
        return plan.shape if size is None else (3, *size)

    def _size(self, shape: tuple[int, ...]) -> Size | None:
        """The size of the pictures of samples of `shape`, where `load` takes one."""
        return None

    def describe(self, guidance_scale: float, quiet: bool, size: Size | None, num_prompts: int) -> Teacher:
        """The teacher, for what a plan takes of it: whether its weights are loaded is not said.

        Raises:
            BadInput: as `load`.
        """
        self._refuse(size, num_prompts)
        return self.load(guidance_scale=guidance_scale, quiet=quiet)

    def prompts(self, given: str | tuple[str, ...] | None, negative: str | None) -> Prompts | None:
        """The rows of the condition table of the prompts that are `given`, or in a file; None for a teacher without.

        Raises:
            BadInput: there are none where they are wanted, or some where they are not.
        """
        if given is not None or negative is not None:
            raise BadInput(f"teacher {self.text} takes no prompts: leave --prompts and --negative-prompt out")
        return None

    def identify(self, prompts: Prompts, precision: Precision = "fp32") -> ConditionSet:
        """The identity of the condition table of `prompts`.

        Raises:
            BadInput: the teacher has no text encoders, or they leave the range of `precision`.
        """
        raise BadInput(f"teacher {self.text} takes no prompts")

    def encoder(self, device: torch.device) -> PromptSource:
        """What turns prompts into conditions, loaded on `device`.

        Raises:
            BadInput: the teacher has no text encoders, or they cannot be loaded.
        """
        raise BadInput(f"teacher {self.text} takes no prompts")

    def encoded(self, prompts: Prompts | None, device: torch.device, ahead: bool = False) -> Conditions | None:
        """The conditions of `prompts`, stored nowhere and encoded when they are asked for; None without prompts.

        If `ahead`, the first ones are encoded at once, and the text encoders leave memory for the network.
        """
        return None

    def decoder(self, device: torch.device) -> Decode | None:
        """What turns the teacher's latents into pictures, where it is known without loading the teacher.

        Raises:
            BadInput: the teacher is no longer where it was.
        """
        return None

    @property
    def base_weights(self) -> BaseWeights:
        """The published weights of a pipeline's network, which an adapter changes.

        Raises:
            BadInput: the teacher is no pipeline.
        """
        raise BadInput(f"teacher {self.text} is no pipeline of diffusers, whose weights an adapter changes")

    def notes(self, prompts: Prompts) -> Iterator[str]:
        """What the user should know of `prompts` before they are encoded."""
        return iter(())

    def _refuse(self, size: Size | None, conditions: object) -> None:
        """Raises `BadInput` if what only pipelines of diffusers take was given."""
        if size is not None or conditions:
            raise BadInput(f"teacher {self.text}: prompts and --size are for diffusers:PATH; leave them out")

    def _load_guided(
        self,
        device: torch.device,
        guidance_scale: float,
        size: Size | None,
        conditions: Conditions | None,
        precision: Precision,
    ) -> Teacher:
        self._refuse(size, conditions)
        return guided(self._load(device), guidance_scale)

    @abstractmethod
    def _load(self, device: torch.device) -> Teacher:
        """The teacher without guidance; an OSError is the caller's to report."""


def resolve(source: str) -> TeacherSource:
    """Find what `source` names, without loading it.

    `source` is a name of `catalogue.named_teachers`; the path of a .yaml entry, of an EDM pickle (.pkl), or of a
    network or training run of this program; "diffusers:" and the folder of a pipeline, or its name on the Hub; a
    factory "module:function", or the name of one in the entry point group "traflow_pipeline.teachers". A factory is
    called with the device and returns a `Teacher`; it is imported only when the teacher is loaded, and a source that
    names nothing is refused then.

    Raises:
        BadInput: the path holds no weights, or cannot be read.
    """
    if source.startswith(DIFFUSERS):
        return DiffusersSource(source)
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

    @property
    def is_function(self) -> bool:
        return True

    def _load(self, device: torch.device) -> Teacher:
        if ":" in self.text:
            factory: plugins.Factory | None = plugins.import_function(self.text, "teacher")
        else:
            factory = plugins.import_entry_point(ENTRY_POINTS, self.text, "teacher")
        if factory is None and (advice := advise(self.text)):
            raise BadInput(f"teacher {self.text}: wanted module:factory{advice}")
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


@dataclass(frozen=True)
class DiffusersSource(TeacherSource):
    """A pipeline of diffusers: the library is imported when something of it is asked for."""

    @cached_property
    def folder(self) -> "PipelineFolder":
        """The pipeline's folder, checked.

        Raises:
            BadInput: it is no pipeline that is read here.
        """
        from pipeline.teachers.diffusers.folder import open_folder

        return open_folder(self.text.removeprefix(DIFFUSERS))

    @property
    def absolute(self) -> str:
        given = Path(self.text.removeprefix(DIFFUSERS)).expanduser()
        return f"{DIFFUSERS}{given.resolve()}" if given.exists() else self.text

    @property
    def sha256(self) -> str:
        with _readable(self.text):
            return self.folder.network_sha256

    def _size(self, shape: tuple[int, ...]) -> Size | None:
        height, width = (side * self.folder.scale for side in shape[-2:])
        return height, width

    def prompts(self, given: str | tuple[str, ...] | None, negative: str | None) -> Prompts | None:
        from pipeline.teachers.diffusers.prompts import check_prompts, make_prompts, read_prompts

        family = self.folder.family(self.folder.network_config)
        if not family.takes_prompts:
            return super().prompts(given, negative)
        if given is None:
            raise BadInput(f"teacher {self.text} draws from prompts: give --prompts FILE, a .txt or .jsonl file")
        read = read_prompts(given) if isinstance(given, str) else check_prompts(given, "--prompt")
        return make_prompts(read, negative, family.takes_negative, f"teacher {self.text}")

    def identify(self, prompts: Prompts, precision: Precision = "fp32") -> ConditionSet:
        from pipeline.teachers.diffusers.teacher import check_precision

        check_precision(self.folder, precision)
        return ConditionSet(
            prompts_sha256=hashlib.sha256(prompts.dumped()).hexdigest(),
            encoder_sha256=self.folder.encoder_sha256,
            num_prompts=len(prompts),
            has_negative=prompts.negative is not None,
        )

    def encoder(self, device: torch.device) -> PromptSource:
        from pipeline.teachers.diffusers.encoder import PromptEncoder

        return PromptEncoder(self.folder, device)

    def encoded(self, prompts: Prompts | None, device: torch.device, ahead: bool = False) -> Conditions | None:
        from pipeline.teachers.diffusers.encoder import EncodedPrompts, PromptEncoder

        return None if prompts is None else EncodedPrompts(prompts, partial(PromptEncoder, self.folder, device), ahead)

    def decoder(self, device: torch.device) -> Decode | None:
        from pipeline.teachers.diffusers.decoder import Decoder

        return Decoder(self.folder, device) if self.folder.family.is_latent else None

    @property
    def base_weights(self) -> BaseWeights:
        folder = self.folder.path / self.folder.family.folder
        return BaseWeights(path=str(folder), sha256=files_sha256(folder))

    def notes(self, prompts: Prompts) -> Iterator[str]:
        from pipeline.teachers.diffusers.encoder import count_cut

        num_cut, limit = count_cut(self.folder, prompts)
        if num_cut:
            yield f"{num_cut} of {len(prompts)} prompts are cut at {limit} tokens, all that the text encoders take"

    def describe(self, guidance_scale: float, quiet: bool, size: Size | None, num_prompts: int) -> Teacher:
        from pipeline.teachers.diffusers.teacher import describe

        with _readable(self.text):
            return guided(describe(self.folder, size, num_prompts), guidance_scale)

    def _load_guided(
        self,
        device: torch.device,
        guidance_scale: float,
        size: Size | None,
        conditions: Conditions | None,
        precision: Precision,
    ) -> Teacher:
        from pipeline.teachers.diffusers.self_check import self_check
        from pipeline.teachers.diffusers.teacher import load

        teacher = guided(load(self.folder, size, conditions, device), guidance_scale)
        if conditions is not None or not self.folder.family.encoded:
            self_check(self.folder, teacher, guidance_scale)
        if precision == "bf16" and self.folder.family.holds_bf16 and teacher.network is not None:
            teacher.network.bfloat16()  # as its own pipeline holds it: half the memory of what autocast casts
        return teacher

    def _load(self, device: torch.device) -> Teacher:
        return self._load_guided(device, 1.0, None, None, "fp32")


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


def _read(format_name: str, path: Path, config: FlowNetworkConfig | None) -> tuple[FlowNetwork, str]:
    load, which = FORMATS[format_name]
    return load(path, config), which


def _format_of(weights: Path) -> str:
    if weights.suffix == ".py":
        raise BadInput(f"teacher {weights}: wanted module:factory{advise(str(weights))}")
    if weights.suffix in (".pth", ".pt"):
        raise BadInput(
            f"{weights}: such a file does not say how its network is built: describe it in a .yaml entry "
            "(docs/how-to/teacher.md)"
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
