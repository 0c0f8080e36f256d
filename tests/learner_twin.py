"""The learners of branches once more, in NumPy: the specifications in core/train_branch.c and
core/train_paper.c, step by step.

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


def paper_subsets() -> list[list[int]]:
    random = SplitMix64(0)
    subsets: list[list[int]] = []
    for size, until in ((4, 64), (6, 96), (8, 104)):
        while len(subsets) < until:
            dims = sorted(shuffled(random, DIMS, size)[:size])
            if dims not in subsets:
                subsets.append(dims)
    return subsets


def shuffled(random: SplitMix64, n: int, steps: int) -> list[int]:
    places = list(range(n))
    for i in range(steps):
        j = i + random.below(n - i)
        places[i], places[j] = places[j], places[i]
    return places


class PaperBranch:
    """A branch of core/train_paper.c. Rows count `weights` times; 0: done with."""

    def __init__(
        self, rows: Ints, positive: NDArray[np.bool_], weights: Ints, open_sides: bool
    ) -> None:
        self.rows, self.positive, self.weights = rows, positive, weights.copy()
        self.open = open_sides
        self.boxes: list[Box] = []

    def count(self, which: NDArray[np.bool_]) -> tuple[int, int]:
        return (
            int(self.weights[which & self.positive].sum()),
            int(self.weights[which & ~self.positive].sum()),
        )

    def impurity(self, inside: tuple[int, int]) -> int:
        def part(a: int, b: int) -> int:
            return (a * b << 12) // (a + b) if a + b else 0

        p, n = self.count(self.weights > 0)
        return part(*inside) + part(p - inside[0], n - inside[1])

    def grow(self, random: SplitMix64, subsets: list[list[int]], drawn: int) -> None:
        failures = 0
        while len(self.boxes) < 30 and failures < 5:
            p, n = self.count(self.weights > 0)
            if p == 0 or p + n <= 1:
                break
            copies = np.repeat(np.arange(len(self.rows)), np.where(self.positive, self.weights, 0))
            seed = self.rows[copies[random.below(p)]]
            best: tuple[int, dict[int, tuple[int, int]]] | None = None
            for s in sorted(shuffled(random, len(subsets), drawn)[:drawn]):
                order = [
                    subsets[s][i] for i in shuffled(random, len(subsets[s]), len(subsets[s]) - 1)
                ]
                box = self.grow_box(random, seed, order)
                if box is not None:
                    value = self.impurity(self.count(self.inside(box)))
                    if best is None or value < best[0]:
                        best = value, box
            if best is None:
                failures += 1
                continue
            failures = 0
            self.weights[self.inside(best[1])] = 0
            self.boxes.append([(d, *best[1][d]) for d in sorted(best[1])])

    def inside(self, box: dict[int, tuple[int, int]]) -> NDArray[np.bool_]:
        """Remaining rows inside the ranges."""
        found = self.weights > 0
        for d, (lo, hi) in box.items():
            found &= (self.rows[:, d] >= lo) & (self.rows[:, d] <= hi)
        return found

    def grow_box(
        self, random: SplitMix64, seed: Ints, order: list[int]
    ) -> dict[int, tuple[int, int]] | None:
        remaining = self.weights > 0
        equals = remaining.copy()
        box: dict[int, tuple[int, int]] = {}
        for d in order:
            x, values, positives = int(seed[d]), self.rows[:, d], remaining & self.positive
            above, below = values[equals & (values > x)], values[equals & (values < x)]
            hi = (
                int(above.min()) - 1
                if above.size
                else int(values[positives & (values > x)].min(initial=256))
            )
            lo = (
                int(below.max()) + 1
                if below.size
                else int(values[positives & (values < x)].max(initial=-1))
            )
            box[d] = (x if lo < 0 else lo, x if hi > 255 else hi)
            equals &= values == x
        assert (equals == self.inside(box)).all(), "nothing but the seed and its equals is inside"
        counts = self.count(equals)
        if counts[1] and self.impurity(counts) > self.impurity((1, 0)):
            return None
        for d in order:
            others = self.inside({e: r for e, r in box.items() if e != d})
            for up in (-1, 1):
                border = self.move_border(random, box, others, d, up, d == order[-1])
                box[d] = (border, box[d][1]) if up < 0 else (box[d][0], border)
        return box

    def move_border(
        self,
        random: SplitMix64,
        box: dict[int, tuple[int, int]],
        others: NDArray[np.bool_],
        d: int,
        up: int,
        last: bool,
    ) -> int:
        values = self.rows[:, d]
        border = e = box[d][up > 0]
        beyond = others & ((values - border) * up > 0)
        steps = sorted(set(values[beyond].tolist()), reverse=up < 0)
        if (beyond & self.positive).any():
            at = self.inside(box)
            best = self.impurity(self.count(at))
            for v in steps[:10]:
                value = self.impurity(self.count(at | (beyond & ((values - v) * up <= 0))))
                if value < best:
                    best, e = value, v
        further = [v for v in steps if (v - e) * up > 0]
        if further:
            return e + up * (abs(further[0] - e) // 2)
        if self.open:
            return 255 if up > 0 else 0
        remaining = self.weights > 0
        if last:
            t = int(values[remaining].max() if up > 0 else values[remaining].min())
            return e + up * (abs(t - e) * random.below(65536) // 65536)
        far = values[remaining & self.positive & ((values - e) * up > 0)]
        if not far.size:
            return e
        f = int(far.max() if up > 0 else far.min())
        return min(255, max(0, f + up * (abs(f - e) * random.below(65536) // 65536)))


def train_paper(p: Ints, n: Ints, r: Ints, estimators: int | None, seed: int) -> list[list[Box]]:
    random, subsets = SplitMix64(seed), paper_subsets()
    rows = np.vstack([p, n, r])
    positive = np.arange(len(rows)) < len(p)
    model = []
    for _ in range(estimators or 1):
        weights = np.ones(len(rows), np.int64)
        while estimators is not None:
            weights = np.zeros(len(rows), np.int64)
            for _ in range(len(rows)):
                weights[random.below(len(rows))] += 1
            if weights[positive].any():
                break
        branch = PaperBranch(rows, positive, weights, estimators is not None)
        branch.grow(random, subsets, 52 if estimators is None else 11)
        model.append(branch.boxes)
    return model


def train_ours(
    p: Ints, n: Ints, r: Ints, estimators: int | None, negative_weight: float, seed: int
) -> list[list[Box]]:
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
    return model


def train(
    positives: NDArray[np.uint8],
    negatives: NDArray[np.uint8],
    randoms: NDArray[np.uint8],
    *,
    estimators: int | None = None,
    negative_weight: float = 1.0,
    seed: int = 0,
    prior: bool = True,
    quantizer: str = "",
) -> dict[str, Any]:
    """The model document of learner `branch` (estimators None) or `ensemble`; codes are n * 32."""
    p, n, r = (rows.astype(np.int64).reshape(-1, DIMS) for rows in (positives, negatives, randoms))
    model = (
        train_ours(p, n, r, estimators, negative_weight, seed)
        if prior
        else train_paper(p, n, r, estimators, seed)
    )
    mean: Callable[[int], int] = lambda s: (2 * s + len(p)) // (2 * len(p))  # noqa: E731
    center = [mean(int(s)) for s in p.sum(axis=0)]
    return {
        "boxwood_model": 1,
        "learner": "branch" if estimators is None else "ensemble",
        "dims": DIMS,
        "quantizer": quantizer,
        "estimators": [[[list(range_) for range_ in box] for box in boxes] for boxes in model],
        "threshold": len(model) // 2 + 1,
        "score": {
            "terms": [
                {
                    "linear": [2 * c for c in center],
                    "square": [-1] * DIMS,
                    "constant": -sum(c * c for c in center),
                }
            ],
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
            "prior": int(prior),
        },
    }
