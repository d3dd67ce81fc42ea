"""Teachers by name: the public ones of catalogue.yaml, and the user's own in the folder of teachers.

A user's own teacher is a file NAME.yaml with one entry: a checkpoint in a supported format, and its network.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from rich.table import Table

from pipeline.common.config import validate
from pipeline.common.errors import BadInput
from pipeline.common.safe_yaml import read_yaml
from pipeline.networks import NetworkConfig
from pipeline.networks.unet import UNetConfig
from pipeline.storage.cache import cache_folder
from pipeline.teachers.download import page

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
FOLDER = "TRAFLOW_TEACHERS"  # environment variable: the folder of teachers

Format = Literal["safetensors", "edm", "score-sde", "adm", "adm-legacy"]
# The families whose networks a format holds, of those formats that do not say how a network is built.
FAMILIES = {"score-sde": ("song", "dhariwal"), "adm": ("dhariwal",), "adm-legacy": ("dhariwal",)}


class PublishedFid(BaseModel):
    """A published FID (50,000 samples) and the evaluations it was sampled with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(gt=0)
    evaluations: int = Field(ge=1)


class Entry(BaseModel):
    """A teacher's file: what it holds, how to read it, and where it comes from.

    `file` is in the folder of teachers if it has a `source` to fetch it from, else relative to the folder of the entry.
    Only formats that store their own configuration (safetensors, edm) can do without `network`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format
    file: str = Field(min_length=1)
    network: NetworkConfig | None = None
    source: str | None = None
    sha256: Annotated[str, BeforeValidator(lambda x: str(x).lower())] | None = Field(
        default=None, pattern="^[0-9a-f]{64}$"
    )
    data_set: str = ""
    licence: str = ""
    parameters: float | None = Field(default=None, gt=0, description="in millions, as published")
    fid: PublishedFid | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source is not None:
            try:
                page(self.source)
            except BadInput as error:
                raise ValueError(f"source: {error}") from error
            if Path(self.file).name != self.file:
                raise ValueError(
                    f"file: what is fetched gets a name in the folder of teachers, not a path: {self.file}"
                )
        if self.network and not self.network.is_complete:
            raise ValueError("network: wanted its resolution and image_channels")
        try:
            Path(self.file).expanduser()
        except RuntimeError as error:
            raise ValueError(f"file: {error}, in {self.file}") from error
        families = FAMILIES.get(self.format)
        if families and self.network is None:
            raise ValueError(f"format {self.format} does not say how its network is built: give 'network'")
        if families and self.network and self.network.family not in families:
            wanted = " or ".join(families)
            raise ValueError(f"format {self.format} holds networks of family {wanted}, not {self.network.family}")
        augmented = families and isinstance(self.network, UNetConfig) and self.network.augment_dim
        if self.network and (self.network.second_time or augmented):
            raise ValueError("network: a teacher has no second_time, and augment_dim is for format edm")
        return self


class NamedTeacher(BaseModel):
    """An entry, its name, and the folder it was read from."""

    model_config = ConfigDict(frozen=True)

    name: str
    argument: str  # what --teacher takes for it: its name or its entry's path
    entry: Entry
    folder: Path  # of its entry
    is_own: bool

    @property
    def path(self) -> Path:
        """The expected path of the teacher's file."""
        return (teachers_folder() if self.entry.source else self.folder) / Path(self.entry.file).expanduser()

    @property
    def pin(self) -> Path:
        """The file that records the sha256 of the teacher's file when it was first fetched."""
        return self.path.with_name(f"{self.path.name}.sha256")


def teachers_folder() -> Path:
    """The folder of teachers: $TRAFLOW_TEACHERS, or traflow-pipeline/teachers in the user's cache."""
    return cache_folder("teachers", FOLDER)


def named_teachers() -> dict[str, NamedTeacher]:
    """Every named teacher; a public name takes precedence over a user's own entry."""
    return {**_own()[0], **_public()}


def find_faults() -> list[str]:
    """The errors of those .yaml files in the folder of teachers that are not valid entries."""
    return _own()[1]


def find(source: str) -> NamedTeacher | None:
    """The teacher called `source`, or the one that the entry at that path describes; None if there is none.

    Raises:
        BadInput: the entry is not valid.
    """
    if source in _public():
        return _public()[source]
    path = Path(source)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_entry(path, source)
    own = teachers_folder() / f"{source}.yaml"
    return read_entry(own, source) if path.name == source and own.is_file() else None


def read_entry(path: Path, argument: str) -> NamedTeacher:
    """The entry in the file `path`, named after the file.

    Raises:
        BadInput: it cannot be read, or is not valid.
    """
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise BadInput(f"{error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: wanted the fields of a teacher's entry: {', '.join(Entry.model_fields)}")
    entry = validate(Entry, content, str(path))
    return NamedTeacher(name=path.stem, argument=argument, entry=entry, folder=path.absolute().parent, is_own=True)


def table(entries: dict[str, NamedTeacher]) -> Table:
    """The table that `teachers` prints."""
    shown = Table(box=None, pad_edge=False, collapse_padding=True)
    for title in ("name", "data set", "shape", "parameters", "FID", "at", "licence", "here"):
        shown.add_column(title, no_wrap=True)
    shown.add_column("from", overflow="fold")
    for name, named in entries.items():
        entry = named.entry
        shown.add_row(
            name,
            entry.data_set,
            "x".join(map(str, entry.network.shape)) if entry.network else "",
            f"{entry.parameters:g} M" if entry.parameters else "",
            str(entry.fid.value) if entry.fid else "",
            str(entry.fid.evaluations) if entry.fid else "",
            entry.licence,
            "yes" if _is_here(named) else "no",
            urlsplit(page(entry.source)).netloc if entry.source else "yours" if named.is_own else "embedded",
        )
    return shown


def _is_here(named: NamedTeacher) -> bool:
    try:
        return named.path.is_file()
    except OSError:  # no file can be so called
        return False


def _own() -> tuple[dict[str, NamedTeacher], list[str]]:
    named: dict[str, NamedTeacher] = {}
    faults: list[str] = []
    for path in sorted(path for path in teachers_folder().glob("*.yaml") if path.is_file()):
        try:
            named[path.stem] = read_entry(path, path.stem)
        except BadInput as error:
            faults.append(str(error))
    return named, faults


@cache
def _public() -> dict[str, NamedTeacher]:
    content: dict[str, object] = yaml.safe_load(CATALOGUE.read_text())
    return {
        name: NamedTeacher(
            name=name, argument=name, entry=Entry.model_validate(entry), folder=CATALOGUE.parent, is_own=False
        )
        for name, entry in content.items()
    }
