"""What 32 bytes keep of an embedding: the paper's Table 1 in kind, and what goes with it.

    python benchmarks/table1.py DATA_FOLDER           every data set, three seeds, a few minutes
    python benchmarks/table1.py DATA_FOLDER --docs    and writes the table into docs/HEADS.md
    python benchmarks/table1.py DATA_FOLDER --quick   one seed, short trainings: a look, no figures
    python benchmarks/table1.py --data scenes         the scene world alone needs no data folder

DATA_FOLDER holds clip_vitb32/, joint512_products/ and cnclip_vitb16/; what is absent is left out
with a line that says so. A seed draws the halves: heads, means and quantizers are fitted to one,
every figure is of the other. All kinds of features meet the same halves in one run.

Recall@k: the share of a row's k nearest rows by the features as floats that are among its k nearest
by their 8-bit codes; the goals are .97, .98 and .99 (the paper: .953, .970, .985). "Kept": the same
of the 10 nearest in all dimensions, centred. Text: accuracy of the nearest class name where the
queries are class names (zero-shot; "+ mean" adds to each name how near it is to the mean image,
which centring took), else share of captions that find their image first; and mean average
precision of the texts as queries (of captions: mean reciprocal rank). Mean of 8: mean average
precision of the mean of 8 images of a class.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from boxwood import scenes
from boxwood.encode import FINE_INSIDE, Encoder, Head, Quantizer
from learner_tasks import WORDS, Floats, Mask, unit
from results import machine

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "HEADS.md"
BEGIN, END = "<!-- table 1: begin -->", "<!-- table 1: end -->"
SETS = ("fashion", "flickr", "products", "muge", "scenes")
SEEDS = 3
RERANKED = 300
NEIGHBOURS = 500
LEAST_OF_CLASS, LABELLED, DRAWS = 16, 8, 3
TRAIN_ROWS = 8192
# Class names of the shop that ImageNet has too; few images have the labels after WORDS.
NAMES = {**WORDS, "Sweatshirts": "sweatshirt", "Ties": "Windsor tie", "Socks": "sock",
         "Skirts": "miniskirt, mini", "Sweaters": "cardigan"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One data set, halved by one seed. Texts and images are embeddings of one width."""

    name: str
    fit: Floats
    """Images that heads and quantizers are fitted to."""
    test: Floats
    """Images that they have not seen."""
    vocabulary: Floats | None = None
    """Texts to fit heads with, none of them among the queries."""
    pairs: tuple[Floats, Floats, NDArray[Any]] | None = None
    """Images, texts and groups, none of them in the other half."""
    queries: Floats | None = None
    truth: Mask | None = None
    """(queries, test): which images a query is about."""
    classes: bool = False
    """Whether the queries are names of classes, rather than captions."""
    labels: NDArray[Any] | None = None
    """A class of each test image, empty where it is not known."""
    own: Head | None = None
    """The head that comes with the encoder."""


@dataclass(frozen=True)
class Kind:
    """A kind of features: embeddings to unit vectors."""

    name: str
    images: Callable[[Floats], Floats]
    texts: Callable[[Floats], Floats]
    finer: Head | None = None
    """Its first results are ranked again by the fine codes of this head."""


# --- data -----------------------------------------------------------------------------------------


def halves(n: int, seed: int, share: float = 0.5) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng([seed, n]).permutation(n)
    cut = round(n * share)
    return np.sort(order[:cut]), np.sort(order[cut:])


def named(names: list[str], start: str) -> int:
    """The place of the class name that begins so."""
    return next(i for i, n in enumerate(names) if n == start or n.startswith(start + ","))


class Clip:
    """The vectors of ../clip_vitb32 that several cases share."""

    def __init__(self, folder: Path) -> None:
        files = ("fashion", "unlabelled", "imagenet_text", "flickr_pairs")
        loaded = {name: np.load(folder / "clip_vitb32" / f"{name}.npz") for name in files}
        self.shop = unit(loaded["fashion"]["emb"])
        self.label = loaded["fashion"]["label"]
        self.others = unit(loaded["unlabelled"]["emb"])
        names = loaded["imagenet_text"]["name"].tolist()
        places = [named(names, start) for start in NAMES.values()]
        texts = unit(loaded["imagenet_text"]["emb"])
        self.words = texts[places]
        # No phrase of the vocabulary has a noun of a query: they are apart.
        asked = {word for place in places for word in words_of(names[place])}
        self.vocabulary = texts[[i for i, n in enumerate(names) if not asked & words_of(n)]]
        pairs = loaded["flickr_pairs"]
        _, first, self.group = np.unique(pairs["image_id"], return_index=True, return_inverse=True)
        self.photos = unit(pairs["image"][first])
        self.captions = unit(pairs["text"])


