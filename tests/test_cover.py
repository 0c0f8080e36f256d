"""The learner `cover`: the C core against its twin in NumPy, and what a sensible model finds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import cover_twin
import learner_twin
from boxwood import errors, native

DIMS = 32


def prior_of(rows: Any) -> Any:
    return learner_twin.find_prior(np.zeros((0, DIMS), np.int64), rows)


def clusters(rng: np.random.Generator, n: int, kinds: int, dims: int = DIMS) -> np.ndarray:
    """Codes around `kinds` centres, of different widths."""
    centres = rng.uniform(60, 195, (kinds, dims))
    widths = rng.uniform(4, 25, (kinds, 1))
    which = rng.integers(0, kinds, n)
    return np.clip(rng.normal(centres[which], widths[which]), 0, 255).astype(np.uint8)


def case(number: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Positives, negatives and background rows with options, of all sorts of sizes and shapes."""
    rng = np.random.default_rng(number)
    sizes = [int(rng.choice(some)) for some in ([0, 1, 2, 3, 7, 8, 9, 30], [0, 0, 1, 5, 40],
                                                [0, 1, 7, 8, 50, 2500, 5000])]  # fmt: skip
    if number % 8 == 0:
        sizes[2] = 5000
    if sizes[0] == 0 or rng.random() < 0.3:
        options: dict[str, Any] = {"query": clusters(rng, 1, 1)[0]}
    else:
        options = {}
    rows = clusters(rng, sum(sizes), int(rng.integers(1, 30)))
    shape = rng.integers(0, 6)
    if shape == 0:
        rows //= 64  # few values, many equal rows
    elif shape == 1:
        rows[:] = rows[:1]
    elif shape == 2:
        rows[:, ::3] = 255
    elif shape == 3 and sizes[0] > 7:
        rows[: sizes[0]] = clusters(rng, sizes[0], 2)  # two kinds
    parts = np.split(rows, np.cumsum(sizes)[:2])
    if rng.random() < 0.3:
        options["negative_weight"] = float(rng.choice([0.01, 0.5, 4.0, 100.0]))
    options["guard"] = bool(rng.integers(0, 2))
    if rng.random() < 0.5:
        options["rows"] = int(sizes[2] * rng.integers(1, 1000))
    options["boxes"] = int(rng.choice([0, 0, 1, 6, 64]))
    return parts, options


@pytest.mark.parametrize("number", range(60))
def test_twin(number: int) -> None:
    parts, options = case(number)
    model, stats = native.train_codes(*parts, learner="cover", quantizer="q", **options)
    expected = cover_twin.train(*parts, prior_of, **options)
    assert {name: json.loads(model.to_json())[name] for name in expected} == expected
    assert stats.terms == len(expected["score"]["terms"])
    assert stats.fallback == (expected["learner"] == "nearest")


@pytest.mark.parametrize("number", range(12))
def test_twin_with_fine_codes(number: int) -> None:
    parts, options = case(1000 + number)
    rng = np.random.default_rng(number)
    map_ = rng.normal(size=(DIMS, 128)) / 8

    def fine_of(codes: np.ndarray) -> np.ndarray:
        noise = rng.normal(0, 4, (len(codes), 128))
        return np.clip((codes - 128.0) @ map_ + 128 + noise, 0, 255).astype(np.uint8)

    fine = tuple(fine_of(part) for part in parts)
    if "query" in options:
        options["query_fine"] = fine_of(options["query"][None])[0]
    model, _ = native.train_codes(*parts, fine=fine, rerank=True, learner="cover", **options)
    found = json.loads(model.to_json())
    expected = cover_twin.train(*parts, prior_of, fine=fine, **options)  # type: ignore[arg-type]
    if "fine" in found:
        del found["fine"]["quantizer"]
    assert {name: found[name] for name in expected} == expected
    assert ("fine" in expected) == ("fine" in found) == (expected["learner"] == "cover")


def from_the_top(number: int) -> tuple[list[np.ndarray], np.ndarray]:
    """What a person marks who looks at the best of a ranking: all rows near a centre, right within
    some distance, and the rows that are left; and which of these match."""
    rng = np.random.default_rng(number)
    rows = clusters(rng, int(rng.choice([40, 600, 2500])), int(rng.integers(2, 12)))
    center = rows[0].astype(float)
    distance = ((rows - center) ** 2).sum(axis=1)
    order = np.argsort(distance, kind="stable")
    match = distance <= np.quantile(distance, rng.uniform(0.1, 0.4))
    match ^= rng.random(len(rows)) < rng.choice([0.0, 0.1])
    seen, left = np.split(order, [int(rng.choice([12, 30]))])
    return [rows[seen[match[seen]]], rows[seen[~match[seen]]], rows[left]], match[left]


