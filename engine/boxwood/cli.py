"""The ``boxwood`` command.

Exit codes: 0 done, 1 an error that a message on standard error explains, 2 wrong usage, 130
interrupted. Results go to standard output, everything else to standard error. Nothing heavy is
imported before a command needs it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import pyarrow as pa

    from boxwood.collection import Collection, Refined

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
LEARNERS = ("cover", "branch", "ensemble", "tree", "forest")

_EXAMPLES = {
    "": """\
  boxwood demo
  boxwood create photos.duckdb photos --images ~/Pictures --encoder ViT-B-32/laion2b_s34b_b79k
  boxwood serve photos.duckdb --open
  boxwood search photos.duckdb photos "a leopard" --sheet leopards.png
  boxwood refine photos.duckdb photos --positives 17,42 --negatives 5,8 --save-model leopard.json
  boxwood export photos.duckdb photos --model leopard.json --out leopards.parquet
""",
    "demo": """\
  boxwood demo
  boxwood demo --folder small-demo --images 1000 --open
  boxwood demo --query "a pink heart" --query "a dotted ring on a gray background"
  boxwood demo --serve --open
""",
    "serve": """\
  boxwood serve photos.duckdb --open
  boxwood serve photos.duckdb --read-only --port 9000
  boxwood serve photos.duckdb --root ~/Pictures --root /mnt/archive
  boxwood serve photos.duckdb --host 0.0.0.0
""",
    "create": """\
  boxwood create photos.duckdb photos --images ~/Pictures --encoder ViT-B-32/laion2b_s34b_b79k
  boxwood create photos.duckdb photos --images "shards/*.tar" --encoder ViT-B-32/openai
  boxwood create photos.duckdb photos --npy embeddings.npy --ids ids.npy
  boxwood create photos.duckdb photos --clip-retrieval embeddings --encoder ViT-B-32/openai
  boxwood create photos.duckdb photos --parquet embeddings.parquet --id id --embedding emb
  boxwood create photos.duckdb photos --table pictures --id id --embedding emb
  boxwood create photos.duckdb photos --encoder ViT-B-32/laion2b_s34b_b79k
  boxwood create photos.duckdb photos --encoder ViT-L-14 --pretrained vit_l.safetensors
  boxwood create photos.duckdb photos --npy embeddings.npy --keep-embeddings
""",
    "add": """\
  boxwood add photos.duckdb photos ~/Pictures/2025
  boxwood add photos.duckdb photos one.jpg "scans/**/*.png" --batch 64 --report skipped.csv
  boxwood add photos.duckdb photos laion/00000.tar laion/00001.parquet --duplicates keep
  boxwood add photos.duckdb photos --table pictures --column path
  boxwood add photos.duckdb photos --npy embeddings.npy --ids ids.npy
""",
    "search": """\
  boxwood search photos.duckdb photos "a red circle" -k 60
  boxwood search photos.duckdb photos "a red circle" --sheet found.png
  boxwood search photos.duckdb photos beach --without people --template "a photo of a {}"
  boxwood search photos.duckdb photos --image example.jpg --json
  boxwood search photos.duckdb photos --like 17 --csv
""",
    "refine": """\
  boxwood refine photos.duckdb photos --positives 17,42 --negatives 5,8
  boxwood refine photos.duckdb photos --positives 17,42 --rerank --limit 20 --sql
  boxwood refine photos.duckdb photos --text "a leopard" --negatives 5,8
  boxwood refine photos.duckdb photos --positives 17,42 --learner ensemble --paper
  boxwood refine photos.duckdb photos --positives @right.txt --negatives @wrong.txt --json
  boxwood refine photos.duckdb photos --positives 17,42 --negatives 5,8 --save-model m.json
  boxwood refine photos.duckdb photos --positives 17,42 --negatives 5,8 --save-concept leopard
""",
    "concepts": """\
  boxwood concepts photos.duckdb
  boxwood concepts photos.duckdb photos --json
  boxwood concepts photos.duckdb photos --drop leopard
""",
    "info": """\
  boxwood info photos.duckdb
  boxwood info photos.duckdb photos --json
  boxwood info photos.duckdb photos --shell
""",
    "export": """\
  boxwood export photos.duckdb photos --model m.json --out found.parquet
  boxwood export photos.duckdb photos --concept leopard --out found.csv
""",
    "head train": """\
  boxwood head train pairs.parquet --out clip.head.npz
  boxwood head train pairs --database photos.duckdb --out clip.head.npz --report report.html
  boxwood head train captions.csv --encoder ViT-B-32/openai --save-pairs pairs.parquet --out a.npz
  boxwood head train pairs.parquet --out big.head.npz --hidden 8192,8192 --checkpoint big.ckpt
""",
    "head fit": """\
  boxwood head fit embeddings.npy --kind pca --out pca.head.npz
  boxwood head fit embeddings.npy --kind shared --encoder ViT-B-32/openai --out shared.head.npz
  boxwood head fit embeddings.parquet --kind neighbours --text-embeddings words.npy --out n.head.npz
  boxwood head fit boxwood.photos_embeddings --database photos.duckdb --kind neighbours --out n.npz
""",
    "head show": """\
  boxwood head show clip.head.npz
  boxwood head show clip.head.npz --json
""",
    "recode": """\
  boxwood recode photos.duckdb photos --head photos.head.npz
  boxwood recode photos.duckdb photos --head shared
  boxwood recode photos.duckdb photos --head pca --embeddings embeddings.parquet
""",
    "delete": """\
  boxwood delete photos.duckdb photos --ids 17,42
  boxwood delete photos.duckdb photos --ids @wrong.txt
  boxwood delete photos.duckdb photos --where "uri LIKE '%/thumbnails/%'"
""",
    "verify": """\
  boxwood verify photos.duckdb
  boxwood verify photos.duckdb photos
""",
    "compact": """\
  boxwood compact photos.duckdb
  boxwood compact photos.duckdb photos --progress
""",
    "repair": """\
  boxwood repair photos.duckdb
  boxwood repair photos.duckdb photos
""",
}


_EXIT_CODES = """\
exit codes:
  0    done; images that cannot be read are named on standard error and left out
  1    an error, explained on standard error; also when not one image could be read,
       and when `verify` finds that a repair is needed
  2    wrong usage
  130  interrupted
"""

_SOURCES = (
    "images: files, folders with all below them, globs in quotes, tar shards (also .tar.gz, .tgz, "
    ".tar.bz2, .tar.xz), and Parquet files with images in them"
)
_UNREADABLE = (
    "Images that cannot be read are named and left out; the exit code is then 0 all the same, and "
    "1 only when nothing could be read."
)


_SHOWN = 20
"""Images that were left out, at most, that are named."""


class CommandError(Exception):
    """A message for the person at the terminal; ends the command with exit code 1."""


# --- arguments ----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The name of the command alone: `boxwood search: error:` would hide where to look.
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"boxwood: error: {message} (see {self.prog} --help)\n")


def _ids(text: str) -> list[int]:
    """Ids as ``17,42,99``, or ``@file`` with ids separated by commas, spaces or lines."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise argparse.ArgumentTypeError(f"cannot read ids from {text[1:]}: {error}") from error
    ids = []
    for word in text.replace(",", " ").split():
        try:
            ids.append(int(word))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{word!r} is not an id; write whole numbers as in 17,42,99"
            ) from None
    return ids


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def _positive(text: str) -> int:
    return _whole(text, 1)


