"""The stages of a run as jobs of a Ray cluster, each after the one before, whoever watches."""

import asyncio
import shlex
import time
from typing import Any

from pipeline.common.errors import BadInput, WorkFailed, one_line
from pipeline.common.progress import console, say
from traflow_pipeline.run import CONFIG, Run, stage_status, write_down

POLL_SECONDS = 2.0
LIVE, DONE = ("PENDING", "RUNNING"), "SUCCEEDED"


def submit(plan: Run, address: str) -> None:
    """Submit every stage that is not complete to the cluster whose dashboard is at `address`, and follow their logs.

    A stage that is at work already is followed and not submitted again. Ctrl-C ends the following alone.

    Raises:
        BadInput: no cluster answers there, or a stage's inputs have changed since its outputs were made.
        WorkFailed: a stage failed; those after it end by themselves.
    """
    client = _client(address)
    write_down(plan)
    jobs: list[str] = []
    for stage in plan.stages:
        standing = stage_status(plan, stage)
        if standing.fault:
            raise BadInput(f"{standing.location}: {standing.fault}")
        if standing.complete:
            say(f"{stage}: {standing.location}, {standing.progress}, complete")
            continue
        job = _find_live(client, plan, stage) or _submit(client, plan, stage, jobs[-1:])
        say(f"{stage}: job {job}")
        jobs.append(job)
    try:
        for job in jobs:
            _follow(client, job)
    except KeyboardInterrupt:
        say("detached: the jobs go on; the same command follows them again, and status shows where they stand")


def wait_for(job: str) -> None:
    """Wait, inside a job, until the job before it has succeeded.

    Raises:
        WorkFailed: it did not.
    """
    client = _client(None)
    while (status := client.get_job_status(job).value) in LIVE:
        time.sleep(POLL_SECONDS)
    if status != DONE:
        raise WorkFailed(f"the job before this one, {job}, ended as {status}: see its log, and submit the run again")


def _client(address: str | None) -> Any:
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


def _find_live(client: Any, plan: Run, stage: str) -> str | None:
    """The job of `stage` in the same place that is still to end."""
    for job in client.list_jobs():
        if job.status.value in LIVE and job.metadata == _metadata(plan, stage):
            return str(job.submission_id)
    return None


def _submit(client: Any, plan: Run, stage: str, after: list[str]) -> str:
    words = ["traflow-pipeline", "run", plan.place, "--only", stage, "--on", "ray"]
    for job in after:
        words += ["--after", job]
    return str(client.submit_job(entrypoint=shlex.join(words), metadata=_metadata(plan, stage)))


def _metadata(plan: Run, stage: str) -> dict[str, str]:
    return {"traflow-run": f"{plan.place}/{CONFIG}", "traflow-stage": stage}


def _follow(client: Any, job: str) -> None:
    """Print the log of `job` until it ends."""

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            console.print(lines, end="", markup=False, highlight=False, soft_wrap=True)

    asyncio.run(tail())
    status = client.get_job_status(job).value
    if status != DONE:
        raise WorkFailed(f"job {job} ended as {status}: its log stands above; submit the run again to go on")
