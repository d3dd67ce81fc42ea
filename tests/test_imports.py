"""One direction of imports: a later stage knows an earlier one, and a room those below it, never the reverse."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ["pipeline", "trainer", "eval", "traflow_pipeline"]
# Bottom up: a room (a folder, or a file beside the folders) imports only from the lines above its own, or from itself.
ROOMS = {
    "pipeline": [
        {"common"},
        {"storage", "flow"},
        {"networks", "dataset"},
        {"teachers"},
        {"generation"},
    ],
    "trainer": [
        {"data", "checkpoints", "distributed"},
        {"distillation", "settings"},
        {"config", "export"},
        {"setup", "step", "log", "preview", "kernels"},
        {"train"},
        {"dry_run", "ray_stop"},
        {"on_ray"},
    ],
    "eval": [
        {"sample_counts", "prompts"},
        {"results", "models", "features"},
        {"sampling"},
        {"metrics"},
        {"report"},
        {"config"},
        {"evaluate"},
        {"on_ray"},
    ],
    "traflow_pipeline": [
        {"installation", "named_code", "once", "settings", "samples", "slurm_config", "trajectory_dataset"},
        {"keys", "run_settings"},
        {"next_commands", "sample_source", "stages", "run", "stage_command"},
        {"student_sampler", "sample_folder", "jobs", "slurm"},
        {"folder_status"},
        {"loading"},
        {"api", "cli"},
        {"__main__"},
    ],
}


def sources() -> list[Path]:
    return [path for stage in STAGES for path in sorted((ROOT / stage).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(stage: str, room: str) -> int:
    return next(i for i, rooms in enumerate(ROOMS[stage]) if room in rooms)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_goes_upwards(path: Path) -> None:
    stage, room = (*path.relative_to(ROOT).with_suffix("").parts, "")[:2]
    for name in imported(path):
        other, *rest = name.split(".")
        if other not in STAGES:
            continue
        assert STAGES.index(other) <= STAGES.index(stage), f"{path} imports {name}"
        if other == stage and room != "__init__" and rest[0] != room:
            assert level(stage, rest[0]) < level(stage, room), f"{path} imports {name}"


def test_every_room_has_a_place_in_the_order() -> None:
    for stage, levels in ROOMS.items():
        names = {
            path.stem for path in (ROOT / stage).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
        }
        assert names - {"__init__"} == set().union(*levels)


def test_no_test_module_is_imported_by_another() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for name in imported(path):
            assert not any(part.startswith("test_") for part in name.split(".")[:-1]), f"{path} imports {name}"


def test_few_files_import_ray() -> None:
    users = {str(path.relative_to(ROOT)) for path in sources() if any(n.split(".")[0] == "ray" for n in imported(path))}
    assert users == {
        "pipeline/common/ray_cluster.py",
        "pipeline/generation/workers.py",
        "trainer/on_ray.py",
        "trainer/ray_stop.py",
        "traflow_pipeline/jobs.py",
    }
