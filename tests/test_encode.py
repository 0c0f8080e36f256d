"""Encoders, heads, the quantizer and image decoding."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from boxwood import scenes
from boxwood.encode import (
    DIMS,
    FINE_DIMS,
    Encoder,
    Head,
    ImageError,
    Quantizer,
    check_embeddings,
    default_head,
    distil,
    find_images,
    load_image,
    vocabulary,
)
from boxwood.errors import Error, InputError, MissingDependency

Floats = Any


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embeddings(n: int, width: int, seed: int, shift: float = 1.0) -> Floats:
    """Vectors with a decaying spectrum around a mean, as encoders put them out."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(width).normal(size=(width, width)))[0]
    rows = rng.normal(size=(n, width)) * np.exp(-np.arange(width) / 12) @ basis
    return (rows + shift * np.random.default_rng(int(shift > 0)).normal(size=width)).astype("f4")


# --- quantizer ----------------------------------------------------------------------------------

FLOATS = st.floats(-1e6, 1e6, width=32)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 40)), elements=FLOATS))
def test_quantizer_round_trip(values: Floats) -> None:
    quantizer = Quantizer.fit(values)
    codes = quantizer.encode(values)
    assert codes.dtype == np.uint8
    assert codes.shape == values.shape
    expected = np.clip(np.rint((values.astype("f8") - quantizer.offset) / quantizer.scale), 0, 255)
    assert np.array_equal(codes, expected)
    back = quantizer.decode(codes)
    inside = np.abs(values) <= quantizer.scale * 127.5
    assert np.all(np.abs(back - values)[inside] <= quantizer.scale * 0.5001 + 1e-30)
    assert np.array_equal(quantizer.encode(back), codes)


@given(st.lists(FLOATS, min_size=2, max_size=50))
def test_codes_keep_the_order(values: list[float]) -> None:
    column = np.sort(np.array(values, "f4"))[:, None]
    assert (np.diff(Quantizer(-127.5, 1.0).encode(column).astype(int), axis=0) >= 0).all()


def test_quantizer_range_is_symmetric_and_holds_its_share() -> None:
    values = np.random.default_rng(0).normal(size=(20000, DIMS)).astype("f4")
    quantizer = Quantizer.fit(values)
    assert quantizer.offset == -127.5 * quantizer.scale
    inside = np.mean(np.abs(values) <= 127.5 * quantizer.scale)
    assert abs(inside - 0.999) < 1e-4
    assert Quantizer.fit(np.zeros((3, DIMS))).encode(np.ones((1, 1))).tolist() == [[255]]


def test_quantizer_fingerprint_is_of_both_little_endian_doubles() -> None:
    import hashlib

    digest = hashlib.sha256(struct.pack("<dd", -1.5, 0.25)).hexdigest()
    assert Quantizer(-1.5, 0.25).fingerprint == digest[:16]
    assert Quantizer(-1.5, 0.5).fingerprint != digest[:16]
    assert Quantizer(-0.0, 1).fingerprint == Quantizer(0.0, 1).fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0], [np.nan]]), "row 1 holds a NaN"),
        (np.array([[np.inf]]), "row 0 holds a NaN or infinite"),
        (np.array([[1]]), "must be floats, not int"),
        (np.array([1.0]), r"shape \(rows, dimensions\)"),
        (np.empty((0, 32)), "no values"),
    ],
)
def test_quantizer_refuses_values(values: Floats, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Quantizer.fit(values)
    if values.size:
        with pytest.raises(InputError, match=message):
            Quantizer(0, 1).encode(values)


@pytest.mark.parametrize("pair", [(0, 0), (0, -1), (np.nan, 1), (0, np.inf), ("0", 1), (0, True)])
def test_quantizer_refuses_parameters(pair: tuple[Any, Any]) -> None:
    with pytest.raises(InputError):
        Quantizer(*pair)


def test_the_quantizer_reports_its_error() -> None:
    rows = unit(embeddings(400, DIMS, 5, shift=0.0))
    quantizer = Quantizer.fit(rows, 0.98)
    error = quantizer.error(rows, queries=400)
    codes = quantizer.encode(rows)
    middle = quantizer.decode(codes).astype("f8")
    away = np.abs(rows) > 128 * quantizer.scale
    assert error.saturated == pytest.approx(away.mean())
    assert 0.01 < error.saturated < 0.03
    cosines = [unit(vectors) @ unit(vectors).T for vectors in (rows, middle)]
    off = np.abs(cosines[0] - cosines[1])[~np.eye(400, dtype=bool)]
    assert error.cosine == pytest.approx(off.mean(), abs=1e-6)
    assert error.cosine_99 == pytest.approx(np.quantile(off, 0.99), abs=1e-5)
    for k, recall in error.recall.items():
        near = []
        for vectors in (rows, middle):
            distance = np.square(vectors[:, None] - vectors[None]).sum(axis=2)
            np.fill_diagonal(distance, np.inf)
            near.append(np.argsort(distance, axis=1)[:, :k])
        same = [len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)]
        assert recall == pytest.approx(np.mean(same) / k, abs=0.005)
    assert list(error.recall) == [1, 10, 100]
    rough = Quantizer(-127.5 / 4, 1 / 4).error(rows)  # two or three steps for all that there is
    assert rough.recall[1] < 0.5 < error.recall[1]
    assert rough.cosine > 5 * error.cosine
    assert list(quantizer.error(rows[:50]).recall) == [1, 10]


