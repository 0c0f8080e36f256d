"""What a head keeps: text-to-image recall and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwood.encode.head import Floats, Head, check_embeddings
from boxwood.encode.quantizer import Quantizer

RANKS = (1, 5, 10)
NEIGHBOURS = 10
_ROWS = 4000
_BLOCK = 512


@dataclass(frozen=True)
class Kept:
    """What is left of a search in one space.

    `recall` has the shares of texts whose image is among the first 1, 5 and 10 images, None where
    there were no pairs; `neighbours` is the share of an image's 10 nearest images in the full space
    that are among its 10 nearest in this one.
    """

    space: str
    recall: tuple[float, ...] | None
    neighbours: float


def text_recall(
    texts: Floats, images: Floats, wanted: NDArray[np.int64], group: NDArray[np.int64]
) -> tuple[float, ...]:
    """Text-to-image recall at 1, 5 and 10: shares of the `texts` for which fewer images of other
    groups are as near as the nearest one of the own group. All rows are unit vectors; `wanted` has
    the texts' groups, `group` those of the images. A tie counts against the right image."""
    ranks = []
    for start in range(0, len(texts), _BLOCK):
        near = texts[start : start + _BLOCK] @ images.T
        own = wanted[start : start + _BLOCK, None] == group
        best = np.where(own, near, -np.inf).max(1, keepdims=True)
        ranks.append(((near >= best) & ~own).sum(1))
    rank = np.concatenate(ranks)
    return tuple(float((rank < k).mean()) for k in RANKS)


def neighbours_kept(full: Floats, mapped: Floats, k: int = NEIGHBOURS) -> float:
    """The share of the rows' `k` nearest others by `full`, unit vectors ``(n, width)``, that are
    among the `k` nearest by `mapped`, unit vectors ``(n, dims)``."""
    k = min(k, len(full) - 1)
    if k < 1:
        return 1.0
    shared = 0
    for start in range(0, len(full), _BLOCK):
        found = []
        for rows in (full, mapped):
            near = rows[start : start + _BLOCK] @ rows.T
            near[np.arange(len(near)), start + np.arange(len(near))] = -np.inf
            found.append(np.argpartition(-near, k - 1, axis=1)[:, :k])
        shared += int((found[0][:, :, None] == found[1][:, None, :]).sum())
    return shared / (k * len(full))


def measure(
    heads: Sequence[tuple[str, Head]],
    images: Floats,
    texts: Floats | None,
    group: NDArray[np.int64],
    fit: Floats,
) -> list[Kept]:
    """Embeddings as they are, and then each named head, in floats and after 8 bits, on the same
    rows. `texts` belong to the `images` row by row; the quantizer is fitted on `fit`, images.

    Images that are equal are searched once. Of more than 4,000 rows the first are taken.
    """
    images, group = images[:_ROWS], group[:_ROWS]
    first = np.sort(np.unique(images, axis=0, return_index=True)[1])
    gallery, gallery_group = _unit(images[first]), group[first]
    words = None if texts is None else _unit(texts[:_ROWS])

    def kept(space: str, rows: Floats, said: Floats | None) -> Kept:
        recall = None if said is None else text_recall(said, rows, group, gallery_group)
        return Kept(space, recall, neighbours_kept(gallery, rows))

    results = [kept(f"{images.shape[1]} floats", gallery, words)]
    for name, head in heads:
        rows = head.images(gallery)
        said = None if words is None else head.texts(words)
        results.append(kept(f"{name}, {head.dims} floats", rows, said))
        quantizer = Quantizer.fit(head.images(fit))

        def coded(values: Floats, quantizer: Quantizer = quantizer) -> Floats:
            return _unit(quantizer.decode(quantizer.encode(values)))

        results.append(
            kept(f"{name}, {head.dims} bytes", coded(rows), None if said is None else coded(said))
        )
    return results


def table(results: Sequence[Kept]) -> tuple[list[str], list[list[object]]]:
    """Names of columns, and rows, as text."""
    ranks = [f"R@{k}" for k in RANKS] if results[0].recall is not None else []
    columns = ["space", *ranks, f"neighbours@{NEIGHBOURS}"]
    rows = [
        [r.space, *(f"{value:.3f}" for value in r.recall or ()), f"{r.neighbours:.3f}"]
        for r in results
    ]
    return columns, [list(row) for row in rows]


def _unit(rows: Floats) -> Floats:
    rows = check_embeddings(rows)
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
