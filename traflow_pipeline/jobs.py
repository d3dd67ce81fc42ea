"""The stages of a run as jobs on a Ray cluster, one after another, which outlive the command that submits them."""

import asyncio
import shlex
import time
from typing import TYPE_CHECKING

from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.common.progress import console, say
from traflow_pipeline.named_code import name_again
from traflow_pipeline.run import Run, resumable_status, save_run
from traflow_pipeline.run_settings import CONFIG

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_SECONDS = 2.0
LIVE, DONE = ("PENDING", "RUNNING"), "SUCCEEDED"


def submit(run: Run, address: str) -> None:
    """Submit every incomplete stage to the cluster whose dashboard is at `address`, and follow the jobs' logs.

    A stage whose job is already waiting or running is followed and not submitted again. Ctrl-C only stops following.

    Raises:
        BadInput: no cluster answers, or a stage's inputs have changed since its outputs were made.
        WorkFailed: a stage failed; the jobs after it end by themselves.
    """
    client = _client(address)
    # Files and modules are the cluster's: each job checks them there, before its stage works.
    statuses = {stage: resumable_status(run, stage) for stage in run.stages}
    save_run(run)
    jobs: list[str] = []
    for stage, status in statuses.items():
        if status.complete:
            say(status.message)
            continue
        job = _find_live(client, run, stage) or _submit(client, run, stage, jobs[-1:])
        say(f"{stage}: job {job}")
        jobs.append(job)
    try:
        for job in jobs:
            _follow(client, job)
    except KeyboardInterrupt:
        say("detached: the jobs continue; the same command follows them again, and status shows their progress")


def wait_for(job: str) -> None:
    """Wait, inside a job, until the job before it has succeeded.

    Raises:
        WorkFailed: that job did not succeed.
    """
    client = _client(None)
    while (status := client.get_job_status(job).value) in LIVE:
        time.sleep(POLL_SECONDS)
    if status != DONE:
        raise WorkFailed(f"the job before this one, {job}, ended as {status}: see its log, and submit the run again")


def _client(address: str | None) -> "JobSubmissionClient":
    try:
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(address)
    except ImportError as error:
        raise BadInput("--submit: wanted Ray's job packages; pip install 'ray[default]'") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"--submit {address}: no Ray dashboard answers there ({one_line(error)[:200]}): wanted its address, for "
            "example http://127.0.0.1:8265 after `kubectl port-forward`"
        ) from error


def _find_live(client: "JobSubmissionClient", run: Run, stage: str) -> str | None:
    """The waiting or running job of the same stage of the same run."""
    for job in client.list_jobs():
        if job.status.value in LIVE and job.metadata == _metadata(run, stage):
            return str(job.submission_id)
    return None


def _submit(client: "JobSubmissionClient", run: Run, stage: str, after: list[str]) -> str:
    command = ["traflow-pipeline", "run", run.location, "--only", stage, "--on", "ray", *name_again(run.sections())]
    for job in after:
        command += ["--after", job]
    return str(client.submit_job(entrypoint=shlex.join(command), metadata=_metadata(run, stage)))


def _metadata(run: Run, stage: str) -> dict[str, str]:
    return {"traflow-run": f"{run.location}/{CONFIG}", "traflow-stage": stage}


def _follow(client: "JobSubmissionClient", job: str) -> None:
    """Print the log of `job` until it ends."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            console.print(lines, end="", markup=False, highlight=False, soft_wrap=True)

    asyncio.run(tail())
    status = client.get_job_status(job).value
    if status != DONE:
        raise WorkFailed(f"job {job} ended as {status}: see its log above; submit the run again to resume it")