def test_the_quantizer_error_wants_rows_to_compare() -> None:
    rows = unit(embeddings(5, DIMS, 5))
    quantizer = Quantizer.fit(rows)
    with pytest.raises(InputError, match="at least 2 rows"):
        quantizer.error(rows[:1])
    with pytest.raises(InputError, match="queries must be"):
        quantizer.error(rows, queries=0)
    with pytest.raises(InputError, match="seed must be"):
        quantizer.error(rows, seed=-1)
    with pytest.raises(InputError, match="row 0 holds a NaN or infinite"):
        quantizer.error(rows.astype(float) * 1e200)
    rows[3] = 0
    with pytest.raises(InputError, match="no direction"):
        quantizer.error(rows)


def test_quantizer_refuses_other_codes() -> None:
    with pytest.raises(InputError, match="uint8"):
        Quantizer(0, 1).decode(np.array([1]))


# --- head ---------------------------------------------------------------------------------------


def subspace(head: Head) -> Floats:
    matrix = head.layers[0][0].astype("f8")
    return matrix @ matrix.T


def test_pca_is_the_plain_eigen_decomposition() -> None:
    images = embeddings(800, 60, 1)
    head = Head.pca(images)
    _, vectors = np.linalg.eigh(np.cov(unit(images.astype("f8")).T))
    top = vectors[:, ::-1][:, :DIMS]
    assert np.allclose(subspace(head), top @ top.T, atol=1e-4)
    spread = (unit(images) @ head.layers[0][0]).var(axis=0)
    assert np.allclose(spread, spread.mean(), rtol=1e-2)  # no axis has more to say than another
    expected = unit((unit(images) - unit(images).mean(0)) @ head.layers[0][0])
    assert np.allclose(head.images(images), expected, atol=1e-5)


@pytest.mark.parametrize("a", [0.0, 0.25, 0.5, 1.0])
def test_shared_directions_are_the_left_singular_vectors(a: float) -> None:
    images, texts = embeddings(900, 60, 1), embeddings(700, 60, 2, shift=-1.0)
    head = Head.shared(images, texts, a, steps=0)

    def power(rows: Floats, exponent: float) -> Floats:
        values, vectors = np.linalg.eigh(np.cov(unit(rows.astype("f8")).T, bias=True))
        return vectors @ np.diag(np.maximum(values, 0) ** exponent) @ vectors.T

    left = np.linalg.svd(power(images, 1 - a) @ power(texts, a))[0][:, :DIMS]
    assert np.allclose(subspace(head), left @ left.T, atol=2e-3)
    assert np.allclose(head.image_mean, unit(images).mean(0), atol=1e-6)
    assert np.allclose(head.text_mean, unit(texts).mean(0), atol=1e-6)
    if a == 0:
        assert np.allclose(subspace(head), subspace(Head.pca(images)), atol=1e-4)


def test_own_means_close_the_modality_gap() -> None:
    """Pairs with the same content but different means are found again only with both means."""
    content = embeddings(500, 80, 3, shift=0.0)
    gap = np.random.default_rng(9).normal(size=(2, 80)).astype("f4") * 5
    images, texts = content + gap[0], content + gap[1]
    shared, pca = Head.shared(images, texts), Head.pca(images)
    for head, low, high in ((shared, 0.9, 1.0), (pca, 0.0, 0.3)):
        nearest = (head.texts(texts) @ head.images(images).T).argmax(1)
        assert low <= np.mean(nearest == np.arange(500)) <= high, head.kind


@pytest.mark.parametrize(
    ("n", "m", "width"), [(1, 1, 64), (5, 3, 64), (20, 500, 64), (500, 2, 40), (50, 50, 16)]
)
def test_few_rows_or_dimensions_are_padded(n: int, m: int, width: int) -> None:
    images, texts = embeddings(n, width, 1), embeddings(m, width, 2, shift=-1.0)
    images[:, 0] = texts[:, 0] = 0  # a dimension in which nothing varies
    shared = Head.shared(images, texts, steps=0)
    for head in (shared, Head.pca(images), Head.pca(images, texts)):
        gram = head.layers[0][0].T @ head.layers[0][0]
        usable = min(width, DIMS)
        assert np.allclose(gram[:usable, :usable], np.eye(usable), atol=1e-5)
        assert np.allclose(gram[usable:], 0)
        out = head.images(images)
        assert out.shape == (n, DIMS)
        assert np.isfinite(out).all()
        lengths = np.linalg.norm(out, axis=1)
        assert np.allclose(lengths[lengths > 1e-3], 1, atol=1e-5)
    moved = Head.shared(images, texts, steps=20)
    # Where no dimension is lost, and with one image, there is nothing to be won back.
    assert (moved == shared) == (width <= DIMS or n == 1)
    for head, rows in ((moved.images, images), (moved.texts, texts)):
        lengths = np.linalg.norm(head(rows), axis=1)
        assert np.allclose(lengths[lengths > 1e-3], 1, atol=1e-5)


