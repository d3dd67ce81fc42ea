"""A recipe of your own: the YAML file beside this one, on trajectories of the embedded teacher.

python examples/my_recipe.py
"""

from pathlib import Path

import traflow_pipeline as tp

RECIPE = Path(__file__).with_name("my_recipe.yaml")


def main(out: Path = Path("runs/my-recipe"), n: int = 1024, num_steps: int = 200) -> None:
    tp.generate(
        teacher="digits",
        n=n,
        out=out / "data",
        states=4,
        solver={"name": "rk4", "num_steps": 5},
        shard_size=256,
        batch_size=64,
        executor="inline",
    )
    checkpoint = tp.train(
        data=out / "data",
        out=out / "train",
        recipe=str(RECIPE),
        trainer={"num_steps": num_steps, "batch_size": 64, "warmup_steps": 20, "ema": {"half_life_images": 2000}},
    )
    print(f"the student is in {checkpoint}")


if __name__ == "__main__":
    main()
