"""``boxwood head``: fit a head, train one, show one. The options are in `boxwood.cli`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxwood.encode.groups import held_out, numbered, same_rows
from boxwood.encode.head import Floats, Head
from boxwood.errors import InputError, MissingDependency, StorageError
from boxwood.progress import Bar

if TYPE_CHECKING:
    from boxwood.encode.encoder import Encoder
    from boxwood.encode.measure import Kept
    from boxwood.pairs import Pairs

_TRAINED = ("hidden", "koleo", "epochs", "seed", "batch", "device", "checkpoint", "start")
_SHOWN = 20
_TEST = 0.1
_SET_ASIDE = 7919
"""Added to the seed for the rows that are set aside, so that the rows that training itself holds
out are drawn apart from them."""


def train(args: argparse.Namespace, progress: bool) -> int:
    """``boxwood head train``."""
    from boxwood import pairs as data

    _check_out(args)
    with _source(args) as (con, source):
        if args.encoder is None:
            if source.lower().endswith((".csv", ".tsv")):
                raise InputError(
                    f"{source}: a CSV file holds captions, not embeddings; to embed them and their "
                    "images, name an encoder: --encoder MODEL/TAG"
                )
            pairs = data.read_pairs(
                con, source, image=args.image or "image", text=args.text or "text",
                group=args.group,
            )  # fmt: skip
        else:
            encoder = _encoder(args.encoder)
            with Bar("embedding", progress) as bar:
                pairs = data.embed_pairs(
                    con, source, encoder, path=args.image or "path",
                    caption=args.text or "caption", progress=bar.update,
                )  # fmt: skip
            _say_skipped(pairs)
    if args.save_pairs is not None:
        pairs.save(args.save_pairs)
        _note(f"wrote {args.save_pairs}")

    trainer = _trainer()
    options = _options(args)
    if args.neighbours is not None:
        options["neighbours"] = args.neighbours
    n = len(pairs.images)
    if len(pairs.texts) != n or pairs.texts.shape[1] != pairs.images.shape[1]:
        raise InputError(
            f"images have {pairs.images.shape[1]} dimensions and texts {pairs.texts.shape[1]}: "
            "both towers of one encoder are needed"
        )
    group = same_rows(pairs.images) if pairs.groups is None else numbered(pairs.groups, n)
    share = _TEST if args.test is None else args.test
    aside = held_out(group, args.seed + _SET_ASIDE, share)
    images, texts = pairs.images[~aside], pairs.texts[~aside]
    began = time.monotonic()
    history: list[tuple[float, float]] = []
    with Bar("training", progress) as bar:
        head = trainer.train_pairs(
            images, texts, group[~aside], dims=args.dims, progress=_watch(bar, history), **options
        )
    about: list[tuple[str, object]] = [
        ("pairs trained on", f"{len(images):,} of {len(np.unique(group[~aside])):,} groups"),
        ("set aside", f"{int(aside.sum()):,}"),
        ("seconds", round(time.monotonic() - began, 1)),
    ]
    others = [("start", options.get("start") or trainer.shared_start(images, texts, args.dims))]
    _finish(args, head, others, (pairs.images, pairs.texts, group), aside, history, about)
    return 0


def fit(args: argparse.Namespace, progress: bool) -> int:
    """``boxwood head fit``."""
    from boxwood import pairs as data

    _check_out(args)
    if args.kind != "neighbours":
        for name in _TRAINED:
            if name != "seed" and getattr(args, name) is not None:
                args.parser.error(f"--{name} belongs to --kind neighbours")
    if args.texts is not None and args.encoder is None:
        args.parser.error("--texts needs --encoder MODEL/TAG, to embed them")
    if args.kind == "shared" and args.encoder is None and args.text_embeddings is None:
        args.parser.error(
            "--kind shared needs texts: --encoder MODEL/TAG embeds its vocabulary (or --texts "
            "FILE), --text-embeddings FILE has them embedded"
        )
    args.seed = args.seed or 0
    with _source(args) as (con, source):
        images = data.read_embeddings(con, source, args.embedding)
        texts = None
        if args.text_embeddings is not None:
            texts = data.read_embeddings(con, args.text_embeddings, args.embedding)
        elif args.encoder is not None:
            texts = _embed_texts(args)
    began = time.monotonic()
    history: list[tuple[float, float]] = []
    group = same_rows(images)
    share = args.test if args.test is not None else _TEST if args.kind == "neighbours" else 0.0
    aside = held_out(group, args.seed + _SET_ASIDE, share)
    others: list[tuple[str, Head]] = []
    if args.kind == "neighbours":
        trainer = _trainer()
        with Bar("training", progress) as bar:
            head = trainer.train_neighbours(
                images[~aside], texts, dims=args.dims, progress=_watch(bar, history),
                **_options(args),
            )  # fmt: skip
        others.append(("pca", Head.pca(images[~aside], texts, args.dims)))
    elif args.kind == "pca":
        head = Head.pca(images[~aside], texts, args.dims)
    else:
        assert texts is not None
        head = Head.shared(images[~aside], texts, dims=args.dims)
    about: list[tuple[str, object]] = [
        ("images", f"{int((~aside).sum()):,}"),
        ("texts", 0 if texts is None else f"{len(texts):,}"),
        ("set aside", f"{int(aside.sum()):,}"),
        ("seconds", round(time.monotonic() - began, 1)),
    ]
    _finish(args, head, others, (images, None, group), aside, history, about)
    return 0


def show(args: argparse.Namespace) -> int:
    """``boxwood head show``."""
    head = Head.load(args.file)
    described = {
        "kind": head.kind,
        "width": head.width,
        "dims": head.dims,
        "layers": [head.width, *(len(bias) for _, bias in head.layers)],
        "activation": head.activation if len(head.layers) > 1 else None,
        "parameters": sum(matrix.size + bias.size for matrix, bias in head.layers),
        "bytes": args.file.stat().st_size,
        "fingerprint": head.fingerprint,
    }
    if args.json:
        print(json.dumps(described, indent=1))
        return 0
    size = max(map(len, described))
    for name, value in described.items():
        if isinstance(value, list):
            value = " -> ".join(map(str, value))
        if value is not None:
            print(f"{name.ljust(size)}  {value:,}" if isinstance(value, int)
                  else f"{name.ljust(size)}  {value}")  # fmt: skip
    return 0


def go_on(args: argparse.Namespace) -> str:
    """What an interrupted command has left, and what to do next."""
    checkpoint: Path | None = getattr(args, "checkpoint", None)
    if checkpoint is not None and checkpoint.exists():
        return f"what was trained is in {checkpoint}, and the same command goes on from there"
    hint = "; with --checkpoint FILE it can go on" if "checkpoint" in args else ""
    return f"no head was written{hint}"


# --- parts --------------------------------------------------------------------------------------


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _source(args: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """A connection, and the source on it; a database is opened read-only."""
    import boxwood

    if args.database is not None and not args.database.exists():
        raise InputError(f"there is no database {args.database}")
    con = boxwood.connect(args.database or ":memory:", read_only=args.database is not None)
    try:
        yield con, args.source
    finally:
        con.close()


def _trainer() -> Any:
    try:
        from boxwood.encode import train as trainer
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"training a head needs the package {error.name!r}: pip install 'boxwood[clip]'"
        ) from error
    return trainer


def _encoder(name: str) -> Encoder:
    from boxwood.encode import Encoder

    return Encoder.open(name)


def _embed_texts(args: argparse.Namespace) -> Floats:
    from boxwood.encode import vocabulary

    if args.texts is None:
        phrases = vocabulary(args.encoder)
    else:
        try:
            lines = args.texts.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{args.texts} is not UTF-8 text: {error.reason}") from error
        phrases = [line.strip() for line in lines if line.strip()]
        if not phrases:
            raise InputError(f"{args.texts} holds no phrases: write one a line")
    return _encoder(args.encoder).texts(phrases)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked of training; what was not is left to its defaults."""
    given = {name: getattr(args, name) for name in _TRAINED if getattr(args, name) is not None}
    if "start" in given:
        given["start"] = Head.load(given["start"])
    return given