def topics(n: int, seed: int, shift: float) -> Floats:
    """Rows about one of 100 topics each; every direction that is about none varies a bit more."""
    rng = np.random.default_rng(1)
    base = np.linalg.qr(rng.normal(size=(160, 100)))[0].T
    about = rng.normal(size=(100, 60))
    rng = np.random.default_rng(seed)
    content = about[rng.integers(0, 100, n)] + 0.2 * rng.normal(size=(n, 60))
    rows = np.hstack([content, 1.3 * rng.normal(size=(n, 40))]) @ base
    return (rows + 3 * shift * rng.normal(size=160) / 160).astype("f4")


def test_shared_keeps_what_is_near() -> None:
    """Against the singular vectors alone: nearest images of unseen images and of unseen texts."""
    images, texts = topics(1200, 2, 1.0), topics(700, 3, -1.0)
    seen, asked, words = images[:800], images[800:], texts[400:]
    texts = texts[:400]
    heads = [Head.shared(seen, texts, steps=steps) for steps in (0, 300)]
    means = heads[0].image_mean, heads[0].text_mean
    assert all(np.array_equal(means[0], head.image_mean) for head in heads)
    full = unit(unit(seen) - means[0])
    for queries, mean, side in ((asked, means[0], "images"), (words, means[1], "texts")):
        true = np.argsort(-unit(unit(queries) - mean) @ full.T, axis=1)[:, :10]
        kept = []
        for head in heads:
            found = np.argsort(-getattr(head, side)(queries) @ head.images(seen).T, axis=1)[:, :10]
            pairs = zip(true, found, strict=True)
            kept.append(np.mean([len(np.intersect1d(*pair)) for pair in pairs]) / 10)
        assert kept[1] > kept[0] + 0.1, (side, kept)
    for head in heads:  # no axis has more to say than another
        spread = ((unit(seen) - means[0]) @ head.layers[0][0]).var(axis=0)
        assert np.allclose(spread, spread.mean(), rtol=1e-2)
    assert Head.shared(seen, texts, steps=300) == heads[1]


def test_the_gradients_of_the_distillation_are_those_of_its_loss() -> None:
    rng = np.random.default_rng(0)
    wanted, cosines = rng.normal(size=(2, 6, 9))
    own = np.arange(6)

    def loss(cosines: Floats, heat: float) -> float:
        rows = cosines * np.exp(heat)
        rows[own, own] = -np.inf
        got = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        aim = wanted - np.log(np.exp(wanted).sum(axis=1, keepdims=True))
        terms = np.exp(aim) * (aim - np.where(np.isinf(got), 0, got))
        return float(terms[np.isfinite(got)].sum() / len(rows))

    wanted[own, own] = -1e4
    slope, warm = distil._divergence(wanted, cosines, 0.3, own)
    step = 1e-6
    for place in ((0, 1), (3, 8), (5, 0)):
        moved = np.zeros_like(cosines)
        moved[place] = step
        difference = (loss(cosines + moved, 0.3) - loss(cosines - moved, 0.3)) / (2 * step)
        assert slope[place] == pytest.approx(difference, rel=1e-3, abs=1e-6)
    difference = (loss(cosines, 0.3 + step) - loss(cosines, 0.3 - step)) / (2 * step)
    off = slope.copy()
    off[own, own] = 0
    assert warm == pytest.approx(difference, rel=1e-3)
    assert np.array_equal(off, slope)  # what is left out has no say


@pytest.mark.parametrize("kind", ["pca", "shared", "identity"])
def test_a_finer_head_has_the_same_means_and_128_directions(kind: str) -> None:
    width = DIMS if kind == "identity" else 200
    images, texts = embeddings(900, width, 1), embeddings(700, width, 2, shift=-1.0)
    spoken = texts if kind == "shared" else None
    head = {
        "pca": lambda: Head.pca(images),
        "shared": lambda: Head.shared(images, texts, steps=0),
        "identity": Head.identity,
    }[kind]()
    finer = head.finer(images, spoken)
    assert (head.dims, finer.dims, finer.width) == (DIMS, FINE_DIMS, width)
    assert np.array_equal(finer.image_mean, head.image_mean)
    assert np.array_equal(finer.text_mean, head.text_mean)
    plain = Head.pca(images, dims=FINE_DIMS)
    if spoken is not None:
        plain = Head.shared(images, texts, dims=FINE_DIMS, steps=0)
    assert np.array_equal(finer.layers[0][0], plain.layers[0][0])
    assert f"{width} -> {FINE_DIMS}" in repr(finer)
    if kind == "pca":  # its directions hold those of the head
        assert np.allclose(subspace(finer) @ head.layers[0][0], head.layers[0][0], atol=1e-4)
    out = finer.images(images)
    assert out.shape == (900, FINE_DIMS)
    assert np.allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    again = Head.from_bytes(finer.to_bytes())
    assert again == finer != head
    assert np.array_equal(again.texts(texts), finer.texts(texts))
    with pytest.raises(InputError, match="dimensions, but"):
        head.finer(images[:, : width - 1])


