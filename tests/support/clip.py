"""A tiny CLIP model of transformers with random weights, and its tokenizer."""

from pathlib import Path

import torch
import transformers

from tests.support.pipelines import TOKENS, clip_tokenizer

SIDE = 8  # of its images
WIDTH = 16


def save_clip(folder: Path) -> Path:
    """The model in `folder`, always the same."""
    torch.manual_seed(0)
    shared = {"hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 520, "max_position_embeddings": TOKENS, "bos_token_id": 512, "eos_token_id": 513}
    config = transformers.CLIPConfig(
        text_config=shared | text | {"pad_token_id": 513},
        vision_config=shared | {"image_size": SIDE, "patch_size": 4},
        projection_dim=12,
    )
    model = transformers.CLIPModel(config)
    for parameter in (model.visual_projection.weight, model.text_projection.weight):
        parameter.data.abs_()
    for norm in (model.vision_model.post_layernorm, model.text_model.final_layer_norm):
        norm.bias.data += 1  # so that no score is cut at 0
    model.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder
