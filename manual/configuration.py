"""The page of every key of a config, from the models that check them."""

from itertools import groupby

from manual.options import key_table
from traflow_pipeline.keys import MODELS, keys

INTRO = """# Configuration

A config is a YAML file with a section for each command that it is for, and `slurm` where its runs are submitted to
Slurm. `--config NAME` takes one of `configs/` by name or any by path, flags go over it, and `--set KEY=VALUE` goes
over both. In `traflow-pipeline run CONFIG --set STAGE.KEY=VALUE` the key begins with its section. Nested keys are
written with dots or as mappings: `--set trainer.ema.half_life_images=1e6`, `--set "trainer.ema={half_life_images:
1e6}"`. A key that does not exist is refused, with the ones that do.

`traflow-pipeline config train` prints a section with all its keys, defaults and sentences, as YAML to start from.
What a command ran with lies in its output folder as a config that runs it again. A config may name another as its
`base`, a path from its own folder, and says then only what differs.

The keys of [networks](networks.md) and [losses](losses.md) have pages of their own.
"""

# Keys that belong to one of several models have a page of their own.
ELSEWHERE = ("network.", "lora.")


def page() -> str:
    """Every section with its keys."""
    return "\n\n".join([INTRO, *(_section(topic) for topic in MODELS if topic != "recipe")])


def _section(topic: str) -> str:
    shown = [key for key in keys(topic) if not key.name.startswith(ELSEWHERE)]
    parts = [f"## {topic}"]
    for group, members in groupby(shown, key=lambda key: key.group):
        parts += [f"### {topic}: {_title(group)}"] if group else []
        parts.append(key_table(members))
    return "\n\n".join(parts)


def _title(group: str) -> str:
    return group[:1].lower() + group[1:]