def words_of(name: str) -> set[str]:
    """The last word of each of a class's names: "running shoe" is a "shoe"."""
    return {part.split()[-1].lower().rstrip("s") for part in name.split(",") if part.strip()}


def fashion(folder: Path, seed: int) -> Case:
    data = Clip(folder)
    (shop, shop_test), (others, others_test) = (
        halves(len(rows), seed) for rows in (data.shop, data.others)
    )
    label = np.concatenate([data.label[shop_test], np.full(len(others_test), "")])
    return Case(
        "fashion",
        np.concatenate([data.shop[shop], data.others[others]]),
        np.concatenate([data.shop[shop_test], data.others[others_test]]),
        data.vocabulary,
        (data.photos[data.group], data.captions, data.group),
        data.words,
        np.array([label == value for value in NAMES]),
        True,
        label,
    )


def flickr(folder: Path, seed: int) -> Case:
    data = Clip(folder)
    photos, photos_test = halves(len(data.photos), seed)
    others, others_test = halves(len(data.others), seed)
    seen = np.isin(data.group, photos)
    gallery = np.concatenate([data.photos[photos_test], data.others[others_test]])
    truth = np.zeros((int((~seen).sum()), len(gallery)), bool)
    truth[np.arange(len(truth)), np.searchsorted(photos_test, data.group[~seen])] = True
    return Case(
        "flickr",
        np.concatenate([data.photos[photos], data.others[others]]),
        gallery,
        data.vocabulary,
        (data.photos[data.group[seen]], data.captions[seen], data.group[seen]),
        data.captions[~seen],
        truth,
    )


def products(folder: Path, seed: int) -> Case:
    data = np.load(folder / "joint512_products" / "pairs.npz")
    images, texts = unit(data["image"]), unit(data["text"])
    seen, unseen = halves(len(images), seed, 0.8)
    pairs = images[seen], texts[seen], np.arange(len(seen))
    return Case("products", images[seen], images[unseen], texts[seen], pairs, texts[unseen],
                np.eye(len(unseen), dtype=bool))  # fmt: skip


def muge(folder: Path, seed: int) -> Case:
    rows = unit(np.load(folder / "cnclip_vitb16" / "muge.npy"))
    fit, test = halves(len(rows), seed)
    return Case("muge", rows[fit], rows[test])


def scene_world(folder: Path | None, seed: int, rows: int = 2000) -> Case:
    """Scenes that training did not show, with captions; and short queries with several answers."""
    from PIL import Image

    encoder = Encoder.open("tiny-scenes")
    drawn = scenes.sample(2 * rows, 900 + seed)
    rng = np.random.default_rng([seed, 900])
    pixels = scenes.render(drawn, rng)
    images = encoder.images([Image.fromarray(picture) for picture in pixels])
    words = scenes.phrases()
    captions, _ = scenes.captions(drawn, rng)
    test = drawn[rows:]
    asked = [f"a {colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES]
    truth = np.array([scenes.matches(test, text) for text in asked])
    kept = truth.sum(axis=1) >= 3
    chosen = [text for text, keep in zip(asked, kept, strict=True) if keep]
    vocabulary = [text for text in words if text not in chosen]
    return Case(
        "scenes", images[:rows], images[rows:], encoder.texts(vocabulary),
        (images[:rows], encoder.texts(captions[:rows]), np.arange(rows)),
        encoder.texts(chosen), truth[kept], own=encoder.default_head(),
    )  # fmt: skip


MADE: dict[str, Callable[[Any, int], Case]] = {
    "fashion": fashion, "flickr": flickr, "products": products, "muge": muge,
    "scenes": scene_world,
}  # fmt: skip
NEEDED = {"fashion": "clip_vitb32/fashion.npz", "flickr": "clip_vitb32/flickr_pairs.npz",
          "products": "joint512_products/pairs.npz", "muge": "cnclip_vitb16/muge.npy"}  # fmt: skip


# --- features -------------------------------------------------------------------------------------


def of(name: str, head: Head, finer: Head | None = None) -> Kind:
    return Kind(name, head.images, head.texts, finer)


def kinds(case: Case, seed: int, quick: bool) -> Iterator[Kind]:
    """The kinds of features, each fitted to the case's first half."""
    mean = case.fit.mean(axis=0)
    words = case.vocabulary
    text_mean = mean if words is None else words.mean(axis=0)
    width = case.fit.shape[1]
    yield Kind(f"{width} floats", unit, unit)
    yield Kind(f"{width}, centred", lambda x: unit(x - mean), lambda y: unit(y - text_mean))
    pca = Head.pca(case.fit, words)
    yield of("PCA", pca)
    if case.own is not None:
        yield of("the encoder's own", case.own)
    if words is None:
        return
    yield of("shared, a = .5", Head.shared(case.fit, words, 0.5, steps=0))
    shared = Head.shared(case.fit, words)
    yield of("shared", shared)
    yield of("shared, re-ranked", shared, shared.finer(case.fit, words))
    if case.pairs is None:
        return
    try:
        from boxwood.encode import train_pairs
    except Exception as error:
        print(f"left out: heads trained on pairs: {error}")
        return
    epochs = 2 if quick else 60
    for name, koleo in (("pairs", 0.0), ("pairs + KoLeo", 0.1)):
        head = train_pairs(*case.pairs, koleo=koleo, epochs=epochs, seed=seed, start=shared)
        yield of(name, head)


# --- measures -------------------------------------------------------------------------------------


def precision(scores: Floats, truth: Mask) -> float:
    """Average precision of a ranking."""
    hits = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean())


