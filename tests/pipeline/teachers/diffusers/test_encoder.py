"""Text encoders are in memory only while they encode."""

import gc
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.dataset.conditions import Prompts
from pipeline.teachers.diffusers import encoder
from pipeline.teachers.diffusers.encoder import EncodedPrompts

PROMPTS = Prompts(prompts=("a cat", "two dogs", "rain"), negative="blurry")


class CountedEncoder:
    """Encodes a row as its number, and knows how many of it are in memory and how many rows all have encoded."""

    num_alive = 0
    encoded: ClassVar[list[int]] = []

    def __init__(self) -> None:
        CountedEncoder.num_alive += 1

    def __del__(self) -> None:
        CountedEncoder.num_alive -= 1

    def row(self, prompts: Prompts, number: int) -> dict[str, Tensor]:
        self.encoded.append(number)
        return {"prompt_embeds": torch.full((1,), float(number))}


def opened(monkeypatch: Any, ahead: bool) -> EncodedPrompts:
    gc.collect()
    monkeypatch.setattr(CountedEncoder, "encoded", [])
    monkeypatch.setattr(encoder, "NUM_AHEAD", 2)
    return EncodedPrompts(PROMPTS, CountedEncoder, ahead)  # type: ignore[arg-type]


def test_encoders_leave_memory_before_the_network_takes_it_and_come_back_for_other_prompts(monkeypatch: Any) -> None:
    conditions = opened(monkeypatch, ahead=True)
    assert (CountedEncoder.encoded, CountedEncoder.num_alive) == ([0, 1, -1], 0)
    assert [float(conditions.row(number)["prompt_embeds"]) for number in (0, 1, -1)] == [0, 1, -1]
    assert CountedEncoder.num_alive == 0
    assert float(conditions.row(2)["prompt_embeds"]) == 2
    assert (CountedEncoder.encoded, CountedEncoder.num_alive) == ([0, 1, -1, 2], 1)


def test_without_need_no_prompt_is_encoded_and_none_twice(monkeypatch: Any) -> None:
    conditions = opened(monkeypatch, ahead=False)
    assert (CountedEncoder.encoded, CountedEncoder.num_alive) == ([], 1)
    for _ in range(2):
        conditions.row(1)
    assert CountedEncoder.encoded == [1]