def _count(text: str) -> int:
    return _whole(text, 0)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return share


def _below_one(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 0.9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 0.9")
    return share


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return weight


def _port(text: str) -> int:
    port = _whole(text, 0)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: they go up to 65535")
    return port


def _token(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._~-]{16,200}", text):
        raise argparse.ArgumentTypeError(
            "a token has 16 to 200 letters, digits and any of . _ ~ -, so that it can be part of "
            "an address and not be guessed"
        )
    return text


def _widths(text: str) -> list[int]:
    return [_positive(word.strip()) for word in text.split(",")]


# fmt: off
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="boxwood",
        description="Search images by words, refine by labels, get everything back as a relation.",
        epilog="examples:\n" + _EXAMPLES[""] + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, about: str = "",
        within: Any = commands,
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = within.add_parser(
            name.split()[-1],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {about}".strip(),
            epilog="examples:\n" + _EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    def place(sub: argparse.ArgumentParser, *, optional: bool = False) -> None:
        sub.add_argument("database", type=Path, metavar="DATABASE", help="the DuckDB file")
        sub.add_argument(
            "name", metavar="COLLECTION", nargs="?" if optional else None,
            help="the collection's name" + ("; all of them where none is given" * optional),
        )

    def progress(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--progress", action=argparse.BooleanOptionalAction, default=None,
            help="show a progress bar on standard error (default: when that is a terminal)",
        )

    def output(sub: argparse.ArgumentParser, *, with_csv: bool = True) -> None:
        group = sub.add_mutually_exclusive_group()
        group.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if with_csv:
            group.add_argument("--csv", action="store_true", help="print CSV instead of a table")

    def embeddings(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--ids", type=Path, metavar="FILE",
                         help="with --npy: a .npy file of the ids (default: 0, 1, 2, ...)")
        sub.add_argument("--id", metavar="COLUMN",
                         help="with --parquet or --table: the column of ids (default: id)")
        sub.add_argument("--embedding", metavar="COLUMN",
                         help="with --parquet or --table: the column of embeddings "
                         "(default: embedding)")

    sub = command("demo", _demo, "see the whole way on generated pictures",
                  "Works offline and takes a minute or two.")
    sub.add_argument("--folder", type=Path, default=Path("boxwood-demo"),
                     help="where to put pictures, database and report (default: %(default)s)")
    sub.add_argument("--images", type=_positive, default=4000, metavar="N",
                     help="how many pictures (default: %(default)s)")
    sub.add_argument("--rounds", type=_positive, metavar="N",
                     help="rounds of labels and refinement (default: 4)")
    sub.add_argument("--query", action="append", metavar="WORDS",
                     help="what to search for, in the words of the scenes; may be repeated")
    sub.add_argument("--seed", type=_count, default=0, help="other pictures (default: 0)")
    sub.add_argument("--open", action="store_true",
                     help="open the report in a browser; with --serve, the page")
    sub.add_argument("--serve", action="store_true",
                     help="make the collection, and then serve the page to search it, in place of "
                     "the report")
    sub.add_argument("--port", type=_port, metavar="N",
                     help="with --serve: where to listen; 0: any free one (default: 8321)")
    progress(sub)

    sub = command(
        "serve", _serve, "search, mark, refine and export in a browser",
        "Serves a page, and a JSON API at /api (described by /api/openapi.json), until Ctrl-C. "
        "Only this machine can reach it unless --host says otherwise; then a token is part of the "
        "address that is printed. Pictures are sent from where their collection says, decoded and "
        "encoded again, and nothing that is not an image.",
    )
    sub.add_argument("database", type=Path, metavar="DATABASE", help="the DuckDB file")
    sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                     help="where to listen; 0.0.0.0: at every address of this machine "
                     "(default: %(default)s)")
    sub.add_argument("--port", type=_port, default=8321, metavar="N",
                     help="0: any free one (default: %(default)s)")
    sub.add_argument("--name", action="append", default=[], metavar="NAME",
                     help="a further name by which the page is asked for, as behind a proxy; may "
                     "be repeated")
    sub.add_argument("--open", action="store_true", help="open the page in a browser")
    sub.add_argument("--read-only", action="store_true",
                     help="open the database to read: others may too; sessions are then kept until "
                     "the end only, and concepts cannot be saved")
    sub.add_argument("--root", action="append", default=[], type=Path, metavar="FOLDER",
                     help="send pictures from this folder only, also through links in paths; paths "
                     "that are not whole begin here; may be repeated (default: from the very "
                     "paths that the collection has)")
    sub.add_argument("--remote", action="store_true",
                     help="fetch pictures whose uri is an http or https address of the open "
                     "network")
    sub.add_argument("--token", type=_token, metavar="TOKEN",
                     help="what the address must hold (default: none at loopback addresses, else "
                     "one that is made up)")
    sub.add_argument("--cache", type=Path, metavar="FOLDER",
                     help="where thumbnails are kept (default: DATABASE.boxwood/thumbnails)")

    def adding(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--column", metavar="NAME",
                         help="the column of images, paths or bytes, of a table or of Parquet "
                         "files (default: the first that is called image, jpg, path, ..)")
        sub.add_argument("--key", metavar="NAME",
                         help="the column that tells images in bytes apart (default: uri, key, .. "
                         "or, in Parquet files, the row number)")
        sub.add_argument("--duplicates", choices=("skip", "keep"), default="skip",
                         help="images whose bytes are those of another one: leave them out, or add "
                         "them without embedding them again (default: %(default)s)")
        sub.add_argument("--report", type=Path, metavar="FILE",
                         help="write what was left out, and why, as CSV")
        sub.add_argument("--batch", type=_positive, default=256, metavar="N",
                         help="images encoded and committed at a time (default: %(default)s)")
        sub.add_argument("--workers", type=_count, metavar="N",
                         help="processes that decode; 0: threads (default: one a core, 16 at "
                         "most, but threads on fewer than 4 cores)")
        sub.add_argument("--timeout", type=_seconds, metavar="SECONDS",
                         help="give an image up that takes longer to decode (default: 60)")

    sub = command(
        "create", _create, "make a collection of images or of embeddings",
        "Without a source it is empty, and `boxwood add` fills it. " + _UNREADABLE,
    )
    place(sub)
    source = sub.add_mutually_exclusive_group()
    source.add_argument("--images", nargs="+", metavar="SOURCE",
                        help=_SOURCES + "; needs an encoder")
    source.add_argument("--clip-retrieval", type=Path, metavar="FOLDER",
                        help="image embeddings and metadata as clip-retrieval writes them")
    source.add_argument("--npy", type=Path, metavar="FILE",
                        help="a .npy file of embeddings, one a row")
    source.add_argument("--parquet", type=Path, metavar="FILE",
                        help="a Parquet file with ids and embeddings, or with codes in columns "
                        "d00 .. d31 (and fine)")
    source.add_argument("--table", metavar="TABLE",
                        help="a table of this database with such columns")
    embeddings(sub)
    sub.add_argument("--encoder", metavar="MODEL/TAG",
                     help="an open_clip model and its pretrained tag "
                     "(default for --images: the packaged tiny-scenes)")
    sub.add_argument("--texts", type=Path, metavar="FILE",
                     help="phrases, one a line, to fit the head with "
                     "(default: the packaged vocabulary)")
    sub.add_argument("--pretrained", type=Path, metavar="PATH",
                     help="with --encoder MODEL: its weights, a checkpoint file or a folder with "
                     "one, in place of a tag; a tokenizer that open_clip lacks must lie beside it")
    sub.add_argument("--head", type=Path, metavar="FILE",
                     help="a head file (default: a head is fitted)")
    sub.add_argument("--keep-embeddings", action="store_true",
                     help="keep the embeddings in the database as well, 4 bytes a dimension and "
                     "image, so that `boxwood recode` can change the head later")
    sub.add_argument("--no-fine", action="store_true",
                     help="keep no fine codes: 128 bytes an image less, in the database and in the "
                     "index, and no second look at what a search finds")
    adding(sub)
    progress(sub)

    sub = command("add", _add, "add images or embeddings to a collection",
                  "Images that are in it already are passed over, so an interrupted add goes on "
                  "when it is called again; of --npy and --clip-retrieval all rows are added or "
                  "none. " + _UNREADABLE)
    place(sub)
    sub.add_argument("paths", nargs="*", metavar="SOURCE", help=_SOURCES)
    sub.add_argument("--table", metavar="TABLE",
                     help="a table of this database with a column of paths or bytes of images")
    sub.add_argument("--npy", type=Path, metavar="FILE", help="a .npy file of embeddings instead")
    sub.add_argument("--ids", type=Path, metavar="FILE",
                     help="with --npy: a .npy file of the ids")
    sub.add_argument("--clip-retrieval", type=Path, metavar="FOLDER",
                     help="image embeddings and metadata as clip-retrieval writes them, instead")
    adding(sub)
    progress(sub)

    sub = command("search", _search, "find the images nearest to words, to a picture, or to one of "
                  "the collection")
    place(sub)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("text", nargs="?", metavar="WORDS", help="what to look for")
    what.add_argument("--image", type=Path, metavar="FILE", help="look for images like this file")
    sub.add_argument("--without", action="append", metavar="WORDS",
                     help="with WORDS: lead away from these, half as much; may be repeated")
    sub.add_argument("--template", action="append", metavar="TEXT",
                     help="with WORDS: put them into this, as in 'a photo of a {}'; of several the "
                     "average is taken")
    what.add_argument("--like", type=_count, metavar="ID",
                      help="look for images like this one of the collection")
    sub.add_argument("-k", type=_positive, default=60, metavar="N",
                     help="how many (default: %(default)s)")
    sub.add_argument("--recall", type=_share, default=1.0, metavar="SHARE",
                     help="1: exactly the nearest ones; less, such as 0.95: faster, and on average "
                          "that share of them (default: %(default)s)")
    sub.add_argument("--sheet", type=Path, metavar="FILE",
                     help="draw the images found on a contact sheet (.png or .jpg)")
    output(sub)

    sub = command("refine", _refine, "get every image that labels describe",
                  "Train on labelled ids, or on words and labels, run on the whole collection, "
                  "rank. Says what to expect of the answer where enough is known.")
    place(sub)
    sub.add_argument("--positives", type=_ids, default=[], metavar="IDS",
                     help="ids of right images, as in 17,42, or @file")
    sub.add_argument("--negatives", type=_ids, default=[], metavar="IDS",
                     help="ids of wrong images, as in 5,8, or @file")
    sought = sub.add_mutually_exclusive_group()
    sought.add_argument("--text", metavar="WORDS",
                        help="what is sought, in words: beside the positives, or in place of them")
    sought.add_argument("--image", type=Path, metavar="FILE",
                        help="the same as an image file")
    sub.add_argument("--learner", choices=LEARNERS, default="cover",
                     help="default: %(default)s; tree and forest need scikit-learn")
    sub.add_argument("--rerank", action="store_true",
                     help="cover: judge images near the threshold by their fine codes")
    sub.add_argument("--boxes", type=_count, default=0, metavar="N",
                     help="cover: within so many boxes at most, 0 to 64 (default: 0, none)")
    sub.add_argument("--no-guard", action="store_true",
                     help="cover: never fall back to the distance to the mean positive")
    sub.add_argument("--paper", action="store_true",
                     help="branch and ensemble: the papers' own method, without a prior")
    sub.add_argument("--estimators", type=_positive, metavar="N",
                     help="members of an ensemble or a forest (default: 25)")
    sub.add_argument("--random-negatives", type=_count, metavar="N",
                     help="images of the collection that labels are told from (default: 30,000 for "
                          "cover, 500 for the others)")
    sub.add_argument("--negative-weight", type=float, metavar="W",
                     help="what keeping one of your negatives costs against losing a "
                          "positive (default: 1)")
    sub.add_argument("--seed", type=_count, default=0, help="of all random draws (default: 0)")
    sub.add_argument("--limit", type=_count, default=50, metavar="N",
                     help="rows to show, best first; 0: all (default: %(default)s)")
    sub.add_argument("--sheet", type=Path, metavar="FILE",
                     help="draw the rows shown on a contact sheet (.png or .jpg)")
    sub.add_argument("--save-model", type=Path, metavar="FILE",
                     help="write the model as JSON, for `boxwood export`")
    sub.add_argument("--save-concept", metavar="NAME",
                     help="keep model and labels in the database, as the SQL view concepts.NAME, "
                     "which has images that are added later too")
    sub.add_argument("--note", metavar="TEXT", help="with --save-concept: a note to keep with it")
    sub.add_argument("--replace", action="store_true",
                     help="with --save-concept: where there is one of that name, save its next "
                     "version")
    sub.add_argument("--sql", action="store_true",
                     help="also print the query that does the same in SQL")
    output(sub)

    sub = command("concepts", _concepts, "list the models that were saved under names",
                  "Each is a view in SQL: SELECT * FROM concepts.NAME.")
    place(sub, optional=True)
    sub.add_argument("--drop", metavar="NAME", help="remove this one, with all its versions")
    output(sub, with_csv=False)

    sub = command("info", _info, "show the collections of a database, or one of them")
    place(sub, optional=True)
    sub.add_argument("--shell", action="store_true",
                     help="print what to type to use the collection in DuckDB's own shell")
    output(sub, with_csv=False)

    sub = command("export", _export, "write every image that a model or concept finds to a file",
                  "The rows carry id, votes, score and the metadata, best first. A metadata column "
                  "of one of these names is called score_1 and the like; where the metadata have "
                  "several rows of an id, one of them is taken.")
    place(sub)
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, metavar="FILE",
                       help="a model, from `boxwood refine --save-model`")
    which.add_argument("--concept", metavar="NAME",
                       help="a concept, from `boxwood refine --save-concept`")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE",
                     help="the file to write: .parquet, .csv or .json")

    sub = command("recode", _recode, "change a collection's head, without embedding images again",
                  "All codes are made anew from the embeddings that the collection keeps, or from "
                  "a table or file of them; all or nothing. Models that were trained before are of "
                  "other codes, and are refused from then on.")
    place(sub)
    sub.add_argument("--head", required=True, metavar="FILE|pca|shared",
                     help="a head file, or how to fit a head to the embeddings: their principal "
                     "components, or the directions they share with the collection's phrases")
    sub.add_argument("--embeddings", metavar="TABLE|FILE",
                     help="for a collection that keeps none: a table of the database or a Parquet "
                     "file with ids and embeddings")
    sub.add_argument("--id", default="id", metavar="COLUMN",
                     help="its column of ids (default: %(default)s)")
    sub.add_argument("--embedding", default="embedding", metavar="COLUMN",
                     help="its column of embeddings (default: %(default)s)")
    progress(sub)

    sub = command("delete", _delete, "remove images from a collection",
                  "Their codes, and their rows in a metadata table that Boxwood made. Files are "
                  "left alone. By SQL: DELETE FROM the metadata table.")
    place(sub)
    which = sub.add_mutually_exclusive_group(required=True)
    which.add_argument("--ids", type=_ids, metavar="IDS",
                       help="numbers with commas between them, or @FILE with one a line")
    which.add_argument("--where", metavar="CONDITION",
                       help="SQL over the columns of the metadata table")

    sub = command("verify", _verify, "check the index in depth",
                  "The files, and every row of them against the database. Exit code 1 when a "
                  "repair is needed.")
    place(sub, optional=True)

    sub = command("compact", _compact, "make the index small and fast again",
                  "One segment of all rows, in one order, without what was deleted. Searches go on "
                  "meanwhile.")
    place(sub, optional=True)
    progress(sub)

    sub = command("repair", _repair, "rebuild the index from the database",
                  "The database is the truth; the index beside it can always be made again.")
    place(sub, optional=True)
    progress(sub)

    _add_head(commands, command, progress)
    return parser


