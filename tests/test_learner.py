"""The learner in C against its NumPy twin, and what must hold for any labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import learner_twin
from boxwood import native

Codes = NDArray[np.uint8]
NOTHING = np.empty((0, 32), np.uint8)


def train(
    positives: Codes,
    negatives: Codes = NOTHING,
    randoms: Codes = NOTHING,
    *,
    estimators: int | None = None,
    negative_weight: float = 1.0,
    seed: int = 0,
    prior: bool = True,
) -> dict[str, Any]:
    """The model document that C makes; arguments as in the twin."""
    model, stats = native.train_codes(
        positives,
        negatives,
        randoms,
        learner="branch" if estimators is None else "ensemble",
        estimators=estimators or 25,
        negative_weight=negative_weight,
        seed=seed,
        prior=prior,
        quantizer="q",
    )
    assert (stats.positives, stats.negatives) == (len(positives), len(negatives))
    assert (stats.estimators, stats.boxes) == (estimators or 1, model.info.boxes)
    document: dict[str, Any] = json.loads(model.to_json())
    return document


def match(model: dict[str, Any], codes: Codes) -> NDArray[np.bool_]:
    return native.Model.from_json(json.dumps(model)).evaluate(codes)[2]


def random_case(number: int) -> tuple[tuple[Codes, Codes, Codes], dict[str, Any]]:
    """Labels of many sizes and shapes: tight and wide clusters, repeated and contradictory rows."""
    random = np.random.default_rng(number)
    spread = random.choice([0, 2, 10, 40, 120])

    def rows(n: int) -> Codes:
        centers = random.integers(0, 256, (random.integers(1, 4), 32))
        noisy = centers[random.integers(0, len(centers), n)] + random.normal(0, spread, (n, 32))
        return np.clip(noisy, 0, 255).astype(np.uint8)

    positives = rows(int(random.choice([1, 2, 3, 5, 8, 20, 60])))
    negatives = rows(int(random.choice([0, 1, 5, 30])))
    randoms = rows(int(random.choice([0, 1, 7, 8, 50, 300, 600])))
    if len(negatives) + len(randoms) == 0:
        randoms = rows(10)
    if random.random() < 0.5 and len(randoms):
        randoms[: len(positives)] = positives[: len(randoms)]
    return (positives, negatives, randoms), {
        "estimators": None if random.random() < 0.4 else int(random.integers(1, 6)),
        "negative_weight": float(random.choice([0.01, 0.5, 1, 3.3, 100])),
        "seed": int(random.integers(0, 2**64, dtype=np.uint64)),
    }


def awkward_case(number: int) -> tuple[tuple[Codes, Codes, Codes], dict[str, Any]]:
    """Few different values, rows that repeat, positives that are negatives too, a single one."""
    random = np.random.default_rng(number)
    values = [np.array([7]), np.array([0, 255]), np.array([0, 1, 128, 254, 255])][number % 3]

    def rows(n: int) -> Codes:
        return random.choice(values, (n, 32)).astype(np.uint8)

    positives = rows(int(random.choice([1, 2, 6, 40])))
    negatives = rows(int(random.choice([0, 1, 8, 40])))
    randoms = rows(int(random.choice([1, 9, 70])))
    shared = min(len(positives), len(negatives), int(random.integers(0, 5)))
    negatives[:shared] = positives[:shared]
    positives[len(positives) // 2 :] = positives[: (len(positives) + 1) // 2]
    return (positives, negatives, randoms), {
        "estimators": None if random.random() < 0.5 else int(random.integers(1, 6)),
        "seed": int(random.integers(0, 2**64, dtype=np.uint64)),
    }


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("block", range(8))
def test_c_and_twin_agree(block: int, prior: bool) -> None:
    for number in range(block * 24, block * 24 + 24):
        labels, options = random_case(number)
        expected = learner_twin.train(*labels, **options, prior=prior, quantizer="q")
        assert train(*labels, **options, prior=prior) == expected, number
    for number in range(block * 12, block * 12 + 12):
        labels, options = awkward_case(number)
        expected = learner_twin.train(*labels, **options, prior=prior, quantizer="q")
        assert train(*labels, **options, prior=prior) == expected, number


def test_c_and_twin_agree_over_the_limits() -> None:
    random = np.random.default_rng(1)
    positives = np.clip(random.normal(100, 9, (2500, 32)), 0, 255).astype(np.uint8)
    negatives = random.integers(0, 256, (4200, 32)).astype(np.uint8)
    randoms = random.integers(0, 256, (4300, 32)).astype(np.uint8)
    for options in ({}, {"estimators": 2}, {"prior": False}, {"prior": False, "estimators": 1}):
        expected = learner_twin.train(
            positives, negatives, randoms, seed=3, quantizer="q", **options
        )
        assert train(positives, negatives, randoms, seed=3, **options) == expected


codes = st.builds(
    lambda seed, center, spread, n: np.clip(
        np.random.default_rng(seed).integers(-spread, spread + 1, (n, 32)) + center, 0, 255
    ).astype(np.uint8),
    st.integers(0, 2**32),
    st.integers(0, 255),
    st.integers(0, 200),
    st.integers(1, 30),
)


@settings(max_examples=150, deadline=None)
@given(codes, codes, st.sampled_from([None, 1, 4]), st.booleans(), st.integers(0, 2**64 - 1))
def test_models_are_sound(
    positives: Codes, negatives: Codes, estimators: int | None, prior: bool, seed: int
) -> None:
    options: dict[str, Any] = {"estimators": estimators, "prior": prior, "seed": seed}
    model = train(positives, negatives, **options)
    assert model == train(positives, negatives, **options), "the same labels give the same model"
    assert len(model["estimators"]) == (estimators or 1)
    assert model["threshold"] == (estimators or 1) // 2 + 1
    for boxes in model["estimators"]:
        assert len(boxes) <= (128 if prior else 30)
        for box in boxes:
            if prior:
                assert 6 <= len(box) <= 32, "six ranges, and those that were cut"
            else:
                assert len(box) in (4, 6, 8), "the dimensions of a subset"
            assert all(0 <= lo <= hi <= 255 for _, lo, hi in box)
    votes, scores, _ = native.Model.from_json(json.dumps(model)).evaluate(positives)
    center = np.array(model["score"]["terms"][0]["linear"]) // 2
    distances = ((positives.astype(np.int64) - center) ** 2).sum(axis=1)
    assert (scores == (votes.astype(np.int64) << 21) - distances).all()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 2**64 - 1),
)
def test_separable_positives_are_covered(
    number: int, sizes: list[int], spread: int, prior: bool, seed: int
) -> None:
    """Positives in tight groups, in every dimension far from all negatives."""
    random = np.random.default_rng(number)
    centers = random.choice([5, 250], (len(sizes), 32))
    positives = np.vstack(
        [
            c + random.integers(-spread, spread + 1, (n, 32))
            for c, n in zip(centers, sizes, strict=True)
        ]
    ).astype(np.uint8)
    negatives = random.integers(100, 156, (200, 32)).astype(np.uint8)
    model = train(positives, NOTHING, negatives, prior=prior, seed=seed)
    assert match(model, positives).all()
    assert not match(model, negatives).any()


def clusters() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of 30 clusters, which of them are of the first, their numbers, and 500 random rows."""
    random = np.random.default_rng(4)
    centers = random.integers(40, 216, (30, 32))
    world = np.clip(
        centers[np.arange(6000) % 30] + random.normal(0, 14, (6000, 32)), 0, 255
    ).astype(np.uint8)
    target = np.arange(6000) % 30 == 0
    members = np.flatnonzero(target)
    randoms = world[random.permutation(6000)[:500]]
    return world, target, members, randoms