@pytest.mark.parametrize("number", range(16))
def test_twin_with_labels_from_the_top(number: int) -> None:
    parts, _ = from_the_top(number)
    rng = np.random.default_rng(number)
    options: dict[str, Any] = {"rows": len(parts[2]) * int(rng.choice([1, 1, 3]))}
    if number % 3 == 0:
        options["query"] = parts[0][0]
    if number % 2:
        fine = tuple(np.repeat(part, 4, axis=1) ^ np.uint8(number) for part in parts)
        model, _ = native.train_codes(*parts, fine=fine, rerank=True, **options)
        expected = cover_twin.train(*parts, prior_of, fine=fine, **options)  # type: ignore[arg-type]
    else:
        model, _ = native.train_codes(*parts, **options)
        expected = cover_twin.train(*parts, prior_of, **options)
    found = json.loads(model.to_json())
    found.get("fine", {}).pop("quantizer", None)
    assert {name: found[name] for name in expected} == expected


def test_labels_from_the_top_do_not_narrow_the_set() -> None:
    """All that a person was shown is right: far more than that must match."""
    rng = np.random.default_rng(3)
    rows = clusters(rng, 6000, 12)
    rows[:1500] = np.clip(rng.normal(100, 18, (1500, DIMS)), 0, 255)
    direction = rows[:1500].mean(axis=0) - rows[1500:].mean(axis=0)
    order = np.argsort(-(rows[:1500] @ direction))  # a ranking that everybody starts from
    seen, left = rows[:1500][order[:40]], rows[:1500][order[40:]]
    background = np.vstack([left, rows[1500:]])
    model, stats = native.train_codes(seen, rows[:0], background)
    match = model.evaluate(background)[2].astype(bool)
    assert match[: len(left)].mean() > 0.3
    assert match[: len(left)].sum() > 0.9 * match.sum()
    assert "marked already" in stats.note
    stats = native.train_codes(left[::40], rows[:0], background)[1]
    assert "marked already" not in stats.note


def test_reranking_sees_all_of_a_frequent_concept() -> None:
    """More rows than fit a few thousand match: the fine threshold must be found by all of them."""
    rng = np.random.default_rng(7)
    rows = clusters(rng, 20_000, 40)
    rows[:8000] = np.clip(rng.normal(128, 20, (8000, DIMS)), 0, 255)
    fine = np.repeat(rows, 4, axis=1)
    p, b = rows[:16], rows[16:]
    fines = fine[:16], fine[:0], fine[16:]
    model, stats = native.train_codes(p, rows[:0], b, fine=fines, rerank=True)
    match = model.evaluate(b, fines[2])[2]
    assert stats.rows == match.sum() + model.evaluate(p, fines[0])[2].sum()
    assert match[: 8000 - 16].mean() > 0.5
    few_fines = fines[2][8000:8004], *fines[1:]
    few, stats = native.train_codes(b[8000:8004], rows[:0], b, fine=few_fines, rerank=True)
    assert few.evaluate(b, fines[2])[2].mean() < 0.3
    assert stats.precision_low == max(stats.precision - 0.48, 0)


def test_notes_fit_and_say_what_is_wrong() -> None:
    rng = np.random.default_rng(8)
    rows = clusters(rng, 3000, 6)
    near = np.clip(rng.normal(90, 5, (100, DIMS)), 0, 255).astype(np.uint8)
    rows, near = np.vstack([rows, near[12:]]), near[:12]
    odd = np.vstack([near[:11], 255 - near[11:]])
    note = native.train_codes(odd, rows[:0], rows)[1].note
    assert "1 of 12 positives look unlike the others: 11" in note
    assert native.train_codes(near, rows[:0], rows)[1].note == ""
    assert "single example" in native.train_codes(near[:1], rows[:0], rows)[1].note
    assert (
        "words or a code alone"
        in native.train_codes(near[:0], rows[:0], rows, query=near[0])[1].note
    )
    with pytest.raises(errors.InputError, match="give the query as well"):
        native.train_codes(near, rows[:0], rows, query_fine=np.zeros(128, np.uint8))


def test_needs_positives_or_a_query() -> None:
    rows = clusters(np.random.default_rng(0), 100, 3)
    with pytest.raises(errors.InputError, match="query"):
        native.train_codes(rows[:0], rows[:5], rows[5:], learner="cover")
