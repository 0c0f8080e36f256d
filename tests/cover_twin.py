"""The learner `cover` in NumPy: step by step the one of core/train_cover.c, to the same model.

Everything is done in float64 in the order that the C core does it in: sums over rows run in the
order of rows, sums over dimensions in the order of dimensions, and exp and log2 are the core's own.
So the integers of the two models are equal, not merely close.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Matrix = NDArray[np.float64]

RIDGE = 4.0
BACKGROUND = 16.0  # what the background weighs, against a positive
NEGATIVE = 0.3  # what a given negative weighs in the end
QUERY = 0.5
SPREAD = 0.5  # the second part of the score against the first
PRIOR_STRENGTH = 4.0
FOLDS = 8
STEPS, FOLD_STEPS = 8, 2
HALVINGS = 8
ROWS = 2000  # of the background in a regression on codes,
FINE_ROWS = 1000  # on fine codes
ENCLOSED = 4096
BOX_TAIL = 800
BOX_DIMS = 8
BOX_BELOW = 0.375
BELOW = 0.5
FINE_BELOW = 0.7
MEASURED = 4096
LIKELY = 512  # labels of a kind that a likelihood is made of
LABEL_POINTS = 64
SLOPE = 2.5
LOG_4 = 1.3862943611198906
LEAST_KIND = 3
MEANS_STEPS = 10
TINY = 1e-9
NEAR_ZERO = 1e-12
MARGIN = 49152  # bits in 1/65536: 0.75
SCORE_BITS = 30
MAX_SHIFT = 30
DIMS = 32


# --- arithmetic ---------------------------------------------------------------------------------


def total(values: Matrix) -> Any:
    """The sum over the first axis, in its order (np.sum adds in pairs)."""
    if len(values) == 0:
        return np.zeros(values.shape[1:])
    return np.add.accumulate(values, axis=0)[-1]


def exponential(x: Matrix) -> Matrix:
    """e^x for |x| <= 700, the same on every machine."""
    k = np.floor(x * 1.4426950408889634 + 0.5)
    r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10
    value = np.full(np.shape(x), 1 / 6227020800.0)
    for factorial in (479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0,
                      24.0, 6.0, 2.0, 1.0, 1.0):  # fmt: skip
        value = value * r + 1 / factorial
    return np.ldexp(value, k.astype(np.int64))


def logistic(x: Matrix) -> Matrix:
    return 1 / (1 + exponential(-np.clip(x, -30, 30)))


def log2_fixed(n: int) -> int:
    """floor(65536 log2(n)) or a few less, for n >= 1, by squaring."""
    bits = n.bit_length() - 1
    value = n << (31 - bits) if bits <= 31 else n >> (bits - 31)
    result = bits << 16
    for bit in range(15, -1, -1):
        value = value * value >> 31
        if value >> 32:
            value >>= 1
            result |= 1 << bit
    return result


def solve(matrix: Matrix, right: Matrix) -> Matrix:
    """Cholesky's method, column by column."""
    a, x, n = matrix.copy(), right.copy(), len(right)
    for k in range(n):
        a[k, k] = np.sqrt(a[k, k])
        a[k + 1 :, k] /= a[k, k]
        for j in range(k + 1, n):
            a[j:, j] -= a[j:, k] * a[j, k]
    for k in range(n):
        x[k] /= a[k, k]
        x[k + 1 :] -= a[k + 1 :, k] * x[k]
    for k in range(n - 1, -1, -1):
        x[k] /= a[k, k]
        x[:k] -= a[k, :k] * x[k]
    return x


# --- spaces -------------------------------------------------------------------------------------