def _watch(bar: Bar, history: list[tuple[float, float]]) -> Any:
    def progress(epoch: int, epochs: int, held_out: float, trained: float) -> None:
        history.append((held_out, trained))
        bar.update(epoch, epochs, f"loss {held_out:.4f} held out, {trained:.4f} trained on")

    return progress


def _say_skipped(pairs: Pairs) -> None:
    for path, reason in pairs.skipped[:_SHOWN]:
        _note(f"skipped {path}: {reason}")
    if len(pairs.skipped) > _SHOWN:
        _note(f"... and {len(pairs.skipped) - _SHOWN:,} more")


def _check_out(args: argparse.Namespace) -> None:
    """Hours of training must not end with a file that cannot be written, or in place of another."""
    taken = {Path(args.source).expanduser().resolve(): "SOURCE"}
    if args.database is not None:
        taken[args.database.resolve()] = "--database"
    for name in ("out", "report", "checkpoint", "save_pairs"):
        path: Path | None = getattr(args, name, None)
        if path is None:
            continue
        option = f"--{name.replace('_', '-')}"
        folder = path.absolute().parent
        if (path.exists() and not path.is_file()) or not folder.is_dir():
            raise InputError(f"{option} {path}: name a file in a folder that exists")
        if not os.access(folder, os.W_OK):
            raise StorageError(f"{option} {path}: the folder cannot be written to")
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise InputError(f"{option} {path} is {other} too: name another file")
    if args.report is not None and args.report.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {args.report}: the name must end in .html")


