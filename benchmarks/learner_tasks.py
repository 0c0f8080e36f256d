"""Collections whose truth is known, and draws of labels from them: what `learners.py` measures on.

A `World` is a collection written as a real index folder; a `Task` is one draw of labels in it. The
rows of a world have the ids 0, 1, 2, ..., so that an id is a place in its arrays.
"""

from __future__ import annotations

import tempfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwood import native, scenes
from boxwood.encode import Head, Quantizer
from boxwood.progress import Bar

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

FINE_DIMS = 128
RANDOM_NEGATIVES = 500
HARD_NEGATIVES = 10
DEV_SEED = 100
"""Draws of the half that parameters are chosen on have seeds from here, the others from 0."""


def unit(rows: NDArray[Any]) -> Floats:
    """Rows as float32 of length 1; a row of zeros stays one."""
    floats: Floats = rows.astype(np.float32)
    norms: Floats = np.linalg.norm(floats, axis=-1, keepdims=True).astype(np.float32)
    norms[norms == 0] = 1
    out: Floats = floats / norms
    return out


# --- concepts, worlds, tasks ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Concept:
    """Something that a person may look for: which rows are it, and its words where there are."""

    name: str
    kind: str
    split: str
    """``dev`` or ``test``."""
    truth: Mask
    text: Floats | None = None
    """The embedding of its words (width,)."""


@dataclass(frozen=True)
class Task:
    """One draw: the labels that every method gets, and the rows that it is scored on."""

    concept: Concept
    seed: int
    positives: Ids
    negatives: Ids
    """What the person marked as wrong; empty in the setting with random negatives alone."""
    randoms: Ids
    """What the index draws: never marked rows, but with matches among them that nobody knows of."""
    scored: Mask

    @property
    def truth(self) -> Mask:
        """The concept's truth over the scored rows, in their order."""
        found: Mask = self.concept.truth[self.scored]
        return found