def _add_head(
    commands: Any,
    command: Callable[..., argparse.ArgumentParser],
    progress: Callable[[argparse.ArgumentParser], None],
) -> None:
    about = "Make the map from embeddings to the 32 dimensions of a code, or look at one."
    parser = commands.add_parser(
        "head", help="train, fit or show a head: the map from embeddings to codes",
        description=about,
        epilog="examples:\n" + "".join(_EXAMPLES[f"head {n}"] for n in ("train", "fit", "show")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    heads = parser.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)

    def making(sub: argparse.ArgumentParser, source: str) -> None:
        sub.add_argument("source", metavar="SOURCE", help=source)
        sub.add_argument("--out", type=Path, required=True, metavar="FILE",
                         help="the head to write (.head.npz by habit)")
        sub.add_argument("--database", type=Path, metavar="DATABASE",
                         help="the DuckDB file, where SOURCE is a table")
        sub.add_argument("--dims", type=int, choices=(32, 128), default=32,
                         help="of codes, or of fine codes (default: %(default)s)")

    def training(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--hidden", type=_widths, metavar="N,N,..",
                         help="units of hidden layers, as in 8192,8192 (default: none, a linear "
                         "head)")
        sub.add_argument("--koleo", type=_weight, metavar="W",
                         help="weight of what spreads the vectors (default: 0.1)")
        sub.add_argument("--epochs", type=_count, metavar="N",
                         help="at most; it stops once 8 epochs brought nothing (default: 60)")
        sub.add_argument("--batch", type=_positive, metavar="N", help="rows a step (default: 512)")
        sub.add_argument("--start", type=Path, metavar="FILE",
                         help="a linear head to start from (default: the directions that images "
                         "and texts share)")
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"),
                         help="default: cuda where there is one")
        sub.add_argument("--checkpoint", type=Path, metavar="FILE",
                         help="keep the state of training in this file; after an interruption the "
                         "same command goes on from it, to the same head. Removed at the end")
        sub.add_argument("--test", type=_below_one, metavar="SHARE",
                         help="share of the images that is set aside, to measure the head on "
                         "(default: 0.1 where a head is trained; 0: none)")
        sub.add_argument("--report", type=Path, metavar="FILE",
                         help="write curves and figures as one HTML page")

    sub = command(
        "head train", _head_train, "train a head on image-text pairs",
        "Both towers go through one head; the encoder stays as it is. Prints what a search keeps, "
        "on images that training did not see: text-to-image recall and neighbours.", heads,
    )
    making(sub, "a Parquet file or table with paired embeddings; or, with --encoder, a CSV or "
           "Parquet file or table with image files and captions")
    sub.add_argument("--image", metavar="COLUMN",
                     help="the column of image embeddings (default: image), or of paths (path)")
    sub.add_argument("--text", metavar="COLUMN",
                     help="the column of text embeddings (default: text), or of captions (caption)")
    sub.add_argument("--group", metavar="COLUMN",
                     help="a column that is equal for rows of one image (default: group, if there "
                     "is one, else rows with equal image embeddings)")
    sub.add_argument("--encoder", metavar="MODEL/TAG",
                     help="an open_clip model and its pretrained tag, to embed images and captions")
    sub.add_argument("--save-pairs", type=Path, metavar="FILE",
                     help="write the paired embeddings as Parquet: a SOURCE for other trainings")
    sub.add_argument("--neighbours", type=_weight, metavar="W",
                     help="weight of keeping images' neighbours (default: 1)")
    sub.add_argument("--seed", type=_count, default=0, help="of all random draws (default: 0)")
    training(sub)
    progress(sub)

    sub = command(
        "head fit", _head_fit, "fit a head to embeddings, without pairs",
        "pca: the directions in which images vary most. shared: those along which texts vary too, "
        "of any kind. neighbours: trained so that what is near stays near, and with texts so that "
        "texts find what they found.", heads,
    )
    making(sub, "image embeddings: a .npy or Parquet file, or a table")
    sub.add_argument("--kind", choices=("pca", "shared", "neighbours"), required=True)
    sub.add_argument("--embedding", metavar="COLUMN", default="embedding",
                     help="the column of embeddings (default: %(default)s)")
    sub.add_argument("--text-embeddings", metavar="FILE",
                     help="text embeddings of any phrases: a .npy or Parquet file, or a table")
    sub.add_argument("--encoder", metavar="MODEL/TAG",
                     help="an open_clip model and its pretrained tag, to embed its vocabulary with")
    sub.add_argument("--texts", type=Path, metavar="FILE",
                     help="with --encoder: phrases, one a line, in place of the vocabulary")
    sub.add_argument("--seed", type=_count, help="of all random draws (default: 0)")
    training(sub)
    progress(sub)

    sub = command("head show", _head_show, "show what a head is", within=heads)
    sub.add_argument("file", type=Path, metavar="FILE", help="a head")
    sub.add_argument("--json", action="store_true", help="print JSON")
