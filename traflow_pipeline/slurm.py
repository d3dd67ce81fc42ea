"""The stages of a run as jobs of Slurm, each after the one before: no container and no Ray, only a shared folder."""

import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from pipeline.common.errors import BadInput, WorkFailed, one_line, reason
from pipeline.common.progress import say
from pipeline.storage.store import Folder, is_url
from traflow_pipeline.named_code import name_again
from traflow_pipeline.run import Run, resumable_status, save_run
from traflow_pipeline.slurm_config import SlurmConfig

FOLDER = "slurm"  # of a run: its jobs' files, logs and numbers
JOBS = "jobs.json"
ANSWER_SECONDS = 60  # of Slurm's commands
FIRST_PORT, NUM_PORTS = 20_000, 10_000  # where the ranks of a training meet, by the job's number

# Slurm signals the script before the time limit; the script stops the step, which saves, and asks to be run again. What
# does not stop in time is run again all the same, from what it had saved.
SCRIPT = """\
#!/bin/bash
{header}
job={job}
stop() {{
  scancel --signal=TERM "$job"
  for second in $(seq {patience}); do
    kill -0 "$step" 2>/dev/null || break
    sleep 1
  done
  if ! kill -0 "$step" 2>/dev/null && wait "$step"; then exit 0; fi
  {again}
  exit 1
}}
trap stop USR1
{command} &
step=$!
wait "$step"
"""
# The last task of an array has the array's own SLURM_JOB_ID, which stands for all of its tasks.
WHOLE_JOB, ARRAY_TASK = '"$SLURM_JOB_ID"', '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
AGAIN = 'scontrol requeue "$job"'
ONCE = 'echo "stopped before the time limit; submit the run to resume it" >&2'
SRUN = 'srun --cpus-per-task="$SLURM_CPUS_PER_TASK"'  # since 22.05 a step no longer inherits them from its job
REQUEUE_SECONDS = 5  # of `stop_seconds`, for Slurm to take note


def submit(run: Run) -> None:
    """Submit every incomplete stage to Slurm, unless its job is still waiting or running.

    Raises:
        BadInput: there is no Slurm here, the run is not in a folder, or a stage's inputs have changed since its outputs
            were made.
        WorkFailed: Slurm does not answer, or refused a job.
    """
    scripts = job_scripts(run)
    if shutil.which("sbatch") is None:
        raise BadInput("--submit slurm: wanted sbatch on the PATH: submit from a login node, or look with --dry-run")
    live = _live_states()
    # Files and modules are the cluster's: each job checks them there, before its stage works.
    statuses = {stage: resumable_status(run, stage) for stage in run.stages}
    save_run(run)
    folder = Folder(Path(run.location) / FOLDER)
    jobs, after = _read_jobs(run.location), ""
    for stage, status in statuses.items():
        if status.complete:
            say(status.message)
            continue
        if jobs.get(stage) not in live:
            jobs[stage] = _submit(folder, stage, scripts[stage], after)
            folder.write(JOBS, json.dumps(jobs, indent=1).encode())
        after = jobs[stage]
        say(f"{stage}: job {after}, logs in {folder.location}")
    say(f"state of each stage: traflow-pipeline status {shlex.quote(run.location)}")


def job_scripts(run: Run) -> dict[str, str]:
    """The batch script of each stage of `run`.

    Raises:
        BadInput: the run is not in a folder.
    """
    if is_url(run.location):
        raise BadInput(f"--submit slurm: wanted a run in a folder that every node reaches, got {run.location}")
    config = run.slurm or SlurmConfig()
    named = name_again(run.sections())
    return {stage: _script(run.location, stage, config, named) for stage in run.stages}


def _script(location: str, stage: str, config: SlurmConfig, named: list[str]) -> str:
    program = [sys.executable, "-m"]
    work = ["traflow_pipeline", "run", location, "--only", stage, *named]
    command = f"{SRUN} {shlex.join([*program, *work])}"
    options = [f"--cpus-per-task={config.cpus}", f"--gpus-per-node={min(config.gpus, 1)}"]
    if stage == "generate":
        at_once = f"%{config.parts_at_once}" if config.parts_at_once else ""
        options += [f"--array=1-{config.parts}{at_once}"]
        command += f' --part "$SLURM_ARRAY_TASK_ID/{config.parts}"'
    elif stage == "train":
        command = _on_ranks(program, work, config)
        options = [
            f"--nodes={config.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={config.cpus * config.ranks_per_node}",
            f"--gpus-per-node={config.gpus}",
        ]
    return SCRIPT.format(
        header="\n".join(f"#SBATCH {option}" for option in _options(location, stage, config, options)),
        job=ARRAY_TASK if stage == "generate" else WHOLE_JOB,
        command=command,
        patience=config.stop_seconds - REQUEUE_SECONDS,
        again=AGAIN if config.requeue else ONCE,
    )


