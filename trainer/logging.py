"""The training log: one JSON object a line, each loss by name, readable while the training runs."""

import json
from pathlib import Path

from pipeline.store import write_atomic


class JsonLog:
    """Appends to `path`; lines of steps after `start_step`, left by a run that was killed, are dropped first."""

    def __init__(self, path: Path, start_step: int) -> None:
        self.path = path
        kept = [line for line in read(path) if line["step"] <= start_step]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, step: int, **values: float) -> None:
        """Log `values` after `step` steps."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a log; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
