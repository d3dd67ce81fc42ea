"""The command line of traflow-pipeline. Heavy imports stay inside the commands, so that help answers at once."""

import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.common.errors import BadInput, Stopped, WorkFailed

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


GuidanceScale = Annotated[float, typer.Option(help="Classifier-free guidance; 1: none.", min=0)]


@app.command()
def generate(
    teacher: Annotated[str | None, typer.Option(help="A name of `teachers`, a path, or module:factory.")] = None,
    n: Annotated[str | None, typer.Option(help="Records to make: 4096, 16k, 1M.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or URL (s3://bucket/prefix, gs://...) of the data set.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1: none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    states: Annotated[int | None, typer.Option(help="States stored between noise and sample.")] = None,
    velocities: Annotated[
        bool | None, typer.Option("--velocities/--no-velocities", help="Store the teacher's velocity at each state.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Ray actors; by default one per GPU, or per CPU.")] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of each actor: 0.25 puts four on one, 0 keeps them on CPUs.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="dopri5, bosh3, ...; or rk4, heun2, euler, ...")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance of an adaptive solver.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance of an adaptive solver.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Steps of a fixed-step solver.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default RAY_ADDRESS, or a local one.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="ray, or inline: in this process.")] = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Integrate one batch and say what all would take.")
    ] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Integrate a teacher's ODE from noise to data and store the trajectories as WebDataset shards."""
    from pipeline.common.progress import format_bytes, say
    from pipeline.generation import generate as stage
    from pipeline.generation.dry_run import dry_run

    accuracy = {"rtol": rtol, "atol": atol, "num_steps": num_steps}
    flags = {
        "teacher": teacher,
        "n": n,
        "out": out,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "states": states,
        "velocities": velocities,
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
        "solver": {"name": solver, **accuracy},
        "address": address,
        "executor": executor,
    }
    settings = _config(stage.GenerateConfig, "generate", config, flags, set_)
    if is_dry_run:
        for line in dry_run(settings).lines():
            say(line)
        return
    manifest = stage.generate(settings)
    size, nfe = format_bytes(manifest.num_bytes), manifest.mean_nfe
    say(f"{manifest.store.location}: {manifest.num_records} trajectories, {size}, {nfe:.0f} evaluations each")
    say(f"next: traflow-pipeline train --data {settings.out} --out RUN --set trainer.num_steps=N")
    say(f"digest {manifest.sha256}")