def scores_of(queries: Floats, rows: Floats) -> Floats:
    """Minus the squared distance, up to what is the same for all rows of a query."""
    out: Floats = 2 * queries @ rows.T - np.einsum("ij,ij->i", rows, rows)
    return out


def coded(quantizer: Quantizer, rows: Floats) -> Floats:
    return quantizer.encode(rows).astype(np.float32) - np.float32(127.5)


def measured(case: Case, kind: Kind, seed: int) -> dict[str, float]:
    """Every figure of one kind of features on one half."""
    quantizer = Quantizer.fit(kind.images(case.fit))
    features = kind.images(case.test)
    error = quantizer.error(features, NEIGHBOURS, seed)
    out = {f"recall@{k}": value for k, value in error.recall.items()}
    out |= {"cosine": error.cosine, "saturated": error.saturated}
    codes = coded(quantizer, features)
    out["kept"] = kept(case, codes, seed)
    fines: Floats | None = None
    if kind.finer is not None:
        fine = Quantizer.fit(kind.finer.images(case.fit), FINE_INSIDE)
        fines = coded(fine, kind.finer.images(case.test))
    if case.queries is not None:
        texts = kind.texts(case.queries)
        floats = scores_of(texts, features)
        found = scores_of(coded(quantizer, texts), codes)
        if fines is not None and kind.finer is not None:
            again = scores_of(coded(fine, kind.finer.texts(case.queries)), fines)
            # The names of one image are told apart by fine codes alone: nothing is ranked first.
            found = reranked(found, again)
            out |= {"text": first(case, again if case.classes else found)}
        else:
            out |= {"text, floats": first(case, floats), "text": first(case, found)}
            if case.classes and kind.images is not unit:
                own = coded(quantizer, texts)
                out["text + mean"] = first(case, with_mean(case, kind, quantizer, own, codes))
            out["mAP, floats"] = mean_precision(case, floats)
        out["mAP"] = mean_precision(case, found)
    if case.labels is not None:
        out["mean of 8"] = by_examples(case.labels, codes if fines is None else fines, seed)
    return out


def with_mean(case: Case, kind: Kind, quantizer: Quantizer, texts: Floats, codes: Floats) -> Floats:
    """Scores that tell the names of one image apart. Centring takes from each name how near it is
    to the mean image, one number a name; it is added again, to the cosine of the codes in units of
    the full space: the slope is that of phrases of the vocabulary against images of the half that
    heads are fitted to."""
    assert case.queries is not None
    assert case.vocabulary is not None
    phrases, images = unit(case.vocabulary)[:400], case.fit[:1500]
    mean = case.fit.mean(axis=0)
    x = unit(coded(quantizer, kind.texts(phrases))) @ unit(coded(quantizer, kind.images(images))).T
    y = (phrases - phrases.mean(axis=0)) @ (images - mean).T
    slope = float((x * y).sum() / (x * x).sum())
    out: Floats = slope * unit(texts) @ unit(codes).T + (unit(case.queries) @ mean)[:, None]
    return out


