"""The learner once more, in NumPy: the specification in core/train_branch.c, step by step.

The C core and this twin must give the same model for every input. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMS = 32
SHARE = 65536
MASK = (1 << 64) - 1
Ints = NDArray[np.int64]
Box = list[tuple[int, int, int]]


class SplitMix64:
    """SplitMix64 (Steele, Lea, Flood 2014) with draws below a bound without bias."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        unfair = (1 << 64) % bound
        while (number := self.next()) < unfair:
            pass
        return number % bound


def purity(a: int, b: int) -> int:
    def part(a: int, b: int) -> int:
        return a * a // (a + 16 * b) if a else 0

    return part(a, b) + part(SHARE - a, SHARE - b)


def find_prior(negatives: Ints, randoms: Ints) -> Ints:
    source = randoms if len(randoms) >= 8 else np.vstack([negatives, randoms])
    n = min(len(source), 512)
    sample = source[[i * len(source) // n for i in range(n)]]
    k = min(4, n - 1)
    if k == 0:
        return np.full(DIMS, 16384)
    total = np.zeros(DIMS, np.int64)
    for i in range(n):
        squares = (sample - sample[i]) ** 2
        distances = squares.sum(axis=1)
        distances[i] = 1 << 40
        nearest = np.argsort(distances, kind="stable")[:k]
        total += squares[nearest].sum(axis=0)
    return np.maximum(256, 128 * total // (n * k))


@dataclass
class Node:
    """A node of the tree inside a box; p and n are row numbers."""

    lo: Ints
    hi: Ints
    p: Ints
    n: Ints
    mass: int
    left: int = 0
    cost: int = 0
    state: str = ""


def mass_left(lo: int, hi: int, node: Node, d: int, place: int) -> int:
    """The part of a node's mass at places up to `place` of a box with the range lo .. hi."""

    def below(v: int) -> int:
        low, high = v - lo, hi + 1 - v
        if low <= 0 or high <= 0:
            return 0 if low <= 0 else SHARE
        if 2 * low <= low + high:
            return 2 * SHARE * low * low // (low + high) ** 2
        return SHARE - 2 * SHARE * high * high // (low + high) ** 2

    first = below(int(node.lo[d]))
    every = below(int(node.hi[d]) + 1) - first
    return node.mass * (below(place + 1) - first) // every if every else node.mass // 2


def gini(p: int, n: int) -> int:
    return 16 * (p * p + n * n) // (p + n) if p + n else 0


@dataclass
class Estimator:
    dims: list[int]
    positives: Ints
    counts: Ints
    negatives: Ints
    weights: Ints
    prior: Ints
    given: int
    """The first so many negatives are the user's."""
    given_weight: int
    max_leaves: int
    boxes: list[Box] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.covered = np.zeros(len(self.positives), bool)
        self.grown = self.leaves = 0
        self.total_p = int(self.counts.sum())
        self.total_n = int(self.weights.sum())

    def grow(self, random: SplitMix64) -> None:
        first: tuple[Ints, Ints, list[int]] | None = None
        for _ in range(32):
            uncovered = np.flatnonzero(~self.covered)
            if len(uncovered) == 0 or self.grown == 16 or self.leaves >= self.max_leaves:
                break
            seed = int(uncovered[random.below(len(uncovered))])
            lo, hi, half, chosen = self.grow_box(seed, uncovered)
            for d in chosen:
                self.move_border(lo, hi, half, chosen, seed, d, 1)
                self.move_border(lo, hi, half, chosen, seed, d, -1)
            first = first or (lo, hi, chosen)
            a, b = self.shares(lo, hi, chosen)
            if a > 2 * b:
                self.cut(lo, hi, chosen)
            self.covered |= inside(self.positives, lo, hi, chosen)
            self.covered[seed] = True
        if not self.grown:
            assert first is not None
            self.covered[:] = False
            self.cut(*first)

    def cut(self, lo: Ints, hi: Ints, chosen: list[int]) -> None:
        low, high = np.zeros(DIMS, np.int64), np.full(DIMS, 255)
        low[chosen], high[chosen] = lo[chosen], hi[chosen]
        p = np.flatnonzero(inside(self.positives, lo, hi, chosen) & ~self.covered)
        n = np.flatnonzero(inside(self.negatives[: self.given], lo, hi, chosen))
        nodes = [Node(low, high, p, n, 8192)]
        limit = max(1, (self.max_leaves - self.leaves) // 2)
        leaves = 1
        for node in nodes:
            if leaves >= limit:
                break
            place = (
                self.find_cut(lo, hi, node) if node.n.size and (node.p.size or node.mass) else None
            )
            if place is not None:
                node.left = len(nodes)
                nodes += self.divide(lo, hi, node, *place)
                leaves += 1
        self.grown += 1
        self.leaves += leaves
        for node in reversed(nodes):
            drop = node.mass + 256 * int(self.counts[node.p].sum())
            whole = int(self.weights[node.n].sum()) // 256 * self.given_weight
            node.cost, node.state = (whole, "whole") if whole < drop else (drop, "dropped")
            if node.left:
                divided = 128 + nodes[node.left].cost + nodes[node.left + 1].cost
                if divided < node.cost:
                    node.cost, node.state = divided, "divided"
        alive = {0}
        for i, node in enumerate(nodes):
            if i in alive and node.state == "divided":
                alive |= {node.left, node.left + 1}
            elif i in alive and node.state == "whole":
                ranges = [(d, int(node.lo[d]), int(node.hi[d])) for d in range(DIMS)]
                self.boxes.append([r for r in ranges if r[0] in chosen or r[1:] != (0, 255)])

    def find_cut(self, lo: Ints, hi: Ints, node: Node) -> tuple[int, int] | None:
        best: tuple[int, int, int, int] | None = None
        total_p = node.mass + 256 * int(self.counts[node.p].sum())
        total_n = int(self.weights[node.n].sum())
        for d in self.dims:
            px, nx = self.positives[node.p, d], self.negatives[node.n, d]
            values = np.unique(np.concatenate([px, nx])).tolist()
            for x, y in pairwise(values):
                place = (x + y) // 2
                a = 256 * int(self.counts[node.p][px <= place].sum())
                a += mass_left(int(lo[d]), int(hi[d]), node, d, place)
                b = int(self.weights[node.n][nx <= place].sum())
                gain = gini(a, b) + gini(total_p - a, total_n - b)
                gap = (y - x) ** 2 * SHARE // int(self.prior[d])
                if best is None or (gain, gap) > best[:2]:
                    best = gain, gap, d, place
        return best and best[2:]

    def divide(self, lo: Ints, hi: Ints, node: Node, d: int, place: int) -> list[Node]:
        p, n = self.positives[node.p, d] <= place, self.negatives[node.n, d] <= place
        mass = mass_left(int(lo[d]), int(hi[d]), node, d, place)
        left = Node(node.lo, node.hi.copy(), node.p[p], node.n[n], mass)
        right = Node(node.lo.copy(), node.hi, node.p[~p], node.n[~n], node.mass - mass)
        left.hi[d], right.lo[d] = place, place + 1
        return [left, right]

    def shares(self, lo: Ints, hi: Ints, chosen: list[int]) -> tuple[int, int]:
        p = self.counts[inside(self.positives, lo, hi, chosen) & ~self.covered].sum()
        n = self.weights[inside(self.negatives, lo, hi, chosen)].sum()
        return int(p) * SHARE // self.total_p, int(n) * SHARE // self.total_n

    def grow_box(self, seed: int, uncovered: Ints) -> tuple[Ints, Ints, Ints, list[int]]:
        distances = ((self.positives[uncovered] - self.positives[seed]) ** 2).sum(axis=1)
        near = uncovered[np.argsort(distances, kind="stable")]
        best: tuple[int, tuple[Ints, Ints, Ints, list[int]]] | None = None
        m = len(near)
        while m:
            lo, hi, half = self.set_ranges(near[:m])
            chosen = self.choose_dims(lo, hi)
            if inside(self.positives[[seed]], lo, hi, chosen)[0]:
                value = purity(*self.shares(lo, hi, chosen))
                if best is None or value > best[0]:
                    best = value, (lo, hi, half, chosen)
            m //= 2
        assert best is not None
        return best[1]

    def set_ranges(self, group: Ints) -> tuple[Ints, Ints, Ints]:
        rows, counts = self.positives[group], self.counts[group][:, None]
        n, u = int(counts.sum()), len(group)
        s, q = (rows * counts).sum(axis=0), (rows * rows * counts).sum(axis=0)
        scatter = 256 * (n * q - s * s) * u // (n * n)
        ratios = int((256 * scatter // self.prior).sum())
        scale = min(320, (4096 + ratios) // (16 + 32 * (u - 1)))
        local = np.maximum(256, self.prior * scale // 256)
        variance = (4 * local + scatter) * (u + 1) // ((u + 3) * u)
        z = 154 + 154 // (4 + u)
        half = np.array([max(16, isqrt(int(v) * z * z // 4096)) for v in variance])
        center = (32 * s + n) // (2 * n)
        return np.maximum(0, -((half - center) // 16)), np.minimum(255, (center + half) // 16), half

    def choose_dims(self, lo: Ints, hi: Ints) -> list[int]:
        within = (self.negatives >= lo) & (self.negatives <= hi)
        alone = (within * self.weights[:, None]).sum(axis=0)
        alive = np.ones(len(self.negatives), bool)
        chosen: list[int] = []
        while len(chosen) < 6:
            left = (within[alive] * self.weights[alive][:, None]).sum(axis=0)
            d = min((int(left[d]), int(alone[d]), d) for d in self.dims if d not in chosen)[2]
            alive &= within[:, d]
            chosen.append(d)
        return sorted(chosen)

    def move_border(
        self, lo: Ints, hi: Ints, half: Ints, chosen: list[int], seed: int, d: int, up: int
    ) -> None:
        others = [i for i in chosen if i != d]
        p = inside(self.positives, lo, hi, others) & ~self.covered
        n = inside(self.negatives, lo, hi, others)
        px, pw, nx, nw = self.positives[p, d], self.counts[p], self.negatives[n, d], self.weights[n]
        border, other = (hi, lo) if up > 0 else (lo, hi)
        old, band = int(border[d]), int(half[d]) // 128
        values: dict[int, int] = {}
        for away in range(-band, band + 1):
            place = old + away * up
            if not 0 <= place <= 255 or (int(self.positives[seed, d]) - place) * up > 0:
                continue
            low, high = min(place, int(other[d])), max(place, int(other[d]))
            a = int(pw[(px >= low) & (px <= high)].sum()) * SHARE // self.total_p
            b = int(nw[(nx >= low) & (nx <= high)].sum()) * SHARE // self.total_n
            values[away] = purity(a, b)
        best = max(values.values())
        if values[0] == best:
            return
        runs: list[list[int]] = []
        for away, value in values.items():
            if value == best:
                if runs and runs[-1][-1] == away - 1:
                    runs[-1].append(away)
                else:
                    runs.append([away])
        run = min(runs, key=lambda r: (min(map(abs, r)), -r[0]))
        middle = abs(run[0] + run[-1]) // 2
        border[d] = old + (middle if run[0] > 0 else -middle) * up


def inside(rows: Ints, lo: Ints, hi: Ints, dims: list[int]) -> NDArray[np.bool_]:
    return ((rows[:, dims] >= lo[dims]) & (rows[:, dims] <= hi[dims])).all(axis=1)


def train(
    positives: NDArray[np.uint8],
    negatives: NDArray[np.uint8],
    randoms: NDArray[np.uint8],
    *,
    estimators: int | None = None,
    negative_weight: float = 1.0,
    seed: int = 0,
    quantizer: str = "",
) -> dict[str, Any]:
    """The model document of learner `branch` (estimators None) or `ensemble`; codes are n * 32."""
    p, n, r = (rows.astype(np.int64).reshape(-1, DIMS) for rows in (positives, negatives, randoms))
    random = SplitMix64(seed)
    prior = find_prior(n, r)
    bootstrap = estimators is not None

    def draw(rows: Ints, limit: int, bootstrap: bool) -> Ints:
        """How often each row counts."""
        if not bootstrap and len(rows) <= limit:
            return np.ones(len(rows), np.int64)
        counts = np.zeros(len(rows), np.int64)
        for _ in range(min(len(rows), limit)):
            counts[random.below(len(rows))] += 1
        return counts

    model: list[list[Box]] = []
    for _ in range(estimators or 1):
        dims = list(range(DIMS))
        if bootstrap:
            for i in range(16):
                j = i + random.below(DIMS - i)
                dims[i], dims[j] = dims[j], dims[i]
            dims = sorted(dims[:16])
        cp = draw(p, 2048, bootstrap)
        cn, cr = draw(n, 4096, False), draw(r, 4096, bootstrap)
        grown = Estimator(
            dims,
            p[cp > 0],
            cp[cp > 0],
            np.vstack([n[cn > 0], r[cr > 0]]),
            np.concatenate([cn[cn > 0], cr[cr > 0]]) * 256,
            prior,
            int((cn > 0).sum()),
            int(256 * negative_weight + 0.5),
            min(128, 65536 // (estimators or 1)),
        )
        grown.grow(random)
        model.append(grown.boxes)
    mean: Callable[[int], int] = lambda s: (2 * s + len(p)) // (2 * len(p))  # noqa: E731
    center = [mean(int(s)) for s in p.sum(axis=0)]
    return {
        "boxwood_model": 1,
        "learner": "ensemble" if bootstrap else "branch",
        "dims": DIMS,
        "quantizer": quantizer,
        "estimators": [[[list(range_) for range_ in box] for box in boxes] for boxes in model],
        "threshold": len(model) // 2 + 1,
        "score": {
            "linear": [2 * c for c in center],
            "square": [-1] * DIMS,
            "constant": -sum(c * c for c in center),
            "votes": 1 << 21,
            "shift": 21,
            "threshold": None,
        },
        "training": {
            "positives": len(p),
            "negatives": len(n),
            "random_negatives": len(r),
            "negative_weight": int(negative_weight * 100 + 0.5) / 100,
            "seed": seed,
        },
    }
