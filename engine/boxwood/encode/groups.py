"""Which rows belong together when a head is trained, and which of them are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from boxwood.encode.head import Floats
from boxwood.errors import InputError

HELD_OUT = 0.1
MIN_GROUPS = 20
"""Of fewer groups than this none are held out: a tenth of them would say nothing."""


def held_out(groups: NDArray[np.int64], seed: int, share: float = HELD_OUT) -> NDArray[np.bool_]:
    """The rows that a seed holds out: whole groups, `share` of them, or none where there are fewer
    than 20. `groups` numbers the rows' groups from 0, as `same_rows` does."""
    count = int(groups.max()) + 1 if len(groups) else 0
    held = np.zeros(count, bool)
    if count >= MIN_GROUPS:
        held[np.random.default_rng(seed).permutation(count)[: int(count * share)]] = True
    return held[groups]


def same_rows(rows: Floats) -> NDArray[np.int64]:
    """Numbers from 0, one a row, the same for rows that are equal; in order of appearance."""
    number: dict[bytes, int] = {}
    found = [number.setdefault(hashlib.sha256(row.tobytes()).digest(), len(number)) for row in rows]
    return np.array(found, np.int64)


def numbered(groups: Sequence[object] | NDArray[np.generic], n: int) -> NDArray[np.int64]:
    """Groups of any kind as numbers from 0, in order of appearance."""
    if len(groups) != n:
        raise InputError(f"there are {n} pairs, but {len(groups)} groups: pass a group a pair")
    number: dict[object, int] = {}
    found = []
    for row, value in enumerate(list(groups)):
        if isinstance(value, (float, np.floating)) and np.isnan(value):
            raise InputError(f"the group in row {row} is NaN: give every row a group")
        try:
            found.append(number.setdefault(value, len(number)))
        except TypeError as error:
            raise InputError(
                f"a group must be one value, as a number or a path, not a {type(value).__name__}"
            ) from error
    return np.array(found, np.int64)
