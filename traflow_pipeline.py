"""The command line of traflow-pipeline. Heavy imports stay inside the commands, so that help answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import BadInput, WorkFailed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil a pre-trained flow into a generator of one to four evaluations: generate, train, evaluate.",
)

INTERRUPTED = 130
# click's own error; taken from typer, which may carry a copy of click.
UsageError: Any = typer.BadParameter.__base__

Config = Annotated[str | None, typer.Option(help="A config of configs/ by name, or a YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated.")]


@app.command()
def generate(
    teacher: Annotated[str | None, typer.Option(help="A name of `teachers`, a path, or module:factory.")] = None,
    n: Annotated[str | None, typer.Option(help="Records to make: 4096, 16k, 1M.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    states: Annotated[int | None, typer.Option(help="States stored between noise and sample.")] = None,
    velocities: Annotated[
        bool | None, typer.Option("--velocities/--no-velocities", help="Store the teacher's velocity at each state.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Ray actors; by default one per GPU, or per CPU.")] = None,
    solver: Annotated[str | None, typer.Option(help="dopri5, bosh3, ...; or rk4, heun2, euler, ...")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance of an adaptive solver.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance of an adaptive solver.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Steps of a fixed-step solver.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default RAY_ADDRESS, or a local one.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="ray, or inline: in this process.")] = None,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Integrate a teacher's ODE from noise to data and store the trajectories as WebDataset shards."""
    from pipeline import dataset
    from pipeline.progress import say

    accuracy = {"rtol": rtol, "atol": atol, "num_steps": num_steps}
    flags = {
        "teacher": teacher,
        "n": n,
        "out": out,
        "seed": seed,
        "states": states,
        "velocities": velocities,
        "workers": workers,
        "solver": {"name": solver, **accuracy},
        "address": address,
        "executor": executor,
    }
    manifest = dataset.generate(_config(dataset.GenerateConfig, "generate", config, flags, set_))
    size, nfe = manifest.num_bytes / 1e6, manifest.mean_nfe
    say(f"{manifest.folder}: {manifest.num_records} trajectories, {size:.1f} MB, {nfe:.0f} evaluations each")


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="Folder of a data set, for a student.")] = None,
    images: Annotated[str | None, typer.Option(help="Image set, for a teacher: digits, an .npz or a folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; a run there is gone on with.")] = None,
    recipe: Annotated[str | None, typer.Option(help="anchored (default), traflow, flow-matching.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of the data and of all draws.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Train a student on a teacher's trajectories, or a teacher on images."""
    from pipeline.progress import say
    from trainer import loop
    from trainer.task import TrainConfig

    flags = {"data": data, "images": images, "out": out, "recipe": recipe, "seed": seed, "device": device}
    newest = loop.train(_config(TrainConfig, "train", config, flags, set_))
    say(f"{newest}: the weights; samples are in {newest.parent.parent / 'samples.png'}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint, or the folder of a training run.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    reference: Annotated[str | None, typer.Option(help="Images to measure against: digits, an .npz, a folder.")] = None,
    num_samples: Annotated[str | None, typer.Option(help="Samples of each row: 4096, 50k.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the evaluation's noise.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Score a student beside its teacher, and write a table, pictures and a page."""
    from eval import evaluate as stage
    from pipeline.progress import console, say

    flags = {
        "checkpoint": checkpoint,
        "out": out,
        "reference": reference,
        "num_samples": num_samples,
        "seed": seed,
        "device": device,
    }
    settings = _config(stage.EvaluateConfig, "evaluate", config, flags, set_)
    console.print(stage.evaluate(settings).table())
    say(f"{settings.out / 'report.html'}: the page; pictures and metrics.json lie beside it")


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a training run.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("samples.png"),
    n: Annotated[int, typer.Option(help="How many images.", min=1)] = 64,
    steps: Annotated[int, typer.Option(help="Evaluations of each image.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0, max=2**63 - 1)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Draw a grid of images from a student or a trained teacher."""
    from eval import sampler
    from pipeline.progress import say

    sampler.save_grid(checkpoint, out, n, steps, seed, device)
    say(f"{out}: {n} images of {steps} evaluation{'s' if steps > 1 else ''} each")


@app.command()
def teachers() -> None:
    """List what --teacher takes."""
    from rich.table import Table

    from pipeline.progress import console
    from pipeline.teachers import TEACHERS

    table = Table("name", "what it is", "licence", box=None, pad_edge=False)
    for name, entry in TEACHERS.items():
        table.add_row(name, entry.about, entry.licence)
    table.add_row("PATH", "a .safetensors file or training run of this program", "yours")
    table.add_row("MODULE:FACTORY", "a function of yours: device -> pipeline.teachers.teacher.Teacher", "yours")
    console.print(table)


def _config(model: Any, command: str, source: str | None, flags: dict[str, Any], assignments: list[str] | None) -> Any:
    """The configuration of `command`: its config's section, then flags, then --set."""
    from pipeline import config

    section = config.load_section(source, command)
    if flags.get("solver", {}).get("name"):
        section = {k: v for k, v in section.items() if k != "solver"}  # another solver, another accuracy
    values = config.merge(section, config.given(flags), *map(config.parse_assignment, assignments or []))
    return config.validate(model, values, command)


def main() -> None:
    """Run the program: 0 done, 1 failed work, 2 bad input, 130 interrupted; errors are one red line."""
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # what newer versions of typer make of Ctrl-C
            raise KeyboardInterrupt
    except UsageError as error:
        code = _fail(error.format_message(), 2)
    except BadInput as error:
        code = _fail(str(error), 2)
    except WorkFailed as error:
        code = _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted; the same command goes on from what is finished", INTERRUPTED)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    if message:  # there is none where click has printed the help instead
        typer.secho(f"error: {' '.join(message.split())}", fg="red", err=True)
    return code


if __name__ == "__main__":
    main()
