import numpy as np

from eval import digit_classifier
from eval.features import FEATURES
from eval.metrics import frechet_distance, moments
from trainer.images import load_digits, to_float


def test_the_shipped_classifier_names_scans_it_never_saw() -> None:
    import torch

    digits = load_digits()
    unseen = slice(int(digit_classifier.TRAIN_SHARE * len(digits)), None)
    with torch.no_grad():
        logits = digit_classifier.load()(torch.from_numpy(to_float(digits.images[unseen])))
    assert (logits.argmax(dim=1).numpy() == digits.labels[unseen]).mean() > 0.97


def test_its_features_tell_digits_from_noise_and_from_fewer_digits() -> None:
    space, digits = FEATURES["digits"](), load_digits()
    features = space.extract(digits.images)
    assert features.shape == (1797, digit_classifier.NUM_FEATURES)
    even = moments(features[::2])
    same = frechet_distance(even, moments(features[1::2]))
    noise = np.random.default_rng(0).integers(0, 256, (900, 1, 8, 8), dtype=np.uint8)
    assert frechet_distance(even, moments(space.extract(noise))) > 10 * same
    assert frechet_distance(even, moments(features[1::2][digits.labels[1::2] < 5])) > 5 * same