def _options(location: str, stage: str, config: SlurmConfig, of_stage: list[str]) -> list[str]:
    number = "%A_%a" if stage == "generate" else "%j"
    log = str(Path(location) / FOLDER).replace("%", "%%")
    return [
        f"--job-name=traflow-{stage}",
        *([f"--partition={config.partition}"] if config.partition else []),
        *([f"--account={config.account}"] if config.account else []),
        *(option for option in of_stage if not option.endswith("gpus-per-node=0")),
        f"--time={config.time}",
        f"--signal=B:USR1@{config.stop_seconds}",
        "--requeue" if config.requeue else "--no-requeue",
        "--kill-on-invalid-dep=yes",
        f"--output={shlex.quote(f'{log}/{stage}-{number}.log')}",
        "--open-mode=append",
        *config.sbatch,
    ]


def _on_ranks(program: list[str], work: list[str], config: SlurmConfig) -> str:
    """The training on every node of its job; the ranks meet on the node that launches them."""
    torchrun = [*program, "torch.distributed.run", f"--nnodes={config.nodes}"]
    torchrun += [f"--nproc-per-node={config.ranks_per_node}", "--max-restarts=3", "--rdzv-backend=c10d"]
    port = f"$(({FIRST_PORT} + SLURM_JOB_ID % {NUM_PORTS}))"
    meeting = f'--rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$SLURM_LAUNCH_NODE_IPADDR:{port}"'
    return f"{SRUN} bash -c {shlex.quote(f'exec {shlex.join(torchrun)} {meeting} -m {shlex.join(work)}')}"


def job_states(location: str) -> dict[str, str]:
    """One line on the Slurm job of each stage of the run at `location` that was submitted."""
    if is_url(location) or not (jobs := _read_jobs(location)) or shutil.which("squeue") is None:
        return {}
    try:
        live = _live_states()
    except WorkFailed as error:
        return {stage: f"job {job}: {error}" for stage, job in jobs.items()}
    return {stage: f"job {job}: {_counts(live.get(job) or _ended_states(job))}" for stage, job in jobs.items()}


def _counts(states: list[str]) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(Counter(states).items())) or "ended"


def _live_states() -> dict[str, list[str]]:
    """The state of each waiting or running task of this user's jobs, by job.

    Raises:
        WorkFailed: Slurm does not answer.
    """
    states: dict[str, list[str]] = {}
    for line in _ask("squeue", "--me", "--noheader", "--array", "--format=%F %T").splitlines():
        job, _, state = line.partition(" ")
        states.setdefault(job, []).append(state)
    return states


def _ended_states(job: str) -> list[str]:
    """The state of each task of `job`, as the accounting knows it; nothing where Slurm keeps no accounts."""
    try:
        lines = _ask("sacct", "--noheader", "--allocations", "--format=State%20", f"--jobs={job}").splitlines()
    except WorkFailed:
        return []
    return [line.split()[0] for line in lines if line.strip()]  # "CANCELLED by 1000"


def _ask(*command: str) -> str:
    """What one of Slurm's commands prints.

    Raises:
        WorkFailed: it cannot be started, fails or does not end.
    """
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise WorkFailed(f"Slurm refused {command[0]} ({' '.join(error.stderr.split())})") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkFailed(f"Slurm does not answer ({one_line(error)})") from error
    return found.stdout


def _submit(folder: Folder, stage: str, script: str, after: str) -> str:
    """The number of the job that runs `script` once the job `after` has succeeded."""
    name = f"{stage}.sbatch"
    folder.write(name, script.encode())
    dependency = [f"--dependency=afterok:{after}"] if after else []
    try:
        job = _ask("sbatch", "--parsable", *dependency, str(folder.path / name)).strip().partition(";")[0]
    except WorkFailed as error:
        raise WorkFailed(f"{stage}: {error}") from error
    if not job.isdecimal():
        raise WorkFailed(f"{stage}: wanted the number of a job from sbatch; it said {job!r}")
    return job


def _read_jobs(location: str) -> dict[str, str]:
    """The number of the last job of each stage."""
    try:
        return dict(json.loads((Path(location) / FOLDER / JOBS).read_bytes()))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{location}/{FOLDER}/{JOBS}: cannot be read ({reason(error)})") from error
    except (TypeError, ValueError) as error:
        raise BadInput(f"{location}/{FOLDER}/{JOBS}: wanted the numbers of jobs; remove it") from error
