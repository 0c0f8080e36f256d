"""The 8-bit scalar quantizer: 32 floats to the 32 bytes of a code, 128 to those of a fine code.

A code's value in a dimension is ``clip(rint((x - offset) / scale), 0, 255)``; what it stands for is
``offset + scale * code``, the middle of its interval, so a value inside the range is off by at most
``scale / 2`` and one outside, saturated, by as much as it lies outside. One offset and one scale
hold for all dimensions of a collection, for its images and for the texts that it is asked for:
squared distances of codes times ``scale**2`` are those of what they stand for, and an image and a
text that a head puts in one place have one code.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boxwood.errors import InputError

INSIDE = 0.999
"""Share of the values that `Quantizer.fit` keeps off the ends of the range."""

FINE_INSIDE = 0.9999
"""The same for fine codes: more of their dimensions are narrow, and what lies outside would be in
the first few alone (13% of the values of the first of 128, on CLIP's vectors, at 0.999)."""

_BLOCK = 65536


RECALL_AT = (1, 10, 100)
"""Neighbours that `Quantizer.error` looks for, as far as there are rows."""

_QUERIES = 64
_PAIRED = 4096


@dataclass(frozen=True)
class QuantizerError:
    """What 8 bits lose, as measured by `Quantizer.error`."""

    saturated: float
    """Share of the values outside of the range."""
    cosine: float
    """Mean of ``|cosine of codes - cosine of values|`` over pairs of rows."""
    cosine_99: float
    """What 99% of these do not exceed."""
    recall: dict[int, float]
    """By k: the share of a row's k nearest rows that are among the k nearest by codes."""


@dataclass(frozen=True)
class Quantizer:
    """``code = clip(rint((x - offset) / scale), 0, 255)``.

    One offset and one scale hold for all dimensions of a collection: distances between codes are
    then distances between embeddings, up to that scale. Ties round to even, in float64, so codes
    are the same on every machine.
    """

    offset: float
    scale: float

    def __post_init__(self) -> None:
        for name in ("offset", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise InputError(f"a quantizer's {name} must be a number, not {value!r}")
            object.__setattr__(self, name, float(value))
        if not (math.isfinite(self.offset) and math.isfinite(self.scale)):
            raise InputError("a quantizer's offset and scale must be finite")
        if self.scale < 1e-30:
            raise InputError(f"a quantizer's scale must be positive, not {self.scale!r}")

    @classmethod
    def fit(cls, values: ArrayLike, inside: float = INSIDE) -> Quantizer:
        """The quantizer whose range, symmetric around 0, holds the share `inside` of `values`.

        Zero lies in the middle of the range, at 127.5. Values that are all zero (a collection of
        one image, say) get the range of a normalised vector, -1 to 1.
        """
        if not 0 < inside <= 1:
            raise InputError(f"inside must be above 0 and at most 1, not {inside!r}")
        array = _floats(values)
        if array.size == 0:
            raise InputError("cannot fit a quantizer to no values: pass at least one row")
        limit = float(np.quantile(np.abs(array), inside)) or float(np.abs(array).max())
        scale = (limit if limit > 1e-27 else 1.0) / 127.5
        return cls(-127.5 * scale, scale)

    def encode(self, values: ArrayLike) -> NDArray[np.uint8]:
        """Codes of `values`, floats of shape ``(n, dims)``; values out of range become 0 or 255."""
        array = _floats(values)
        codes = np.empty(array.shape, np.uint8)
        for start in range(0, len(array), _BLOCK):
            block = array[start : start + _BLOCK].astype(np.float64)
            block = np.rint((block - self.offset) / self.scale)
            codes[start : start + _BLOCK] = np.clip(block, 0, 255)
        return codes

    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """The middle of each code's interval; `codes` are ``uint8`` of any shape."""
        array = np.asarray(codes)
        if array.dtype != np.uint8:
            raise InputError(f"codes must be uint8, not {array.dtype}")
        levels = self.offset + self.scale * np.arange(256, dtype=np.float64)
        values: NDArray[np.float32] = levels.astype(np.float32)[array]
        return values

    def error(self, values: ArrayLike, queries: int = 500, seed: int = 0) -> QuantizerError:
        """What the codes of `values` (rows, dims), the vectors of at least two images, lose against
        the values themselves. `queries` of the rows, drawn with `seed`, are compared with all the
        others, exactly, which takes queries * rows * dims multiplications twice.

        Cosines are those of rows, of any length but zero, to some thousand others. Neighbours are
        the rows with the smallest distance, which for unit vectors have the largest cosine.
        """
        with np.errstate(over="ignore"):
            array = _floats(_floats(values).astype(np.float32, copy=False))
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed must be a whole number, 0 or more, not {seed!r}")
        if isinstance(queries, bool) or not isinstance(queries, int) or queries < 1:
            raise InputError(f"queries must be a whole number, 1 or more, not {queries!r}")
        if len(array) < 2:
            raise InputError(f"the error needs at least 2 rows, to compare them, not {len(array)}")
        codes = self.encode(array)
        middle = self.decode(codes)
        sizes = [np.linalg.norm(rows, axis=1) for rows in (array, middle)]
        if not (sizes[0].all() and sizes[1].all()):
            raise InputError("a row of zeros has no direction: leave it out")
        # Below 0 and above 255 before they are cut off: half a step further than the last value.
        far = np.abs((array - (self.offset + 127.5 * self.scale)) / self.scale) > 128
        rows = np.random.default_rng(seed).permutation(len(array))[:queries]
        ks = tuple(k for k in RECALL_AT if k < len(array))
        found = dict.fromkeys(ks, 0)
        off: list[NDArray[np.float32]] = []
        for start in range(0, len(rows), _QUERIES):
            some = rows[start : start + _QUERIES]
            near = []
            cosines = []
            for vectors, size in zip((array, middle), sizes, strict=True):
                products = vectors[some] @ vectors.T
                cosines.append(products / size[some, None] / size)
                away = size * size - 2 * products
                away[np.arange(len(some)), some] = np.inf
                near.append(_nearest(away, max(ks)))
            difference = np.abs(cosines[0] - cosines[1])
            difference[np.arange(len(some)), some] = np.nan
            difference = difference[:, :: -(-len(array) // _PAIRED)]
            off.append(difference[~np.isnan(difference)])
            for k in ks:
                found[k] += sum(
                    len(np.intersect1d(a[:k], b[:k])) for a, b in zip(*near, strict=True)
                )
        errors = np.concatenate(off)
        return QuantizerError(
            saturated=float(far.mean()),
            cosine=float(errors.mean()),
            cosine_99=float(np.quantile(errors, 0.99)),
            recall={k: found[k] / (k * len(rows)) for k in ks},
        )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between quantizers."""
        packed = struct.pack("<dd", self.offset + 0.0, self.scale)  # + 0.0: no negative zero
        return hashlib.sha256(packed).hexdigest()[:16]


def _nearest(away: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """The places of the k smallest of each row, smallest first."""
    near: NDArray[np.int64] = np.argpartition(away, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(away, near, axis=1), axis=1)
    return np.take_along_axis(near, order, axis=1)


def _floats(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 2:
        raise InputError(f"values must have the shape (rows, dimensions), not {array.shape}")
    if array.dtype.kind != "f":
        raise InputError(f"values must be floats, not {array.dtype}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise InputError(f"row {int(bad.argmax())} holds a NaN or infinite value")
    return array
