"""All benchmarks, as one Markdown document on standard output."""

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path

import torch

from benchmarks import generation, reading, training, verifying


def machine() -> str:
    """The processor of this machine, by its own name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Print the document, each section when it is done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether they run, not how fast")
    quick = parser.parse_args().quick
    print("# Benchmarks\n\n    make bench\n")
    sizes = ", small sizes (`--quick`): they say nothing of speed" if quick else ""
    print(f"{machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {datetime.date.today()}{sizes}.")
    print("Sides are timed in turn in one run; times are medians.\n")
    for module in (generation, reading, verifying, training):
        print(module.benchmark(quick))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
