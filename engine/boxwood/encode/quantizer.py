"""The 8-bit scalar quantizer: 32 floats to the 32 bytes of a code, 128 to those of a fine code."""

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

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between quantizers."""
        packed = struct.pack("<dd", self.offset + 0.0, self.scale)  # + 0.0: no negative zero
        return hashlib.sha256(packed).hexdigest()[:16]


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