@app.command()
def verify(
    data: Annotated[str, typer.Argument(help="Folder or URL of a data set.")],
    repair: Annotated[bool, typer.Option("--repair", help="Remove bad shards, so that generate fills them.")] = False,
    recheck: Annotated[int, typer.Option(help="Batches to integrate again and compare; 0: none.", min=0)] = 2,
    teacher: Annotated[str | None, typer.Option(help="Where the teacher is, if not where it was.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Hash a data set again, check its counts, ranges and manifest, and integrate a few records again."""
    from pipeline.common.device import pick_device
    from pipeline.common.progress import say
    from pipeline.dataset.manifest import read_dataset
    from pipeline.generation import verify
    from pipeline.storage.lease import hold_lease
    from pipeline.storage.store import open_store
    from pipeline.teachers.loading import load_teacher

    store, place = open_store(data), pick_device(device)
    with hold_lease(store) if repair and read_dataset(store) else nullcontext():
        findings = verify.verify(store)
        if recheck and findings.markers:
            source = teacher or findings.dataset.teacher_source
            try:
                loaded = load_teacher(source, place, findings.dataset.plan.guidance_scale)
                verify.recheck(store, findings, loaded, place, recheck)
            except (BadInput, WorkFailed) as error:
                advice = "--teacher says where it is, --recheck 0 leaves it out"
                findings.faults.append(verify.Fault("no batch was integrated again", f"{error}; {advice}"))
        for line in (*findings.notes, *findings.rechecks, *findings.faults):
            say(str(line))
        if not findings.faults:
            say(f"{data}: {findings}; digest {findings.digest}")
            return
        if not repair:
            raise WorkFailed(f"{data}: {findings}; {findings.advice}")
        verify.repair(store, findings)
    num_removed = len(findings.bad_shards)
    removed = f"{num_removed} bad shard{'' if num_removed == 1 else 's'} removed"
    raise WorkFailed(f"{data}: {findings}; {removed}: run traflow-pipeline generate again")


@app.command()
def inspect(
    data: Annotated[str, typer.Argument(help="Folder or URL of a data set.")],
    out: Annotated[Path, typer.Option(help="The PNG of a few trajectories to write.")] = Path("trajectories.png"),
    rows: Annotated[int, typer.Option(help="How many trajectories.", min=1, max=64)] = 8,
) -> None:
    """Show what a data set holds: plan, counts, evaluations, straightness, and a few trajectories as a picture."""
    from pipeline.common.image_grid import save_rows
    from pipeline.common.progress import console, say
    from pipeline.dataset.summary import summarise
    from pipeline.storage.store import open_store

    found = summarise(open_store(data))
    console.print(found.table())
    pictures = found.pictures(rows)
    if pictures is None:
        say("no picture: only records [C, H, W] of 1 or 3 channels are drawn")
    else:
        save_rows(out, pictures)
        say(f"{out}: {len(pictures)} trajectories from noise to sample")


@app.command()
def probe(
    teacher: Annotated[str, typer.Option(help="A name of `teachers`, a path, or module:factory.")],
    num_samples: Annotated[int, typer.Option(help="Samples to integrate, in one batch.", min=1)] = 64,
    max_error: Annotated[
        float, typer.Option(help="RMS error to keep nine of ten samples within; default: half an 8-bit step.", min=0)
    ] = 1 / 255,
    guidance_scale: GuidanceScale = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0, max=2**63 - 1)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Measure what accuracy costs with a teacher, solver by solver, and recommend the cheapest that is good enough."""
    from pipeline.common.device import pick_device
    from pipeline.common.progress import bar, console, say
    from pipeline.teachers import probe
    from pipeline.teachers.loading import load_teacher

    place = pick_device(device)
    loaded = load_teacher(teacher, place, guidance_scale)
    with bar(f"probe {loaded.name}", len(probe.SOLVERS)) as advance:
        found = probe.probe(loaded, num_samples, seed, place, advance)
    best = found.recommend(max_error)
    console.print(found.table(best))
    for refusal in found.refusals:
        say(f"note: {refusal}")
    say(f"RMS errors of samples against {probe.REFERENCE} in float64, {found.reference_nfe} evaluations")
    say("efficient: no other setting beats it in both evaluations and the error of nine in ten samples")
    say(f"fewest evaluations with nine of ten samples within {max_error:.1e}: {best.solver.flags}")
    if not best.solver.is_adaptive:
        say("it steps on every stored state, so it takes at least one step more than --states")


@app.command()
def train(
    data: Annotated[str | None, typer.Option(help="Folder or URL of a data set, for a student.")] = None,
    images: Annotated[str | None, typer.Option(help="Image set, for a teacher: digits, an .npz or a folder.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder or URL of the run; a run there is gone on with.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe of configs/recipes/ by name (anchored is the default), or a YAML file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of the data and of all draws.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    on: Annotated[
        str, typer.Option(help="here: this process, or torchrun's; or ray: ranks on a Ray cluster.")
    ] = "here",
    num_workers: Annotated[
        int | None, typer.Option(help="Ranks on Ray; by default one per GPU, or per CPU.", min=1)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default RAY_ADDRESS, or a local one.")
    ] = None,
    skip_nonfinite: Annotated[
        bool | None, typer.Option("--skip-nonfinite", help="Skip steps whose gradient is not finite, and count them.")
    ] = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps, write nothing, and say what all would take.")
    ] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Train a student on a teacher's trajectories, or a teacher on images or trajectories."""
    from pipeline.common.progress import say
    from trainer import preview
    from trainer import train as stage
    from trainer.config import TrainConfig
    from trainer.dry_run import dry_run

    if on not in ("here", "ray"):
        raise BadInput(f"--on: wanted here or ray, got {on!r}")
    if on == "here" and (num_workers or address):
        raise BadInput("--num-workers and --address are for --on ray; torchrun starts ranks by itself")

    flags: dict[str, Any] = {"data": data, "images": images, "out": out, "recipe": recipe, "seed": seed}
    flags |= {"device": device, "trainer": {"skip_nonfinite": skip_nonfinite}}
    settings = _config(TrainConfig, "train", config, flags, set_)
    if is_dry_run:
        for line in dry_run(settings).lines():
            say(line)
        return
    if on == "ray":
        from trainer.on_ray import train_on_ray

        newest = train_on_ray(settings, num_workers, address)
    else:
        newest = stage.train(settings)
    say(f"{newest}: the weights; samples are in {newest.parent.parent / preview.FILE}")
    run = settings.mirror or settings.out
    if settings.recipe.trains == "student":
        say(f"next: traflow-pipeline evaluate --checkpoint {run} --out {run}-report")
    else:
        say(f"next: traflow-pipeline generate --teacher {settings.out} --n 100k --out {run}-data")


@app.command()
def run(
    config: Annotated[
        str, typer.Argument(help="A config of configs/ by name, a YAML file, or the place of a run started before.")
    ],
    out: Annotated[
        str | None, typer.Option(help="Folder or URL of the whole run; by default where the config says.")
    ] = None,
    submit: Annotated[
        str | None, typer.Option(help="A cluster's dashboard (http://HOST:8265): each stage becomes a job there.")
    ] = None,
    on: Annotated[str, typer.Option(help="here; or ray: training and evaluation on a Ray cluster too.")] = "here",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; default RAY_ADDRESS, or a local one.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="One stage: generate, train or evaluate.")] = None,
    after: Annotated[str | None, typer.Option(help="Wait for this job first.", hidden=True)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Override a key; may be repeated.")
    ] = None,
) -> None:
    """Generate, train and evaluate as one plan; what is complete is passed over, what was killed goes on."""
    from eval import results
    from eval.report import files, tables
    from pipeline.common.progress import console, say
    from traflow_pipeline import jobs
    from traflow_pipeline import run as whole

    if on not in ("here", "ray"):
        raise BadInput(f"--on: wanted here or ray, got {on!r}")
    plan = whole.open_run(config, out, set_ or [], address, anywhere=submit is not None)
    if only is not None and only not in plan.stages:
        raise BadInput(f"--only {only}: wanted one of {', '.join(plan.stages)}")
    if submit is not None:
        jobs.submit(plan, submit)
        return
    if after is not None:
        jobs.wait_for(after)
    whole.run(plan, on == "ray" or address is not None, address, only)
    if plan.evaluate is not None and only in (None, "evaluate"):
        place = plan.evaluate.mirror or plan.evaluate.out
        console.print(tables.terminal(results.read_report(place)))
        say(f"{place}/{files.PAGE}: the page; {files.TABLE}, metrics.json and pictures lie beside it")
    say(f"where it stands: traflow-pipeline status {plan.place}")


@app.command()
def status(place: Annotated[str, typer.Argument(help="Folder or URL of a run.", metavar="RUN")]) -> None:
    """Show where each stage of a run stands, from what lies there."""
    from pipeline.common.progress import say
    from traflow_pipeline import run as whole

    plan = whole.read_run(place.rstrip("/"))
    for stage in plan.stages:
        say(str(whole.stage_status(plan, stage)))


@app.command()
def average(
    run: Annotated[Path, typer.Argument(help="The folder of a run whose config keeps averages by sigma_rel.")],
    sigma_rel: Annotated[float, typer.Option(help="Relative width of the average to make: 0.02 to 0.25.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    step: Annotated[int | None, typer.Option(help="The step it stands for; by default the last snapshot's.")] = None,
) -> None:
    """Make an average of any width from the snapshots of a run, as EDM2 does after training."""
    from pipeline.common.progress import say
    from trainer.checkpoints import posthoc_ema

    error = posthoc_ema.average(run, sigma_rel, out, step)
    say(f"{out}: the average of relative width {sigma_rel:g}; its profile is {error:.1%} off")
    if error > posthoc_ema.POOR:
        say("note: more snapshots (a smaller checkpoint_every), or a width nearer to theirs, would be closer")


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or the folder or URL of a training run.")],
    out: Annotated[Path, typer.Option(help="Folder to make: the network's file, and a model card beside it.")],
    format_: Annotated[
        str, typer.Option("--format", help="safetensors (this program's), onnx, or torch-export.")
    ] = "safetensors",
) -> None:
    """Write a student, or a trained teacher, as one file for other programs, checked against torch, with a card."""
    from pipeline.common.progress import say
    from trainer.checkpoints import mirror
    from trainer.export import exporter as stage

    file = stage.export(mirror.local(checkpoint), format_, out)
    say(f"{file}: the network; {file.with_name(stage.CARD)} says how to draw images with it")


@app.command()
def evaluate(
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint, or the folder or URL of a training run.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or URL of the report.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="What to measure against: digits, images (folder, .zip, .npz), a data set, statistics (.npz)."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Feature spaces, by commas: inception, inception-tf, inception-torch, dinov2, ..."),
    ] = None,
    num_samples: Annotated[str | None, typer.Option(help="Samples of each row: 4096, 50k.")] = None,
    require: Annotated[
        str | None, typer.Option(help="Metrics, by commas, without which it fails: fid, kid, is, lpips, ...")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the evaluation's noise.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Score a student beside its teacher and the teacher's few-step samplers; write a table, pictures and a page."""
    from eval import evaluate as stage
    from eval.config import EvaluateConfig
    from eval.report import files, tables
    from pipeline.common.progress import console, say

    flags = {
        "checkpoint": checkpoint,
        "out": out,
        "reference": reference,
        "features": features,
        "num_samples": num_samples,
        "require": require,
        "seed": seed,
        "device": device,
    }
    settings = _config(EvaluateConfig, "evaluate", config, flags, set_)
    report = stage.evaluate(settings)
    if report is not None:  # the first rank's
        console.print(tables.terminal(report))
        place = settings.mirror or settings.out
        say(f"{place}/{files.PAGE}: the page; {files.TABLE}, metrics.json and pictures lie beside it")


@app.command()
def reference(
    source: Annotated[str, typer.Argument(help="Images (a name, folder, .zip, .npz), or a data set.", metavar="PATH")],
    features: Annotated[str, typer.Option(help="Feature spaces, by commas.")] = "inception,inception-tf",
    out: Annotated[
        Path | None, typer.Option(help="The .npz to write, of one space; by default one for each in the cache.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """MetricGroup a set of images once, for every evaluation against it."""
    from eval.metrics import reference as references

    references.command(source, features.split(","), out, device)


@app.command()
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Folders of evaluations.", metavar="REPORT...")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
) -> None:
    """Put several evaluations on one page."""
    from eval.report import files
    from pipeline.common.progress import say

    files.compare(reports, out)
    say(f"{out}: {len(reports)} evaluations on one page")


@app.command()
def sample(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or the folder or URL of a training run.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("samples.png"),
    n: Annotated[int, typer.Option(help="How many images.", min=1)] = 64,
    first: Annotated[int, typer.Option(help="The index of the first; an evaluation's begin at 0.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Evaluations of each image.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0, max=2**63 - 1)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Draw a grid of images from a student or a trained teacher."""
    from eval.sampling import samplers
    from pipeline.common.progress import say
    from trainer.checkpoints import mirror

    samplers.save_grid(mirror.local(checkpoint), out, range(first, first + n), steps, seed, device)
    say(f"{out}: {n} images of {steps} evaluation{'s' if steps > 1 else ''} each")


teachers = typer.Typer(invoke_without_command=True, help="List the teachers that --teacher takes; fetch or check one.")
app.add_typer(teachers, name="teachers")

TeacherName = Annotated[str, typer.Argument(help="A name of `teachers`.", metavar="NAME")]


@teachers.callback()
def list_teachers(context: typer.Context) -> None:
    """List the teachers that --teacher takes; fetch or check one."""
    if context.invoked_subcommand is not None:
        return
    from pipeline.common.progress import console, say
    from pipeline.teachers import catalogue

    console.print(catalogue.table(catalogue.named_teachers()))
    for fault in catalogue.find_faults():
        say(f"no teacher: {fault}")
    say("FID: as published, at so many evaluations")
    say(f"here: whether its file lies in {catalogue.teachers_folder()} (set {catalogue.FOLDER} for another folder)")
    say("--teacher also takes the path of a training run, a .safetensors file, an EDM .pkl or a .yaml entry,")
    say(
        "module:factory, and the names of the entry point group traflow_pipeline.teachers: see README, Your own teacher"
    )


@teachers.command("fetch")
def fetch_teacher(name: TeacherName) -> None:
    """Download a teacher's file into the folder of teachers, going on where it broke off, and pin its sha256."""
    from pipeline.common.progress import say
    from pipeline.storage.hashing import file_sha256
    from pipeline.teachers import loading

    named = loading.fetch_file(name)
    say(f"{named.path}: sha256 {file_sha256(named.path)}, pinned in {named.pin.name}")


@teachers.command("check")
def check_teacher(
    name: Annotated[str, typer.Argument(help="Whatever --teacher takes.", metavar="TEACHER")],
    out: Annotated[Path, typer.Option(help="The PNG of its samples to write.")] = Path("teacher.png"),
    num_samples: Annotated[int, typer.Option(help="Samples to integrate, in one batch.", min=1)] = 16,
    guidance_scale: GuidanceScale = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0, max=2**63 - 1)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Load a teacher and integrate a few samples: does it turn noise into data, at what cost, how straight?"""
    from pipeline.common.device import pick_device
    from pipeline.common.image_grid import is_drawable, save_square, to_bytes
    from pipeline.common.progress import console, say
    from pipeline.teachers import check
    from pipeline.teachers.loading import load_teacher

    place = pick_device(device)
    teacher = load_teacher(name, place, guidance_scale)
    found = check.check_teacher(teacher, num_samples, seed, place)
    console.print(found.table())
    if is_drawable(teacher.shape):
        save_square(out, to_bytes(found.samples.numpy(), teacher.data_range))
        say(f"{out}: {num_samples} samples")
    else:
        say("no picture: only samples [C, H, W] of 1 or 3 channels are drawn")
    if not found.is_data_like:
        raise WorkFailed(f"teacher {name}: integrating it from noise to data does not end in data: {found.complaint}")


def _config(model: Any, command: str, source: str | None, flags: dict[str, Any], assignments: list[str] | None) -> Any:
    """The configuration of `command`: its config's section, then flags, then --set."""
    from pipeline.common import config

    section = config.load_section(source, command)
    if flags.get("solver", {}).get("name"):
        section = {k: v for k, v in section.items() if k != "solver"}  # another solver, another accuracy
    values = config.merge(section, config.given(flags), *map(config.parse_assignment, assignments or []))
    return config.validate(model, values, command)


def main() -> None:
    """Run the program: 0 done, 1 failed work, 2 bad input, 130 interrupted or terminated; errors are one red line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a preempted machine says it so
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
    except Stopped as error:
        code = _fail(f"{error}; the same command goes on from there", 128 + error.signal)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted; the same command goes on from what is finished", INTERRUPTED)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    if message:  # there is none where click has printed the help instead
        typer.secho(f"error: {' '.join(message.split())}", fg="red", err=True)
    return code
