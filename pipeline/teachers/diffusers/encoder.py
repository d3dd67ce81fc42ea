"""From prompts to conditions: the text encoders of a pipeline, which leave memory with the encoder."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from pipeline.common.errors import BadInput, one_line
from pipeline.dataset.conditions import Prompts, as_stored
from pipeline.networks.diffusers.weights import quiet, versions
from pipeline.teachers.diffusers.folder import PipelineFolder

NUM_AHEAD = 64  # prompts


class PromptEncoder:
    """Encodes one prompt at a time: in a batch, the pooled embeddings of some encoders differ in their last bits."""

    def __init__(self, folder: PipelineFolder, device: torch.device) -> None:
        """Load the text encoders, in float32: those of the T5 kind leave the range of float16.

        Raises:
            BadInput: the pipeline has none, or they cannot be loaded.
        """
        self._family = folder.family(folder.network_config)
        self._pipeline = open_pipeline(folder, {folder.family.folder: None, "vae": None}).to(device)

    @property
    def libraries(self) -> str:
        return versions("diffusers", "transformers")

    @torch.no_grad()
    def row(self, prompts: Prompts, number: int) -> dict[str, Tensor]:
        """Row `number` of the table of `prompts`, -1 for the negative prompt, on the CPU."""
        with quiet():
            if number in (-1, len(prompts)) and prompts.negative is not None:
                row = self._family.encode_negative(self._pipeline, prompts.negative)
            else:
                row = self._family.encode(self._pipeline, prompts.prompts[number])
        return {name: tensor.cpu() for name, tensor in row.items()}


class EncodedPrompts:
    """The conditions of `prompts`, each encoded when it is first asked for: for what is not stored.

    The first ones are encoded at once if that is wanted `ahead` of loading a network, and then the text encoders, which
    may be larger than it, leave memory until others are asked for.
    """

    def __init__(self, prompts: Prompts, open_encoder: Callable[[], PromptEncoder], ahead: bool = False) -> None:
        self.prompts, self._open_encoder = prompts, open_encoder
        self._encoder: PromptEncoder | None = open_encoder()
        self.row = lru_cache(maxsize=None)(self._encode)
        if ahead:
            for number in (*range(min(NUM_AHEAD, len(prompts))), *([-1] if prompts.negative is not None else [])):
                self.row(number)
            self._encoder = None

    def _encode(self, number: int) -> dict[str, Tensor]:
        self._encoder = self._encoder or self._open_encoder()
        return as_stored(self._encoder.row(self.prompts, number))

    def __len__(self) -> int:
        return len(self.prompts)

    def __deepcopy__(self, _: Any) -> Self:
        return self


def count_cut(folder: PipelineFolder, prompts: Prompts) -> tuple[int, int]:
    """How many prompts are longer than every text encoder takes, and how many tokens the most patient one takes."""
    import transformers

    limits: dict[int, Any] = {}
    for part in folder.text_parts:
        if part.startswith("tokenizer"):
            tokenizer = getattr(transformers, folder.index[part][1]).from_pretrained(folder.path / part)
            limits[_limit(folder, tokenizer)] = tokenizer
    limit = max(limits)
    with quiet():
        lengths = [len(limits[limit](prompt).input_ids) for prompt in prompts.prompts]
    return sum(length > limit for length in lengths), limit


def _limit(folder: PipelineFolder, tokenizer: Any) -> int:
    """The tokens that a pipeline takes of a prompt by one of its tokenizers."""
    import inspect

    import diffusers

    if "CLIP" in type(tokenizer).__name__:
        return int(tokenizer.model_max_length)
    arguments = inspect.signature(getattr(diffusers, folder.pipeline).__call__).parameters
    return int(arguments["max_sequence_length"].default) if "max_sequence_length" in arguments else 256


def open_pipeline(folder: PipelineFolder, parts: Mapping[str, Any]) -> Any:
    """The stock pipeline with `parts` in place of its own; None leaves one out.

    Raises:
        BadInput: a part cannot be loaded.
    """
    import diffusers

    unused = [name for name in ("safety_checker", "feature_extractor", "image_encoder") if name in folder.index]
    try:
        with quiet():
            pipeline = getattr(diffusers, folder.pipeline).from_pretrained(
                folder.path,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.float32,
                **dict.fromkeys(unused),
                **parts,
            )
    except Exception as error:  # both libraries raise whatever they meet
        raise BadInput(f"{folder.path}: cannot be loaded ({one_line(error)[:300]})") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
