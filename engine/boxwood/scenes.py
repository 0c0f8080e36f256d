"""The scene world: generated, captioned pictures whose truth is known.

A scene is one or two objects on a plain background. Each object has a shape, a colour, a size, a
pattern and a place; two objects stand side by side or one above the other. The world serves three
ends: it trains the packaged encoder, it gives the demo real image files, and, because every picture
is drawn from its description, it says exactly which pictures a query such as ``"red circle"`` or
``"a large blue star on a black background"`` should find.

Scenes and queries share one layout, an ``int8`` array of shape ``(n, 11)``::

    background | shape colour size pattern place | shape colour size pattern place

A scene with one object has `NONE` in the last five columns. A query may hold `ANY` anywhere, and
`NONE` in the last five columns when it asks for a single object. The first of two objects is the
one on the left or at the top, so equal scenes are equal rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from boxwood.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Scenes = NDArray[np.int8]
Query = NDArray[np.int8]

SIZE = 64
"""Side of a rendered picture, in pixels."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SIZES = ("small", "large")
PATTERNS = ("solid", "striped", "dotted")
PLACES = ("left", "right", "top", "bottom", "center")
BACKGROUNDS = ("white", "black", "gray")

NONE = -1
ANY = -2
WIDTH = 11

_ATTRIBUTES = (SHAPES, COLOURS, SIZES, PATTERNS, PLACES)
_SHAPE, _COLOUR, _SIZE, _PATTERN, _PLACE = range(5)
_FIRST, _SECOND = slice(1, 6), slice(6, 11)
_COLUMNS = ("shape", "colour", "size", "pattern", "place")

_RGB = np.array(
    [
        (222, 32, 34), (34, 158, 56), (38, 72, 222), (238, 216, 36),
        (246, 134, 22), (128, 42, 164), (250, 142, 194), (48, 206, 216),
    ],
    np.float32,
)  # fmt: skip
_BACKGROUND_RGB = np.array([(246, 246, 246), (14, 14, 14), (128, 128, 128)], np.float32)

# Each shape has one colour that training never shows it in.
HELD_OUT = tuple((shape, (3 * shape + 2) % 8) for shape in range(8))
_HELD_OUT_COLOUR = np.array([colour for _, colour in HELD_OUT], np.int8)

_SYNONYMS = {
    "little": "small", "big": "large", "plain": "solid", "spotted": "dotted",
    "violet": "purple", "grey": "gray", "middle": "center",
}  # fmt: skip
_SPOKEN: dict[str, tuple[str, ...]] = {
    word: (word, *(other for other, name in _SYNONYMS.items() if name == word))
    for word in (*SIZES, *PATTERNS, *COLOURS, *BACKGROUNDS, *SHAPES, *PLACES)
}
_PLACE_TEXT = ("on the left", "on the right", "at the top", "at the bottom", "in the {}")
_OPENINGS = ("", "", "a picture of ", "a drawing of ", "an image of ", "there is ")
_BACKDROPS = ("on a {} background", "against {}", "over a {} backdrop", "with a {} background")
_NOUNS = ("shape", "object")
_SINGLE = ("single", "lone")
# The relation words, as (the first object's place, the second object's place).
_RELATIONS = {"left of": (0, 1), "right of": (1, 0), "above": (2, 3), "below": (3, 2)}
_FILLERS = frozenset(
    (
        "a", "an", "the", "of", "in", "on", "at", "to", "with", "against", "over", "there", "is",
        "picture", "drawing", "image", "background", "backdrop", "shape", "object", "something",
    )
)  # fmt: skip


def _rng(seed: int | np.random.Generator) -> np.random.Generator:
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)


# --- scenes -------------------------------------------------------------------------------------


def holds_out(scenes: Scenes) -> NDArray[np.bool_]:
    """True where a scene has an object of a held-out pair of shape and colour, shape ``(n,)``."""
    held = np.zeros(len(scenes), bool)
    for part in (_FIRST, _SECOND):
        objects = scenes[:, part]
        held |= (objects[:, _SHAPE] >= 0) & (
            objects[:, _COLOUR] == _HELD_OUT_COLOUR[objects[:, _SHAPE]]
        )
    return held