@pytest.mark.parametrize("width", [1, 16, 100, 128, 130])
def test_a_finer_head_pads_with_zeros(width: int) -> None:
    images = embeddings(300, width, 1)
    finer = Head.pca(images).finer(images)
    out = finer.images(images)
    assert out.shape == (300, FINE_DIMS)
    assert not out[:, width:].any()
    if width > 1:  # nothing is lost that a rotation keeps
        centred = unit(unit(images) - finer.image_mean)
        if width <= FINE_DIMS:
            assert np.allclose(out @ out.T, centred @ centred.T, atol=1e-4)


def test_a_head_puts_out_32_or_128_dimensions() -> None:
    zero = np.zeros(40, "f4")
    for dims in (31, 33, 64, 127, 129):
        layer = (np.zeros((40, dims), "f4"), np.zeros(dims, "f4"))
        with pytest.raises(InputError, match="32 dimensions, or 128 for fine codes"):
            Head("pca", zero, zero, (layer,))


def test_fine_codes_find_more_true_neighbours_than_codes() -> None:
    rng = np.random.default_rng(8)
    centres = rng.normal(size=(60, 256)) * (1 / np.sqrt(1 + np.arange(256) / 8))
    rows = centres[rng.integers(60, size=3000)] + 0.5 * rng.normal(size=(3000, 256))
    rows = rows.astype("f4")
    head = Head.pca(rows)
    finer = head.finer(rows)
    centred = unit(rows) - finer.image_mean
    truth = np.argsort(-(unit(centred[:100]) @ unit(centred).T), axis=1)[:, 1:11]
    shares = []
    for map_ in (head, finer):
        out = map_.images(rows)
        codes = Quantizer.fit(out).encode(out).astype(np.int64)
        found = [
            np.argsort(((codes - codes[query]) ** 2).sum(axis=1), kind="stable")[:11]
            for query in range(100)
        ]
        shares.append(
            np.mean([len(set(f[f != q][:10]) & set(truth[q])) for q, f in enumerate(found)]) / 10
        )
    assert shares[1] > shares[0] + 0.2, shares
    assert shares[1] > 0.6, shares


def test_outputs_are_unit_vectors_whatever_the_length_of_the_input() -> None:
    images = embeddings(300, 50, 4)
    head = Head.shared(images, embeddings(300, 50, 5, -1.0))
    lengths = np.logspace(-6, 6, 300, dtype="f4")[:, None]
    assert np.allclose(head.images(images * lengths), head.images(images), atol=1e-4)
    assert np.allclose(np.linalg.norm(head.texts(images), axis=1), 1, atol=1e-5)
    assert head.images(images.astype("f8")).dtype == np.float32
    assert head.images(np.empty((0, 50), "f4")).shape == (0, DIMS)
    same = Head.identity().images(embeddings(4, DIMS, 0))
    assert np.allclose(same, unit(embeddings(4, DIMS, 0)), atol=1e-6)


def test_layers_have_an_activation_between_them() -> None:
    rng = np.random.default_rng(0)
    layers = tuple(
        (rng.normal(size=s).astype("f4"), rng.normal(size=s[1]).astype("f4"))
        for s in ((10, 40), (40, DIMS))
    )
    zero = np.zeros(10, "f4")
    x = unit(rng.normal(size=(7, 10)))
    inner = x @ layers[0][0] + layers[0][1]
    gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    for name, active in (("gelu", gelu), ("relu", np.maximum(inner, 0))):
        head = Head("pairs", zero, zero, layers, name)
        assert np.allclose(head.images(x), unit(active @ layers[1][0] + layers[1][1]), atol=1e-5)
        assert Head.from_bytes(head.to_bytes()) == head


def test_bytes_round_trip() -> None:
    head = Head.shared(embeddings(200, 48, 1), embeddings(200, 48, 2, -1.0))
    data = head.to_bytes()
    again = Head.from_bytes(data)
    assert again == head
    assert hash(again) == hash(head)
    assert again.to_bytes() == data
    assert again.kind == "shared"
    assert again.width == 48
    assert len(head.fingerprint) == 16
    rows = embeddings(10, 48, 3)
    assert np.array_equal(again.images(rows), head.images(rows))
    assert Head.from_bytes(Head.identity().to_bytes()) == Head.identity()
    assert Head.pca(embeddings(200, 48, 1)) != head


