"""The CLIP score: how well pictures fit their prompts, by a CLIP model of transformers.

100 max(cos(image, text), 0), the mean over samples (Hessel et al. 2021, arXiv 2104.08718, Eq. 1, whose factor is 2.5
instead of 100). Only safetensors and JSON of the model are read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eval.features.spaces import Extractor, Features, FeatureSpace, standardised
from eval.features.weights import Unavailable
from pipeline.common.errors import BadInput, one_line
from pipeline.networks.diffusers.weights import files_sha256, quiet, weight_files
from pipeline.teachers.diffusers.folder import HUB_NAME, read_json

DEFAULT = "openai/clip-vit-large-patch14"  # taken where it is in the Hub's cache
HOW = f"--clip FOLDER names a folder of transformers' CLIPModel in safetensors; {DEFAULT} is found in the Hub's cache"
NAME = "clip"  # of its space
CONFIG = "config.json"
SCALE = 100.0
BATCH_SIZE = 256  # prompts of a pass
# Per channel of images in [0, 1], as OpenAI's models and those trained like them take them.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Clip:
    """A CLIP model: features of images, and of prompts, of unit length."""

    images: FeatureSpace
    embed: Callable[[Sequence[str]], tuple[Features, int]]  # prompts -> [P, D], and how many were cut

    def score(self, images: Features, texts: Features) -> float:
        """The mean score of features [N, D] of images and of their prompts, both of unit length; in [0, 100]."""
        cosines = (images.astype(np.float64) * texts.astype(np.float64)).sum(axis=1)
        return SCALE * float(cosines.clip(min=0).mean())


def load_clip(source: str | None, device: torch.device) -> Clip:
    """The model in the folder `source`, or of that name in the Hub's cache; None: `DEFAULT`, where it is there.

    Raises:
        BadInput: there is no CLIP model in safetensors.
        Unavailable: no model was named and the default one is not there.
    """
    if source is None:
        if _find_cached(DEFAULT) is None:
            raise Unavailable(f"wanted CLIP's weights: {HOW}")
        source = DEFAULT
    path = find_clip(source)
    model, tokenizer = _load(path)
    model = model.to(device)
    side, limit = int(model.config.vision_config.image_size), int(model.config.text_config.max_position_embeddings)

    def look(x: Tensor) -> tuple[Tensor, None]:
        pooled = model.vision_model(pixel_values=standardised(x, MEAN, STD)).pooler_output
        return _unit(model.visual_projection(pooled)), None

    images = FeatureSpace(
        name=NAME,
        title=f"CLIP, {source}, {model.config.projection_dim} features",
        resizer=f"PIL, bicubic, antialiased, the shorter side to {side}, the middle",
        sha256=files_sha256(path),
        extract=Extractor(partial(_resize, side), look, device),
    )
    return Clip(images, partial(_embed, model, tokenizer, limit))


def find_clip(source: str) -> Path:
    """The folder of the CLIP model `source`, a path or a name in the Hub's cache.

    Raises:
        BadInput: there is none in safetensors.
    """
    path = Path(source).expanduser()
    found = path if path.is_dir() else _find_cached(source)
    if found is None:
        raise BadInput(
            f"--clip {source}: wanted a folder of transformers' CLIPModel, or OWNER/NAME in the Hub's cache; there is "
            "none: hf download OWNER/NAME puts it there"
        )
    kind = read_json(found / CONFIG).get("model_type")
    if kind != "clip":
        raise BadInput(f"{found}: wanted a CLIPModel of transformers; its model_type is {kind}")
    weight_files(found)
    return found


def _find_cached(name: str) -> Path | None:
    """The folder of a model of the Hub in this user's cache; None without one."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, CONFIG) if HUB_NAME.fullmatch(name) else None
    return Path(path).parent if isinstance(path, str) else None


def _load(path: Path) -> tuple[Any, Any]:
    """The model in `path` on the CPU, in evaluation mode, and its tokenizer."""
    import transformers

    try:
        with quiet():
            tokenizer = transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)
            model, report = transformers.CLIPModel.from_pretrained(
                path, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # the library raises whatever it meets
        raise BadInput(f"{path}: wanted a CLIPModel and its tokenizer ({one_line(error)[:300]})") from error
    if missing := sorted(report["missing_keys"]):
        raise BadInput(f"{path}: its weights are not those of its configuration; it lacks {', '.join(missing[:4])}")
    return model.eval().requires_grad_(False), tokenizer


@torch.no_grad()
def _embed(model: Any, tokenizer: Any, limit: int, prompts: Sequence[str]) -> tuple[Features, int]:
    with quiet():
        num_cut = sum(len(ids) > limit for ids in tokenizer(list(prompts)).input_ids)
    return np.concatenate([_embed_batch(model, tokenizer, limit, batch) for batch in _batches(prompts)]), num_cut


def _embed_batch(model: Any, tokenizer: Any, limit: int, prompts: Sequence[str]) -> Features:
    tokens = tokenizer(list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    pooled = model.text_model(**tokens.to(model.device)).pooler_output
    features: Features = _unit(model.text_projection(pooled)).float().cpu().numpy()
    return features


def _batches(prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (prompts[start : start + BATCH_SIZE] for start in range(0, len(prompts), BATCH_SIZE))


def _unit(features: Tensor) -> Tensor:
    unit: Tensor = features / features.norm(dim=-1, keepdim=True)
    return unit


def _resize(side: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image [H, W, 3] whose shorter side becomes `side`, and the square in its middle."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    size = (side * width // shorter, side * height // shorter)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return resized[top : top + side, left : left + side]