# fmt: on


# --- databases and collections ------------------------------------------------------------------


@contextmanager
def _connection(
    args: argparse.Namespace, *, new: bool = False, write: bool = False
) -> Iterator[Any]:
    """A Boxwood connection to the command's database, closed at the end."""
    path: Path = args.database
    if not new and not path.exists():
        raise CommandError(
            f"there is no database {path}; `boxwood create {path} NAME --images FOLDER` makes one"
        )
    import boxwood

    con = boxwood.connect(path, read_only=not (new or write))
    try:
        yield con
    finally:
        con.close()


@contextmanager
def _collection(args: argparse.Namespace, *, write: bool = False) -> Iterator[Collection]:
    """The command's collection."""
    import boxwood

    with _connection(args, write=write) as con:
        yield boxwood.Collection.open(con, args.name)


def _wants_progress(args: argparse.Namespace) -> bool:
    return sys.stderr.isatty() if args.progress is None else bool(args.progress)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- output -------------------------------------------------------------------------------------


def _print_rows(args: argparse.Namespace, table: pa.Table) -> None:
    """Rows as the command line asks for them: JSON, CSV, or an aligned table."""
    if args.json:
        print(json.dumps(table.to_pylist(), default=str, ensure_ascii=False, indent=1))
    elif getattr(args, "csv", False):
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
    else:
        from boxwood.report import text_table

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(text_table(table.column_names, [r.values() for r in table.to_pylist()], width=width))


