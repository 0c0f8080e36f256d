"""From images and texts to codes: encoders, heads and the quantizer.

An `Encoder` turns images and texts into embeddings of some hundred dimensions, a `Head` turns those
into 32 (and 128, for fine codes), a `Quantizer` those into as many bytes. `Head` and `Quantizer`
need numpy alone; whatever needs torch, open_clip or pillow imports them when it is called, and says
how to install them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from boxwood.encode.encoder import Encoder, default_head
from boxwood.encode.head import DIMS, FINE_DIMS, Head, check_embeddings, map_images, map_texts
from boxwood.encode.images import ImageError, find_images, load_image
from boxwood.encode.quantizer import FINE_INSIDE, Quantizer
from boxwood.encode.vocabulary import vocabulary
from boxwood.errors import MissingDependency

if TYPE_CHECKING:
    from boxwood.encode.train import train_neighbours, train_pairs

__all__ = [
    "DIMS",
    "FINE_DIMS",
    "FINE_INSIDE",
    "Encoder",
    "Head",
    "ImageError",
    "Quantizer",
    "check_embeddings",
    "default_head",
    "find_images",
    "load_image",
    "map_images",
    "map_texts",
    "train_neighbours",
    "train_pairs",
    "vocabulary",
]


def __getattr__(name: str) -> Any:
    if name not in ("train_neighbours", "train_pairs"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from boxwood.encode import train
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"training a head needs the package {error.name!r}: pip install 'boxwood[clip]'"
        ) from error
    return getattr(train, name)