def _write(path: Path, data: bytes) -> None:
    """All of a file or nothing of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _page(
    head: Head,
    results: Sequence[Kept],
    measured_on: str,
    about: Sequence[tuple[str, object]],
    history: Sequence[tuple[float, float]],
) -> str:
    """The report of a training as one HTML page: the curves, the table, and what was asked for.
    `history` has the held-out loss and that of trained rows after each epoch."""
    from boxwood import report
    from boxwood.encode.measure import NEIGHBOURS, table

    parts = []
    if history:
        held = [pair[0] for pair in history]
        curves = {"held out": held, "trained on": [pair[1] for pair in history]}
        best = int(np.argmin(held)) + 1
        parts += [
            "<h2>Loss</h2>",
            report.plot(curves, over="epoch", what="loss", top=max(map(max, curves.values()))),
            f"<p>The best held-out loss, {min(held):.4f}, came after epoch {best} of "
            f"{len(history)}.</p>",
        ]
    columns, rows = table(results)
    parts += ["<h2>What the head keeps</h2>", report.html_table(columns, rows)]
    recall = "R@k: share of texts whose image is among the k nearest. " * bool(results[0].recall)
    parts.append(
        f"<p>{recall}neighbours@{NEIGHBOURS}: share of an image's {NEIGHBOURS} nearest images, by "
        f"all dimensions, that are kept. Measured on {escape(measured_on)}.</p>"
    )
    described = [("head", repr(head)), *about]
    parts += ["<h2>Training</h2>", report.html_table(("option", "value"), described)]
    return report.page("Training of a head", parts)


def _finish(
    args: argparse.Namespace,
    head: Head,
    others: list[tuple[str, Head]],
    data: tuple[Floats, Floats | None, NDArray[np.int64]],
    aside: NDArray[np.bool_],
    history: list[tuple[float, float]],
    about: list[tuple[str, object]],
) -> None:
    """Write the head, then say and report what it keeps of the rows set aside."""
    from boxwood import report
    from boxwood.encode import measure

    _write(args.out, head.to_bytes())
    images, texts, group = data
    if aside.any():
        measured_on = f"{int(aside.sum()):,} rows that were set aside"
        rows = aside
    else:
        measured_on = "the rows that the head was made from, since none were set aside"
        rows = np.ones(len(images), bool)
    results = measure.measure(
        [*others, (head.kind, head)], images[rows], None if texts is None else texts[rows],
        group[rows], images[~aside],
    )  # fmt: skip
    print(report.text_table(*measure.table(results)))
    print(f"measured on {measured_on}")
    if args.report is not None:
        asked = [
            (name, value) for name, value in sorted(vars(args).items())
            if name in ("source", "dims", "kind", "test", "neighbours", "encoder", *_TRAINED)
            and value is not None
        ]  # fmt: skip
        page = _page(head, results, measured_on, [*about, *asked], history)
        _write(args.report, page.encode())
        _note(f"wrote {args.report}")
    after = f" after {len(history)} epochs" if history else ""
    print(f"wrote {args.out}: {head!r}{after}")
    checkpoint: Path | None = getattr(args, "checkpoint", None)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
