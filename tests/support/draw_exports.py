"""Draws from exported pipelines as their users do, with the libraries alone: `python draw_exports.py FOLDER`.

Each line of FOLDER/orders.jsonl names a pipeline, a file of call arguments and, of a LoRA, its folder and scheduler;
the last state of the pipeline's scheduler is answered in FOLDER/drawn.safetensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file


def draw(order: dict[str, Any]) -> torch.Tensor:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(order["pipeline"], local_files_only=True, **order["options"])
    if order["lora"] is not None:
        pipeline.load_lora_weights(order["lora"], weight_name="pytorch_lora_weights.safetensors")
        kind = getattr(diffusers, order["scheduler"])
        pipeline.scheduler = kind.from_pretrained(order["lora"], subfolder="scheduler")
    states, step = [], pipeline.scheduler.step

    def recording(*arguments: Any, **options: Any) -> Any:
        states.append(step(*arguments, **options))
        return states[-1]

    pipeline.scheduler.step = recording
    tensors = load_file(order["arguments"]) if order["arguments"] else {}
    lists = {name: list(tensors.pop(name)) for name in order["lists"]}
    with torch.no_grad():
        pipeline(**order["call"], **tensors, **lists, generator=torch.Generator().manual_seed(0))
    last: torch.Tensor = states[-1][0]
    return last.contiguous()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    orders = [json.loads(line) for line in (folder / "orders.jsonl").read_text().splitlines()]
    save_file({order["name"]: draw(order) for order in orders}, folder / "drawn.safetensors")