def test_damaged_bytes_are_refused_or_the_same() -> None:
    """Every kind of damage gives InputError, unless it hits bytes that mean nothing."""
    head = Head.pca(embeddings(100, 40, 1))
    data = head.to_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in [*range(0, 400, 3), *rng.integers(0, len(data), 150), *range(-300, 0, 3)]:
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert Head.from_bytes(bytes(broken)) == head
            except InputError:
                refused += 1
    assert refused > 200
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(InputError, match="no head"):
            Head.from_bytes(data[:cut])


def archive(**changes: Any) -> bytes:
    with np.load(io.BytesIO(Head.pca(embeddings(50, 40, 1)).to_bytes())) as file:
        arrays = {name: file[name] for name in file.files}
    arrays.update(changes)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in arrays.items() if value is not None})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": np.array(2)},
        {"kind": np.array("other")},
        {"kind": None},
        {"image_mean": np.zeros(41, "f4")},
        {"image_mean": np.full(40, np.nan, "f4")},
        {"matrix0": np.zeros((40, 31), "f4")},
        {"bias0": np.zeros((32, 1), "f4")},
        {"bias0": np.ones(32, "f4")},  # well formed, but not what the fingerprint is of
        {"fingerprint": np.array("0" * 16)},
        {"kind": np.array([{"a": "pickle"}], dtype=object)},
        {"matrix0": np.array([["a"] * 32] * 40)},
    ],
)
def test_other_archives_are_refused(changes: dict[str, Any]) -> None:
    Head.from_bytes(archive())
    with pytest.raises(InputError, match="no head"):
        Head.from_bytes(archive(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :30], "30 dimensions, but 40 are expected"),
        (lambda x: x[0], r"shape \(rows, dimensions\)"),
        (lambda x: x.astype(int), "must be floats, not int"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), "row 7 holds a NaN"),
        (lambda x: np.where(np.arange(len(x))[:, None] >= 8, np.inf, x), "row 8 holds a NaN"),
        (lambda x: x.astype("f8") * 1e300, "row 0 holds a NaN or infinite"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 9, 0, x), "row 9 is zero"),
    ],
)
def test_bad_embeddings_name_the_first_bad_row(change: Any, message: str) -> None:
    good = embeddings(20, 40, 1)
    head = Head.pca(good)
    bad = change(good)
    for use in (head.images, head.texts, lambda x: check_embeddings(x, 40)):
        with pytest.raises(InputError, match=message):
            use(bad)


def test_fitting_needs_rows_of_one_width() -> None:
    rows = embeddings(20, 40, 1)
    with pytest.raises(InputError, match="at least one row"):
        Head.pca(rows[:0])
    with pytest.raises(InputError, match="41 dimensions, but 40"):
        Head.shared(rows, embeddings(20, 41, 1))
    with pytest.raises(InputError, match="a must be from 0 to 1"):
        Head.shared(rows, rows, 1.5)
    for steps in (-1, 2.5, True):
        with pytest.raises(InputError, match="steps must be"):
            Head.shared(rows, rows, steps=steps)  # type: ignore[arg-type]


# --- images -------------------------------------------------------------------------------------

Image = pytest.importorskip("PIL.Image")


def near(image: Any, position: tuple[int, int], colour: tuple[int, int, int], by: int = 12) -> bool:
    return bool(np.abs(np.array(image.getpixel(position)) - colour).max() <= by)


def test_modes_become_rgb(tmp_path: Path) -> None:
    grey = Image.new("L", (20, 10), 100)
    palette = Image.new("RGB", (20, 10), (200, 30, 40)).convert("P", palette=Image.Palette.ADAPTIVE)
    clear = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    half = Image.new("LA", (20, 10), (0, 128))
    cmyk = Image.new("CMYK", (20, 10), (0, 255, 255, 0))
    bits = Image.new("1", (20, 10), 1)
    deep = Image.fromarray(np.full((10, 20), 25700, np.uint16))
    wide = Image.fromarray(np.linspace(-1e6, 1e6, 200, dtype=np.float32).reshape(10, 20))
    for name, image, expected in (
        ("grey.png", grey, (100, 100, 100)),
        ("palette.gif", palette, (200, 30, 40)),
        ("clear.png", clear, (255, 255, 255)),
        ("half.png", half, (127, 127, 127)),
        ("cmyk.jpg", cmyk, (255, 0, 0)),
        ("bits.png", bits, (255, 255, 255)),
        ("deep.png", deep, (100, 100, 100)),
        ("deep.tif", deep, (100, 100, 100)),
        ("wide.tif", wide, (0, 0, 0)),
    ):
        image.save(tmp_path / name)
        loaded = load_image(tmp_path / name)
        assert (loaded.mode, loaded.size) == ("RGB", (20, 10)), name
        assert near(loaded, (0, 0), expected), (name, loaded.getpixel((0, 0)))
    with open(tmp_path / "grey.png", "rb") as file:
        assert load_image(file).mode == "RGB"


