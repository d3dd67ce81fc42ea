"""A real Slurm on this machine: a controller and three nodes, each a daemon, in a folder of their own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.serving import free_port

NODES = ("n1", "n2", "n3")
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun", "scancel")
ANSWER_SECONDS, PATIENCE_SECONDS = 60, 300
# Short times, so that a lost node is noticed and a requeued job begins again within seconds.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdTimeout=5
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons want root"
    lacking = [name for name in DAEMONS if shutil.which(name) is None]
    return f"{', '.join(lacking)} of Slurm and munge are not installed" if lacking else ""


@contextmanager
def running() -> Iterator[Path]:
    """A Slurm of three nodes, which commands find by SLURM_CONF; yields its folder."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the path of a socket is short
    try:
        _write_config(folder)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        _start(folder)
        yield folder
    finally:
        for node in NODES:
            kill_node(folder, node)
        for pid_file in (folder / "controller.pid", folder / "munge" / "pid"):
            _end(pid_file)
        os.environ.pop("SLURM_CONF", None)
        shutil.rmtree(folder, ignore_errors=True)


def _write_config(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    host = socket.gethostname()
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2 State=UNKNOWN"
        for node in NODES
    )
    text = CONFIG.format(folder=folder, host=host, port=free_port(), nodes=nodes)
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)


def _start(folder: Path) -> None:
    munge = folder / "munge"
    files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
    _run("munged", "--force", f"--socket={munge / 'socket'}", *files)
    _run("slurmctld")
    for node in NODES:
        start_node(node)
    wait_until(lambda: said("sinfo", "--noheader", "--format=%T").split() == ["idle"], "the nodes to be idle")


def start_node(node: str) -> None:
    _run("slurmd", "-N", node)


def kill_node(folder: Path, node: str) -> None:
    """Kill the daemon of `node` and whatever runs there, as if the machine were lost."""
    processes = list(Path("/proc").glob("[0-9]*"))
    stewards = [process for process in processes if _is_steward(process, folder / f"{node}.log")]
    work = [process for process in processes if _is_work(process, folder, node)]
    for process in (*stewards, *work):  # first who would tell the controller of the others' end
        try:
            os.kill(int(process.name), signal.SIGKILL)
        except ProcessLookupError:
            continue


def _is_steward(process: Path, log: Path) -> bool:
    """Whether `process` is a daemon of the node that writes `log`: slurmd, or the slurmstepd of a job."""
    try:
        return log in {file.readlink() for file in (process / "fd").iterdir()}
    except OSError:
        return False


def _is_work(process: Path, folder: Path, node: str) -> bool:
    """Whether `process` is part of a job on `node`."""
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={folder / 'slurm.conf'}".encode()} <= {*environment}


def said(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s for {what}"
        time.sleep(0.1)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=ANSWER_SECONDS, capture_output=True)


def _end(pid_file: Path) -> None:
    try:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    except (OSError, ValueError):
        return
    wait_until(lambda: not pid_file.exists(), f"{pid_file} to go")
