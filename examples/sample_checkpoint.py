"""Sample from a checkpoint: a picture for people, arrays for programs.

python examples/sample_checkpoint.py runs/quickstart/train
"""

import sys
from pathlib import Path

import traflow_pipeline as tp


def main(run: Path = Path("runs/quickstart/train"), out: Path = Path("runs/samples")) -> None:
    student = tp.load_student(run)
    for steps in (1, 2, 4):
        student.sample(16, steps=steps, seed=0).save(out / f"steps-{steps}.png")
    samples = student.sample(16, steps=2)
    samples.save(out / "samples.npy")
    print(f"{out}: {len(samples)} samples {samples.arrays.shape[1:]}, as bytes {samples.images.shape[1:]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