def _twins(scenes: Scenes) -> NDArray[np.bool_]:
    """True where the two objects of a scene have the same shape and colour."""
    same: NDArray[np.bool_] = np.all(scenes[:, 1:3] == scenes[:, 6:8], axis=1)
    return same


def sample(
    n: int,
    seed: int | np.random.Generator,
    *,
    pairs: Literal["any", "seen", "held-out"] = "any",
    exclude: Scenes | None = None,
) -> Scenes:
    """Draw `n` distinct scenes, six in ten with two objects.

    `pairs` says whether scenes may (``"any"``), must not (``"seen"``) or must (``"held-out"``) show
    a held-out pair of shape and colour; scenes in `exclude` are not drawn. There are
    876,672 scenes, a fifth of them with a held-out pair; at most 100,000 are drawn at a time.
    """
    if not 0 <= n <= 100_000:
        raise InputError(f"n must be from 0 to 100000 scenes, not {n}")
    if pairs not in ("any", "seen", "held-out"):
        raise InputError(f"pairs must be 'any', 'seen' or 'held-out', not {pairs!r}")
    rng = _rng(seed)
    seen = set() if exclude is None else {row.tobytes() for row in np.ascontiguousarray(exclude)}
    drawn: list[Scenes] = []
    while len(drawn) < n:
        m = 2 * (n - len(drawn)) + 64
        rows = np.empty((m, WIDTH), np.int8)
        rows[:, 0] = rng.integers(0, len(BACKGROUNDS), m)
        for part in (_FIRST, _SECOND):
            for column, values in enumerate(_ATTRIBUTES):
                rows[:, part][:, column] = rng.integers(0, len(values), m)
        two = rng.random(m) < 0.6
        upright = rng.random(m) < 0.5
        rows[:, 5] = np.where(two, np.where(upright, 2, 0), rows[:, 5])
        rows[:, 10] = np.where(upright, 3, 1)
        rows[~two, 6:] = NONE
        keep = ~_twins(rows)
        if pairs != "any":
            keep &= holds_out(rows) == (pairs == "held-out")
        for row in rows[keep]:
            key = row.tobytes()
            if key not in seen and len(drawn) < n:
                seen.add(key)
                drawn.append(row)
    return np.array(drawn, np.int8).reshape(n, WIDTH)


def edit(scenes: Scenes, seed: int | np.random.Generator) -> Scenes:
    """A near twin of each scene: one attribute changed, or the two objects exchanged.

    Twins are what an encoder must tell apart. No twin shows a held-out pair, unless its scene does;
    where a change would not be a valid scene, another is tried.
    """
    rng = _rng(seed)
    twins = scenes.copy()
    todo = np.arange(len(scenes))
    was_held = holds_out(scenes)
    while len(todo):
        new = scenes[todo].copy()
        two = new[:, 6] != NONE
        what = rng.integers(0, 12, len(todo))
        second = two & (rng.random(len(todo)) < 0.5)
        for column, values in enumerate(_ATTRIBUTES[:4]):
            chosen = np.flatnonzero((what == column) | (what == column + 4))
            at = np.where(second[chosen], 6, 1) + column
            step = rng.integers(1, len(values), len(chosen))
            new[chosen, at] = (new[chosen, at] + step) % len(values)
        chosen = np.flatnonzero(what == 8)
        step = rng.integers(1, len(BACKGROUNDS), len(chosen))
        new[chosen, 0] = (new[chosen, 0] + step) % len(BACKGROUNDS)
        moved = np.flatnonzero((what >= 9) & ~two)
        step = rng.integers(1, len(PLACES), len(moved))
        new[moved, 5] = (new[moved, 5] + step) % len(PLACES)
        turned = np.flatnonzero((what == 9) & two)
        new[turned, 5], new[turned, 10] = (new[turned, 5] + 2) % 4, (new[turned, 10] + 2) % 4
        swapped = np.flatnonzero((what >= 10) & two)
        new[swapped, 1:5], new[swapped, 6:10] = new[swapped, 6:10], new[swapped, 1:5]
        good = ~_twins(new) & ~(holds_out(new) & ~was_held[todo])
        twins[todo[good]] = new[good]
        todo = todo[~good]
    return twins


# --- pictures -----------------------------------------------------------------------------------

