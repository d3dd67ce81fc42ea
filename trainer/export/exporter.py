"""A trained network as one file for other programs, checked against torch, and a model card that says how to use it."""

import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from pipeline.common.errors import BadInput, WorkFailed, one_line, reason
from pipeline.networks.diffusers.network import DiffusersNetwork
from pipeline.storage.store import write_folder
from pipeline.teachers.diffusers.folder import INDEX
from trainer.checkpoints.checkpoint import CheckpointInfo
from trainer.checkpoints.model import find_model
from trainer.export import pipeline
from trainer.export.card import card_text
from trainer.export.formats import Evaluate, ExportedFlow, Format, find_format
from trainer.export.pipeline_card import licence_files, pipeline_card

CARD = "README.md"
TOLERANCE = 1e-4  # of the largest value, or of 1 where all are smaller
TRACED_BATCH = 2  # torch.export takes a dimension of 1 for a constant
CHECKED_BATCHES = (1, 5)


def export(source: str | Path, kind: str, out: Path, num_steps: int | None = None) -> Path:
    """Write the network that `source` names (see `find_model`), and its card, to the new folder `out`.

    `kind` is a key of `FORMATS`, or for the student of a pipeline of diffusers one of `pipeline.FORMATS`, which but for
    "any-step" are exact in `num_steps` even steps. `out` is written completely, or not at all. Returns the path of the
    network's file.

    Raises:
        BadInput: no such format, a package of it is missing, `source` names no network, or `out` is not empty.
        WorkFailed: it cannot be converted or written, or what was written does not answer as the network does.
    """
    if num_steps is not None and kind not in pipeline.EXACT:
        raise BadInput(f"--steps is for --format {' and '.join(pipeline.EXACT)}; {kind} takes any number: leave it out")
    if kind in pipeline.FORMATS:
        return _export_pipeline(source, kind, out, num_steps)
    form = find_format(kind)
    _require_vacant(out)
    model = find_model(source)
    flow, info, name = ExportedFlow(model.load()), model.info, model.info.trains + form.suffix
    try:
        with write_folder(out) as aside:
            error = _convert(form, flow, info, aside / name)
            (aside / CARD).write_text(card_text(kind, flow, info, aside / name, model.weights, error))
    except OSError as problem:
        raise WorkFailed(f"{out}: cannot be written ({reason(problem)}); nothing was kept") from problem
    return out / name


def _export_pipeline(source: str | Path, kind: str, out: Path, num_steps: int | None) -> Path:
    """`export` of the student of a pipeline of diffusers."""
    if kind in pipeline.EXACT and num_steps is None:
        raise BadInput(f"--format {kind}: wanted --steps N, the evaluations that a sample is to take")
    _require_vacant(out)
    model = find_model(source)
    network = model.load()
    if not isinstance(network, DiffusersNetwork) or model.info.trains != "student":
        raise BadInput(f"--format {kind}: wanted the student of a pipeline of diffusers; {model.weights} is another's")
    try:
        with write_folder(out) as aside:
            written = pipeline.write(kind, model, network, num_steps, aside)
            teacher = pipeline.teacher_folder(model)
            (aside / CARD).write_text(pipeline_card(kind, network, model, teacher, num_steps, written))
            for path in licence_files(teacher):
                shutil.copyfile(path, aside / path.name)
    except OSError as problem:
        raise WorkFailed(f"{out}: cannot be written ({reason(problem)}); nothing was kept") from problem
    return out / (pipeline.LORA_FILE if kind == "lora" else INDEX)


def _require_vacant(out: Path) -> None:
    try:
        vacant = not out.exists() or not any(out.iterdir())
    except OSError as error:
        raise BadInput(f"{out}: wanted a folder to make ({reason(error)}); choose another --out") from error
    if not vacant:
        raise BadInput(f"{out}: wanted a new or an empty folder; there are files in it: choose another --out")


def _convert(form: Format, flow: ExportedFlow, info: CheckpointInfo, path: Path) -> float:
    """Write the file and return its difference to the network, which is at most `TOLERANCE`."""
    try:
        with _quiet():
            form.write(flow, flow.draw_inputs(TRACED_BATCH, info.t_start, info.t_end), path, info)
            error = _difference(form.load(path), flow, info)
    except OSError:
        raise
    except Exception as problem:  # exporters and runtimes raise whatever their compilers do
        text = one_line(_first_cause(problem))[:300]
        raise WorkFailed(f"{path.name}: the exporter failed ({text}); try --format safetensors") from problem
    if not error <= TOLERANCE:  # nor if it is not a number
        raise WorkFailed(
            f"{path.name}: wanted what torch computes, within {TOLERANCE:.0e}; it is {error:.1e} off and was not kept: "
            "try --format safetensors"
        )
    return error


def _difference(evaluate: Evaluate, flow: ExportedFlow, info: CheckpointInfo) -> float:
    """The largest difference between a file and the network, relative to the largest value or to 1."""
    worst = torch.zeros(())
    for batch_size in CHECKED_BATCHES:
        inputs = flow.draw_inputs(batch_size, info.t_start, info.t_end)
        wanted, got = flow(**inputs), evaluate(inputs)
        worst = torch.maximum(worst, (got - wanted).abs().max() / wanted.abs().max().clamp(min=1))
    return worst.item()


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence exporters, which print, warn and log what a user cannot act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