def _metadata_join(collection: Collection, taken: Sequence[str]) -> tuple[str, str]:
    """Columns and a join, as SQL, that put the metadata beside rows ``boxwood_hits.id`` with the
    columns `taken`; both are empty where the collection has no metadata.

    A metadata column of a name that is taken gets a number behind it. There is one row for each
    hit, however many rows of its id the table has: what is counted is images.
    """
    from boxwood.catalog import quoted, table_name

    if collection.table is None:
        return "", ""
    table, key = table_name(collection.table), quoted(collection.id_column)
    names = [row[0] for row in collection.con.execute(f"DESCRIBE FROM {table}").fetchall()]
    used = {name.lower() for name in (*taken, *names)}
    columns = ""
    for name in names:
        if name.lower() == collection.id_column.lower():
            continue
        shown, number = name, 0
        if name.lower() in {other.lower() for other in taken}:
            while shown.lower() in used:
                number += 1
                shown = f"{name}_{number}"
            used.add(shown.lower())
        columns += f", m.{quoted(name)} AS {quoted(shown)}"
    join = (
        f"LEFT JOIN (SELECT DISTINCT ON ({key}) * FROM {table} WHERE {key} IN "
        f"(SELECT id FROM boxwood_hits)) m ON m.{key} = boxwood_hits.id"
    )
    return columns, join


def _with_metadata(collection: Collection, rows: pa.Table) -> pa.Table:
    """Rows with an ``id``, in their order, with the collection's metadata beside them."""
    import numpy as np

    columns, join = _metadata_join(collection, rows.column_names)
    con = collection.con
    con.register("boxwood_hits", rows.append_column("boxwood_rank", [np.arange(len(rows))]))
    try:
        return con.sql(
            f"SELECT boxwood_hits.* EXCLUDE (boxwood_rank){columns} FROM boxwood_hits {join} "
            "ORDER BY boxwood_hits.boxwood_rank"
        ).to_arrow_table()
    finally:
        con.unregister("boxwood_hits")


def _sheet(args: argparse.Namespace, rows: pa.Table, marks: dict[int, Any], title: str) -> None:
    """Draw rows that have a path on the contact sheet that the command line asks for."""
    from boxwood import report

    if args.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise CommandError(f"--sheet {args.sheet}: the name must end in .png or .jpg")
    if "uri" not in rows.column_names:
        raise CommandError(
            "--sheet needs image files, but this collection was made of embeddings: "
            "its metadata has no column 'uri'"
        )
    cells = [
        report.Cell(Path(row["uri"] or ""), str(row["id"]), marks.get(row["id"], "none"))
        for row in rows.to_pylist()
    ]
    if not cells:
        _note(f"nothing was found, so {args.sheet} was not written")
        return
    report.contact_sheet(cells, title=title).save(args.sheet)
    _note(f"wrote {args.sheet}")


# --- commands -----------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    if args.serve and (args.rounds is not None or args.query):
        args.parser.error("--rounds and --query belong to the report, which --serve leaves out")
    if args.port is not None and not args.serve:
        args.parser.error("--port belongs to --serve")
    if args.serve:
        _check_serve()
    from boxwood import demo

    if args.serve:
        database = demo.prepare(
            args.folder, images=args.images, seed=args.seed, progress=_wants_progress(args)
        )
        from boxwood.serve.server import PORT, serve

        args.serving = True
        serve(
            database, port=PORT if args.port is None else args.port, open_page=args.open,
            roots=[args.folder], say=_say,
        )  # fmt: skip
        return OK
    demo.run(
        args.folder, images=args.images, seed=args.seed, rounds=args.rounds or 4,
        queries=args.query or demo.QUERIES, progress=_wants_progress(args), open_report=args.open,
    )  # fmt: skip
    return OK


def _check_serve() -> None:
    """The page's packages are an extra. Told before any work."""
    packages = {"fastapi": "fastapi", "uvicorn": "uvicorn", "pydantic": "pydantic", "PIL": "pillow"}
    lacking = [p for module, p in packages.items() if importlib.util.find_spec(module) is None]
    if lacking:
        raise CommandError(
            f"the page needs {', '.join(lacking)}, which "
            f"{'is' if len(lacking) == 1 else 'are'} not installed: pip install 'boxwood[serve]'"
        )


def _say(text: str) -> None:
    print(text, flush=True)


def _serve(args: argparse.Namespace) -> int:
    _check_serve()
    for root in args.root:
        if not root.expanduser().is_dir():
            raise CommandError(f"--root {root}: there is no such folder")
    import boxwood

    with _connection(args, write=not args.read_only) as con:
        if not boxwood.Collection.list(con):
            raise CommandError(
                f"{args.database} has no collections; `boxwood create {args.database} NAME "
                "--images FOLDER` makes one"
            )
    from boxwood.serve.server import serve

    serve(
        args.database, host=args.host, port=args.port, names=args.name, read_only=args.read_only,
        roots=args.root, remote=args.remote, token=args.token, cache=args.cache,
        open_page=args.open, say=_say,
    )  # fmt: skip
    return OK


def _check_source(args: argparse.Namespace) -> None:
    """Options of one source used with another are mistakes."""
    if args.ids is not None and args.npy is None:
        args.parser.error("--ids belongs to --npy")
    if args.command == "add" or (args.parquet is None and args.table is None):
        for option in ("id", "embedding"):
            if getattr(args, option, None) is not None:
                args.parser.error(f"--{option} belongs to --parquet or --table")
    images = args.images if args.command == "create" else args.paths or args.table
    if not images:
        for option in ("column", "key", "report", "workers", "timeout"):
            if getattr(args, option) is not None:
                args.parser.error(f"--{option} belongs to images")


