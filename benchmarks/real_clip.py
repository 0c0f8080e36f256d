"""Text queries and refinement on real CLIP ViT-B/32 vectors: precision, recall, F1 by round.

    python benchmarks/real_clip.py DATA_FOLDER [--rounds 4] [--learner ensemble] [--markdown]

DATA_FOLDER holds ``fashion.npz`` (emb, label), ``unlabelled.npz`` (emb) and ``imagenet_text.npz``
(emb, name), all of one 512-d space. Fashion and unlabelled rows make one collection. Its head is
the 32 directions that image vectors share with the vectors of ImageNet's class names, those used as
queries left out. A query is the stored text vector of a class name; what is right is what has the
matching label. Unlabelled rows are in the collection like all others, are searched, drawn as random
negatives and returned, but nobody knows whether they are right: they get no label from the
simulated person and count neither way in precision, recall and F1.

Without the folder the script says so and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import boxwood
from boxwood.demo import LEARNERS, PAGE, Person, Quality, first_page, next_page, quality
from boxwood.report import text_table

# The beginning of ImageNet's class name, and the label that it stands for.
CLASSES = {
    "jersey, T-shirt": "Tshirts",
    "digital watch": "Watches",
    "jean, blue jean": "Jeans",
    "Loafer": "Formal Shoes",
    "purse": "Handbags",
    "sandal": "Sandals",
    "running shoe": "Sports Shoes",
    "cardigan": "Sweaters",
    "sweatshirt": "Sweatshirts",
    "Windsor tie": "Ties",
    "sock": "Socks",
}
FILES = ("fashion.npz", "unlabelled.npz", "imagenet_text.npz")
COLUMNS = ("learner", "round", "right", "wrong", "found", "precision", "recall", "F1")


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows as float32 of length 1."""
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def markdown(columns: tuple[str, ...], rows: list[list[object]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def measures(q: Quality) -> list[float]:
    return [q.precision, q.recall, q.f1]


def digits(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def run_class(
    collection: Any, vector: np.ndarray, truth: frozenset[int], judged: frozenset[int],
    learners: list[str], rounds: int, seed: int,
) -> tuple[Quality, dict[tuple[str, int], tuple[int, int, Quality]]]:  # fmt: skip
    """One query: the first page's quality, and labels and quality by (learner, round)."""
    nearest = collection.search_embedding(vector, min(PAGE * 20, len(judged)), kind="text")
    every = nearest["id"].to_pylist()
    by_words = [i for i in every if i in judged]
    opening = Person(truth)
    first_page(opening, by_words)
    first = quality([i for i in every[:PAGE] if i in judged], truth)
    results: dict[tuple[str, int], tuple[int, int, Quality]] = {}
    if not opening.positives:
        return first, results
    for learner in learners:
        person = Person(truth, list(opening.positives), list(opening.negatives))
        ranked: list[int] = []
        for number in range(1, rounds + 1):
            if number > 1:
                person.look(next_page(person, ranked, by_words))
            found = collection.refine(
                person.positives, person.negatives, learner=learner, seed=seed
            )
            ranked = [i for i in found.table()["id"].to_pylist() if i in judged]
            labels = (len(person.positives), len(person.negatives))
            results[learner, number] = (*labels, quality(ranked, truth))
    return first, results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DATA_FOLDER")
    parser.add_argument("--rounds", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--learner", action="append", choices=LEARNERS,
                        help="may be repeated; default: all")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    args = parser.parse_args()
    missing = [name for name in FILES if not (args.folder / name).is_file()]
    if missing:
        print(f"skipped: {args.folder} has no {', '.join(missing)}")
        return 0

    fashion, unlabelled, texts = (np.load(args.folder / name) for name in FILES)
    images = np.concatenate([unit(fashion["emb"]), unit(unlabelled["emb"])])
    label = fashion["label"]
    judged = frozenset(np.flatnonzero(label != "").tolist())
    words, names = unit(texts["emb"]), texts["name"].tolist()
    queries = {}
    for start, cls in CLASSES.items():
        [row] = [i for i, name in enumerate(names) if name.startswith(start)
                 and name[len(start) : len(start) + 1] in ("", ",")]  # fmt: skip
        queries[cls] = row
    others = np.delete(words, list(queries.values()), axis=0)
    learners = args.learner or list(LEARNERS)

    def show(columns: tuple[str, ...], rows: list[list[object]]) -> None:
        print((markdown if args.markdown else text_table)(columns, rows), end="\n\n")

    with tempfile.TemporaryDirectory() as folder:
        con = boxwood.connect(Path(folder) / "clip.duckdb")
        # Text vectors instead of a head: it becomes the directions that images share with them.
        collection = boxwood.Collection.create(con, "clip", texts=others)
        collection.append(np.arange(len(images)), embeddings=images)
        print(
            f"{len(images):,} images, {len(judged):,} with labels; head: directions shared with "
            f"{len(others)} class names; {len(queries)} queries left out of it; "
            f"seed {args.seed}\n"
        )
        sums: dict[tuple[str, int], list[list[float]]] = {}
        firsts = []
        for cls, row in queries.items():
            truth = frozenset(np.flatnonzero(label == cls).tolist())
            first, results = run_class(
                collection, words[row], truth, judged, learners, args.rounds, args.seed
            )
            firsts.append(measures(first))
            print(f'"{names[row]}" -> {cls}: {len(truth)} images')
            table: list[list[object]] = [
                ["(by words)", 0, "", "", first.found, *digits(firsts[-1])]
            ]
            for (learner, number), (right, wrong, q) in results.items():
                table.append([learner, number, right, wrong, q.found, *digits(measures(q))])
            for key in ((learner, n) for learner in learners for n in range(1, args.rounds + 1)):
                # A query that shows nothing right within some pages counts as nothing found.
                q = results[key][2] if key in results else Quality(0, 0.0, 0.0, 0.0)
                sums.setdefault(key, []).append(measures(q))
            show(COLUMNS, table)
        con.close()
    print(f"mean of {len(queries)} classes; (by words): the first {PAGE} results")
    means: list[list[object]] = [["(by words)", 0, *digits(np.mean(firsts, axis=0))]]
    for (learner, number), values in sums.items():
        means.append([learner, number, *digits(np.mean(values, axis=0))])
    show(("learner", "round", "precision", "recall", "F1"), means)
    return 0


if __name__ == "__main__":
    sys.exit(main())