def reranked(scores: Floats, again: Floats) -> Floats:
    """Of each query the best rows of `scores` in the order of `again`, the others behind them."""
    out = scores - scores.max(axis=1, keepdims=True) - 1
    top = np.argsort(-scores, axis=1, kind="stable")[:, :RERANKED]
    finer = np.take_along_axis(again, top, axis=1)
    finer = finer - finer.min(axis=1, keepdims=True)
    np.put_along_axis(out, top, finer, axis=1)
    return out


def kept(case: Case, codes: Floats, seed: int) -> float:
    """Of the 10 nearest in all dimensions, centred, the share that is among the 10 of `codes`."""
    full = unit(case.test - case.fit.mean(axis=0))
    rows = np.random.default_rng(seed).permutation(len(full))[:NEIGHBOURS]
    near = []
    for vectors in (full, codes):
        scores = scores_of(vectors[rows], vectors)
        scores[np.arange(len(rows)), rows] = -np.inf
        near.append(np.argpartition(-scores, 9, axis=1)[:, :10])
    return sum(len(np.intersect1d(a, b)) for a, b in zip(*near, strict=True)) / (10 * len(rows))


def first(case: Case, scores: Floats) -> float:
    """Class names: the share of images whose nearest name is theirs. Captions: the share of
    captions whose nearest image is theirs."""
    assert case.truth is not None
    if not case.classes:
        return float(case.truth[np.arange(len(scores)), scores.argmax(axis=1)].mean())
    known = case.truth.any(axis=0)
    guess = scores.T[known].argmax(axis=1)
    return float(case.truth.T[known][np.arange(int(known.sum())), guess].mean())


def mean_precision(case: Case, scores: Floats) -> float:
    """Of class names, among the images whose class is known."""
    assert case.truth is not None
    judged = case.labels != "" if case.labels is not None else np.ones(scores.shape[1], bool)
    pairs = zip(scores, case.truth, strict=True)
    return float(np.mean([precision(s[judged], t[judged]) for s, t in pairs if t.any()]))


def by_examples(labels: NDArray[Any], codes: Floats, seed: int) -> float:
    found = []
    for value in np.unique(labels[labels != ""]):
        truth = labels == value
        if truth.sum() < LEAST_OF_CLASS:
            continue
        for draw in range(DRAWS):
            rng = np.random.default_rng([seed, draw, int(truth.sum())])
            marked = rng.permutation(np.flatnonzero(truth))[:LABELLED]
            judged = labels != ""
            judged[marked] = False
            scores = scores_of(codes[marked].mean(axis=0, keepdims=True), codes)[0]
            found.append(precision(scores[judged], truth[judged]))
    return float(np.mean(found))


# --- report ---------------------------------------------------------------------------------------

COLUMNS = {
    "recall@1": "recall@1", "recall@10": "@10", "recall@100": "@100", "cosine": "cosine error",
    "saturated": "saturated", "kept": "kept", "text, floats": "text, floats", "text": "8 bits",
    "text + mean": "+ mean", "mAP": "mAP, 8 bits", "mean of 8": "mean of 8",
}  # fmt: skip


Rows = dict[str, dict[str, list[dict[str, float]]]]


def table(rows: Rows) -> str:
    """Markdown: a table a data set, mean and standard deviation over the seeds."""
    lines = []
    for name, by_kind in rows.items():
        seeds = max(len(runs) for runs in by_kind.values())
        have = [c for c in COLUMNS if any(c in run for runs in by_kind.values() for run in runs)]
        lines += [f"**{name}**, {seeds} seed{'s' if seeds > 1 else ''}", "",
                  "| features | " + " | ".join(COLUMNS[c] for c in have) + " |",
                  "|---|" + "---:|" * len(have)]  # fmt: skip
        for kind, runs in by_kind.items():
            cells = []
            for column in have:
                values = [run[column] for run in runs if column in run]
                cells.append(figure(column, values) if values else "")
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def figure(column: str, values: list[float]) -> str:
    digits = 4 if column in ("cosine", "saturated") else 3
    mean = f"{np.mean(values):.{digits}f}".lstrip("0") or "0"
    if len(values) == 1:
        return mean
    return f"{mean} ± " + f"{np.std(values, ddof=1):.{digits}f}".lstrip("0")


