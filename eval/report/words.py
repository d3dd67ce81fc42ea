"""Words for a reader: what the curves of a training show, and the names of things instead of the paths to them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# By the loss, or by the name in the log of what is no loss.
CURVES = {
    "output": "One jump from noise to the sample",
    "trajectory": "A jump along the stored trajectory",
    "velocity": "The teacher's velocity",
    "derivative": "The velocity of the trajectory, by a derivative",
    "consistency": "One jump against two half as long",
    "soft-consistency": "One jump against two, over stored states",
    "lagrangian": "Lagrangian flow map",
    "eulerian": "Eulerian flow map",
    "continuous-consistency": "Consistency in continuous time",
    "denoising": "Denoising: the velocity of lines to fresh noise",
    "meanflow": "MeanFlow identity",
    "flow-matching": "Flow matching: the velocity from noise to data",
    "reflow": "Reflow: the velocity of straight lines",
    "consistency-distillation": "Consistency of neighbouring states",
    "consistency-training": "Consistency of neighbouring times",
    "bootstrap": "BOOT: the next time from the one before",
    "progressive": "One step against two",
    "annealed-reflow": "Annealed reflow",
    "guided": "Flow-guided distillation",
    "trajectory-consistency": "CTM: two jumps compared at the end",
    "shortcut": "Shortcut: one step against two half as long",
    "score-distillation": "Score distillation",
    "adversarial": "Adversarial loss",
    "distribution-matching": "Distribution matching: the two scores",
    "loss": "All losses, weighted",
    "grad_norm": "Norm of the gradient, before clipping",
    "images_per_second": "Images per second",
    "memory_bytes": "Peak memory, GB",
}
SCALES = {"images_per_second": 1.0, "memory_bytes": 1e-9}  # of curves that begin at zero, from the log to their words
PATH_KEYS = {"out", "mirror", "data", "teacher", "start", "images", "reference", "checkpoint"}
NO_PATH = re.compile(r"(hf|cleanfid|diffusers):")
# An absolute path or a store's URL with at least one folder, in a text: from a place where a word may begin to its end.
PATH = re.compile(
    r"(?<![\w./~:-])(?!https?://)(?:[a-z][a-z0-9+.-]*://|~/|\.{1,2}/|/)(?:[^\s/'\"“”()<>,;]+/)+([^\s/'\"“”()<>,;]+)"
)


def curve_title(name: str, losses: Mapping[str, str]) -> str:
    """What the curve `name` shows, or its name where there are no words; `losses` has each term's loss by its name."""
    words = CURVES.get(losses.get(name, name))
    return name if words is None else f"{words} ({name})"


def loss_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The loss of each term that has a name of its own, in a training's configuration."""
    return {term["name"]: str(term.get("loss")) for term in _terms(config) if isinstance(term.get("name"), str)}


def _terms(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    recipe = config.get("recipe")
    phases = recipe.get("phases", ()) if isinstance(recipe, Mapping) else ()
    for phase in phases:
        yield from (term for term in phase.get("terms", ()) if isinstance(term, Mapping))


def without_paths(text: str) -> str:
    """`text` with the last part of each absolute path and URL in it."""
    return PATH.sub(r"\1", text)


def command_without_paths(command: str) -> str:
    """A command with the last part of each file that it names."""
    return " ".join(last_part(word) for word in command.split())


def last_part(location: str) -> str:
    """The name at the end of a path or URL; other names stay as they are."""
    return location if NO_PATH.match(location) else location.rstrip("/").rpartition("/")[2] or location


def config_without_paths(value: Any, key: str = "") -> Any:
    """A configuration with the last part of each location, nested values too."""
    if isinstance(value, Mapping):
        return {name: config_without_paths(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [config_without_paths(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return last_part(value) if key in PATH_KEYS else without_paths(value)