def test_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.save(tmp_path / "p.png", transparency=0)
    assert load_image(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    picture = Image.new("RGB", (40, 20), (0, 0, 0))
    picture.paste((255, 0, 0), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), np.asarray(expected))


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    for name in ("moving.gif", "moving.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert near(load_image(tmp_path / name), (8, 8), (255, 0, 0)), name


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_large_images_are_reduced(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (9000, 5200), (10, 200, 30)).save(tmp_path / name)
    loaded = load_image(tmp_path / name)
    assert 1024 <= min(loaded.size) < 2100
    assert abs(loaded.width / loaded.height - 9000 / 5200) < 0.01
    assert near(loaded, (50, 50), (10, 200, 30))


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_broken_files_say_why(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    Image.fromarray(noise).save(tmp_path / "whole.png")
    cases = {
        "bomb.png": (png(30000, 20000), "more than 500 million"),
        "empty.jpg": (b"", "not an image"),
        "text.jpg": (b"this is no image\n" * 50, "not an image"),
        "half.jpg": ((tmp_path / "whole.jpg").read_bytes()[:9000], "truncated"),
        "half.png": ((tmp_path / "whole.png").read_bytes()[:50000], "broken image"),
        "short.png": (png(50, 50), "broken image"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(tmp_path / name)
        assert caught.value.path == tmp_path / name
        assert name in str(caught.value)
        assert isinstance(caught.value, InputError)
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "missing.jpg")
    fifo, link = tmp_path / "pipe.png", tmp_path / "link.png"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    for path in find_images(tmp_path):
        if path.name in (fifo.name, link.name):
            with pytest.raises(ImageError, match="not a regular file"):
                load_image(path)
    assert {fifo, link} <= set(find_images(tmp_path))
    with pytest.raises(ImageError, match="a folder"):
        load_image(tmp_path)
    assert limit == Image.MAX_IMAGE_PIXELS


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_a_picture_or_an_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (1, 200, 90)).save(buffer, kind)
    broken = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImageError):  # and nothing else may escape
            assert load_image(io.BytesIO(bytes(broken))).mode == "RGB"


def test_find_images(tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "sub/c.webp", "sub/é è.jpeg", "notes.txt", ".hidden.png",
             ".cache/d.png", "sub/e.tar.gz"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "sub/c.webp", "sub/é è.jpeg"]
    both = find_images([tmp_path / "sub" / "c.webp", str(tmp_path), tmp_path / "notes.txt"])
    assert [p.name for p in both] == ["c.webp", "a.png", "b.JPG", "é è.jpeg", "notes.txt"]
    with pytest.raises(InputError, match="no such file or folder"):
        find_images(tmp_path / "nowhere")


# --- vocabulary ---------------------------------------------------------------------------------


def test_vocabulary_is_large_distinct_and_stable() -> None:
    module = importlib.import_module("boxwood.encode.vocabulary")
    nouns = [noun for words in module.nouns().values() for noun, _ in words]
    assert len(nouns) == len(set(nouns)) >= 900
    texts = vocabulary("ViT-B-32/laion2b_s34b_b79k")
    assert len(texts) == len(set(texts)) >= 3000
    assert texts == vocabulary("RN50/openai")
    said = "\n".join(texts)
    assert all(noun in said for noun in nouns)
    assert not any("{" in text or "  " in text or text != text.strip() for text in texts)
    assert "an x-ray" in said
    assert "a university" in said
    assert "an uni" not in said
    assert vocabulary("tiny-scenes") == scenes.phrases()


# --- without torch ------------------------------------------------------------------------------

WITHOUT = """
import sys
for name in ("torch", "open_clip", "torchvision", "PIL"):
    sys.modules[name] = None
import numpy as np
from boxwood import encode
from boxwood.errors import MissingDependency
rows = np.random.default_rng(0).normal(size=(100, 64)).astype("f4")
head = encode.Head.pca(rows)
encode.Quantizer.fit(head.images(rows)).encode(head.images(rows))
encode.vocabulary("tiny-scenes")
for use in (lambda: encode.Encoder.open("tiny-scenes"), lambda: encode.train_pairs,
            lambda: encode.load_image("x.png")):
    try:
        use()
    except MissingDependency as error:
        assert "pip install 'boxwood[clip]'" in str(error), error
    else:
        raise SystemExit("no error")
"""


def test_heads_and_quantizers_need_numpy_alone() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=60)