@dataclass(eq=False)
class World:
    """A collection: its index, and what the methods that are not Boxwood's see of its rows."""

    data: str
    space: str
    codes: Codes
    """(rows, 32): what the index holds."""
    judged: Mask
    """Rows whose truth is known; the others are in the collection and count neither way."""
    concepts: list[Concept]
    fine: Codes | None = None
    vectors_: Floats | None = None
    """(rows, width) where other vectors than the codes are what this world is about."""
    near: Floats | None = None
    """(rows, width), in which hard negatives are near; None: in the codes."""
    words: dict[str, tuple[Codes, Codes | None, Floats]] = field(default_factory=dict)
    """By concept: code, fine code and vector of its words, where it has words."""
    index: native.Index | None = None

    @property
    def learners(self) -> bool:
        """Whether the vectors are the 32-byte codes, which Boxwood's learners read."""
        return self.vectors_ is None

    @cached_property
    def vectors(self) -> Floats:
        """(rows, width) float32; codes around 0, their mean squared length 1."""
        return self.vectors_ if self.vectors_ is not None else floats_of(self.codes, self.size)

    @cached_property
    def squares(self) -> Floats:
        """Squared lengths of the vectors (rows,)."""
        out: Floats = np.einsum("ij,ij->i", self.vectors, self.vectors)
        return out

    @cached_property
    def near_squares(self) -> Floats:
        assert self.near is not None
        out: Floats = np.einsum("ij,ij->i", self.near, self.near)
        return out

    @cached_property
    def size(self) -> float:
        """Root mean squared length of the codes around their middle, from a fixed sample."""
        step = max(1, len(self.codes) // 50_000)
        return length_of(self.codes[::step])

    @contextmanager
    def opened(self) -> Iterator[native.Index]:
        """The index of the world, written into a folder of its own that is removed after."""
        own = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.data} {self.space}")
        prints: dict[str, str] = {"quantizer": "learners"}
        extra: dict[str, Any] = {}
        if self.fine is not None:
            prints["fine"], extra["fine"] = "learners", self.fine
        with tempfile.TemporaryDirectory() as folder:
            marks = native.Fingerprints(**prints)
            native.write_segment(
                folder, "segment", np.arange(len(self.codes)), self.codes, own, 1, marks, **extra
            )
            native.write_manifest(folder, own, 1, ["segment"], marks)
            with native.Index(folder) as index:
                self.index = index
                try:
                    yield index
                finally:
                    self.index = None

    def order(self, concept: Concept, seed: int) -> Ids:
        """The concept's known rows in the order in which draws take positives from them."""
        rng = np.random.default_rng([seed, zlib.crc32(concept.name.encode())])
        return rng.permutation(np.flatnonzero(concept.truth & self.judged)).astype(np.int64)

    def task(self, concept: Concept, positives: int, seed: int, hard: bool) -> Task | None:
        """A draw, the same for every method and space; None where too few rows would be left.

        More positives of one seed are those of fewer, and some more. `hard` adds the ten rows of
        known truth, none of them right, that lie nearest to the mean positive.
        """
        found = self.order(concept, seed)
        if len(found) < positives + 8:
            return None
        right = np.sort(found[:positives])
        wrong = self.hard_negatives(concept, right) if hard else np.empty(0, np.int64)
        return self.task_of(concept, right, wrong, seed)

    def task_of(self, concept: Concept, right: Ids, wrong: Ids, seed: int) -> Task:
        assert self.index is not None, "a task needs the open index"
        marked = np.concatenate([right, wrong])
        scored = self.judged.copy()
        scored[marked] = False
        randoms = self.index.draw(RANDOM_NEGATIVES, seed, marked)
        return Task(concept, seed, right, wrong, randoms, scored)

    def hard_negatives(self, concept: Concept, right: Ids, count: int = HARD_NEGATIVES) -> Ids:
        """The known rows that are not right and lie nearest to the mean of `right`."""
        rows = self.vectors if self.near is None else self.near
        squares = self.squares if self.near is None else self.near_squares
        away = squares - 2 * (rows @ rows[right].mean(axis=0))
        away[concept.truth | ~self.judged] = np.inf
        return np.sort(np.argsort(away, kind="stable")[:count]).astype(np.int64)

    def mislabelled(self, concept: Concept, positives: int, seed: int) -> Task | None:
        """The draw with hard negatives, with labels that are wrong: of the rows marked as right one
        in eight does not match, but is among the nearest that do not; of the ten marked as wrong
        one matches."""
        found = self.order(concept, seed)
        if len(found) < positives + 8:
            return None
        false = positives // 8
        true = found[: positives - false]
        near = self.hard_negatives(concept, true, HARD_NEGATIVES - 1 + false)
        near = np.random.default_rng([seed, positives]).permutation(near)
        right = np.concatenate([true, near[:false]])
        wrong = np.concatenate([near[false:], found[positives : positives + 1]])
        return self.task_of(concept, np.sort(right), np.sort(wrong), seed)

    def unlike_words(self, concept: Concept, seed: int) -> Task | None:
        """No row marked as right: the concept's words, and ten rows marked as wrong, those that the
        words find first. None where it has no words."""
        if concept.name not in self.words:
            return None
        away = self.squares - 2 * (self.vectors @ self.words[concept.name][2])
        away[concept.truth | ~self.judged] = np.inf
        wrong = np.sort(np.argsort(away, kind="stable")[:HARD_NEGATIVES]).astype(np.int64)
        return self.task_of(concept, np.empty(0, np.int64), wrong, seed)


def length_of(codes: Codes) -> float:
    middle = codes.astype(np.float32) - 127.5
    return float(np.sqrt(np.einsum("ij,ij->", middle, middle, dtype=np.float64) / len(codes)))


def floats_of(codes: Codes, size: float) -> Floats:
    """Codes around 0, divided by `size`."""
    out = codes.astype(np.float32)
    out -= np.float32(127.5)
    out /= np.float32(size)
    return out


# --- heads ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Coder:
    """A head and its quantizer: embeddings to codes of 32 or 128 bytes."""

    head: Head
    quantizer: Quantizer

    @classmethod
    def fit(cls, head: Head, images: Floats) -> Coder:
        return cls(head, Quantizer.fit(head.images(images)))

    def images(self, rows: Floats) -> Codes:
        return self.quantizer.encode(self.head.images(rows))

    def texts(self, rows: Floats) -> Codes:
        return self.quantizer.encode(self.head.texts(rows))


