"""A small classifier of 8x8 digits, whose penultimate layer is the feature space for the embedded teacher.

Inception's features mean nothing at 8x8, so distances between sets of digits are computed here, under their own name.
`python -m eval.features.digit_classifier FILE` trains it again and prints its accuracy on unseen scans.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("digit_classifier.safetensors")
NUM_FEATURES = 64
# scikit-learn's set is ordered by writer: the last fifth comes from people the network has not seen.
TRAIN_SHARE = 0.8


class DigitClassifier(nn.Module):
    """Three convolutions and a hidden layer; images [B, 1, 8, 8] in [-1, 1] -> logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(64 * 16, NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 64]."""
        return F.gelu(self.hidden(self.convs(x)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def load() -> DigitClassifier:
    """The shipped network, in evaluation mode."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval().requires_grad_(False)


def train(seed: int = 0, num_epochs: int = 60, batch_size: int = 64) -> tuple[DigitClassifier, float]:
    """Train on the first four fifths of the digits; return the network and its accuracy in [0, 1] on the rest."""
    from trainer.data.image_set import to_float
    from trainer.data.images import load_digits

    digits = load_digits()
    images, labels = torch.from_numpy(to_float(digits.images)), torch.from_numpy(digits.labels)
    num_train = int(TRAIN_SHARE * len(digits))
    torch.manual_seed(seed)
    classifier = DigitClassifier()
    num_steps = num_epochs * (num_train // batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=num_steps)
    for _ in range(num_steps):
        rows = torch.randint(num_train, (batch_size,))
        x = torch.roll(images[rows], tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))  # shifts by up to a pixel
        loss = F.cross_entropy(classifier(x + 0.1 * torch.randn_like(x)), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    classifier.eval()
    with torch.no_grad():
        correct = classifier(images[num_train:]).argmax(dim=1) == labels[num_train:]
    return classifier, correct.float().mean().item()


if __name__ == "__main__":
    network, accuracy = train()
    save_file(network.state_dict(), sys.argv[1])
    print(f"{sys.argv[1]}: {accuracy:.2%} of the unseen scans are classified correctly")