# --- encoders and training ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(torch: Any) -> Encoder:
    try:
        return Encoder.open("tiny-scenes")
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def unseen(tiny: Encoder) -> tuple[scenes.Scenes, Floats, Floats]:
    """1,000 scenes that training did not show, with embeddings of pictures and captions."""
    train_tiny = importlib.import_module("boxwood.encode.train_tiny")
    tiny_model = importlib.import_module("boxwood.encode.tiny_model")
    config = json.loads((tiny_model.FOLDER / "config.json").read_text())
    known = train_tiny.training_scenes(config["seed"]).reshape(-1, scenes.WIDTH)
    drawn = scenes.sample(1000, 2024, exclude=known)
    pictures = [Image.fromarray(pixels) for pixels in scenes.render(drawn, 1)]
    return drawn, tiny.images(pictures), tiny.texts(scenes.captions(drawn, 2)[0])


def recall(texts: Floats, images: Floats, k: int) -> float:
    distance = (
        (texts.astype("f8") ** 2).sum(1)[:, None]
        - 2 * texts.astype("f8") @ images.astype("f8").T
        + (images.astype("f8") ** 2).sum(1)
    )
    rank = (distance < np.diagonal(distance)[:, None] - 1e-9).sum(1)
    return float(np.mean(rank < k))


def test_tiny_finds_unseen_scenes_after_head_and_8_bits(
    tiny: Encoder, unseen: tuple[scenes.Scenes, Floats, Floats]
) -> None:
    drawn, images, texts = unseen
    assert recall(texts, images, 10) >= 0.95
    head = default_head(tiny, images)
    assert head == tiny.default_head() == default_head(tiny, images[:1])
    quantizer = Quantizer.fit(head.images(images))
    image_codes, text_codes = (
        quantizer.encode(rows) for rows in (head.images(images), head.texts(texts))
    )
    assert recall(text_codes, image_codes, 10) >= 0.95
    assert recall(text_codes[::-1], image_codes, 10) < 0.05  # the measure can fail
    for query in ("red object", "a white background", "large object", "star", "a blue heart"):
        code = quantizer.encode(head.texts(tiny.texts([query]))).astype(int)
        first = ((image_codes.astype(int) - code) ** 2).sum(1).argsort()[:20]
        assert scenes.matches(drawn[first], query).mean() >= 0.9, query


def test_encoder_embeds_the_same_every_time(tiny: Encoder) -> None:
    assert tiny.name == "tiny-scenes"
    assert tiny.dims == 128
    assert len(tiny.fingerprint) == 16
    assert Encoder.open("tiny-scenes").fingerprint == tiny.fingerprint
    pictures = [Image.fromarray(p) for p in scenes.render(scenes.sample(70, 1), 1)]
    first = tiny.images(pictures)
    assert first.dtype == np.float32
    assert first.shape == (70, 128)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert np.array_equal(first, tiny.images(pictures))
    assert np.allclose(first[65:67], tiny.images(pictures[65:67]), atol=1e-5)
    words = ["red circle", "a leopard in the snow " * 40, "ü"]
    assert np.array_equal(tiny.texts(words), tiny.texts(words))
    assert np.allclose(tiny.texts(words)[0], tiny.texts(["Red  circle"])[0], atol=1e-5)
    assert tiny.images([]).shape == tiny.texts([]).shape == (0, 128)
    odd = tiny.images([Image.new("L", (300, 7)), Image.new("RGBA", (5, 400))])
    assert np.isfinite(odd).all()


def test_encoder_refuses_texts(tiny: Encoder) -> None:
    with pytest.raises(InputError, match="a list of texts"):
        tiny.texts("red circle")
    with pytest.raises(InputError, match="text 1 must be a text"):
        tiny.texts(["red", " "])


