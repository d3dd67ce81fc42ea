"""The page of the network families that `network` chooses between, from their configurations."""

from pydantic import BaseModel

from manual.options import options
from manual.text import prose
from pipeline.networks.dhariwal import DhariwalUNetConfig
from pipeline.networks.diffusers.adapter import AdapterConfig
from pipeline.networks.mlp import MlpConfig
from pipeline.networks.song import SongUNetConfig
from pipeline.networks.unet import UNetConfig
from traflow_pipeline.keys import own_keys

INTRO = """# Networks

What `network` of a training may be, as in `--set "network={family: mlp, width: 128}"`. A student has its teacher's
network unless you give one; a teacher of this program, or the student of a function, needs one. What a network
leaves out of its shape and classes it takes from the data.
"""

# A family's own fields come after those that it shares with another.
FAMILIES: dict[str, type[BaseModel]] = {"song": SongUNetConfig, "dhariwal": DhariwalUNetConfig}


def page() -> str:
    """Each family, and the adapter that a pipeline's network may have."""
    parts = [INTRO, "## The U-Nets", prose(UNetConfig.__doc__), options(UNetConfig)]
    shared = {key.name: key.default for key in own_keys(UNetConfig, None)}
    for name, model in FAMILIES.items():
        same = {key.name for key in own_keys(model, None) if shared.get(key.name) == key.default}
        parts += [f"## family: {name}", prose(model.__doc__), options(model, skip=same)]
    parts += ["## family: mlp", prose(MlpConfig.__doc__), options(MlpConfig)]
    return "\n\n".join([*parts, "## lora", prose(AdapterConfig.__doc__), options(AdapterConfig)])