def spaced(n: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` of n rows, evenly, or all."""
    m = min(n, wanted)
    return np.array([i * n // m for i in range(m)], np.int64)


@dataclass
class Space:
    """Moments of the collection's codes, or of its fine codes, by some rows and what each stands
    for."""

    rows: Matrix
    share: Matrix
    mean: Matrix = field(init=False)
    variance: Matrix = field(init=False)
    unit: float = field(init=False)
    covariance: Matrix = field(init=False)  # of (codes - mean) / unit

    def __post_init__(self) -> None:
        columns = np.hstack([self.rows, np.ones((len(self.rows), 1))])
        moments = np.array([total((self.share * c)[:, None] * columns) for c in columns.T])
        self.mean = moments[-1, :-1]
        covariance = np.tril(moments[:-1, :-1] - self.mean[:, None] * self.mean)
        covariance = covariance + np.tril(covariance, -1).T
        self.variance = np.maximum(np.diag(covariance), 1.0)
        self.unit = float(np.sqrt(total(self.variance) / len(self.variance)))
        self.covariance = covariance / (self.unit * self.unit)

    def standard(self, codes: Codes | Matrix) -> Matrix:
        return (codes.astype(float) - self.mean) / self.unit


@dataclass
class Term:
    """constant + sum over dimensions of (linear + square * x) * x."""

    linear: Matrix
    square: Matrix
    constant: float

    def __call__(self, codes: Codes | Matrix) -> Matrix:
        value = np.full(len(codes), self.constant)
        wide = codes.astype(float)
        for d in range(wide.shape[1]):
            value = value + (self.linear[d] + self.square[d] * wide[:, d]) * wide[:, d]
        return value


def standardised(raw: Term, on: Matrix) -> Term:
    """`raw` with mean 0 and standard deviation 1 on some rows; nothing if it is constant."""
    values = raw(on)
    mean = float(total(values)) / len(on)
    sd = float(np.sqrt(total((values - mean) * (values - mean)) / len(on)))
    if not sd > TINY * (1 + abs(mean)):  # what there is comes from rounding
        return Term(np.zeros_like(raw.linear), np.zeros_like(raw.square), 0.0)
    return Term(raw.linear / sd, raw.square / sd, (raw.constant - mean) / sd)


# --- one ranker ---------------------------------------------------------------------------------


@dataclass
class Labels:
    """Codes, or fine codes, of what is marked; and the variance in small neighbourhoods."""

    positives: Codes
    negatives: Codes
    query: Codes | None = None  # of shape (dims,)
    prior: Matrix | None = None  # by dimension; None: scores are by regression alone
    negative_weight: float = 1.0

    def mass(self, positives: int) -> float:
        return positives + (QUERY if self.query is not None else 0.0)

    def center(self, positives: Codes) -> Matrix:
        summed = positives.astype(np.int64).sum(axis=0).astype(float)
        if self.query is not None:
            summed = summed + QUERY * self.query
        return summed / self.mass(len(positives))

    def folds(self) -> int:
        """0 where nothing is left to train on when a positive is taken away."""
        n = len(self.positives)
        return 0 if n + (self.query is not None) < 2 else min(n, FOLDS)

    def part(self, which: NDArray[np.bool_]) -> Labels:
        return replace(self, positives=self.positives[which])


@dataclass
class Chosen:
    """Background rows of a regression: their places, and what each stands for; sums to 1."""

    rows: NDArray[np.int64]
    share: Matrix


def choose(order: NDArray[np.int64], wanted: int) -> Chosen:
    """Of rows in order the first `wanted` / 2, and as many of the others, evenly spaced."""
    n = len(order)
    if n <= wanted:
        return Chosen(order, np.full(n, 1.0 / n))
    first = wanted // 2
    others = wanted - first
    rows = np.concatenate([order[:first], order[first + spaced(n - first, others)]])
    return Chosen(rows, np.array([1.0] * first + [(n - first) / others] * others) / n)


def discriminate(space: Space, labels: Labels, codes: Codes) -> Chosen:
    """Rows for the regression: first those that a discriminant from the moments puts first."""
    n, dims = codes.shape
    if n <= ROWS:
        return choose(np.arange(n), ROWS)
    mass = labels.mass(len(labels.positives))
    matrix = space.covariance + np.eye(dims) * (0.04 + 0.16 / mass)
    mean = (labels.center(labels.positives) - space.mean) / space.unit
    weights = solve(matrix, mean) / space.unit
    scale = 2.0 ** fitting_shift(float(total(np.abs(weights) * 255)))
    scores = codes.astype(np.int64) @ np.floor(weights * scale + 0.5).astype(np.int64)
    return choose(np.argsort(-scores, kind="stable"), ROWS)


def fitting_shift(bound: float) -> int:
    """The largest shift that keeps a score below 2^30 when no sum exceeds `bound`."""
    shift = MAX_SHIFT
    while shift > 0 and not bound * 2.0**shift < 2.0**SCORE_BITS:
        shift -= 1
    return shift


def regression(rows: Matrix, right: Matrix, weights: Matrix, start: Matrix, steps: int) -> Matrix:
    """Ridge logistic regression by Newton's method; the last coefficient is the intercept. A step
    after which the gradient is longer is halved."""
    columns = np.hstack([rows, np.ones((len(rows), 1))])
    dims = columns.shape[1]

    def look(b: Matrix) -> tuple[Matrix, Matrix, float]:
        eta = np.full(len(rows), b[-1])
        for d in range(dims - 1):
            eta = eta + columns[:, d] * b[d]
        p = logistic(eta)
        gradient = total((weights * (p - right))[:, None] * columns)
        gradient[:-1] += RIDGE * b[:-1]
        return p, gradient, float(total(gradient * gradient))

    b = start.copy()
    p, gradient, length = look(b)
    enough = NEAR_ZERO * length
    for _ in range(steps):
        if length <= enough:
            break
        curvature = weights * p * (1 - p)
        hessian = np.empty((dims, dims))
        for i in range(dims):
            hessian[i] = total((curvature * columns[:, i])[:, None] * columns)
        for d in range(dims - 1):
            hessian[d, d] += RIDGE
        hessian[-1, -1] += 1e-6
        before, far = b, length
        b = before - solve(hessian, gradient)
        p, gradient, length = look(b)
        for _ in range(HALVINGS):
            if length <= far:
                break
            b = 0.5 * (before + b)
            p, gradient, length = look(b)
    return b


def spread(space: Space, labels: Labels, positives: Codes) -> Term:
    """How much likelier a row is under a normal distribution around the positives than under that
    of the collection, up to constants. The variance has a prior: rows near each other."""
    assert labels.prior is not None
    mass, center = labels.mass(len(positives)), labels.center(positives)
    difference = positives.astype(float) - center
    scatter = total(difference * difference)
    variance = (PRIOR_STRENGTH * labels.prior + scatter) / (PRIOR_STRENGTH - 1 + mass)
    variance = variance * (1 + 1 / mass)
    return Term(
        2 * center / variance - 2 * space.mean / space.variance,
        1 / space.variance - 1 / variance,
        0.0,
    )


def joined(space: Space, labels: Labels, positives: Codes, b: Matrix) -> Term:
    """The regression and the spread, each standardised by the collection, as one."""
    inner = np.zeros(len(space.mean))
    for j in range(len(inner)):
        inner = inner + space.covariance[:, j] * b[j]
    variance = float(total(b[:-1] * inner))
    term = Term(np.zeros(len(inner)), np.zeros(len(inner)), 0.0)
    if labels.prior is not None:
        part = standardised(spread(space, labels, positives), space.rows)
        term = Term(SPREAD * part.linear, SPREAD * part.square, SPREAD * part.constant)
    if variance > TINY:
        sd = space.unit * float(np.sqrt(variance))
        term.linear = term.linear + b[:-1] / sd
        term.constant = term.constant - float(total(b[:-1] * space.mean)) / sd
    return term


def ranker(space: Space, labels: Labels, codes: Codes, share: Matrix) -> tuple[Term, Matrix]:
    """The term of labels against background rows, and the score of each positive under a term that
    was trained without it (and without the others of its fold)."""
    fixed = [codes, labels.negatives]
    if labels.query is not None:
        fixed.append(labels.query[None])
    others = space.standard(np.vstack(fixed))
    positives = space.standard(labels.positives)

    def fit(keep: NDArray[np.bool_], start: Matrix, steps: int) -> Matrix:
        n = int(keep.sum())
        mass = labels.mass(n)
        negative = NEGATIVE * labels.negative_weight * mass / (mass + 6)
        weights = [np.ones(n), BACKGROUND * mass * share, np.full(len(labels.negatives), negative)]
        right = [np.ones(n), np.zeros(len(codes) + len(labels.negatives))]
        if labels.query is not None:
            weights.append(np.full(1, QUERY))
            right.append(np.ones(1))
        return regression(np.vstack([positives[keep], others]), np.concatenate(right),
                          np.concatenate(weights), start, steps)  # fmt: skip

    b = fit(np.ones(len(positives), bool), np.zeros(len(space.mean) + 1), STEPS)
    out = np.zeros(len(positives))
    for f in range(labels.folds()):
        keep = np.arange(len(positives)) % labels.folds() != f
        less = fit(keep, b, FOLD_STEPS)
        out[~keep] = joined(space, labels, labels.positives[keep], less)(labels.positives[~keep])
    return joined(space, labels, labels.positives, b), out


def nearest(space: Space, labels: Labels) -> tuple[Term, Matrix]:
    """The same for the distance to the mean positive."""

    def term(of: Codes) -> Term:
        center = labels.center(of)
        return standardised(Term(2 * center, np.full(len(center), -1.0), 0.0), space.rows)

    out = np.zeros(len(labels.positives))
    for f in range(labels.folds()):
        keep = np.arange(len(out)) % labels.folds() != f
        out[~keep] = term(labels.positives[keep])(labels.positives[~keep])
    return term(labels.positives), out


# --- terms, thresholds --------------------------------------------------------------------------


def k_means(rows: Matrix, k: int) -> NDArray[np.int64]:
    """The group of each row. It starts from the row farthest from the mean, and then from those
    that are farthest from all before."""

    def distances(center: Matrix) -> Matrix:
        difference = rows - center
        return np.asarray(total((difference * difference).T))

    centers: list[Matrix] = []
    groups = np.full(len(rows), -1)
    if k == 0:
        return groups
    near = distances(total(rows) / len(rows))
    for _ in range(k):
        centers.append(rows[int(np.argmax(near))])
        new = distances(centers[-1])
        near = new if len(centers) == 1 else np.minimum(near, new)
    for _ in range(MEANS_STEPS + 1):
        moved = np.argmin([distances(c) for c in centers], axis=0)
        if (moved == groups).all():
            break
        groups = moved
        for c in range(k):
            if (groups == c).any():
                centers[c] = total(rows[groups == c]) / int((groups == c).sum())
    return groups


@dataclass
class Score:
    """Terms as integers in units of 2^-shift, and the background's scores, highest first."""

    terms: list[Term]
    out: Matrix  # of held-out positives
    shift: int
    scores: Matrix  # of the background's rows, in units of 2^-shift
    ranked: Matrix  # the same as numbers, highest first

    def place(self) -> int:
        """How far down the held-out positives come, in bits."""
        first = -self.ranked
        return sum(log2_fixed(int(np.searchsorted(first, -o, side="right")) + 1) for o in self.out)


def score(codes: Codes, terms: list[Term], out: Matrix) -> Score:
    """The largest of the terms, on background rows."""
    x = np.arange(256.0)
    bound = 0.0
    for term in terms:
        values = np.abs((term.linear[:, None] + term.square[:, None] * x) * x).max(axis=1)
        bound = max(bound, float(total(values)) + abs(term.constant))
    shift = fitting_shift(bound)

    def whole_part(part: Any) -> Any:
        return np.floor(part * 2.0**shift + 0.5)

    whole = [
        Term(whole_part(t.linear), whole_part(t.square), float(whole_part(t.constant)))
        for t in terms
    ]
    scores = np.max([t(codes) for t in whole], axis=0)
    return Score(whole, out, shift, scores, np.sort(scores)[::-1] / 2.0**shift)


def cover_score(
    space: Space, labels: Labels, codes: Codes
) -> tuple[Score, list[NDArray[np.bool_]]]:
    """The score of one term, or of two where held-out positives come out clearly higher then; and
    the positives of each term."""

    def rank(part: NDArray[np.bool_]) -> tuple[Term, Matrix]:
        own = labels.part(part)
        chosen = discriminate(space, own, codes)
        return ranker(space, own, codes[chosen.rows], chosen.share)

    every = np.ones(len(labels.positives), bool)
    term, out = rank(every)
    one = score(codes, [term], out)
    if len(every) < 2 * LEAST_KIND + 2:
        return one, [every]
    assert labels.prior is not None
    second = k_means(labels.positives / np.sqrt(labels.prior), 2) == 1
    kinds = [~second, second]
    if min(kind.sum() for kind in kinds) < LEAST_KIND:
        return one, [every]
    two = combine(codes, labels, kinds, [rank(kind) for kind in kinds])
    clearly = two.place() + MARGIN * len(every) < one.place()
    return (two, kinds) if clearly else (one, [every])


def combine(
    codes: Codes, labels: Labels, kinds: list[NDArray[np.bool_]], ranked: list[tuple[Term, Matrix]]
) -> Score:
    """The largest of several terms; for a held-out positive its own term is the one without it."""
    out = np.empty(len(labels.positives))
    for i, kind in enumerate(kinds):
        out[kind] = ranked[i][1]
        for j, (other, _) in enumerate(ranked):
            if j != i:
                out[kind] = np.maximum(out[kind], other(labels.positives[kind]))
    return score(codes, [term for term, _ in ranked], out)


def list_cuts(ranked: Matrix) -> tuple[list[float], list[int]]:
    """Scores at ranks 1, 2, .. 32, then by sixteenths; and the ranks."""
    cuts, counts = [], []
    count = 1
    while count <= len(ranked):
        cuts.append(float(ranked[count - 1]))
        counts.append(count)
        count = max(count + 1, count + count // 16)
    return cuts, counts


def threshold(found: Score, held_out: bool, below: float, each: float = 1.0) -> float:
    """Where to cut, from the scores of held-out positives and of the background."""
    ranked, out = found.ranked, found.out
    top = float(ranked[min(10, len(ranked) - 1)])
    if not held_out:
        return top - 1.0
    n = len(out)
    mean = float(total(out)) / n
    squares = float(total((out - mean) * (out - mean)))
    share = 1.5 / (1.5 + n)
    middle = (1 - share) * mean + share * top
    plain = middle - below
    # The number of positives in the background is at most n(t) / TPR(t) for every threshold t.
    sd = max(np.sqrt(squares / n) if n > 2 else 0.75, 0.3)
    width = max(0.5 * sd, 0.1) * np.sqrt(1 + 2 / n)
    cuts, counts = list_cuts(ranked)
    rates = [max(float(total(logistic(1.702 * ((out - cut) / width)))) / n, 1e-6) for cut in cuts]
    least = min(0.3, 0.9 * max(rates))
    there = max(min(c / r for c, r in zip(counts, rates, strict=True) if r >= least), n / each)
    f1 = [2 * min(r * there, c) / (c + there) for c, r in zip(counts, rates, strict=True)]
    counted = cuts[int(np.argmax(f1))]
    # The two are weighted by how many of those above the plain threshold would be positives.
    deviation = np.sqrt((4 * 0.65 * 0.65 + squares) / (3 + n))
    rate = float(logistic(np.array(1.702 * ((middle - plain) / deviation))))
    above = max(int(np.searchsorted(-ranked, -plain, side="right")), 1)
    precision = min(1.0, there * rate / above)
    weight = (1 - precision) * n / (n + 8)
    hardly = 0.1 * min(max((n - 4) / 4, 0), 1)
    if precision < hardly:
        weight = 1 - precision / hardly * (1 - weight)
    return (1 - weight) * plain + weight * max(counted, plain)


def exhausted(found: Score, labels: Labels, background: Codes, each: float) -> float:
    """From 0 to 1: whether hardly a row is left that ranks as high as the mean held-out positive,
    by the score, or by the distance to the query. Then labels come from the top of a ranking."""
    n = len(found.out)
    if n < 3:
        return 0.0
    mean = float(total(found.out)) / n
    above = int(np.searchsorted(-found.ranked, -mean, side="right")) * each
    if labels.query is not None:

        def near(codes: Codes) -> NDArray[np.int64]:
            assert labels.query is not None
            wide = codes.astype(np.int64)
            return ((2 * labels.query.astype(np.int64) - wide) * wide).sum(axis=1)

        least = int(near(labels.positives).sum()) // n
        above = min(above, int((near(background) >= least).sum()) * each)
    low, high = 0.05 * n, 0.1 * n + 2
    return min(max((high - above) / (high - low), 0.0), 1.0)


def likelihood(values: Matrix, right: bool, middles: Matrix, slope: float) -> tuple[Any, Any, Any]:
    """Of labels, each right with logistic(slope * (value - middle)), or wrong: mantissas and
    exponents, one a middle; and how many are expected to match."""
    mantissa, exponent = np.ones(len(middles)), np.zeros(len(middles), np.int64)
    some, matches = values[spaced(len(values), LIKELY)], np.zeros(len(middles))
    for value in some:
        distance = value - middles
        share = logistic(slope * (distance if right else -distance))
        mantissa, more = np.frexp(mantissa * share)
        exponent += more
        matches = matches + (share if right else 1 - share)
    return mantissa, exponent, matches * (len(values) / len(some)) if len(some) else matches


def scaled(mantissa: Matrix, exponent: Any) -> Any:
    return np.ldexp(mantissa, np.maximum(exponent, -1000))


def go_beyond(found: Score, negatives: Codes, each: float, share: float, plain: float) -> float:
    """Where to cut when labels come from the top of a ranking; `share` of the way from `plain`.

    The share of matches at a score is logistic(slope * (score - middle)), with a posterior for
    slope and middle: by the labels, and a prior by which N matches have a density of N^-2.5.
    Without negatives both slopes count the same. The cut is that of the highest expected F1."""
    listed, counts = list_cuts(found.ranked)
    cuts, n = np.array(listed), len(found.out)
    wrong = np.max([t(negatives) for t in found.terms], axis=0) / 2.0**found.shift
    labelled = np.sort(np.concatenate([found.out, wrong]))[::-1]
    points = np.sort(np.concatenate([cuts, labelled[spaced(len(labelled), LABEL_POINTS)]]))[::-1]
    above = np.searchsorted(-cuts, -points, side="right")  # cuts at or above a point
    returned = np.array([0, *counts])[above] * each
    ok = (found.out[:, None] >= points).sum(axis=0).astype(float)
    again = (wrong[:, None] >= points).sum(axis=0).astype(float)
    near = max(int(np.floor(n / each + 0.5)), 2)
    last = len(found.ranked) - 1
    steep = float(found.ranked[min(near, last)]) - float(found.ranked[min(4 * near, last)])
    slope = max(LOG_4 / max(steep, 0.02), SLOPE)
    rows = np.diff(np.array([0, *counts])) * each
    weights, scores, likely, exponents = [], [], [], []
    for each_slope in (slope, 2 * slope):
        shares = logistic(each_slope * (cuts[:, None] - points))  # [cut][middle]
        matches = np.add.accumulate(np.vstack([np.zeros(len(points)), rows[:, None] * shares]))
        hidden = matches[-1]
        mantissa, exponent, expected = likelihood(found.out, True, points, each_slope)
        negative = likelihood(wrong, False, points, each_slope)
        everything = hidden + expected + negative[2]
        before, after = (
            np.append(everything[0], everything[:-1]),
            np.append(everything[1:], everything[-1]),
        )
        weight = scaled(mantissa, exponent - exponent.max()) * np.abs(after - before)
        weight = weight / (everything * everything * np.sqrt(everything))
        whole = float(total(weight))
        weights.append(weight / whole if whole > 0 else np.zeros(len(points)))
        likely.append(negative[0])
        exponents.append(negative[1])
        size = (ok + again + returned + n)[:, None] + hidden
        scores.append((2 * (ok[:, None] + matches[above]) / size).T)  # [middle][point]
    exponent = np.concatenate(exponents)
    weight = np.concatenate(weights) * scaled(np.concatenate(likely), exponent - exponent.max())
    whole = float(total(weight))
    if not whole > 0:
        return plain
    f1 = total((weight / whole)[:, None] * np.vstack(scores))
    return float((1 - share) * plain + share * points[int(np.argmax(f1))])


# --- boxes around what the score lets through ---------------------------------------------------


def enclose(
    background: Codes, found: Score, labels: Labels, least: float, wanted: int
) -> list[list[list[int]]]:
    """At most `wanted` boxes around the positives and the rows that score at least `least`."""
    assert labels.prior is not None
    above = int(np.searchsorted(-found.ranked, -least, side="right"))
    order = np.argsort(-found.scores, kind="stable")[spaced(above, ENCLOSED)]
    codes = np.vstack([labels.positives, background[order]])
    k = min(wanted, len(codes))
    groups = k_means(codes / np.sqrt(labels.prior), k)
    boxes = []
    for c in range(k):
        members = np.sort(codes[groups == c], axis=0).astype(int)
        if len(members) == 0:
            continue
        tail = len(members) // BOX_TAIL
        slack = np.sqrt(labels.prior) * (1 + 8 / len(members))
        lo = np.maximum(np.floor(members[tail] - slack), 0).astype(int)
        hi = np.minimum(np.ceil(members[-1 - tail] + slack), 255).astype(int)
        inside = (background >= lo) & (background <= hi)
        alive, chosen = np.ones(len(background), bool), []
        for _ in range(BOX_DIMS):
            counts = {d: (int((inside[:, d] & alive).sum()), int(inside[:, d].sum()), d)
                      for d in range(DIMS) if d not in chosen}  # fmt: skip
            count, _, best = min(counts.values())
            if count == alive.sum():
                break
            chosen.append(best)
            alive &= inside[:, best]
        boxes.append([[d, int(lo[d]), int(hi[d])] for d in sorted(chosen)])
    return boxes


# --- the learner --------------------------------------------------------------------------------


def document(score: Score, cut: float) -> dict[str, Any]:
    terms: list[dict[str, Any]] = []
    for t in score.terms:
        term = {"linear": t.linear.astype(int).tolist(), "square": t.square.astype(int).tolist(),
                "constant": int(t.constant)}  # fmt: skip
        if term not in terms:
            terms.append(term)
    unit = 2.0**score.shift
    return {"terms": terms, "votes": 0, "shift": score.shift,
            "threshold": int(np.floor(cut * unit + 0.5))}  # fmt: skip


def train(
    positives: Codes,
    negatives: Codes,
    randoms: Codes,
    find_prior: Any,
    *,
    fine: tuple[Codes, Codes, Codes] | None = None,
    query: Codes | None = None,
    query_fine: Codes | None = None,
    negative_weight: float = 1.0,
    guard: bool = True,
    boxes: int = 0,
    rows: int = 0,
) -> dict[str, Any]:
    """The model's document, without what it says of its training."""
    each = rows / len(randoms) if rows and len(randoms) else 1.0
    order = [randoms]
    fine_order = [] if fine is None else [fine[2]]
    if len(randoms) < 8:
        known = query is not None and (fine is None or query_fine is not None)
        order += [negatives, positives] + ([query[None]] if known else [])
        if fine is not None:
            fine_order += [fine[1], fine[0]] + ([] if query_fine is None else [query_fine[None]])
    background = np.vstack(order)
    measured = background[spaced(len(background), MEASURED)].astype(float)
    space = Space(measured, np.full(len(measured), 1.0 / len(measured)))
    prior = find_prior(background[spaced(len(background), 512)].astype(np.int64)) / 256
    labels = Labels(positives, negatives, query, prior, negative_weight)
    found, kinds = cover_score(space, labels, background)
    held_out = labels.folds() > 0
    name = "cover"
    if guard and held_out:
        term, out = nearest(space, labels)
        distance = score(background, [term], out)
        if distance.place() + MARGIN * len(out) < found.place():
            found, name = distance, "nearest"
    cut = threshold(found, held_out, BELOW, each)
    share = exhausted(found, labels, background, each) if held_out and len(randoms) >= 8 else 0.0
    if share > 0:
        cut = go_beyond(found, negatives, each, share, cut)
    model: dict[str, Any] = {"learner": name, "estimators": [], "threshold": 0}
    if fine is None or name == "nearest":
        if boxes:
            model["estimators"] = [enclose(background, found, labels, cut - BOX_BELOW, boxes)]
            model["threshold"] = 1
        return model | {"score": document(found, cut)}
    second = np.vstack(fine_order)
    own = Labels(fine[0], fine[1], query_fine, None, negative_weight)
    least = cut - 0.5
    order_of = np.argsort(-found.scores, kind="stable")
    chosen = choose(order_of, FINE_ROWS)
    fine_space = Space(second[chosen.rows].astype(float), chosen.share)
    near = int(np.searchsorted(-found.ranked, -least, side="right"))
    candidates = second[order_of[: max(1, near)]]
    ranked = [
        ranker(fine_space, own.part(kind), second[chosen.rows], chosen.share) for kind in kinds
    ]
    again = combine(candidates, own, kinds, ranked)
    fine_cut = threshold(again, held_out, FINE_BELOW, each)
    if share > 0:
        fine_cut = go_beyond(again, fine[1], each, share, fine_cut)
    second_document = document(again, fine_cut)
    del second_document["votes"]
    if boxes:
        model["estimators"] = [enclose(background, found, labels, least - BOX_BELOW, boxes)]
        model["threshold"] = 1
    return model | {"score": document(found, least), "fine": second_document}