def fine_head(images: Floats, texts: Floats) -> Head:
    """The 128 directions that images and texts share."""
    return Head.shared(images, texts, dims=FINE_DIMS, steps=0)  # as Head.finer does it


# --- real CLIP vectors ----------------------------------------------------------------------------

REAL_FILES = ("fashion.npz", "unlabelled.npz", "imagenet_text.npz")
PAIRS_FILE = "flickr_pairs.npz"
LEAST_IMAGES = 40
# The beginning of ImageNet's class name that says what a label means; other labels have no words.
WORDS = {
    "Tshirts": "jersey, T-shirt", "Watches": "digital watch", "Jeans": "jean, blue jean",
    "Formal Shoes": "Loafer", "Handbags": "purse", "Sandals": "sandal",
    "Sports Shoes": "running shoe",
}  # fmt: skip
REAL_SPACES = ("pca", "shared", "pairs", "fine", "floats")


class Real:
    """Fashion images of a shop with labels, in one collection with vectors that have none."""

    name = "real"
    spaces = REAL_SPACES

    def __init__(self, folder: Path) -> None:
        loaded = [np.load(folder / name) for name in REAL_FILES]
        fashion, unlabelled, texts = loaded
        self.images = unit(np.concatenate([fashion["emb"], unlabelled["emb"]]))
        label = np.concatenate([fashion["label"], np.full(len(unlabelled["emb"]), "")])
        self.judged: Mask = label != ""
        self.texts = unit(texts["emb"])
        names = texts["name"].tolist()
        self.pairs = folder / PAIRS_FILE
        values, counts = np.unique(label[self.judged], return_counts=True)
        large = sorted(
            (-count, str(value))
            for value, count in zip(values, counts, strict=True)
            if count >= LEAST_IMAGES
        )
        self.concepts = []
        for place, (_, value) in enumerate(large):
            start = WORDS.get(value)
            rows = [i for i, name in enumerate(names) if start and name.startswith(start)
                    and name[len(start) : len(start) + 1] in ("", ",")]  # fmt: skip
            text = self.texts[rows[0]] if rows else None
            split = ("dev", "test")[place % 2]  # of the classes, the largest first
            self.concepts.append(Concept(value, "class", split, label == value, text))

    @staticmethod
    def absent(folder: Path | None) -> str:
        """What is missing; empty when all is there."""
        if folder is None:
            return "no data folder was given"
        missing = [name for name in REAL_FILES if not (folder / name).is_file()]
        return f"{folder} has no {', '.join(missing)}" if missing else ""

    def head(self, space: str) -> Head | None:
        if space == "pca":
            return Head.pca(self.images, self.texts)
        if space == "pairs":
            if not self.pairs.is_file():
                return None
            try:
                from boxwood.encode import train_pairs
            except Exception as error:
                print(f"left out: a head trained on pairs: {error}")
                return None
            pairs = np.load(self.pairs)
            return train_pairs(unit(pairs["image"]), unit(pairs["text"]), pairs["image_id"])
        return Head.shared(self.images, self.texts)

    @cached_property
    def fine(self) -> Coder:
        return Coder.fit(fine_head(self.images, self.texts), self.images)

    def world(self, space: str) -> World | None:
        head = self.head(space)
        if head is None:
            return None
        return _world(self.name, space, self.images, self.judged, self.concepts,
                      Coder.fit(head, self.images), self.fine)  # fmt: skip


def _world(
    data: str, space: str, images: Floats, judged: Mask, concepts: list[Concept], coder: Coder,
    fine: Coder,
) -> World:  # fmt: skip
    """A world over embeddings; its vectors are codes, fine codes or the embeddings themselves."""
    codes, fines = coder.images(images), fine.images(images)
    spoken = [c for c in concepts if c.text is not None]
    rows = np.array([c.text for c in spoken], np.float32).reshape(len(spoken), images.shape[1])
    texts = coder.texts(rows) if spoken else np.empty((0, 32), np.uint8)
    fine_texts = fine.texts(rows) if spoken else np.empty((0, FINE_DIMS), np.uint8)
    vectors: Floats | None = None
    if space == "fine":
        size = length_of(fines)
        vectors, asked = floats_of(fines, size), floats_of(fine_texts, size)
    elif space == "floats":
        # Each modality around its own mean, as heads do it.
        vectors, asked = unit(images - coder.head.image_mean), unit(rows - coder.head.text_mean)
    else:
        asked = floats_of(texts, length_of(codes))
    words = {concept.name: (texts[i], fine_texts[i], asked[i]) for i, concept in enumerate(spoken)}
    return World(data, space, codes, judged, concepts, fines, vectors, images, words)


