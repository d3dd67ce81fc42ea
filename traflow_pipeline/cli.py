"""The command line of traflow-pipeline. Heavy imports stay inside the commands, so that --help answers at once."""

import os
import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from pipeline.common.errors import BadInput, Stopped, WorkFailed, for_terminal, reason
from pipeline.common.plural import counted
from pipeline.common.suggestions import meant, question, suggest
from traflow_pipeline import stage_command
from traflow_pipeline.installation import describe
from traflow_pipeline.once import Group, Once, as_count
from traflow_pipeline.stage_command import StageCommand

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Distil a pre-trained flow into a generator of one to four evaluations: generate, train, evaluate.",
)

INTERRUPTED = 130
TOPICS = ("generate", "train", "evaluate", "slurm", "run", "recipe")
# click's own error, taken from typer, which may bundle its own click.
UsageError: Any = typer.BadParameter.__base__

# Headings of the commands' list, and of options that several commands share.
STAGES, TEACHERS, DATA, MODELS, REPORTS = "Stages and runs", "Teachers", "Data sets", "Trained models", "Reports"
GUIDANCE = "Guidance and prompts"


def _config_names() -> list[str]:
    from pipeline.common.config import config_names

    return config_names()


def _recipe_names() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parents[1] / "configs" / "recipes").glob("*.yaml"))


