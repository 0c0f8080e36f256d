"""The scene world: what is drawn, what is said of it, and what is true must agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood import scenes
from boxwood.errors import InputError

ANY, NONE = scenes.ANY, scenes.NONE


@pytest.fixture(scope="module")
def drawn() -> scenes.Scenes:
    return scenes.sample(3000, 5)


def test_sample_is_deterministic_and_distinct(drawn: scenes.Scenes) -> None:
    assert np.array_equal(drawn, scenes.sample(3000, 5))
    assert not np.array_equal(drawn, scenes.sample(3000, 6))
    assert len(np.unique(drawn, axis=0)) == 3000
    assert drawn.dtype == np.int8
    assert drawn.shape == (3000, scenes.WIDTH)


def test_held_out_pairs_are_kept_apart() -> None:
    assert not scenes.holds_out(scenes.sample(500, 1, pairs="seen")).any()
    held = scenes.sample(500, 1, pairs="held-out")
    assert scenes.holds_out(held).all()
    shape, colour = scenes.HELD_OUT[3]
    text = f"{scenes.COLOURS[colour]} {scenes.SHAPES[shape]}"
    assert scenes.matches(held, text).any()
    assert not scenes.matches(scenes.sample(2000, 2, pairs="seen"), text).any()


def test_excluded_scenes_are_not_drawn(drawn: scenes.Scenes) -> None:
    again = scenes.sample(3000, 5, exclude=drawn[:100])
    both = np.concatenate([again, drawn[:100]])
    assert len(np.unique(both, axis=0)) == 3100


def test_edits_change_something_and_stay_valid(drawn: scenes.Scenes) -> None:
    base = scenes.sample(2000, 3, pairs="seen")
    twins = scenes.edit(base, 4)
    assert np.any(twins != base, axis=1).all()
    assert not scenes.holds_out(twins).any()
    # A twin is a scene like any other: its full caption reads back to it.
    _, queries = scenes.captions(twins, 0)
    assert scenes.matches(twins, queries).diagonal().all()
    two = twins[:, 6] != NONE
    assert set(map(tuple, twins[two][:, [5, 10]])) == {(0, 1), (2, 3)}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), drop=st.floats(0, 1))
def test_captions_read_back_and_are_true(seed: int, drop: float) -> None:
    some = scenes.sample(20, seed)
    texts, queries = scenes.captions(some, seed, drop)
    for scene, text, query in zip(some, texts, queries, strict=True):
        assert np.array_equal(scenes.parse(text), query), text
        assert scenes.matches(scene[None], text)[0], text


def test_full_captions_are_true_of_their_scene_alone(drawn: scenes.Scenes) -> None:
    _, queries = scenes.captions(drawn[:500], 7)
    assert np.array_equal(scenes.matches(drawn[:500], queries), np.eye(500, dtype=bool))


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("red circle", {"shape": "circle", "colour": "red"}),
        ("striped", {"pattern": "striped"}),
        ("a large blue star", {"size": "large", "colour": "blue", "shape": "star"}),
        ("plain violet hearts", {"pattern": "solid", "colour": "purple", "shape": "heart"}),
        ("a picture of a cross at the top", {"shape": "cross", "place": "top"}),
    ],
)
def test_truth_by_the_table(drawn: scenes.Scenes, text: str, attributes: dict[str, str]) -> None:
    """`matches` against a second reading of the scenes: the rows of the truth table."""
    rows = scenes.table(drawn).to_pylist()
    expected = [
        any(all(row[name + i] == value for name, value in attributes.items()) for i in ("", "2"))
        for row in rows
    ]
    found = scenes.matches(drawn, text)
    assert found.tolist() == expected
    assert 0 < found.sum() < len(drawn)


def test_truth_of_backgrounds_relations_and_counts(drawn: scenes.Scenes) -> None:
    rows = scenes.table(drawn).to_pylist()

    def expect(text: str, rule: object) -> None:
        assert callable(rule)
        found = scenes.matches(drawn, text)
        assert found.tolist() == [bool(rule(row)) for row in rows], text
        assert found.any(), text

    expect("on a black background", lambda r: r["background"] == "black")
    expect("a single star", lambda r: r["shape"] == "star" and r["shape2"] is None)
    expect(
        "a star above a ring",
        lambda r: (r["shape"], r["shape2"], r["place"]) == ("star", "ring", "top"),
    )
    expect(
        "a star below a ring",
        lambda r: (r["shape"], r["shape2"], r["place"]) == ("ring", "star", "top"),
    )
    expect("a star and a ring", lambda r: {r["shape"], r["shape2"]} == {"star", "ring"})
    expect(
        "red object left of a circle",
        lambda r: (r["colour"], r["place"], r["shape2"]) == ("red", "left", "circle"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a leopard", "no word 'leopard'"),
        ("a red blue circle", "two colours"),
        ("on a black background against white", "two backgrounds"),
        ("a star and a ring and a heart", "more objects"),
        ("a single star and a ring", "more objects"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scenes.parse(text)


def test_pictures_show_their_colours(drawn: scenes.Scenes) -> None:
    some = drawn[:200]
    pictures = scenes.render(some, 1)
    assert pictures.shape == (200, 64, 64, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, scenes.render(some, 1))
    corners = pictures[:, ::63, ::63].reshape(200, -1, 3).mean((1, 2))
    for background, low, high in ((0, 200, 256), (1, 0, 60), (2, 95, 160)):
        levels = corners[some[:, 0] == background]
        assert len(levels)
        assert (levels > low).all()
        assert (levels < high).all()
    solid_red = scenes.matches(some, scenes.parse("a solid red circle")) | scenes.matches(
        some, scenes.parse("a solid red square")
    )
    pixels = pictures[solid_red].astype(int)
    reddest = (pixels[..., 0] - pixels[..., 1:].max(-1)).max((1, 2))
    assert len(reddest)
    assert (reddest > 100).all()


def test_every_shape_is_drawn_inside_the_picture() -> None:
    base = np.array([[0, 0, 0, 1, 0, 4] + [NONE] * 5], np.int8)
    masks = []
    for shape in range(8):
        row = base.copy()
        row[0, 1] = shape
        picture = scenes.render(np.repeat(row, 20, 0), 2).astype(int)
        mask = picture.min(-1) < 120
        area = mask.sum((1, 2))
        assert ((area > 80) & (area < 1000)).all(), scenes.SHAPES[shape]
        masks.append(mask.mean(0))
    for i in range(8):
        for j in range(i):
            assert np.abs(masks[i] - masks[j]).sum() > 40, (scenes.SHAPES[i], scenes.SHAPES[j])


def test_phrases_are_distinct_and_readable() -> None:
    texts = scenes.phrases()
    assert len(texts) == len(set(texts)) == 3000
    assert texts == scenes.phrases()
    for text in texts[::10]:
        scenes.parse(text)


def test_write_makes_files_and_their_truth(tmp_path: Path) -> None:
    from PIL import Image

    steps: list[tuple[int, int]] = []
    some = scenes.write(tmp_path / "new" / "folder", 300, 9, progress=lambda *s: steps.append(s))
    folder = tmp_path / "new" / "folder"
    truth = pq.read_table(folder / "scenes.parquet").to_pylist()
    assert steps == [(256, 300), (300, 300)]
    assert [row["id"] for row in truth] == list(range(300))
    assert {Path(row["file"]).suffix for row in truth} == {".png", ".jpg"}
    for i in (0, 2, 299):
        with Image.open(folder / truth[i]["file"]) as image:
            assert image.size == (64, 64)
            assert image.mode == "RGB"
        assert scenes.matches(some, truth[i]["caption"]).nonzero()[0].tolist() == [i]
    scenes.write(tmp_path / "again", 300, 9)
    for file in (truth[0]["file"], truth[2]["file"]):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_sample_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="from 0 to 100000"):
        scenes.sample(-1, 0)
    with pytest.raises(InputError, match="pairs must be"):
        scenes.sample(1, 0, pairs="some")  # type: ignore[arg-type]
    assert scenes.sample(0, 0).shape == (0, scenes.WIDTH)
