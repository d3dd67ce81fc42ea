"""A small classifier of digits, whose penultimate layer is the feature space for the embedded teacher.

Inception's features mean nothing at 8x8, so distances between sets of digits are computed here, under their own name.
`python -m eval.features.digit_classifier FILE` trains it again and prints its accuracy on unseen scans; with IMAGES
behind it, on other digits, such as MNIST's, for the features that evaluate takes as the path FILE.
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.common.errors import BadInput, one_line
from trainer.data.image_set import ImageSet, to_float
from trainer.data.images import load_images

WEIGHTS = Path(__file__).with_name("digit_classifier.safetensors")
NUM_FEATURES = 64
NUM_STEPS = 1320  # of a training: 60 epochs of scikit-learn's digits
# scikit-learn's set is ordered by writer: the last fifth comes from people the network has not seen.
TRAIN_SHARE = 0.8


class DigitClassifier(nn.Module):
    """Three convolutions and a hidden layer; images [B, 1, size, size] in [-1, 1] -> logits [B, 10]; `size` is even."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.size = size
        self.convs = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(64 * (size // 2) ** 2, NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """[B, 1, size, size] -> [B, 64]."""
        return F.gelu(self.hidden(self.convs(x)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def load(path: Path = WEIGHTS) -> DigitClassifier:
    """The network in the file `path`, by default the shipped one, in evaluation mode.

    Raises:
        BadInput: `path` holds no network of this kind.
    """
    try:
        state = load_file(path)
        size = 2 * math.isqrt(state["hidden.weight"].shape[1] // NUM_FEATURES)
        classifier = DigitClassifier(size)
        classifier.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise BadInput(
            f"{path}: wanted a file that python -m eval.features.digit_classifier wrote; {one_line(error)}"
        ) from error
    return classifier.eval().requires_grad_(False)


def train(digits: ImageSet, seed: int = 0, batch_size: int = 64) -> tuple[DigitClassifier, float]:
    """Train on the first four fifths of `digits`; return the network and its accuracy in [0, 1] on the rest."""
    images, labels = torch.from_numpy(to_float(digits.images)), torch.from_numpy(digits.labels)
    num_train = int(TRAIN_SHARE * len(digits))
    torch.manual_seed(seed)
    classifier = DigitClassifier(digits.shape[-1])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=NUM_STEPS)
    for _ in range(NUM_STEPS):
        rows = torch.randint(num_train, (batch_size,))
        x = torch.roll(images[rows], tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))  # shifts by up to a pixel
        loss = F.cross_entropy(classifier(x + 0.1 * torch.randn_like(x)), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    classifier.eval()
    with torch.no_grad():
        predicted = torch.cat([classifier(batch).argmax(dim=1) for batch in torch.split(images[num_train:], 1024)])
    return classifier, (predicted == labels[num_train:]).float().mean().item()


if __name__ == "__main__":
    network, accuracy = train(load_images(sys.argv[2] if len(sys.argv) > 2 else "digits"))
    save_file(network.state_dict(), sys.argv[1])
    print(f"{sys.argv[1]}: {accuracy:.2%} of the unseen digits are classified correctly")