_MARGIN = 12
_REACH = 18
_GRID = np.arange(-_REACH, _REACH + 1)


def _distance(shape: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed distance (about: exact near the edge) to a shape of radius 1; negative inside."""
    ax, ay = np.abs(x), np.abs(y)
    name = SHAPES[shape]
    d: Any
    if name == "circle":
        d = np.hypot(x, y) - 0.95
    elif name == "square":
        d = np.maximum(ax, ay) - 0.82
    elif name == "triangle":
        d = np.maximum(0.866 * ax - 0.5 * y, y) - 0.55
    elif name == "star":
        fifth = np.float32(2 * np.pi / 5)
        angle = np.abs(np.mod(np.arctan2(x, -y) + fifth / 2, fifth) - fifth / 2)
        r = np.hypot(x, y)
        d = (r * np.cos(angle) - 1.08) * 0.36 + r * np.sin(angle) * 0.933
    elif name == "cross":
        d = np.minimum(np.maximum(ax - 0.98, ay - 0.31), np.maximum(ax - 0.31, ay - 0.98))
    elif name == "ring":
        d = np.abs(np.hypot(x, y) - 0.72) - 0.23
    elif name == "heart":  # a square on its corner, with half circles on its upper sides
        side = np.float32(0.85)
        lobes = np.hypot(ax - side / 2, y - 0.1 + side / 2) - side * 0.7071
        d = np.minimum((ax + np.abs(y - 0.1) - side) * 0.7071, lobes)
    else:
        d = (ax * 1.5 + ay) * 0.55 - 0.58
    return np.asarray(d, np.float32)


def render(scenes: Scenes, seed: int | np.random.Generator) -> NDArray[np.uint8]:
    """Draw scenes as RGB pictures, ``uint8`` of shape ``(n, 64, 64, 3)``.

    Position, radius, tilt, tint, stripe direction and grain vary with the seed.
    """
    rng = _rng(seed)
    n = len(scenes)
    side = SIZE + 2 * _MARGIN
    ground = _BACKGROUND_RGB[scenes[:, 0]] + rng.normal(0, 6, (n, 3)).astype(np.float32)
    canvas = np.broadcast_to(ground[:, None, None], (n, side, side, 3)).copy()
    offsets = np.array([(-16, 0), (16, 0), (0, -16), (0, 16), (0, 0)], np.float32)
    for part in (_FIRST, _SECOND):
        objects = scenes[:, part]
        # Draws for every row, needed or not: a picture does not depend on what its neighbours show.
        jitter = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
        spread = rng.random(n, np.float32)
        tilt = rng.uniform(-0.2, 0.2, n).astype(np.float32)
        phase = rng.uniform(0, np.pi, n).astype(np.float32)
        tint = rng.normal(0, 9, (n, 3)).astype(np.float32)
        for shape in range(len(SHAPES)):
            which = np.flatnonzero(objects[:, _SHAPE] == shape)
            if not len(which):
                continue
            _, colour, size, pattern, place = objects[which].T
            # Two objects keep a straight line between them: less play than one alone has.
            play = np.where(scenes[which, 6] == NONE, 3.0, 1.8).astype(np.float32)
            centre = SIZE / 2 + _MARGIN + offsets[place] + jitter[which] * play[:, None]
            radius = np.where(size == 0, 7 + 1.5 * spread[which], 12 + 2 * spread[which])
            radius = radius.astype(np.float32)[:, None, None]
            corner = np.floor(centre).astype(np.intp)
            ix = (corner[:, 0, None] + _GRID)[:, None, :]
            iy = (corner[:, 1, None] + _GRID)[:, :, None]
            dx = (ix - centre[:, 0, None, None]).astype(np.float32)
            dy = (iy - centre[:, 1, None, None]).astype(np.float32)
            cos, sin = np.cos(tilt[which])[:, None, None], np.sin(tilt[which])[:, None, None]
            x, y = dx * cos + dy * sin, dy * cos - dx * sin
            cover = np.clip(0.5 - _distance(shape, x / radius, y / radius) * radius, 0, 1)
            cos, sin = np.cos(phase[which])[:, None, None], np.sin(phase[which])[:, None, None]
            u, v = x * cos + y * sin, y * cos - x * sin
            stripe = ((np.sin(u * 1.3) > 0) & (pattern == 1)[:, None, None])[..., None]
            dot = (np.cos(u * 1.25) + np.cos(v * 1.25) > 0.9) & (pattern == 2)[:, None, None]
            base = (_RGB[colour] + tint[which])[:, None, None]
            paint = np.where(stripe, base * 0.4, base)
            paint = np.where(dot[..., None], base * 0.15 + 255 * 0.85, paint)
            where = (which[:, None, None], iy, ix)
            canvas[where] += (paint - canvas[where]) * cover[..., None]
    pictures = canvas[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    pictures = pictures + 4 * rng.standard_normal(pictures.shape, np.float32)
    return np.clip(pictures, 0, 255).astype(np.uint8)


# --- words --------------------------------------------------------------------------------------


def forget(
    scenes: Scenes, seed: int | np.random.Generator, drop: float | NDArray[np.float64] = 0.5
) -> Query:
    """Turn scenes into queries by dropping details: each becomes `ANY` with probability `drop`.

    `drop` is one number or one a scene. At least one detail stays. With ``drop=0`` everything
    stays, so that only the scene itself matches.
    """
    rng = _rng(seed)
    n = len(scenes)
    drop = np.broadcast_to(drop, (n,))
    lost = rng.random((n, WIDTH)) < drop[:, None]
    two = scenes[:, 6] != NONE
    lost[two, 10] = lost[two, 5]  # a relation is one detail
    lost[~two, 6:] = lost[~two, 6:7]  # so is being alone
    # Sometimes one object goes as a whole; a plain dropout would almost never leave just one.
    gone = two & (rng.random(n) < drop)
    first = rng.random(n) < 0.5
    lost[gone & first, _FIRST] = True
    lost[gone & ~first, _SECOND] = True
    # A part with nothing but its place is no phrase that people use for one of two objects.
    for part in (_FIRST, _SECOND):
        bare = two & np.all(lost[:, part][:, :4], axis=1)
        lost[:, part][bare] = True
    # "single" needs an object to speak of.
    bare = ~two & np.all(lost[:, _FIRST], axis=1)
    lost[bare, 6:] = True
    empty = np.flatnonzero(np.all(lost, axis=1))
    lost[empty, rng.integers(0, 3, len(empty))] = False
    queries = scenes.copy()
    queries[lost] = ANY
    return canonical(queries)


def canonical(queries: Query) -> Query:
    """The same queries with their two objects in one fixed order, so that equal ones compare so."""
    queries = np.atleast_2d(queries).astype(np.int8)
    first, second = queries[:, _FIRST], queries[:, _SECOND]
    weight = 16 ** np.arange(4, -1, -1, dtype=np.int64)
    # By place, then by the rest; what is said comes before what is not.
    order = [_PLACE, _SHAPE, _COLOUR, _SIZE, _PATTERN]
    rank = [np.where(p[:, order] < 0, 12 - p[:, order], p[:, order]) @ weight
            for p in (first, second)]  # fmt: skip
    swap = (rank[0] > rank[1]) & ~np.all(second == NONE, axis=1)
    out = queries.copy()
    out[swap, _FIRST], out[swap, _SECOND] = second[swap], first[swap]
    return out


def matches(scenes: Scenes, query: str | Query) -> NDArray[np.bool_]:
    """Which scenes a query is true of, from their description alone.

    `query` is a text (see `parse`), one query row (result of shape ``(n,)``) or an array of ``m``
    rows (result of shape ``(m, n)``).
    """
    rows = parse(query) if isinstance(query, str) else np.asarray(query, np.int8)
    queries = np.atleast_2d(rows)

    def fits(asked: slice, shown: slice) -> NDArray[np.bool_]:
        fit = np.ones((len(queries), len(scenes)), bool)
        for column in range(5):
            want = queries[:, asked][:, column, None]
            fit &= (want == ANY) | (want == scenes[:, shown][:, column])
        return fit

    ground = queries[:, :1]
    found = (fits(_FIRST, _FIRST) & fits(_SECOND, _SECOND)) | (
        fits(_FIRST, _SECOND) & fits(_SECOND, _FIRST)
    )
    found &= (ground == ANY) | (ground == scenes[:, 0])
    return found if rows.ndim == 2 else found[0]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def _noun(part: Sequence[int], rng: np.random.Generator, single: bool = False) -> str:
    words = [_pick(rng, _SINGLE)] if single else []
    for column in (_SIZE, _PATTERN, _COLOUR):
        if part[column] >= 0:
            name = _ATTRIBUTES[column][part[column]]
            # The plain word mostly: synonyms are for understanding, not for speaking.
            words.append(name if rng.random() < 0.75 else _pick(rng, _SPOKEN[name]))
    words.append(SHAPES[part[_SHAPE]] if part[_SHAPE] >= 0 else _pick(rng, _NOUNS))
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _place(place: int, rng: np.random.Generator) -> str:
    return _PLACE_TEXT[place].format(_pick(rng, _SPOKEN["center"]))


def phrase(query: Query, seed: int | np.random.Generator) -> str:
    """Say one query row in English; `parse` reads it back. Wording varies with the seed."""
    rng = _rng(seed)
    row = [int(value) for value in query]
    parts = [row[_FIRST], row[_SECOND]]
    single = parts[1][0] == NONE
    said = [part for part in parts if any(value >= 0 for value in part)]
    if not said:
        text = ""
    elif len(said) == 1:
        text = _noun(said[0], rng, single)
        if said[0][_PLACE] >= 0:
            text += " " + _place(said[0][_PLACE], rng)
    else:
        if rng.random() < 0.5:
            said.reverse()
        one, two = said
        nouns = _noun(one, rng), _noun(two, rng)
        places = one[_PLACE], two[_PLACE]
        if min(places) < 0:
            text = " and ".join(
                noun if place < 0 else f"{noun} {_place(place, rng)}"
                for noun, place in zip(nouns, places, strict=True)
            )
        elif rng.random() < 0.8:
            word = next(word for word, pair in _RELATIONS.items() if pair == places)
            text = f"{nouns[0]} {word} {nouns[1]}"
        else:
            text = f"{nouns[0]} {_place(places[0], rng)} and {nouns[1]} {_place(places[1], rng)}"
    if row[0] >= 0:
        ground = _pick(rng, _SPOKEN[BACKGROUNDS[row[0]]])
        text += (" " + _pick(rng, _BACKDROPS).format(ground)) if text else f"a {ground} background"
    opening = _pick(rng, _OPENINGS)
    if not opening and rng.random() < 0.3:  # people type "red circle", not "a red circle"
        text = text.removeprefix("an ").removeprefix("a ")
    return opening + text


def captions(
    scenes: Scenes,
    seed: int | np.random.Generator,
    drop: float | NDArray[np.float64] = 0.0,
) -> tuple[list[str], Query]:
    """Caption scenes; also return what each caption says, as query rows.

    With ``drop=0`` a caption names every attribute, so that it is true of its scene alone.
    """
    rng = _rng(seed)
    queries = forget(scenes, rng, drop)
    return [phrase(query, rng) for query in queries], queries


def _meanings() -> dict[str, tuple[int, int]]:
    table = {}
    for column, values in enumerate(_ATTRIBUTES):
        for value, name in enumerate(values):
            for word in _SPOKEN[name]:
                table[word] = (column, value)
    return table


_MEANING = _meanings()
_GROUND = {word: i for i, name in enumerate(BACKGROUNDS) for word in _SPOKEN[name]}
WORDS = tuple(sorted({*_MEANING, *_GROUND, *_FILLERS, *_SINGLE, "above", "below", "and", "only"}))
"""Every word that `parse` knows."""


def parse(text: str) -> Query:
    """Read a query in the words of this world into a query row.

    Raises InputError for a word that the world does not have, and for a contradiction.
    """
    words = text.lower().replace(",", " ").split()
    ground = ANY
    parts = [[ANY] * 5]
    single = False
    i = 0
    while i < len(words):
        word = words[i]
        follower = words[i + 1] if i + 1 < len(words) else ""
        relation = f"{word} of" if word in ("left", "right") and follower == "of" else word
        if relation in _RELATIONS:
            i += len(relation.split()) - 1
            parts[-1][_PLACE], other = _RELATIONS[relation]
            parts.append([ANY] * 4 + [other])
        elif word == "and":
            parts.append([ANY] * 5)
        elif word in _SINGLE or word == "only":
            single = True
        elif word in _GROUND:
            if ground not in (ANY, _GROUND[word]):
                raise InputError(f"{text!r} names two backgrounds")
            ground = _GROUND[word]
        elif (known := _MEANING.get(word) or _MEANING.get(word.removesuffix("s"))) is not None:
            column, value = known
            if parts[-1][column] not in (ANY, value):
                raise InputError(f"{text!r} gives one object two {_COLUMNS[column]}s")
            parts[-1][column] = value
        elif word not in _FILLERS:
            raise InputError(
                f"the scene world has no word {word!r}; it has: {', '.join(sorted(_MEANING))}, "
                f"{', '.join(BACKGROUNDS)} (background)"
            )
        i += 1
    if len(parts) > 2 or (single and len(parts) > 1):
        raise InputError(f"{text!r} speaks of more objects than a scene has")
    if len(parts) == 1:
        parts.append([NONE if single else ANY] * 5)
    row: Query = canonical(np.array([ground, *parts[0], *parts[1]], np.int8))[0]
    return row


def phrases(n: int = 3000, seed: int = 0) -> list[str]:
    """`n` distinct phrases of this world, short queries and full captions, in a fixed order.

    The vocabulary from which the packaged encoder's shared directions can be fitted. Phrases of
    held-out pairs of shape and colour are left out.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    for name in (*SHAPES, *COLOURS, *SIZES, *PATTERNS):
        found[f"a {name}" if name in SHAPES else f"a {name} shape"] = None
    while len(found) < n:
        scenes = sample(min(n, 1000), rng, pairs="seen")
        for drop in (0.0, 0.3, 0.6):
            found.update(dict.fromkeys(captions(scenes, rng, drop)[0]))
    # Cut an even mixture, not the last kind that was added.
    texts = list(found)
    kept = sorted(rng.permutation(len(texts))[:n])
    return [texts[i] for i in kept]


# --- files --------------------------------------------------------------------------------------


def table(scenes: Scenes) -> pa.Table:
    """The truth as an Arrow table: ``id``, ``background``, then five columns an object, NULL where
    there is no second object."""
    import pyarrow as pa

    def names(values: Sequence[str], column: NDArray[np.int8]) -> pa.Array:
        return pa.array([values[v] if v >= 0 else None for v in column.tolist()], pa.string())

    columns: dict[str, Any] = {
        "id": pa.array(range(len(scenes)), pa.int64()),
        "background": names(BACKGROUNDS, scenes[:, 0]),
    }
    for suffix, part in (("", _FIRST), ("2", _SECOND)):
        for column, (name, values) in enumerate(zip(_COLUMNS, _ATTRIBUTES, strict=True)):
            columns[name + suffix] = names(values, scenes[:, part][:, column])
    return pa.table(columns)


def _batches(n: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n, size):
        yield start, min(start + size, n)


def write(
    folder: str | Path,
    n: int,
    seed: int = 0,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Scenes:
    """Write `n` scenes as image files, two PNG to one JPEG, and their truth beside them.

    Files are ``scene_000000.png`` and so on, numbered by row; ``scenes.parquet`` holds the table of
    `table` with ``file`` and a full ``caption``, ``scenes.json`` the seed. `progress` is called
    with (done, all). Returns the scenes; the same seed gives the same pictures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = sample(n, seed)
    rng = np.random.default_rng([seed, 1])
    files = [f"scene_{i:06d}.{'jpg' if i % 3 == 2 else 'png'}" for i in range(n)]
    for start, stop in _batches(n, 256):
        for file, pixels in zip(files[start:stop], render(scenes[start:stop], rng), strict=True):
            options: dict[str, Any] = (
                {"quality": 92} if file.endswith("jpg") else {"compress_level": 1}
            )
            Image.fromarray(pixels).save(folder / file, **options)
        if progress is not None:
            progress(stop, n)
    texts, _ = captions(scenes, rng)
    truth = table(scenes).append_column("file", pa.array(files, pa.string()))
    pq.write_table(truth.append_column("caption", pa.array(texts, pa.string())),
                   folder / "scenes.parquet")  # fmt: skip
    (folder / "scenes.json").write_text(json.dumps({"scenes": n, "seed": seed}) + "\n")
    return scenes