def test_packaged_files_are_small() -> None:
    folder = Path(importlib.import_module("boxwood.encode").__file__ or "").parent / "tiny"
    assert 0 < sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    with np.load(folder / "weights.npz", allow_pickle=False) as file:
        assert {file[name].dtype for name in file.files} <= {np.dtype("f2"), np.dtype("i4")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23/laion2b_s34b_b79k", "Close names: .*ViT-B-32"),
        ("tiny-scene", "Close names: tiny-scenes"),
        ("zzzz", "list_models"),
        ("ViT-B-32", "needs its pretrained weights named"),
        ("ViT-B-32/laion2b_s34b_b79", "Close tags: laion2b_s34b_b79k"),
        ("ViT-B-32/weights/none.pt", "nor a checkpoint file"),
    ],
)
def test_unknown_encoders(tiny: Encoder, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoder.open(name)


def test_weights_that_cannot_be_fetched(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("boxwood.encode.open_clip").load()

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known\ndetails")

    monkeypatch.setattr(library, "create_model_and_transforms", offline)
    with pytest.raises(Error, match=r"not known\. Fetching them needs the network") as caught:
        Encoder.open("ViT-B-32/laion2b_s34b_b79k")
    assert "details" not in str(caught.value)


def test_any_open_clip_model_from_a_checkpoint(tiny: Encoder, torch: Any, tmp_path: Path) -> None:
    library = importlib.import_module("boxwood.encode.open_clip").load()
    config = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    (tmp_path / "mini-test.json").write_text(json.dumps(config))
    library.add_model_config(tmp_path / "mini-test.json")
    torch.manual_seed(0)
    model = library.create_model("mini-test")
    torch.save(model.state_dict(), tmp_path / "mini.pt")
    encoder = Encoder.open(f"mini-test/{tmp_path / 'mini.pt'}")
    assert encoder.dims == 48
    assert encoder.default_head() is None
    pictures = [Image.fromarray(p) for p in scenes.render(scenes.sample(40, 1), 1)]
    head = default_head(encoder, encoder.images(pictures), phrases=["a cat", "a dog", "a tree"])
    assert head.kind == "shared"
    assert head.width == 48
    assert head.texts(encoder.texts(["a cat"])).shape == (1, DIMS)

    with torch.no_grad():
        model.token_embedding.weight += 1
    torch.save(model.state_dict(), tmp_path / "other.pt")
    other = Encoder.open(f"mini-test/{tmp_path / 'other.pt'}")
    assert other.fingerprint != encoder.fingerprint
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    with pytest.raises(Error, match="no checkpoint of mini-test"):
        Encoder.open(f"mini-test/{tmp_path / 'broken.pt'}")


def pairs(n: int, seed: int) -> tuple[Floats, Floats]:
    """Pairs that share 12 directions which vary little, in the midst of much that they do not."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n, 12))
    out = []
    for modality in (0, 1):
        mix = np.random.default_rng(modality + 50)
        noise = rng.normal(size=(n, 16)) @ mix.normal(size=(16, 64)) * 0.3
        meaning = content @ np.random.default_rng(7).normal(size=(12, 64)) * 0.3
        out.append((noise + meaning + 3 * mix.normal(size=64)).astype("f4"))
    return out[0], out[1]


@pytest.mark.parametrize("hidden", [None, 96])
def test_pairs_beat_the_shared_directions(torch: Any, hidden: int | None) -> None:
    from boxwood.encode import train_pairs

    images, texts = pairs(1500, 1)
    new_images, new_texts = pairs(300, 2)
    shared = Head.shared(images, texts)
    seen: list[tuple[int, int, float]] = []
    head = train_pairs(
        images, texts, hidden=hidden, epochs=20, progress=lambda *step: seen.append(step)
    )
    assert head.kind == "pairs"
    assert len(head.layers) == (1 if hidden is None else 2)
    before = recall(shared.texts(new_texts), shared.images(new_images), 1)
    after = recall(head.texts(new_texts), head.images(new_images), 1)
    assert after > before + 0.1, (before, after)
    assert seen[0][:2] == (1, 20)
    assert seen[-1][2] < seen[0][2]
    assert Head.from_bytes(head.to_bytes()) == head
    again = train_pairs(images, texts, hidden=hidden, epochs=20)
    assert again == head


@pytest.mark.parametrize("hidden", [None, 64])
def test_training_starts_from_the_default_head(torch: Any, hidden: int | None) -> None:
    from boxwood.encode import train_pairs

    images, texts = pairs(15, 1)  # too few for a held-out part
    start = train_pairs(images, texts, hidden=hidden, epochs=0)
    shared = Head.shared(images, texts)
    assert np.allclose(start.images(images), shared.images(images), atol=1e-3)


def test_rows_of_one_group_are_no_negatives(torch: Any) -> None:
    """Five rows that are the same cannot be told apart: a loss of log(5), unless it is known."""
    from boxwood.encode import train_pairs

    images, texts = (rows.repeat(5, 0) for rows in pairs(3, 3))
    texts[:, 0] += 1e-3 * np.arange(15, dtype="f4")  # equal texts would be no negatives either

    def losses(groups: Any) -> list[float]:
        seen: list[float] = []
        train_pairs(
            images, texts, groups, neighbours=0, progress=lambda *step: seen.append(step[2])
        )
        return seen

    assert losses(np.arange(15))[-1] > np.log(5) - 1e-2
    assert losses(None)[-1] < 0.2, "equal images are of one group"
    assert losses(np.repeat(["a", "b", "c"], 5))[-1] < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": pairs(9, 1)[1]}, "10 images and 9 texts"),
        ({"groups": [1, 2]}, "10 pairs, but 2 groups"),
        ({"groups": [1] * 10}, "at least 2 groups"),
        ({"hidden": 8}, "hidden must be from 64"),
        ({"koleo": -1.0}, "koleo must be"),
        ({"epochs": -1}, "epochs must be"),
    ],
)
def test_training_refuses(torch: Any, change: dict[str, Any], message: str) -> None:
    from boxwood.encode import train_pairs

    images, texts = pairs(10, 1)
    with pytest.raises(InputError, match=message):
        train_pairs(**{"images": images, "texts": texts, **change})