# Flags of keys: the key says what they mean.
Text = Annotated[str | None, typer.Option()]
Integer = Annotated[int | None, typer.Option()]
Number = Annotated[float | None, typer.Option()]
Count = Annotated[str | None, typer.Option(metavar="COUNT")]
Config = Annotated[
    str | None,
    typer.Option(
        help="The name of a config in configs/, or a YAML file; `config` writes one.", autocompletion=_config_names
    ),
]
On = Annotated[str, typer.Option(help="here: this process, or torchrun's processes; ray: ranks on a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster; default: RAY_ADDRESS, else a local one.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key that `config` lists; may be repeated."),
]
WholeTable = Annotated[bool, typer.Option("--all", help="Print every row and metric of the report.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.", min=0, max=2**63 - 1)]
PartOption = Annotated[
    str | None, typer.Option(metavar="K/N", help="Make every N-th shard from the K-th on, in this process: 3/16.")
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Prompts for a pipeline of diffusers: .txt, one a line, or .jsonl.",
        rich_help_panel=GUIDANCE,
    ),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(help="Prompt that guidance leads away from; default: the pipeline's own.", rich_help_panel=GUIDANCE),
]
PictureSize = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        help="Size of a pipeline's pictures, such as 512 or 768x512; default: its own.",
        rich_help_panel=GUIDANCE,
    ),
]
GuidanceScale = Annotated[
    float,
    typer.Option(help="Scale of classifier-free guidance; 1 means none.", min=0, rich_help_panel=GUIDANCE),
]
NumSamples = Annotated[
    int, typer.Option("--n", parser=as_count, metavar="COUNT", help="Number of samples: 64, 4k, ...", min=1)
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(describe())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print versions and exit."),
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command(cls=StageCommand, rich_help_panel=STAGES)
def generate(
    context: typer.Context,
    teacher: Text = None,
    n: Count = None,
    out: Text = None,
    guidance_scale: Number = None,
    classes: Text = None,
    prompts: Text = None,
    negative_prompt: Text = None,
    size: Text = None,
    shift: Number = None,
    seed: Integer = None,
    states: Integer = None,
    velocities: Annotated[bool | None, typer.Option("--velocities/--no-velocities")] = None,
    solver: Text = None,
    rtol: Number = None,
    atol: Number = None,
    steps: Integer = None,
    precision: Text = None,
    batch_size: Count = None,
    workers: Integer = None,
    gpus_per_worker: Number = None,
    executor: Text = None,
    address: Text = None,
    part: PartOption = None,
    steals: Annotated[
        bool, typer.Option("--steal", help="When the part is complete, make what is missing of the others.")
    ] = False,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Integrate one batch and estimate the cost of all.")
    ] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Integrate a teacher's ODE from noise to data and store the trajectories as WebDataset shards."""
    settings = _settings(context, config, set_)
    if steals and part is None:
        raise BadInput("--steal: wanted --part too, such as --part 3/16 --steal")
    if part is not None and (workers or address or gpus_per_worker is not None or executor == "ray" or is_dry_run):
        raise BadInput(
            "--part works in this process, without Ray: it takes no --workers, --gpus-per-worker, --address, "
            "--executor ray or --dry-run"
        )
    from pipeline.common.progress import format_bytes, say
    from pipeline.generation import generate as stage
    from pipeline.generation import parts
    from pipeline.generation.dry_run import dry_run
    from traflow_pipeline import next_commands

    share = None if part is None else parts.Part.parse(part)

    if is_dry_run:
        for line in dry_run(settings).lines():
            say(line)
        return
    manifest = stage.generate(settings) if share is None else parts.generate_part(settings, share, steals)
    if manifest is None:
        return
    size, evaluations = format_bytes(manifest.num_bytes), counted(round(manifest.mean_nfe), "evaluation")
    say(f"{manifest.store.location}: {counted(manifest.num_records, 'trajectory')}, {size}, {evaluations} each")
    say(next_commands.after_generate(settings, manifest.plan))
    say(f"digest {manifest.sha256}")


@app.command(rich_help_panel=DATA)
def verify(
    data: Annotated[str, typer.Argument(help="Folder or URL of a data set.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove bad shards; generate then makes them again.")
    ] = False,
    recheck: Annotated[
        int, typer.Option(help="Number of batches to integrate again and compare; 0 skips this.", min=0)
    ] = 2,
    teacher: Annotated[str | None, typer.Option(help="The teacher, if it has moved since generate ran.")] = None,
    device: Device = "auto",
) -> None:
    """Verify a data set: hash its shards, check counts, ranges and manifest, and integrate a few records again."""
    from pipeline.common.device import pick_device
    from pipeline.common.progress import say
    from pipeline.dataset.manifest import read_dataset
    from pipeline.generation import verify
    from pipeline.storage.lease import hold_lease
    from pipeline.storage.store import open_store
    from pipeline.teachers.loading import resolve_recorded

    store, processor = open_store(data), pick_device(device)
    with hold_lease(store) if repair and read_dataset(store) else nullcontext():
        findings = verify.verify(store)
        if recheck and findings.num_whole:
            try:
                source = resolve_recorded(findings.dataset.teacher_source, teacher, data, "--teacher ")
                verify.recheck_table(store, findings, source, processor)
                plan = findings.dataset.plan
                flow = source.load_planned(plan, store, processor, precision=plan.precision)
                verify.recheck(store, findings, flow, processor, recheck)
            except (BadInput, WorkFailed) as error:
                told = f"{error}; --recheck 0 skips this"
                findings.faults.append(verify.Fault("no batch was integrated again", told))
        for line in (*findings.notes, *findings.rechecks, *findings.faults):
            say(str(line))
        if not findings.faults:
            say(f"{data}: {findings}; digest {findings.digest}")
            return
        if not repair:
            raise WorkFailed(f"{data}: {findings}; {findings.advice}")
        verify.repair(store, findings)
    removed = f"{counted(len(findings.bad_shards), 'bad shard')} removed"
    if findings.bad_chunks:
        removed += f", and {len(findings.bad_chunks)} of its conditions"
    raise WorkFailed(f"{data}: {findings}; {removed}: {findings.advice_when_repaired}")


@app.command(rich_help_panel=DATA)
def merge(
    data: Annotated[list[str], typer.Argument(help="Folders or URLs of data sets of one plan.", metavar="DATA")],
    out: Annotated[str, typer.Option(help="Folder or URL of the joined set: new, or one of them.")],
) -> None:
    """Join data sets of one plan that were made in different places."""
    from pipeline.common.progress import say
    from pipeline.dataset import merge as merging

    manifest = merging.merge(data, out)
    total = manifest.dataset.num_records
    say(f"{out}: {manifest.num_records} of {total} records; digest {manifest.sha256}")
    if manifest.num_records < total:
        say(f"next: run traflow-pipeline generate --out {quote(out)} with the same plan, which makes the rest")


@app.command(rich_help_panel=DATA)
def inspect(
    data: Annotated[str, typer.Argument(help="Folder or URL of a data set.")],
    out: Annotated[Path, typer.Option(help="PNG to write: a few trajectories.")] = Path("trajectories.png"),
    n: Annotated[int, typer.Option(help="Number of trajectories in the picture.", min=1, max=64)] = 8,
) -> None:
    """Show what a data set holds: plan, counts, evaluations, straightness, and a picture of a few trajectories."""
    from pipeline.common.image_grid import check_picture, save_rows
    from pipeline.common.progress import console, say
    from pipeline.dataset.summary import summarise
    from pipeline.storage.store import open_store
    from pipeline.teachers.loading import find_decoder

    check_picture(out)
    summary = summarise(open_store(data))
    console.print(summary.table())
    pictures = summary.pictures(n, find_decoder(summary.manifest.dataset.teacher_source))
    if pictures is None:
        lack = (
            "its latents have no decoder here"
            if summary.manifest.plan.latents
            else "only images [C, H, W] with 1 or 3 channels, and points [2], can be drawn"
        )
        say(f"no picture: {lack}")
    else:
        save_rows(out, pictures)
        say(f"{out}: from noise to sample, {', '.join(pictures)}")


@app.command(rich_help_panel=TEACHERS)
def probe(
    teacher: Annotated[str, typer.Option(help="A name listed by `teachers`, a path, or module:factory.")],
    n: NumSamples = 64,
    max_error: Annotated[
        float,
        typer.Option(
            help="Largest 90th-percentile RMS error; default: 1/255, half an 8-bit step.", min=0, show_default=False
        ),
    ] = 1 / 255,
    precisions: Annotated[
        str | None,
        typer.Option(help="fp32,tf32,bf16,fp16 or some; default: a GPU's own, fp32 on a CPU (which imitates tf32)."),
    ] = None,
    solvers: Annotated[
        str | None, typer.Option(help="The solvers to measure, separated by commas, such as euler,rk4; default: all.")
    ] = None,
    states: Annotated[
        int, typer.Option(help="Number of stored states, on whose times fixed-step solvers step.", min=0)
    ] = 8,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Measure all of it compiled too, and on a GPU as CUDA graphs; default: for large networks on a GPU.",
            show_default=False,
        ),
    ] = None,
    guidance_scale: GuidanceScale = 1.0,
    prompts: Prompts = None,
    negative_prompt: NegativePrompt = None,
    size: PictureSize = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Measure accuracy against cost for each solver, and recommend the cheapest that is accurate enough."""
    from pipeline.common.device import pick_device
    from pipeline.common.progress import bar, console, say
    from pipeline.teachers import probe
    from pipeline.teachers.batch_sizes import measure_batch_sizes
    from pipeline.teachers.compilation import pays, ways_to_run
    from pipeline.teachers.precision import parse_precisions
    from traflow_pipeline.loading import open_teacher

    settings, processor = probe.choose_solvers(solvers), pick_device(device)
    tried = parse_precisions(precisions, processor)
    flow = open_teacher(teacher, processor, guidance_scale, prompts, negative_prompt, size)
    compiled = pays(flow, processor) if compiled is None else compiled
    num_settings = len(tried) * len(settings) * (len(ways_to_run(processor)) if compiled else 1)
    with bar(f"probe {flow.name}", num_settings) as advance:
        result = probe.probe(flow, n, seed, processor, advance, tried, settings, states, compiled)
    if not result.is_complete:
        console.print(result.table(None))
        say(f"interrupted: {len(result.points)} of {num_settings} settings measured; nothing was stored")
        sys.exit(INTERRUPTED)  # there is nothing to resume
    best = result.recommend(max_error)
    console.print(result.table(best))
    for refusal in result.refusals:
        say(f"note: {refusal}")
    say(f"RMS errors of samples against {probe.REFERENCE} in float64, {counted(result.reference_nfe, 'evaluation')}")
    less, least = ("less time", "least time") if result.by_seconds else ("fewer evaluations", "fewest evaluations")
    say(f"efficient: no other setting has both {less} and a lower 90th-percentile error")
    say(f"{least} with a 90th-percentile error of at most {max_error:.1e}: {best.flags}")
    if sizes := measure_batch_sizes(flow, best.precision, 2, processor):
        say(str(sizes))
    if not best.solver.is_adaptive:
        say("a fixed-step solver steps on every stored state: it takes at least one step more than --states")
        if best.solver.num_steps is not None and best.solver.num_steps <= states:
            say(f"measured with --states {best.solver.num_steps - 1}, the most for so few steps")


@app.command(
    cls=StageCommand,
    rich_help_panel=STAGES,
    epilog="A student has its teacher's network; that of a teacher without one, such as a function of your own, needs "
    "--set network='{family: mlp}' or another: traflow-pipeline config train lists the keys of each family.",
)
def train(
    context: typer.Context,
    data: Annotated[list[str] | None, typer.Option()] = None,
    images: Text = None,
    out: Text = None,
    recipe: Annotated[str | None, typer.Option(autocompletion=_recipe_names)] = None,
    start: Text = None,
    seed: Integer = None,
    device: Text = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard")] = None,
    steps: Count = None,
    batch_size: Count = None,
    lr: Number = None,
    skip_nonfinite: Annotated[bool | None, typer.Option("--skip-nonfinite")] = None,
    on: On = "here",
    workers: Annotated[
        int | None,
        typer.Option(help="Number of ranks on Ray; default: one per GPU, or one per CPU without GPUs.", min=1),
    ] = None,
    address: Address = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps, write nothing, and estimate the cost of all.")
    ] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Train a student on a teacher's trajectories, or a teacher on images or trajectories."""
    if on not in ("here", "ray"):
        raise BadInput(f"--on: wanted here or ray, got {on!r}")
    if on == "here" and (workers or address):
        raise BadInput("--workers and --address need --on ray; torchrun starts its own ranks")

    if data and len(data) > 1:
        raise BadInput(
            f"--data: wanted one data set, got {len(data)}; sets of one plan are joined by traflow-pipeline merge "
            f"{' '.join(map(quote, data))} --out DATA"
        )
    context.params["data"] = data[0] if data else None
    settings = _settings(context, config, set_)
    from pipeline.common.progress import say
    from traflow_pipeline import next_commands
    from trainer import preview
    from trainer import train as stage
    from trainer.dry_run import dry_run

    if is_dry_run:
        for line in dry_run(settings).lines():
            say(line)
        return
    if on == "ray":
        from trainer.on_ray import train_on_ray

        newest = train_on_ray(settings, workers, address)
    else:
        newest = stage.train(settings)
    picture = newest.parent.parent / preview.FILE
    say(f"{newest}: weights" + (f"; samples: {picture}" if picture.exists() else ""))
    say(next_commands.after_train(settings))


