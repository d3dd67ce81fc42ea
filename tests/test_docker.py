"""Images and manifests: they are what the published schemas want, every command in them is one of ours, and the image
is built and runs the quickstart.
"""

import ast
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import requests
import typer
import yaml

from pipeline.common.config import COMMANDS, load_section
from traflow_pipeline.cli import app

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
STAGES = ("generate", "train", "evaluate")
WITH_COMMANDS = sorted(
    path
    for pattern in ("*.md", "Makefile", "docs/**/*.md", "configs/**/*.yaml", "docker/**/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
# A line of a shell: in a block of code, of make, in a comment with a margin of its own, or in a script.
SHELL = re.compile(r"^(?: {4,}|\t|#  +|)((?:torchrun .*-m |\S*/)?traflow[-_]pipeline\b.*)$", re.MULTILINE)
KUBERAY = (
    "https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases/ray.io_rayjobs.yaml"
)
KUBERAY_SHA256 = "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5"
TINY = ("--teacher", "digits", "--n", "64", "--out", "runs/data", "--executor", "inline")
BUILD_BYTES = 32 * 2**30  # the image as a container, as blobs and as a layer; then as the container that runs


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def commands(line: str) -> Iterator[list[str]]:
    """The arguments of each of our commands in a line of a shell."""
    lexer = shlex.shlex(line.replace("$(BIN)/", ""), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for is_operator, group in itertools.groupby(lexer, key=lambda word: set(word) <= set("();<>|&")):
        words = list(group)
        if not is_operator and Path(words[0]).name == "traflow-pipeline":
            yield words[1:]
        elif not is_operator and words[0] == "torchrun" and "traflow_pipeline" in words:
            yield words[words.index("traflow_pipeline") + 1 :]
        elif words[:2] == ["sh", "-c"]:
            yield from commands(words[2])


def strings(value: Any) -> Iterator[str]:
    """The strings of a YAML value that may be commands, lists of words joined; kustomize's patches are YAML in YAML."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from strings(yaml.safe_load(below) if key == "patch" else below)
    elif isinstance(value, list):
        if all(isinstance(word, str) for word in value):
            yield shlex.join(value)
        for below in value:
            yield from strings(below)
    elif isinstance(value, str) and " " in value:
        yield value


def command_lines(path: Path) -> Iterator[list[str]]:
    text = path.read_text().replace("\\\n", " ")
    if DOCKER in path.parents and path.suffix == ".yaml":
        lines = [line for line in strings(yaml.safe_load(text)) if "traflow-pipeline" in line]
    elif path.name == "Dockerfile":
        lines = [shlex.join(json.loads(words)) for words in re.findall(r"CMD (\[.*\])$", text, re.MULTILINE)]
    elif path.suffix == ".md":  # the indented blocks are the code
        lines = SHELL.findall("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    else:
        lines = SHELL.findall(text)
    for line in lines:
        yield from commands(line)


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The last command of `arguments` and its options, as our own command line reads them; nothing is run.

    Where they ask for help there is no command: "".
    """
    seen: list[tuple[str, dict[str, Any]]] = [("", {})]

    def record(command: Any) -> None:
        command.callback = lambda **options: seen.append((command.name, options))
        for below in getattr(command, "commands", {}).values():
            record(below)

    program = typer.main.get_command(app)
    record(program)
    program.main(arguments, prog_name="traflow-pipeline", standalone_mode=False)
    return seen[-1]


LINES = [(path, words) for path in WITH_COMMANDS for words in command_lines(path)]


@pytest.mark.parametrize(
    ("path", "words"), LINES, ids=[f"{path.relative_to(ROOT)}: {shlex.join(words)}" for path, words in LINES]
)
def test_every_command_that_is_written_down_is_one_that_the_program_takes(path: Path, words: list[str]) -> None:
    command, options = parse(words)
    config = options.get("config")
    is_the_readers_own = path.suffix == ".md" and config and config.endswith(".yaml")
    if command in COMMANDS and config and not is_the_readers_own:
        assert load_section(config, command)


def test_the_search_for_commands_finds_them_in_every_kind_of_file() -> None:
    found = {path.relative_to(ROOT).parts[0] for path, _ in LINES}
    assert found >= {"README.md", "CONTRIBUTING.md", "Makefile", "docs", "configs", "docker"}
    assert {path.parent.name for path, words in LINES if words[0] in STAGES} >= {*STAGES, "docker", "configs"}


@pytest.mark.parametrize("words", [["generate", "--no-such-flag"], ["no-such-command"], ["verify"]])
def test_what_the_program_does_not_take_is_refused(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(words)


def check_schema(*arguments: object) -> None:
    command = [sys.executable, "-m", "check_jsonschema", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_compose_file_is_what_the_compose_specification_wants() -> None:
    check_schema("--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")


def test_the_compose_file_publishes_nothing_and_keeps_no_secret_but_a_local_one() -> None:
    services = load(DOCKER / "compose.yaml")["services"]
    for name, service in services.items():
        assert "ports" not in service, name
        environment = service["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        for key in ("RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert re.fullmatch(rf"\$\{{{key}:-(local-only|traflow)\}}", environment[key]), (name, key)
    assert services["quickstart"]["environment"]["TRAFLOW_DATA"].startswith(
        f"s3://{services['store']['environment']['S3_BUCKET']}/"
    )


def rayjob(stage: str) -> dict[str, Any]:
    """The RayJob of a stage: the base with the stage's patches."""
    layer = load(DOCKER / "kuberay" / stage / "kustomization.yaml")
    job: dict[str, Any] = load(DOCKER / "kuberay" / "base" / "rayjob.yaml")
    job["metadata"]["name"] += layer["nameSuffix"]
    for patch in layer["patches"]:
        job = jsonpatch.apply_patch(job, yaml.safe_load(patch["patch"]))
    return job


def pods(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group.get("groupName", "head"), group["template"]["spec"]


@pytest.mark.parametrize("stage", STAGES)
def test_kustomize_makes_of_the_manifests_what_these_tests_make_of_them(stage: str) -> None:
    known = {"kubectl": ["kubectl", "kustomize"], "kustomize": ["kustomize", "build"]}
    build = next((command for name, command in known.items() if shutil.which(name)), None)
    if build is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    folder = str(DOCKER / "kuberay" / stage)
    made = subprocess.run([*build, folder], capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(made) == rayjob(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_is_retried_has_an_end_and_takes_its_cluster_with_it(stage: str) -> None:
    job = rayjob(stage)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,46}", job["metadata"]["name"])
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert next(commands(spec["entrypoint"]))[0] == stage


@pytest.mark.parametrize("stage", STAGES)
def test_workers_come_and_go_within_limits_that_fit_the_command(stage: str) -> None:
    spec = rayjob(stage)["spec"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    _, options = parse(next(commands(spec["entrypoint"])))
    asked = {"generate": "workers", "train": "workers"}.get(stage)
    if asked:
        assert options[asked] == group["maxReplicas"]
        assert options["address"] == "auto"
    else:
        assert spec["entrypointNumGpus"] == group["minReplicas"] == 1
    if stage == "train":  # without a GPU in sight the ranks would be on CPUs
        assert group["minReplicas"] >= 1
        batch_size = load_section(options["config"], "train")["trainer"]["batch_size"]
        assert batch_size % options["workers"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_ray_in_the_image_and_in_the_manifest_are_one_version_and_want_a_token(stage: str) -> None:
    cluster = rayjob(stage)["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_head_is_on_demand_without_work_of_its_own_and_workers_are_spot_with_a_gpu(stage: str) -> None:
    job = rayjob(stage)
    head, worker = (pod for _, pod in pods(job))
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"

    def terms(pod: dict[str, Any]) -> list[Any]:
        wanted = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return list(wanted["nodeSelectorTerms"])

    (none_of,) = terms(head)
    any_of = [expression for term in terms(worker) for expression in term["matchExpressions"]]
    assert [{**expression, "operator": "In"} for expression in none_of["matchExpressions"]] == any_of
    assert {expression["operator"] for expression in none_of["matchExpressions"]} == {"NotIn"}
    tolerated = {toleration["key"] for toleration in worker["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} == tolerated
    assert "tolerations" not in head
    (container,) = worker["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("stage", STAGES)
def test_every_container_is_our_image_as_our_user_with_the_volume_that_all_share(stage: str) -> None:
    claim = load(DOCKER / "kuberay" / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, pod in pods(rayjob(stage)):
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, 1000, 1000), name
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in (*pod["containers"], *pod.get("initContainers", [])):
            assert container["image"] == "traflow-pipeline:cuda"
            assert {"name": volume["name"], "mountPath": "/home/traflow/runs"} in container["volumeMounts"]
            assert {"name": "TRAFLOW_TEACHERS", "value": "/home/traflow/runs/teachers"} in container["env"]


def targets() -> dict[str, list[str]]:
    """The instructions of each stage of the Dockerfile."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: dict[str, list[str]] = {"": []}
    for line in lines:
        if line.startswith("FROM "):
            found[line.rpartition(" AS ")[2]] = []
        found[list(found)[-1]].append(line)
    return found


def test_the_image_has_a_cuda_and_a_cpu_target_that_run_as_a_user_without_rights() -> None:
    found = targets()
    assert list(found)[-1] == "cpu", "the last one is the one that is built by default"
    for name in ("cuda", "cpu"):
        assert found[name][0] == f"FROM common AS {name}"
        assert found[name][-1] == "USER 1000:1000"
        installs = [line for line in found[name] if "pip install" in line]
        assert installs
        assert all("--constraint /opt/traflow/constraints.txt" in line for line in installs)
    assert found["common"][0] == "FROM ${BASE} AS common"
    assert any(line.startswith("HEALTHCHECK ") for line in found["common"])


def test_every_package_of_the_program_gets_into_the_image() -> None:
    copied = {line.split()[1] for line in targets()["wheel"] if line.startswith("COPY ") and len(line.split()) == 3}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert copied == {package.rstrip("*") for package in packages}


def closed(schema: Any) -> Any:
    """The schema with no field but those that it names, as `kubectl apply` is by default."""
    if isinstance(schema, list):
        return [closed(below) for below in schema]
    if not isinstance(schema, dict):
        return schema
    below = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        below.setdefault("additionalProperties", False)
    return below


@pytest.fixture(scope="module")
def kuberay_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KubeRay's schema of a RayJob, as a file; it is too large to be kept here."""
    try:
        answer = requests.get(KUBERAY, timeout=60)
        answer.raise_for_status()
    except requests.RequestException as error:
        pytest.skip(f"KubeRay's schema could not be had: {error}")
    assert hashlib.sha256(answer.content).hexdigest() == KUBERAY_SHA256
    (version,) = (v for v in yaml.safe_load(answer.text)["spec"]["versions"] if v["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which no resource's schema spells out
    path = tmp_path_factory.mktemp("kuberay") / "schema.json"
    path.write_text(json.dumps(schema))
    return path


@pytest.mark.proof
@pytest.mark.parametrize("stage", STAGES)
def test_a_job_is_what_the_schema_of_kuberay_wants(stage: str, kuberay_schema: Path, tmp_path: Path) -> None:
    job = rayjob(stage)
    (tmp_path / "job.json").write_text(json.dumps(job))
    check_schema("--schemafile", kuberay_schema, tmp_path / "job.json")
    del job["spec"]["rayClusterSpec"]["headGroupSpec"]
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(AssertionError, match="'headGroupSpec' is a required property"):
        check_schema("--schemafile", kuberay_schema, tmp_path / "job.json")


def pip_settings(folder: Path) -> str:
    """How pip reaches its index on this machine, as a pip.conf; the certificates that it trusts go into `folder`."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    found = {key.rpartition(".")[2]: ast.literal_eval(value) for key, value in re.findall(r"(.*?)=(.*)", listed)}
    kept = {key: found[key] for key in ("index-url", "proxy", "timeout", "trusted-host") if key in found}
    if "cert" in found:
        shutil.copy(found["cert"], folder / "pip.pem")
        kept["cert"] = "/etc/pip.pem"
    return "\n".join(["[global]", *(f"{key} = {value}" for key, value in kept.items())]) + "\n"


@pytest.fixture
def workshop() -> Iterator[Path]:
    """A folder that is gone afterwards, whatever happens: an image is larger than what pytest should keep."""
    for tool in ("buildah", "mmdebstrap"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed: apt-get install buildah mmdebstrap")
    if os.geteuid() != 0:
        pytest.skip("building an image without a container engine is root's")
    with tempfile.TemporaryDirectory(prefix="traflow-image-") as folder:
        if shutil.disk_usage(folder).free < BUILD_BYTES:
            pytest.skip(f"building an image takes {BUILD_BYTES // 2**30} GiB beside {folder}")
        yield Path(folder)


@dataclass(frozen=True)
class Buildah:
    """buildah with all that it stores in `folder`; no daemon, no namespaces, and no file system of its own."""

    folder: Path

    def __call__(self, *arguments: object) -> str:
        store = ("--root", self.folder / "storage", "--runroot", self.folder / "run", "--storage-driver", "vfs")
        command = [str(word) for word in ("buildah", *store, *arguments)]
        print(shlex.join(command), flush=True)
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        found = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert found.returncode == 0, found.stdout
        return found.stdout

    def run(self, container: str, *command: str) -> str:
        """What `command` prints in `container`."""
        return self("run", "--isolation=chroot", container, "--", *command)

    def build(self, target: str) -> str:
        """A container of the Dockerfile's `target`, from nothing but Debian; PyPI's torch, which has CUDA, in both."""
        tar = self.folder / "base.tar"
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["mmdebstrap", "--variant=minbase", packages, "bookworm", tar], check=True)
        base = self("from", "scratch").strip()
        self("add", base, tar, "/")
        self("commit", "--rm", base, "base")
        tar.unlink()

        (self.folder / "pip.conf").write_text(pip_settings(self.folder))
        mounts = [f"--volume={path}:/etc/{path.name}:ro" for path in self.folder.glob("pip.*")]
        arguments = ("--build-arg=BASE=localhost/base", "--build-arg=TORCH_INDEX=", f"--target={target}")
        flags = ("--isolation=chroot", "--format=docker", "--layers=false", "--file=docker/Dockerfile", "--tag=traflow")
        self("build", *flags, *arguments, *mounts, ".")
        return self("from", "localhost/traflow").strip()


@pytest.mark.proof
def test_the_image_is_built_from_nothing_but_debian_and_runs_the_quickstart(workshop: Path) -> None:
    buildah = Buildah(workshop)
    container = buildah.build("cpu")
    assert buildah.run(container, "id", "--user").strip() == "1000"
    image = json.loads(buildah("inspect", "--type=image", "localhost/traflow"))["Docker"]["config"]
    buildah.run(container, *image["Healthcheck"]["Test"][1:])
    said = buildah.run(container, *image["Cmd"])
    assert "runs/quickstart/report.html: the page" in said
    report = Path(buildah("mount", container).strip(), "home/traflow/runs/quickstart/report.html")
    assert report.stat().st_uid == 1000


@pytest.mark.proof
def test_the_cuda_image_is_built_with_torch_for_cuda_and_a_compiler_for_its_kernels(workshop: Path) -> None:
    buildah = Buildah(workshop)
    container = buildah.build("cuda")
    assert buildah.run(container, "id", "--user").strip() == "1000"
    wanted = "import torch; assert torch.backends.cuda.is_built(); print(torch.version.cuda, torch.cuda.nccl.version())"
    print(buildah.run(container, "python", "-c", wanted), buildah("images", "localhost/traflow"))
    assert "gcc" in buildah.run(container, "gcc", "--version")
    buildah.run(container, "traflow-pipeline", "generate", *TINY)
    image = json.loads(buildah("inspect", "--type=image", "localhost/traflow"))["Docker"]["config"]
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(image["Env"])
