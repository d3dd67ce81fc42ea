"""A stand-in for the Inception that others publish as TorchScript."""

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval.features import weights

NUM_CLASSES = 7


class Inception(nn.Module):
    """What clean-fid, StyleGAN and EDM call of the TorchScript Inception, over averages of 8x8 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 2048))
        self.output = nn.Linear(2048, NUM_CLASSES)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        x = torch.nn.functional.interpolate(img.float(), size=[299, 299], mode="bilinear", align_corners=False)
        found: Tensor = self.layers((x - 128) / 128)
        if return_features:
            return found
        bias = torch.zeros_like(self.output.bias) if no_output_bias else self.output.bias
        return torch.nn.functional.linear(found, self.output.weight, bias).softmax(dim=1)


def save_inception(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Inception:
    """A stand-in for the published file, in a folder of weights of its own."""
    torch.manual_seed(seed)
    network = Inception().eval()
    folder.mkdir(exist_ok=True)
    path = folder / weights.FILES["inception"].name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is going
        torch.jit.save(torch.jit.script(network), str(path))
    pin(monkeypatch, "inception", path)
    return network


def pin(monkeypatch: pytest.MonkeyPatch, key: str, path: Path) -> None:
    """`path` is the right file, and there is no other on this machine."""
    monkeypatch.setenv(weights.FOLDER, str(path.parent))
    monkeypatch.setenv("TRAFLOW_OFFLINE", "1")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.FILES, key, replace(weights.FILES[key], sha256=digest, elsewhere=list))
