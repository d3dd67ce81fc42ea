"""The pictures of an evaluation, as the page and the picture files take them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from eval.metrics.nearest import NearestImages
from pipeline.common.image_grid import Images

Rows = Mapping[str, Images]  # uint8 [n, C, H, W] by title


@dataclass(frozen=True)
class Pictures:
    """Images of samples; nothing where samples have no pictures.

    `samples` are by `Row.title`, from the same noise in every row; `paths` hold states from noise to image, by title;
    `classes` hold images from the same noise by the title of a row and the name of a class.
    """

    samples: Rows = field(default_factory=dict)
    paths: Rows = field(default_factory=dict)
    classes: Mapping[str, Rows] = field(default_factory=dict)
    nearest: NearestImages | None = None
    reference: Images | None = None  # one picture, of points in the plane
