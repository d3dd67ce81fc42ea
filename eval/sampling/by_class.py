"""Samples of each class, from the same noise in every class and by every sampler."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from eval.models import EvaluatedModels
from eval.sampling.samplers import Sampler, draw_samples
from pipeline.common.image_grid import Images, num_shown, to_pictures
from pipeline.networks import DiffusersNetwork
from pipeline.teachers.classes import shown_classes

NUM_IMAGES = 6  # of a class


@torch.no_grad()
def draw_classes(
    models: EvaluatedModels, samplers: Sequence[Sampler], seed: int, device: torch.device
) -> dict[str, dict[str, Images]]:
    """Images uint8 [n, C, H, W] of each class, by the sampler's title and the class's name; none without classes."""
    classes = _classes(models)
    return {
        sampler.title: {name: _draw(models, sampler, label, seed, device) for label, name in classes.items()}
        for sampler in samplers
        if classes
    }


def _classes(models: EvaluatedModels) -> Mapping[int, str]:
    """What the labels that are shown are called; none where labels stand for prompts."""
    network = models.network
    if isinstance(network, DiffusersNetwork) and network.conditions is not None:
        return {}
    return shown_classes(models.classes or range(models.num_classes), models.info.classes)


def _draw(models: EvaluatedModels, sampler: Sampler, label: int, seed: int, device: torch.device) -> Images:
    count = num_shown(models.picture_shape, NUM_IMAGES)
    batches = draw_samples(sampler, models.shape, models.num_classes, seed, range(count), count, device, label)
    samples = np.concatenate([batch.samples.numpy() for batch in batches])
    return to_pictures(np.nan_to_num(samples), models.data_range)