# --- the scene world ------------------------------------------------------------------------------

SCENES = 20_000
SCENES_SEED = 20_260
PIECE = 2_000
# Kind, half and words; `|` parts the kinds of a concept that has two. Words that the constants of
# `cover` were chosen or tried on, in a sample of scenes of its own, are in the half `dev`.
SCENE_CONCEPTS = (
    ("one attribute", "test", "a heart"), ("one attribute", "dev", "a red shape"),
    ("one attribute", "test", "a cyan shape"), ("one attribute", "dev", "a star"),
    ("two attributes", "dev", "a red circle"), ("two attributes", "dev", "a striped star"),
    ("two attributes", "test", "a large yellow shape"),
    ("two attributes", "test", "a dotted cross"),
    ("relation", "test", "a circle left of a square"), ("relation", "dev", "a star above a heart"),
    ("relation", "dev", "a red shape left of a blue shape"),
    ("relation", "test", "a green shape above a pink shape"),
    ("two modes", "dev", "a red circle | a blue star"),
    ("two modes", "test", "a green heart | a pink cross"),
    ("two modes", "test", "a yellow ring | a cyan diamond"),
    ("two modes", "dev", "a striped square | a dotted triangle"),
)  # fmt: skip
DILUTED_ROWS = 1_000_000
PREVALENCES = {"scenes .1%": 0.001, "scenes .01%": 0.0001}
# A distractor is a row that does not match, moved up to half the way towards another one, with
# noise of this length (unit vectors are 1 long).
MIX, NOISE = 0.5, 0.1


def scene_truth(rows: scenes.Scenes, words: str) -> Mask:
    """Which scenes match a concept of `SCENE_CONCEPTS`."""
    found = np.zeros(len(rows), bool)
    for part in words.split("|"):
        found |= scenes.matches(rows, part.strip())
    return found