def _create(args: argparse.Namespace) -> int:
    _check_source(args)
    import boxwood

    encoder = args.encoder
    if args.images and encoder is None:
        from boxwood.encode.vocabulary import TINY

        encoder = TINY
        _note(
            "note: no --encoder was given, so the packaged 'tiny-scenes' is used, which knows "
            "generated scenes alone;\n      for photos name a CLIP model, as in "
            "--encoder ViT-B-32/laion2b_s34b_b79k"
        )
    if args.pretrained is not None:
        if encoder is None or "/" in encoder or args.encoder is None:
            args.parser.error("--pretrained goes with --encoder MODEL, without a tag")
        encoder = f"{encoder}/{args.pretrained}"
    options: dict[str, Any] = {
        "encoder": encoder,
        "head": args.head,
        "keep_embeddings": args.keep_embeddings,
        "texts": _lines(args.texts) if args.texts is not None else None,
        "fine": False if args.no_fine else None,
    }
    loading = {**options, "progress": _wants_progress(args)}
    columns: dict[str, Any] = {
        "id": args.id or "id",
        "embedding": args.embedding or "embedding",
    }
    with _new_database(args) as con:
        of = boxwood.Collection
        if args.npy is not None:
            collection = of.from_npy(con, args.name, args.npy, ids=args.ids, **loading)
        elif args.parquet is not None:
            collection = of.from_parquet(con, args.name, args.parquet, **columns, **loading)
        elif args.clip_retrieval is not None:
            collection = of.from_clip_retrieval(con, args.name, args.clip_retrieval, **loading)
        elif args.table is not None:
            collection = of.from_table(con, args.table, name=args.name, **columns, **loading)
        else:
            collection = of.create(con, args.name, **options)
            if args.images:
                try:
                    return _add_images(args, collection, args.images)
                except Exception:
                    # What is in stays, whatever stopped the rest: `boxwood add` goes on.
                    if not len(collection):
                        collection.drop()
                    raise
        print(f"created collection {args.name} in {args.database}: {len(collection):,} rows")
    return OK


@contextmanager
def _new_database(args: argparse.Namespace) -> Iterator[Any]:
    """A connection for `create`. A database file that was made for a collection which then could
    not be made is taken away again, with what this process put beside it, and nothing else."""
    import boxwood

    existed = os.path.lexists(args.database)
    beside = Path(f"{args.database}.boxwood")
    with _connection(args, new=True) as con:
        # From here on the file is locked. Another process may have made and left it in between.
        before = {entry.name for entry in beside.iterdir()} if beside.is_dir() else None
        tables = con.execute("SELECT count(*) FROM duckdb_tables() WHERE NOT temporary").fetchall()
        fresh = not existed and tables == [(0,)]
        try:
            yield con
        finally:
            args.kept = args.name in boxwood.Collection.list(con)
            if fresh and not args.kept:
                _remove_database(con, args.database, before)


def _remove_database(con: Any, path: Path, before: set[str] | None) -> None:
    """Take away the database, while its lock is held, and the folders beside it that are not of
    `before`: the names that were there; None: there was no folder."""
    import duckdb

    with suppress(duckdb.Error):
        con.execute("CHECKPOINT")  # leaves nothing to write when the connection closes
    for file in (path, Path(f"{path}.wal")):
        file.unlink(missing_ok=True)
    beside = Path(f"{path}.boxwood")
    if before is None:
        shutil.rmtree(beside, ignore_errors=True)
    elif beside.is_dir():
        for entry in list(beside.iterdir()):
            if entry.name not in before:
                shutil.rmtree(entry, ignore_errors=True)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 text: {error.reason}") from error
    return [line.strip() for line in lines if line.strip()]


def _add_images(args: argparse.Namespace, collection: Collection, source: Any) -> int:
    report = collection.add_images(
        source, column=args.column, key=args.key, duplicates=args.duplicates,
        progress=_wants_progress(args), batch=args.batch, workers=args.workers,
        **({} if args.timeout is None else {"timeout": args.timeout}),
    )  # fmt: skip
    skipped = len(report.skipped)
    if not (report.added or report.known or skipped):
        what = ", ".join(map(str, source)) if isinstance(source, list) else args.table
        raise CommandError(f"there are no images in {what}")
    for row in report.skipped.slice(0, _SHOWN).to_pylist():
        _note(f"skipped {row['uri']}: {row['detail']}")
    if skipped > _SHOWN:
        _note(f"... and {skipped - _SHOWN:,} more" + "; --report FILE has all" * (not args.report))
    if args.report is not None:
        report.write(args.report)
        _note(f"wrote {args.report}")
    failed = skipped - report.reasons.get("duplicate", 0)
    print(
        f"{report.added:,} added, {report.known:,} were there already, "
        f"{failed:,} could not be added; "
        f"{report.seconds:.1f} s, {report.images_per_second:,.1f} images/s"
    )
    if skipped:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in report.reasons.items())
        print(f"left out: {counts}")
    return OK if report.added or report.known or failed < skipped else FAILED


def _add(args: argparse.Namespace) -> int:
    _check_source(args)
    given = (bool(args.paths), args.table, args.npy, args.clip_retrieval)
    if sum(what not in (None, False) for what in given) != 1:
        args.parser.error(
            "name images (files, folders, ..), or --table TABLE, or --npy FILE, or "
            "--clip-retrieval FOLDER"
        )
    progress = _wants_progress(args)
    with _collection(args, write=True) as collection:
        if args.paths:
            return _add_images(args, collection, args.paths)
        if args.table is not None:
            from boxwood import catalog

            if not catalog.table_exists(collection.con, args.table):
                raise CommandError(f"{args.database} has no table {args.table}")
            relation = collection.con.table(catalog.table_name(args.table))
            return _add_images(args, collection, relation)
        args.rows = len(collection)
        if args.npy is not None:
            added = collection.add_npy(args.npy, ids=args.ids, progress=progress)
        else:
            added = collection.add_clip_retrieval(args.clip_retrieval, progress=progress)
        print(f"{added:,} added")
    return OK


def _search(args: argparse.Namespace) -> int:
    if args.text is None and (args.without or args.template):
        args.parser.error("--without and --template go with words")
    with _collection(args) as collection:
        if args.image is not None:
            hits = collection.search_image(args.image, args.k, recall=args.recall)
            what = args.image.name
        elif args.like is not None:
            hits = collection.knn(like=args.like, k=args.k, recall=args.recall)
            what = f"like {args.like}"
        else:
            words = [args.text, *(args.without or [])]
            weights = [1.0, *[-0.5] * (len(words) - 1)]
            hits = collection.search_text(
                words, args.k, weights=weights, template=args.template, recall=args.recall
            )
            what = f'"{args.text}"'
        rows = _with_metadata(collection, hits)
        if args.sheet is not None:
            _sheet(args, rows, {}, f"{args.name}: {what}")
    if args.text is not None and len(rows) and not (args.without or args.template):
        _keep_phrase(args)
    _print_rows(args, rows)
    return OK