def test_a_few_positives_find_their_cluster() -> None:
    world, target, members, randoms = clusters()
    for estimators in (None, 25):
        for count in (4, 8, 16, 32):
            found = match(
                train(world[members[:count]], NOTHING, randoms, estimators=estimators), world
            )
            recall, precision = found[target].mean(), target[found].mean()
            assert recall > 0.75, (estimators, count)
            assert precision > 0.9, (estimators, count)


def test_the_papers_method() -> None:
    """Boxes lie in subsets that were fixed before; borders, early stopping, what gives no box."""
    random = np.random.default_rng(3)
    positives = np.clip(random.normal(60, 9, (60, 32)), 0, 255).astype(np.uint8)
    randoms = random.integers(100, 256, (400, 32)).astype(np.uint8)
    subsets: set[tuple[int, ...]] = set()
    for seed in range(20):
        model = train(positives, NOTHING, randoms, prior=False, seed=seed)
        boxes = model["estimators"][0]
        assert match(model, positives).all()
        assert not match(model, randoms).any()
        subsets |= {tuple(d for d, _, _ in box) for box in boxes}
    assert subsets <= {tuple(s) for s in learner_twin.paper_subsets()}
    equal = train(np.repeat(positives[:1], 9, axis=0), NOTHING, randoms, prior=False)
    assert [len(box) for box in equal["estimators"][0]] == [4], "any subset would do"
    other = train(positives, NOTHING, randoms, prior=True, seed=0)
    assert other["estimators"] != train(positives, NOTHING, randoms, prior=False)["estimators"]
    # Nothing tells a positive from a negative that is the same: there is no box to give.
    same = train(positives[:1], positives[:1], NOTHING, prior=False)
    assert same["estimators"] == [[]]
    # Borders: from the seed out to where the next row is; midway to it beyond a positive taken in.
    line = np.full((4, 32), 100, np.uint8)
    line[:, 5] = 60, 100, 110, 130
    found = set()
    for seed in range(20):
        (box,) = train(line[1:3], line[[0, 3]], NOTHING, prior=False, seed=seed)["estimators"][0]
        found |= {(lo, hi) for d, lo, hi in box if d == 5}
    assert found == {(61, 120), (80, 129)}, "the seed was 100 or 110"