def goals(rows: Rows) -> str:
    """Each goal of the default head, on each data set: reached or not."""
    lines = ["| goal for `shared` | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
    recalls = {1: 0.97, 10: 0.98, 100: 0.99}

    def mean(name: str, kind: str, column: str) -> float | None:
        runs = rows[name].get(kind, [])
        values = [run[column] for run in runs if column in run]
        return float(np.mean(values)) if values else None

    def best(name: str, column: str, having: str = "") -> float | None:
        """Of the embeddings as floats, as they are or centred, whichever does better."""
        found = [mean(name, kind, column) for kind in rows[name]
                 if kind.endswith("floats") or kind.endswith("centred")]  # fmt: skip
        values = [value for value in found if value is not None]
        return max(values) if values else None

    def line(title: str, cell: Callable[[str], tuple[float, float] | None]) -> str:
        cells = []
        for name in rows:
            pair = cell(name)
            if pair is None:
                cells.append("")
                continue
            got, wanted = pair
            cells.append(f"{got:.3f} {'reached' if got >= wanted else f'missed ({wanted:.2f})'}")
        return f"| {title} | " + " | ".join(cells) + " |" if any(cells) else ""

    def recall(k: int) -> Callable[[str], tuple[float, float] | None]:
        def cell(name: str) -> tuple[float, float] | None:
            kind = "shared" if "shared" in rows[name] else "PCA"
            got = mean(name, kind, f"recall@{k}")
            return None if got is None else (got, recalls[k])

        return cell

    def share(
        kind: str, column: str, of: str, wanted: float
    ) -> Callable[[str], tuple[float, float] | None]:
        def cell(name: str) -> tuple[float, float] | None:
            got, base = mean(name, kind, column), best(name, of)
            return None if got is None or not base else (got / base, wanted)

        return cell

    for k, wanted in recalls.items():
        lines.append(line(f"recall@{k} after 8 bits at least {wanted:.2f}", recall(k)))
    lines += [
        line("text at least 90% of all dimensions",
             share("shared", "text", "text, floats", 0.9)),
        line("the same, the mean of the images added to names",
             share("shared", "text + mean", "text, floats", 0.9)),
        line("mAP of texts at least 90%", share("shared", "mAP", "mAP, floats", 0.9)),
        line("the same, re-ranked, at least 97%",
             share("shared, re-ranked", "mAP", "mAP, floats", 0.97)),
        line("mean of 8 at least that of all dimensions",
             share("shared", "mean of 8", "mean of 8", 1.0)),
    ]  # fmt: skip
    return "\n".join(line for line in lines if line) + "\n"


def write_docs(text: str) -> None:
    """Put the text between the marks in docs/HEADS.md."""
    page = DOCS.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{DOCS} lacks the lines {BEGIN} and {END}")
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="DATA_FOLDER")
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, fewer rows")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/HEADS.md")
    given = parser.parse_args(arguments)
    if given.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if given.docs and (given.quick or given.seeds < SEEDS):
        parser.error(f"--docs wants figures: without --quick, with {SEEDS} seeds or more")
    start = time.monotonic()
    rows: Rows = {}
    with threadpool_limits(1):
        for name in given.data:
            needed = NEEDED.get(name)
            if needed and (given.folder is None or not (given.folder / needed).is_file()):
                print(f"left out: {name}: there is no {needed} in {given.folder or 'DATA_FOLDER'}")
                continue
            for seed in range(1 if given.quick else given.seeds):
                case = MADE[name](given.folder, seed)
                if given.quick:
                    case = replace(case, fit=case.fit[:TRAIN_ROWS])
                for kind in kinds(case, seed, given.quick):
                    began = time.monotonic()
                    figures = measured(case, kind, seed)
                    rows.setdefault(name, {}).setdefault(kind.name, []).append(figures)
                    print(f"{name} seed {seed} {kind.name}: {time.monotonic() - began:.1f} s "
                          + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()),
                          file=sys.stderr, flush=True)  # fmt: skip
    if not rows:
        print("nothing was measured")
        return 1
    where = machine()
    text = f"{table(rows)}\n{goals(rows)}"
    print(text)
    print(f"{time.monotonic() - start:.0f} s; {where}")
    if given.docs:
        write_docs(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