def _keep_phrase(args: argparse.Namespace) -> None:
    """Store the code of the words that were searched, so that the shell, which has no encoder, can
    search by them. Searching itself is done read-only: it must not keep others out."""
    import boxwood

    with suppress(boxwood.StorageError), _collection(args, write=True) as collection:
        collection.encode_text(args.text)


def _refine(args: argparse.Namespace) -> int:
    if not args.positives and args.text is None and args.image is None:
        args.parser.error("name right images, --positives IDS, or say what is sought, --text WORDS")
    if args.save_concept is None and (args.note is not None or args.replace):
        args.parser.error("--note and --replace go with --save-concept")
    options = {
        name: value
        for name in ("estimators", "random_negatives", "negative_weight")
        if (value := getattr(args, name)) is not None
    }
    with _collection(args) as collection:
        found = collection.refine(
            args.positives, args.negatives, text=args.text, image=args.image, learner=args.learner,
            boxes=args.boxes, rerank=args.rerank, guard=not args.no_guard, prior=not args.paper,
            seed=args.seed, **options,
        )  # fmt: skip
        rows = _with_metadata(collection, found.table(args.limit or None))
        if args.sheet is not None:
            marks = dict.fromkeys(args.positives, "right") | dict.fromkeys(args.negatives, "wrong")
            _sheet(args, rows, marks, f"{args.name}: {found.count:,} found by {found.learner}")
        if args.save_model is not None:
            found.model.save(args.save_model)
            _note(f"wrote {args.save_model}")
    if args.text is not None:
        _keep_phrase(args)
    if args.save_concept is not None:
        _save_concept(args, found)
    if args.json:
        document: dict[str, Any] = {
            "count": found.count, "learner": found.learner, "estimate": asdict(found.estimate),
            "note": found.note, "rows": rows.to_pylist(),
        }  # fmt: skip
        if args.sql:
            document["sql"] = found.sql
        print(json.dumps(document, default=str, ensure_ascii=False, indent=1))
        return OK
    if args.sql:
        (_note if args.csv else print)(found.sql)
    _print_rows(args, rows)
    say = _note if args.csv else print
    say(f"{found.count:,} images match; {len(rows):,} shown")
    if found.estimate.known:
        say(str(found.estimate))
    if found.note:
        say(f"note: {found.note}")
    return OK


def _save_concept(args: argparse.Namespace, found: Refined) -> None:
    with _collection(args, write=True) as collection:
        if args.save_concept in collection.concept_names() and not args.replace:
            raise CommandError(
                f"{args.name} has a concept {args.save_concept!r} already: --replace saves this as "
                "its next version"
            )
        saved = collection.save_concept(
            args.save_concept, found, args.positives, args.negatives, note=args.note or "",
            replace=args.replace,
        )  # fmt: skip
        _note(f"saved the concept {saved.name}, version {saved.version}")


def _concepts(args: argparse.Namespace) -> int:
    import boxwood

    if args.drop is not None:
        if args.name is None:
            args.parser.error("--drop needs the collection's name")
        with _collection(args, write=True) as collection:
            count = collection.drop_concept(args.drop)
        print(f"dropped the concept {args.drop}, {count} version{'s' * (count > 1)}")
        return OK
    listed = []
    with _connection(args) as con:
        for name in _each(args, con):
            collection = boxwood.Collection.open(con, name)
            for concept in collection.concepts():
                row = {
                    "collection": name,
                    "name": concept.name,
                    "version": concept.version,
                    "learner": concept.learner,
                    "images": collection.count(concept) if concept.current else None,
                    "positives": concept.positives,
                    "negatives": concept.negatives,
                    "created": concept.created.isoformat(" ", "seconds"),
                    "note": concept.note,
                }
                listed.append(row)
                if not concept.current:
                    _note(
                        f"{concept.name} is of codes that {name} had before it was re-coded: train "
                        "it again from its labels, which --json shows"
                    )
    if args.json:
        print(json.dumps(listed, ensure_ascii=False, indent=1))
    elif listed:
        from boxwood.report import text_table

        cells = [
            [len(value) if isinstance(value, list) else value for value in row.values()]
            for row in listed
        ]
        print(text_table(list(listed[0]), cells))
    else:
        print(f"{args.database} has no concepts; `boxwood refine --save-concept NAME` saves one")
    return OK


def _info(args: argparse.Namespace) -> int:
    import boxwood

    with _connection(args) as con:
        infos = boxwood.Collection.describe(con)
    if args.name is not None:
        names = [info["name"] for info in infos]
        if args.name not in names:
            raise CommandError(
                f"{args.database} has no collection {args.name!r}; it has: "
                f"{', '.join(names) or 'none'}"
            )
        infos = [info for info in infos if info["name"] == args.name]
    if args.shell:
        if not infos:
            raise CommandError(f"{args.database} has no collections; `boxwood create` makes one")
        print(_shell(args.database, infos[0]["name"]))
    elif args.json:
        document = infos[0] if args.name is not None else infos
        print(json.dumps(document, default=str, ensure_ascii=False, indent=1))
    elif args.name is not None:
        width = max(map(len, infos[0]))
        for key, value in infos[0].items():
            print(f"{key.ljust(width)}  {value}")
    elif infos:
        from boxwood.report import text_table

        columns = ("name", "rows", "generation", "segments", "bytes", "encoder", "state")
        print(text_table(columns, [[info[c] for c in columns] for info in infos]))
    else:
        print(f"{args.database} has no collections; `boxwood create` makes one")
    for info in infos:
        if info["state"] not in ("current", "behind"):
            command = shlex.join(["boxwood", "repair", str(args.database), info["name"]])
            _note(
                f"the index of {info['name']} is {info['state']}; the rows are safe, and "
                f"`{command}` builds it again"
            )
    return OK


def _shell(database: Path, name: str) -> str:
    """What to type to use a database in DuckDB's own shell, line by line."""
    import boxwood
    from boxwood.catalog import literal

    here = Path(boxwood.__file__).resolve().parent
    places = (here / "sql", here.parent.parent / "sql")  # the package's, the source tree's
    sql = next((place for place in places if (place / "shell.sql").is_file()), places[0])
    return "\n".join(
        [
            f"duckdb -unsigned {shlex.quote(str(database.resolve()))}",
            f"LOAD {literal(boxwood.extension_path())};",
            f".read {literal(sql / 'macros.sql')}",
            f".read {literal(sql / 'shell.sql')}",
            f"SELECT * FROM collection_info({literal(name)});",
        ]
    )