def test_the_papers_ensemble_needs_more_positives_than_ours() -> None:
    world, target, members, randoms = clusters()
    found = match(train(world[members[:32]], NOTHING, randoms, estimators=25, prior=False), world)
    assert found[target].mean() > 0.6
    assert target[found].mean() > 0.9


def near_labels() -> tuple[Codes, Codes, Codes]:
    """Positives, negatives that differ from them in four dimensions only, and rows of all kinds."""
    random = np.random.default_rng(9)
    positives = np.clip(random.normal(120, 10, (40, 32)), 0, 255).astype(np.uint8)
    near = np.clip(random.normal(120, 10, (60, 32)), 0, 255).astype(np.uint8)
    near[:, :4] += 15
    randoms = random.integers(0, 256, (300, 32)).astype(np.uint8)
    return positives, near, randoms


@pytest.mark.parametrize("estimators", [None, 25])
def test_given_negatives_are_believed(estimators: int | None) -> None:
    """Nothing that is marked wrong comes back, and what is like it comes back less."""
    positives, near, randoms = near_labels()
    without = match(train(positives, NOTHING, randoms, estimators=estimators), near)
    half = match(train(positives, near[:30], randoms, estimators=estimators), near)
    assert without[:30].sum() >= 15, "it would come back otherwise"
    assert half[:30].sum() <= 1
    assert half[30:].sum() < without[30:].sum()


@pytest.mark.parametrize("estimators", [None, 25])
def test_a_higher_weight_keeps_out_more(estimators: int | None) -> None:
    positives, near, randoms = near_labels()
    votes = [
        native.Model.from_json(
            json.dumps(train(positives, near, randoms, estimators=estimators, negative_weight=w))
        ).evaluate(near)[0]
        for w in (0.01, 0.3, 1, 10)
    ]
    totals = [int(v.sum()) for v in votes]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > totals[1] > totals[2], "the weight has an effect"
    assert totals[2] < totals[0] / 4


@settings(max_examples=100, deadline=None)
@given(codes, codes, codes, st.sampled_from([None, 5]), st.lists(st.floats(0.01, 100), min_size=2))
def test_no_row_gains_votes_by_a_higher_weight(
    positives: Codes, negatives: Codes, randoms: Codes, estimators: int | None, weights: list[float]
) -> None:
    everything = np.vstack([positives, negatives, randoms])
    last: NDArray[Any] | None = None
    for weight in sorted(weights):
        model = train(positives, negatives, randoms, estimators=estimators, negative_weight=weight)
        votes = native.Model.from_json(json.dumps(model)).evaluate(everything)[0]
        assert last is None or (votes <= last).all()
        last = votes