@app.command(cls=StageCommand, rich_help_panel=STAGES)
def evaluate(
    context: typer.Context,
    checkpoint: Annotated[str | None, typer.Argument(show_default=False)] = None,
    out: Text = None,
    reference: Text = None,
    prompts: Text = None,
    clip: Text = None,
    features: Text = None,
    require: Text = None,
    n: Count = None,
    steps: Text = None,
    checkpoints: Text = None,
    weights: Text = None,
    teacher: Text = None,
    seed: Integer = None,
    batch_size: Count = None,
    device: Text = None,
    is_whole: WholeTable = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Score a student beside its teacher and the teacher's few-step samplers; write a table, pictures and a page."""
    settings = _settings(context, config, set_)
    from eval import evaluate as stage
    from eval.report import files, terminal
    from pipeline.common.progress import console, say

    location = settings.mirror or settings.out
    files.check_same(settings, str(location))
    report = stage.evaluate(settings)
    if report is not None:  # the first rank's
        console.print(terminal.table(report, is_whole))
        say(f"{location}/{files.PAGE}: the page; {files.TABLE}, metrics.json and pictures are beside it")


@app.command(rich_help_panel=STAGES)
def run(
    config: Annotated[
        str,
        typer.Argument(
            help="The name of a config in configs/, a YAML file, or the folder or URL of an existing run.",
            autocompletion=_config_names,
        ),
    ],
    out: Annotated[
        str | None, typer.Option(help="Folder or URL of the whole run; default: as the config says.")
    ] = None,
    submit: Annotated[
        str | None,
        typer.Option(help="Submit each stage as a job: to a Ray dashboard (http://HOST:8265), or to slurm."),
    ] = None,
    is_dry_run: Annotated[bool, typer.Option("--dry-run", help="With --submit slurm: print the jobs' files.")] = False,
    on: Annotated[str, typer.Option(help="here, or ray to train and evaluate on a Ray cluster too.")] = "here",
    address: Address = None,
    only: Annotated[str | None, typer.Option(help="Run one stage only: generate, train or evaluate.")] = None,
    part: PartOption = None,
    is_whole: WholeTable = False,
    after: Annotated[str | None, typer.Option(help="Wait for this job first.", hidden=True)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Override a key; may be repeated.")
    ] = None,
) -> None:
    """Generate, train and evaluate as one plan; complete stages are skipped and interrupted ones resumed."""
    if on not in ("here", "ray"):
        raise BadInput(f"--on: wanted here or ray, got {on!r}")
    if is_dry_run and submit != "slurm":
        raise BadInput("--dry-run: wanted --submit slurm too; generate and train have a --dry-run of their own")
    if submit is not None and (only or part or address or on != "here"):
        raise BadInput(
            "--submit: each stage is a job, wherever the cluster puts it: no --only, --part, --on or --address"
        )
    if submit is not None and submit != "slurm" and ":" not in submit:
        wanted = "wanted slurm, or the address of a Ray dashboard such as http://127.0.0.1:8265"
        raise BadInput(f"--submit {submit}: {wanted}{suggest(submit, ['slurm'])}")
    if part is not None and only != "generate":
        raise BadInput("--part: wanted --only generate too, whose shards it shares")
    from traflow_pipeline.run_settings import check_settings

    check_settings(config, out, set_ or [], address)
    from eval import results
    from eval.report import files, terminal
    from pipeline.common.progress import console, say
    from pipeline.generation.parts import Part
    from traflow_pipeline import jobs, slurm
    from traflow_pipeline.run import open_run, run_stages

    plan = open_run(config, out, set_ or [], address, anywhere=submit is not None)
    if only is not None and only not in plan.stages:
        raise BadInput(f"--only {only}: wanted one of {', '.join(plan.stages)}{suggest(only, plan.stages)}")
    if is_dry_run:
        for stage, script in slurm.job_scripts(plan).items():
            typer.echo(f"# {stage}\n{script}")
        return
    if submit == "slurm":
        slurm.submit(plan)
        return
    if submit is not None:
        jobs.submit(plan, submit)
        return
    if after is not None:
        jobs.wait_for(after)
    console.quiet = os.environ.get("RANK", "0") != "0"  # the first of torchrun's ranks speaks for all
    run_stages(plan, on == "ray" or address is not None, address, only, None if part is None else Part.parse(part))
    if plan.evaluate is not None and only in (None, "evaluate"):
        location = plan.evaluate.mirror or plan.evaluate.out
        console.print(terminal.table(results.read_report(location), is_whole))
        say(f"{location}/{files.PAGE}: the page; {files.TABLE}, metrics.json and pictures are beside it")
    say(f"state of each stage: traflow-pipeline status {quote(plan.location)}")


@app.command(rich_help_panel=STAGES)
def status(
    location: Annotated[
        str, typer.Argument(help="Folder or URL of a run, data set, training or report.", metavar="FOLDER")
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again whenever it changes, until all is complete.")
    ] = False,
) -> None:
    """Show how far the work in a folder is, how fast it goes, and whether it is running."""
    from pipeline.common.progress import say
    from traflow_pipeline.folder_status import status_lines, watch_status

    for lines in watch_status(location) if watch else [status_lines(location)]:
        for line in lines:
            say(line)


@app.command(rich_help_panel=STAGES)
def config(
    topic: Annotated[
        str,
        typer.Argument(
            help="generate, train, evaluate or slurm: a section; run: all stages; recipe: a training's losses.",
            autocompletion=lambda: list(TOPICS),
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="YAML file to write; default: print it.")] = None,
) -> None:
    """Print every key of a config with default, type, unit and a sentence, as YAML that --config takes."""
    if topic not in TOPICS:
        raise BadInput(f"{topic}: wanted one of {', '.join(TOPICS)}{suggest(topic, TOPICS)}")
    from pipeline.common.progress import say
    from traflow_pipeline.keys import commented, write

    if out is None:
        typer.echo(commented(topic), nl=False)
    else:
        write(out, topic)
        say(f"{out}: every key of {topic}, with its default")


@app.command(rich_help_panel=MODELS)
def average(
    run: Annotated[str, typer.Argument(help="Folder or URL of a run whose config keeps sigma_rel averages.")],
    sigma_rel: Annotated[float, typer.Option(help="Relative width of the average: 0.02 to 0.25.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    step: Annotated[
        int | None, typer.Option(help="Step that the average ends at; default: the last snapshot's.")
    ] = None,
) -> None:
    """Make an average of any width from a run's snapshots (post-hoc EMA, as in EDM2)."""
    from pipeline.common.progress import say
    from trainer.checkpoints import mirror, posthoc_ema

    error = posthoc_ema.average(mirror.local_snapshots(run), sigma_rel, out, step)
    say(f"{out}: the average of relative width {sigma_rel:g}; its profile deviates by {error:.1%}")
    if error > posthoc_ema.POOR:
        say("note: more snapshots (a smaller checkpoint_every), or a width nearer to theirs, would fit better")


@app.command(rich_help_panel=MODELS)
def export(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint, or the folder or URL of a training run.")],
    out: Annotated[Path, typer.Option(help="Folder to create, with the network's file and a model card.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="safetensors (this program's own), onnx, torch-export; diffusers, lora or any-step."
        ),
    ] = "safetensors",
    steps: Annotated[
        int | None, typer.Option(help="Evaluations of a sample, for the formats diffusers and lora.", min=1)
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Upload it to this repository of the Hugging Face Hub.", metavar="OWNER/NAME")
    ] = None,
) -> None:
    """Export a student or a trained teacher as one file, checked against torch, with a model card."""
    from pipeline.common.progress import say
    from trainer.export import exporter as stage
    from trainer.export import hub

    client = None if push is None else hub.open_hub(push)
    file = stage.export(checkpoint, format_, out, steps)
    say(f"{file}: the network; {file.with_name(stage.CARD)} shows how to sample from it")
    if client is not None and push is not None:
        say(f"{hub.push(client, out, push)}: the repository, private unless it was there before")


@app.command(rich_help_panel=REPORTS)
def reference(
    source: Annotated[
        str,
        typer.Argument(help="Images or arrays (a name, folder, .zip, .npz or .npy), or a data set.", metavar="IMAGES"),
    ],
    features: Annotated[
        str, typer.Option(help="Feature spaces, separated by commas; `evaluate` lists them.")
    ] = "inception,inception-tf",
    out: Annotated[
        Path | None,
        typer.Option(help="The .npz to write, for one feature space; default: one per space, in the cache."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compute the statistics of a set of images once, for every evaluation against it."""
    from eval.metrics import reference as references

    references.command(source, features.split(","), out, device)


@app.command(rich_help_panel=REPORTS)
def compare(
    reports: Annotated[
        list[str], typer.Argument(help="Folders or URLs of evaluations, or of whole runs.", metavar="REPORT")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    csv: Annotated[Path | None, typer.Option(help="File to write every figure to, unrounded, as CSV.")] = None,
    paper: Annotated[
        str | None, typer.Option(help="A table of the paper: print it with the runs of configs/paper/TABLE/ROW beside.")
    ] = None,
) -> None:
    """Compare several evaluations: print their table, and write a page and, with --csv, every figure."""
    from eval.report import files
    from pipeline.common.progress import console, say

    if paper is not None:
        typer.echo(files.paper_table(paper, reports))
    table, cautions = files.compare(reports, out, csv)
    console.print(table)
    for caution in cautions:
        say(caution)
    say(
        f"{out}: {counted(len(reports), 'evaluation')} on one page"
        + (f"; {csv}: their figures" if csv is not None else "")
    )


@app.command(rich_help_panel=MODELS)
def sample(
    checkpoint: Annotated[
        str | None, typer.Argument(help="A checkpoint, or the folder or URL of a training run.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Draw from a teacher: whatever `teachers` takes.")] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="A grid (.png), arrays (.npy, .safetensors), images with labels (.npz), or a folder of one PNG each."
        ),
    ] = Path("samples.png"),
    n: NumSamples = 64,
    first: Annotated[int, typer.Option(help="Index of the first sample; an evaluation starts at 0.", min=0)] = 0,
    label: Annotated[
        int | None, typer.Option("--class", help="The class of all samples; default: one drawn for each.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of a student (default: 1), or of a teacher by Euler or --solver.", min=1)
    ] = None,
    solver: Annotated[str | None, typer.Option(help="A teacher's solver; default: dopri5.")] = None,
    weights: Annotated[str, typer.Option(help="The checkpoint's weights: ema, network, or another average.")] = "ema",
    guidance_scale: GuidanceScale = 1.0,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt of a student or a teacher that draws from some; may be repeated.")
    ] = None,
    prompts: Prompts = None,
    negative_prompt: NegativePrompt = None,
    size: PictureSize = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Draw samples of a student or a teacher: a grid, a folder of pictures, or arrays."""
    from pipeline.common.progress import bar, say
    from traflow_pipeline.loading import open_source
    from traflow_pipeline.sample_folder import save_folder
    from traflow_pipeline.samples import check_drawable, check_file, names_folder, save

    if prompt and prompts is not None:
        raise BadInput("sample: wanted --prompt or --prompts, not both")
    source = open_source(
        checkpoint,
        teacher,
        weights=weights,
        steps=steps,
        solver=solver,
        guidance_scale=guidance_scale,
        prompts=tuple(prompt) if prompt else prompts,
        negative_prompt=negative_prompt,
        size=size,
        device=device,
    )
    source.check_label(label, "--class")
    if label is not None and source.classes is not None and label not in source.classes:
        say(f"warning: {source.name} was not trained on class {label}: it had no image")
    indices, is_folder = range(first, first + n), names_folder(out)
    if is_folder:
        check_drawable(source.image_shape)
    else:
        check_file(out, source.image_shape)
    with bar("sample", n) as advance:
        if is_folder:
            save_folder(out, source, indices, seed, label, advance)
        else:
            save(out, source.batches(indices, seed, label, advance), n, source.shape, source.image_shape)
    say(f"{out}: {counted(n, 'sample')} of {source.name}, {source.sampler.name}")


teachers = typer.Typer(
    cls=Group, invoke_without_command=True, help="List the teachers that --teacher takes; fetch or check one."
)
app.add_typer(teachers, name="teachers", rich_help_panel=TEACHERS)

TeacherName = Annotated[str, typer.Argument(help="A name listed by `teachers`.", metavar="NAME")]


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
    say("FID: as published, with the number of evaluations")
    say(f"here: whether its file is in {catalogue.teachers_folder()} (set {catalogue.FOLDER} to use another folder)")
    say("--teacher also takes the path of a training run, a .safetensors file, an EDM .pkl or a .yaml entry,")
    say("module:factory, and names in the entry point group traflow_pipeline.teachers (docs/how-to/teacher.md)")


@teachers.command("fetch")
def fetch_teacher(name: TeacherName) -> None:
    """Download a teacher's file into the teachers folder, resuming a partial download, and pin its sha256."""
    from pipeline.common.progress import say
    from pipeline.storage.hashing import file_sha256
    from pipeline.teachers import loading

    named = loading.fetch_file(name)
    say(f"{named.path}: sha256 {file_sha256(named.path)}, pinned in {named.pin.name}")


@teachers.command("check")
def check_teacher(
    name: Annotated[str, typer.Argument(help="Whatever --teacher takes.", metavar="TEACHER")],
    out: Annotated[Path, typer.Option(help="PNG to write: its samples, or a row for each class.")] = Path(
        "teacher.png"
    ),
    n: NumSamples = 16,
    guidance_scale: GuidanceScale = 1.0,
    prompts: Prompts = None,
    negative_prompt: NegativePrompt = None,
    size: PictureSize = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Check a teacher on a few samples: does it turn noise into data, at what cost, on how straight a path?"""
    from pipeline.common.device import pick_device
    from pipeline.common.image_grid import check_picture, has_pictures, save_rows, save_square, to_pictures
    from pipeline.common.progress import console, say
    from pipeline.teachers import check
    from traflow_pipeline.loading import open_teacher

    check_picture(out)
    processor = pick_device(device)
    teacher = open_teacher(name, processor, guidance_scale, prompts, negative_prompt, size)
    result = check.check_teacher(teacher, n, seed, processor)
    console.print(result.table())
    if has_pictures(teacher.picture_shape):
        rows: dict[str, Any] = {}
        with suppress(WorkFailed):  # the samples that were checked are shown all the same
            rows = check.draw_classes(teacher, n, seed, processor)
        if rows:
            save_rows(out, {title: to_pictures(x.numpy(), teacher.data_range) for title, x in rows.items()})
            say(f"{out}: {counted(len(rows), 'class')}, each from the same noise")
        else:
            save_square(out, to_pictures(result.verdict.samples.numpy(), teacher.data_range))
            say(f"{out}: {counted(n, 'sample')}")
    else:
        say("no picture: only images [C, H, W] with 1 or 3 channels, and points [2], can be drawn")
    if result.verdict.complaint:
        raise WorkFailed(f"teacher {name}: its flow does not end in data; {result.verdict.complaint}")
    if result.warning:
        say(f"note: {result.warning}")


def _settings(context: Any, config: str | None, assignments: list[str] | None) -> Any:
    """The settings of the stage that `context` runs. Most faults are found before torch, which takes seconds."""
    from pipeline.common.config import given, merge, nest, validate
    from traflow_pipeline import keys
    from traflow_pipeline.settings import merge_settings

    stage, flags = context.command.name, context.command.flags(context.params)
    nested = merge(*(nest(key, value) for key, value in given(flags).items()))
    values = merge_settings(stage, config, nested, assignments or ())
    for model in dict.fromkeys((stage_command.MODELS[stage], keys.MODELS[stage])):
        settings = validate(keys.import_model(model), values, stage)
    return settings


for _command in (*app.registered_commands, *teachers.registered_commands):
    _command.cls = _command.cls if _command.cls is StageCommand else Once


def main() -> None:
    """Run a command and exit: 0 done, 1 work failed, 2 bad input, 130 or 143 interrupted. Errors are one red line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the signal that a preempted machine gets
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code
            raise KeyboardInterrupt
    except UsageError as error:
        code = _fail(_usage(error), 2)
    except BadInput as error:
        code = _fail(str(error), 2)
    except WorkFailed as error:
        code = _fail(str(error), 1)
    except OSError as error:  # of a file that no stage named: a full disk, a path that is too long
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{where}{reason(error)}", 1)
    except Stopped as error:
        code = _fail(f"{error}; run the same command to resume", 128 + error.signal)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted; run the same command to resume", INTERRUPTED)
    sys.exit(code)


def _usage(error: Any) -> str:
    """The message of a mistake on the command line; an unknown flag comes with the flag or the key that was meant."""
    name, command = getattr(error, "option_name", None), error.ctx and error.ctx.command
    if name is None or command is None:
        return str(error.format_message())
    flags = [flag for parameter in command.params for flag in parameter.opts]
    keys = command.assignments() if isinstance(command, StageCommand) else {}
    return f"{error.message}{question(meant(name, {flag: flag for flag in flags}, keys))}"


def _fail(message: str, code: int) -> int:
    if message:  # empty where click has printed the help instead
        typer.secho(f"error: {for_terminal(' '.join(message.split()))}", fg="red", err=True)
    return code