def _export(args: argparse.Namespace) -> int:
    formats = {".parquet": "PARQUET", ".csv": "CSV, HEADER", ".json": "JSON, ARRAY true"}
    form = formats.get(args.out.suffix.lower())
    if form is None:
        args.parser.error(f"--out {args.out}: the name must end in .parquet, .csv or .json")
    import boxwood
    from boxwood.catalog import literal

    model = None if args.model is None else boxwood.Model.load(args.model)
    with _collection(args) as collection:
        if model is None:
            collection.concept(args.concept).usable_model()  # the errors of Python are shorter
            source = f"concept({literal(args.name)}, {literal(args.concept)})"
        else:
            source = f"search_model({literal(args.name)}, {literal(model.to_json())})"
        columns, join = _metadata_join(collection, ("id", "votes", "score"))
        [(count,)] = collection.con.execute(
            "COPY (WITH boxwood_hits AS MATERIALIZED (SELECT id, votes, score "
            f"FROM {source}) "
            f"SELECT boxwood_hits.*{columns} FROM boxwood_hits {join} "
            "ORDER BY boxwood_hits.score DESC, boxwood_hits.id) "
            f"TO {literal(args.out)} (FORMAT {form})"
        ).fetchall()
    print(f"wrote {count:,} rows to {args.out}")
    return OK


def _recode(args: argparse.Namespace) -> int:
    with _collection(args, write=True) as collection:
        args.generation = collection.info()["generation"]
        done = collection.recode(
            args.head, embeddings=args.embeddings, id=args.id, embedding=args.embedding,
            progress=_wants_progress(args),
        )  # fmt: skip
        print(f"{args.name}: {done.rows:,} images and {done.phrases:,} phrases re-coded")
        if done.dropped:
            _note(
                f"{done.dropped:,} phrases that were stored for the shell were dropped, since the "
                "encoder cannot be opened here"
            )
    return OK


def _delete(args: argparse.Namespace) -> int:
    with _collection(args, write=True) as collection:
        ids = args.ids
        if ids is None:
            from boxwood.catalog import quoted, table_name

            if collection.table is None:
                raise CommandError(
                    f"the collection {args.name!r} has no metadata table, so there is nothing to "
                    "say a condition of: name the --ids"
                )
            rows = collection.con.execute(
                f"SELECT {quoted(collection.id_column)}::BIGINT FROM "
                f"{table_name(collection.table)} WHERE ({args.where}\n)"
            ).fetchall()
            ids = [row[0] for row in rows if row[0] is not None]
        gone = collection.delete(ids)
        print(f"{args.name}: {gone:,} deleted, {len(collection):,} left")
    return OK


def _each(args: argparse.Namespace, con: Any) -> list[str]:
    """The collection that is named, or all."""
    import boxwood

    if args.name is not None:
        return [args.name]
    names = boxwood.Collection.list(con)
    if not names:
        print(f"{args.database} has no collections")
    return names


def _verify(args: argparse.Namespace) -> int:
    import boxwood

    code = OK
    with _connection(args) as con:
        for name in _each(args, con):
            try:
                boxwood.Collection.open(con, name).verify()
            except boxwood.Error as error:
                print(f"{name}: {error}")
                code = FAILED
            else:
                print(f"{name}: sound")
    return code


def _compact(args: argparse.Namespace) -> int:
    import boxwood

    with _connection(args, write=True) as con:
        for name in _each(args, con):
            collection = boxwood.Collection.open(con, name)
            collection.compact(progress=_wants_progress(args))
            info = collection.info()
            print(f"{name}: {info['rows']:,} rows, {info['bytes']:,} bytes of index")
    return OK


def _repair(args: argparse.Namespace) -> int:
    import boxwood

    with _connection(args, write=True) as con:
        for name in _each(args, con):
            try:
                collection = boxwood.Collection.open(con, name)
                collection.repair(progress=_wants_progress(args))
            except boxwood.IndexProblem:
                collection = boxwood.Collection.open(con, name, repair=True)
            print(f"{name}: index rebuilt, {len(collection):,} rows")
    return OK


def _head_train(args: argparse.Namespace) -> int:
    from boxwood import head_cli

    return head_cli.train(args, _wants_progress(args))


def _head_fit(args: argparse.Namespace) -> int:
    from boxwood import head_cli

    return head_cli.fit(args, _wants_progress(args))


def _head_show(args: argparse.Namespace) -> int:
    from boxwood import head_cli

    return head_cli.show(args)


# --- main ---------------------------------------------------------------------------------------


def _go_on(args: argparse.Namespace) -> str:
    """What an interrupted command has left, and what to do next."""
    if args.command == "serve" or "serving" in args:
        return "the page has ended; what was saved is kept"
    if args.command == "demo":
        return "the same command goes on"
    if args.command == "head":
        from boxwood import head_cli

        return head_cli.go_on(args)
    if args.command == "recode":
        return _recoded(args)
    if args.command in ("compact", "repair"):
        return "the rows are safe; run it again"
    if args.command == "create":
        if getattr(args, "kept", False):
            return "what was committed stays, and `boxwood add` goes on from there"
        return "no collection was made; run it again"
    if args.command == "add":
        if args.npy is None and args.clip_retrieval is None:
            return "what was committed stays, and the same command goes on from there"
        if "rows" in args and _row_count(args) != args.rows:
            return "all rows were added before that"
        return "nothing was added; run it again"
    return "nothing was changed"


def _recoded(args: argparse.Namespace) -> str:
    """Whether the interrupt came before a re-coding was committed or after that."""
    import boxwood

    if "generation" in args:
        with _connection(args) as con:
            for info in boxwood.Collection.describe(con):
                if info["name"] == args.name and info["generation"] != args.generation:
                    return "all images were re-coded before that"
    return "nothing was changed"


def _row_count(args: argparse.Namespace) -> int:
    """The rows that the command's collection has in the database. Asked anew: Ctrl-C may come
    before a load is committed or after that."""
    import boxwood

    with _connection(args) as con:
        return sum(i["rows"] for i in boxwood.Collection.describe(con) if i["name"] == args.name)


def _heavy_errors() -> tuple[type[Exception], ...]:
    """The exceptions of packages that a command has imported; none is imported for this."""
    found = []
    for module, name in (("boxwood.errors", "Error"), ("duckdb", "Error")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. Usage errors and --help leave by SystemExit."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        from boxwood import __version__

        print(f"boxwood {__version__}")
        return OK
    if args.command is None:
        parser.print_help()
        return USAGE
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _interrupted(args)
    except Exception as error:
        # Ctrl-C inside of DuckDB, as 2.0 and as 1.5 pass it on.
        if type(error).__name__ == "InterruptException" or isinstance(
            error.__cause__, KeyboardInterrupt
        ):
            return _interrupted(args)
        if not isinstance(error, (CommandError, OSError, MemoryError, *_heavy_errors())):
            raise
        _note(f"boxwood: error: {_message(error)}")
        return FAILED


def _interrupted(args: argparse.Namespace) -> int:
    _note("boxwood: interrupted; " + _go_on(args))
    return INTERRUPTED


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # DuckDB shows a piece of the statement, which the person at the terminal has not written.
    text = str(error).split("\n\nLINE ")[0].rstrip()
    return text or "out of memory"  # MemoryError alone comes without words
