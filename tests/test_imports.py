"""One direction of imports: a later stage knows an earlier one, never the reverse."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ["pipeline", "trainer", "eval", "traflow_pipeline"]
# From the bottom up: a module imports only from lines above its own, or beside it in its own folder.
PIPELINE = [
    "errors",
    "cache",
    "config",
    "device",
    "progress",
    "stop",
    "store",
    "factory",
    "lease",
    "pictures",
    "flow",
    "noise",
    "networks",
    "solver",
    "teachers",
    "plan",
    "shards",
    "manifest",
    "reader",
    "generate",
    "cluster",
    "dataset",
    "estimate",
    "appraisal",
    "frontier",
    "integrity",
    "summary",
]


def sources() -> list[Path]:
    files = [ROOT / "traflow_pipeline.py"]
    for stage in STAGES[:3]:
        files += sorted((ROOT / stage).rglob("*.py"))
    return files


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_goes_upwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    for name in imported(path):
        stage, *rest = name.split(".")
        if stage not in STAGES:
            continue
        assert STAGES.index(stage) <= STAGES.index(parts[0]), f"{path} imports {name}"
        if stage == parts[0] == "pipeline" and parts[1] != "__init__" and rest[0] != parts[1]:
            assert PIPELINE.index(rest[0]) < PIPELINE.index(parts[1]), f"{path} imports {name}"


def test_one_file_of_a_stage_imports_ray() -> None:
    users = [path.name for path in sources() if any(name.split(".")[0] == "ray" for name in imported(path))]
    assert users == ["cluster.py", "on_ray.py", "jobs.py"]