class Scenes:
    """Generated scenes, embedded by the packaged encoder once, and kept in `cache`."""

    spaces = ("shared", "fine", "floats")

    def __init__(self, cache: Path, rows: int = SCENES, diluted: int = DILUTED_ROWS) -> None:
        from boxwood.encode import Encoder

        self.encoder = Encoder.open("tiny-scenes")
        self.cache = cache / f"scenes-{self.encoder.fingerprint}"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.rows, self.diluted = rows, diluted
        self.scenes = scenes.sample(rows, SCENES_SEED)
        self.images = self._embedded("scenes", self.scenes, SCENES_SEED + 1)
        said = [words.replace("|", "or") for *_, words in SCENE_CONCEPTS]
        texts = self.encoder.texts(said)
        self.concepts = [
            Concept(words.replace("|", "or"), kind, split, scene_truth(self.scenes, words),
                    texts[place])
            for place, (kind, split, words) in enumerate(SCENE_CONCEPTS)
        ]  # fmt: skip

    @staticmethod
    def absent() -> str:
        try:
            from boxwood.encode import Encoder

            Encoder.open("tiny-scenes")
        except Exception as error:
            return str(error)
        return ""

    def _embedded(self, name: str, rows: scenes.Scenes, seed: int) -> Floats:
        """Embeddings of scenes, piece by piece, each kept in a file: a second call reads them."""
        from PIL import Image

        pieces = []
        with Bar(f"embedding {name}") as bar:
            for start in range(0, len(rows), PIECE):
                part = rows[start : start + PIECE]
                file = self.cache / f"{name}-{zlib.crc32(part.tobytes()):08x}.npy"
                if not file.is_file():
                    pixels = scenes.render(part, np.random.default_rng([seed, start]))
                    made = self.encoder.images([Image.fromarray(p) for p in pixels])
                    new = file.with_suffix(".part")
                    with open(new, "wb") as out:
                        np.save(out, made)
                    new.replace(file)
                    bar.update(start + len(part), len(rows))
                pieces.append(np.load(file))
        return unit(np.concatenate(pieces))

    @cached_property
    def phrases(self) -> Floats:
        """Embeddings of the scene world's vocabulary, for the directions of the fine codes."""
        file = self.cache / "phrases.npy"
        if not file.is_file():
            np.save(file, self.encoder.texts(scenes.phrases()))
        return unit(np.load(file))

    @cached_property
    def coder(self) -> Coder:
        head = self.encoder.default_head()
        assert head is not None, "the packaged encoder brings its head"
        return Coder.fit(head, self.images)

    @cached_property
    def fine(self) -> Coder:
        return Coder.fit(fine_head(self.images, self.phrases), self.images)

    def world(self, space: str) -> World:
        return _world("scenes", space, self.images, np.ones(self.rows, bool), self.concepts,
                      self.coder, self.fine)  # fmt: skip

    # --- dilution ---------------------------------------------------------------------------------

    def _matches(self, concept: Concept, wanted: int) -> Floats:
        """Embeddings of `wanted` scenes that match: those of the collection, then new ones."""
        own = self.images[concept.truth]
        if len(own) >= wanted:
            chosen = np.random.default_rng(zlib.crc32(concept.name.encode()))
            return own[np.sort(chosen.permutation(len(own))[:wanted])]
        words = SCENE_CONCEPTS[self.concepts.index(concept)][2]
        extra: list[scenes.Scenes] = []
        known = self.scenes
        seed = SCENES_SEED
        while sum(map(len, extra)) < wanted - len(own):
            seed += 7
            drawn = scenes.sample(25_000, seed, exclude=known)
            more = drawn[scene_truth(drawn, words)]
            known = np.concatenate([known, more])
            extra.append(more)
        new = np.concatenate(extra)[: wanted - len(own)]
        made = self._embedded(f"matches-{zlib.crc32(words.encode()):08x}", new, SCENES_SEED + 2)
        return np.concatenate([own, made])

    def dilute(self, concept: Concept, prevalence: float) -> World:
        """The concept's own collection of `diluted` rows, of which the share `prevalence` matches.

        First the matches, then all scenes that do not match, then distractors made from these.
        They are mixed as the heads put them out, with the same weights for both codes. The ids are
        shuffled.
        """
        wanted = round(prevalence * self.diluted)
        right = self._matches(concept, wanted)
        others = self.images[~concept.truth][: self.diluted - wanted]
        made = self.diluted - wanted - len(others)
        rng = np.random.default_rng([SCENES_SEED, zlib.crc32(concept.name.encode())])
        codes = np.empty((self.diluted, 32), np.uint8)
        fines = np.empty((self.diluted, FINE_DIMS), np.uint8)
        place = rng.permutation(self.diluted)
        truth = np.zeros(self.diluted, bool)
        truth[place[:wanted]] = True
        start = wanted + len(others)
        given = np.concatenate([right, others])
        codes[place[:start]] = self.coder.images(given)
        fines[place[:start]] = self.fine.images(given)
        outputs = [(coder, coder.head.images(others)) for coder in (self.coder, self.fine)]
        for first in range(0, made, 50_000):
            n = min(50_000, made - first)
            a, b = rng.integers(0, len(others), (2, n))
            weight = rng.uniform(0, MIX, (n, 1)).astype(np.float32)
            at = place[start + first : start + first + n]
            for (coder, rows), out in zip(outputs, (codes, fines), strict=True):
                noise = rng.standard_normal((n, rows.shape[1]), np.float32)
                noise *= np.float32(NOISE / np.sqrt(rows.shape[1]))
                mixed = unit((1 - weight) * rows[a] + weight * rows[b] + noise)
                out[at] = coder.quantizer.encode(mixed)
        name = next(name for name, p in PREVALENCES.items() if p == prevalence)
        one = Concept(concept.name, concept.kind, concept.split, truth, concept.text)
        assert concept.text is not None
        asked = concept.text[None]
        text, fine_text = self.coder.texts(asked), self.fine.texts(asked)
        world = World(name, "shared", codes, np.ones(self.diluted, bool), [one], fines)
        world.words = {one.name: (text[0], fine_text[0], floats_of(text, world.size)[0])}
        return world
