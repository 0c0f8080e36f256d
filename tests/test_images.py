"""Adding images: every kind of source, what is left out and why, duplicates, resuming, workers."""

from __future__ import annotations

import decimal
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import boxwood
from boxwood import Collection, adding, cli
from boxwood.adding import Adding, AddReport
from boxwood.encode import decode as decoding
from boxwood.encode import load_image
from boxwood.encode import sources as sources_module
from boxwood.encode.decode import Broken, Decoded, Decoder, Item, Recipe, Slice, decode
from boxwood.encode.sources import ClipRetrieval, Sources, open_uri
from conftest import PlainEncoder

Image = pytest.importorskip("PIL.Image")
Con = duckdb.DuckDBPyConnection
RECIPE = Recipe(24, (24, 24), 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Counting(PlainEncoder):
    """Counts what it embeds, and takes pixels as real encoders do if it has a recipe."""

    def __init__(self, recipe: Recipe | None = None) -> None:
        super().__init__()
        self.count = 0
        self.given = recipe

    @property
    def recipe(self) -> Recipe | None:
        return self.given

    def images(self, images: Sequence[Any]) -> NDArray[np.float32]:
        self.count += len(images)
        return super().images(images)

    def pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.images([Image.fromarray(picture) for picture in pixels])


@pytest.fixture
def encoder() -> Iterator[Counting]:
    yield Counting()
    boxwood.catalog._encoders.clear()


@pytest.fixture
def photos(con: Con, encoder: Counting) -> Collection:
    return Collection.create(con, "photos", encoder=encoder, texts=["a cat", "a dog"])


def picture(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in two folders."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for number in range(6):
        (root / ("sub" if number % 2 else ".") / f"{number}.png").write_bytes(picture(number))
    return root


def shard(path: Path, first: int, count: int, *, damaged: bool = False) -> Path:
    """A tar as img2dataset writes it: 000000017.jpg, .txt, .json; compressed as its name says."""
    packed: Any = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}
    with tarfile.open(path, packed.get(path.suffix, "w")) as tar:
        for number in range(first, first + count):
            about = {"key": f"{number:09}", "caption": f"number {number}", "width": 16,
                     "url": f"http://example.org/{number}", "similarity": number or None,
                     "exif": {"a": 1}}  # fmt: skip
            for suffix, data in (
                ("jpg", picture(number, "JPEG")),
                ("txt", f"number {number}".encode()),
                ("json", json.dumps(about).encode()),
            ):
                member = tarfile.TarInfo(f"{number:09}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    if damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def uris(con: Con) -> list[str]:
    return [uri for (uri,) in con.execute("SELECT uri FROM photos ORDER BY id").fetchall()]


# --- sources --------------------------------------------------------------------------------------


def test_folders_globs_and_lists(photos: Collection, con: Con, folder: Path) -> None:
    assert photos.add_images(str(folder / "*.png")).added == 3
    assert photos.add_images(str(folder / "**" / "*.png")).added == 3
    report = photos.add_images([folder, folder / "sub" / "1.png", str(folder / "sub" / "[35].png")])
    assert (report.added, report.known, len(report.skipped)) == (0, 6, 0)
    assert {Path(uri) for uri in uris(con)} == set(folder.resolve().rglob("*.png"))
    photos.verify()
    for source, says in (
        (folder / "none", "no such file"), (f"{folder}/*.gif", "no file matches"),
        (5, "come as a path"), ({"a": [1]}, "come as a path"), ([3], "a list of images holds"),
    ):  # fmt: skip
        with pytest.raises(boxwood.InputError, match=says):
            photos.add_images(source)
    with pytest.raises(boxwood.InputError, match="column="):
        photos.add_images(folder, column="path")
    (folder / "odd [1]").mkdir()
    (folder / "odd [1]" / "*.png").write_bytes(picture(77))  # a file before it is a pattern
    assert photos.add_images(folder / "odd [1]" / "*.png").added == 1
    assert photos.add_images(folder / "odd [1]").known == 1


def test_tar_shards(photos: Collection, con: Con, tmp_path: Path, encoder: Counting) -> None:
    data = tmp_path / "laion"
    data.mkdir()
    shard(data / "00000.tar", 0, 5)
    shard(data / "00001.tar", 5, 5)
    pq.write_table(pa.table({"jpg": [b"x"]}), data / "00000.parquet")  # is about the tar
    pq.write_table(pa.table({"url": ["x"]}), data / "other.parquet")  # holds no images
    assert photos.add_images(data / "00000.tar").added == 5
    report = photos.add_images(data)
    assert (report.added, report.known, report.skipped.num_rows) == (5, 5, 0)
    assert uris(con)[7] == f"{data.resolve()}/00001.tar#000000007.jpg"
    rows = con.execute("SELECT caption, key, similarity, exif, width FROM photos ORDER BY id")
    assert rows.fetchall() == [
        (f"number {n}", f"{n:09}", n or None, '{"a": 1}', 16) for n in range(10)
    ]
    assert photos.add_images(data).known == 10
    assert encoder.count == 10
    got = load_image(open_uri(uris(con)[7]))
    assert np.array_equal(np.asarray(got), np.asarray(load_image(io.BytesIO(picture(7, "JPEG")))))
    with pytest.raises(boxwood.InputError, match="cannot be read"):
        open_uri(f"{data.resolve()}/00001.tar#none.jpg")
    photos.verify()


def test_what_strangers_put_into_a_shard(photos: Collection, con: Con, tmp_path: Path) -> None:
    members = [
        ("../up", b'{"caption": "\\ud83d!", "\\ud800": 1}'),  # halves of characters
        ("/deep", b'{"caption": ' + b"[" * 100_000),
        ("twice", b'{"caption": {"a": "\\ud800"}}'),
        ("twice", b"{}"),
        (b"\xff".decode("utf-8", "surrogateescape"), b"{}"),
    ]
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, (name, about) in enumerate(members):
            for suffix, data in (("png", picture(number)), ("json", about)):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    report = photos.add_images(path)
    assert (report.added, report.reasons) == (3, {"same name": 1, "unreadable": 1})
    assert report.skipped["uri"].to_pylist() == [
        f"{path.resolve()}#twice.png", f"{path.resolve()}#\\xff.png"
    ]  # fmt: skip
    assert [name.partition("#")[2] for name in uris(con)] == ["../up.png", "/deep.png", "twice.png"]
    captions = con.execute("SELECT caption FROM photos ORDER BY id").fetchall()
    assert captions == [("?!",), (None,), ('{"a": "?"}',)]
    assert photos.add_images(path).added == 0
    shown = np.asarray(load_image(open_uri(uris(con)[2])))
    assert np.array_equal(shown, np.asarray(load_image(io.BytesIO(picture(2)))))


def test_odd_tables(photos: Collection, con: Con, folder: Path) -> None:
    paths = pa.table({"path": ["a\0b", "", None, str(folder / "0.png")]})
    report = photos.add_images(paths)
    assert (report.added, report.reasons) == (1, {"unreadable": 3})
    named_twice = pa.table([["a.png"], [1], [2]], names=["path", "x", "x"])
    with pytest.raises(boxwood.InputError, match="different names"):
        photos.add_images(named_twice)
    prices = [decimal.Decimal(text) for text in ("1.50", "1111.50")]
    rows = pa.table({"jpg": [picture(8), picture(9)], "key": ["a", "b"], "price": prices})
    assert photos.add_images(rows, batch=1).added == 2
    assert con.execute("SELECT price FROM photos WHERE price > 0").fetchall() == [(1.5,), (1111.5,)]
    con.begin()
    with pytest.raises(boxwood.InputError, match="cannot add images inside a transaction"):
        photos.add_images(folder)
    con.rollback()


def test_a_shard_that_was_cut_off(photos: Collection, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", 0, 6, damaged=True)
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    report = photos.add_images(tmp_path)
    assert 1 <= report.added < 6
    assert set(report.reasons) <= {"truncated", "not an image"}
    assert any("b.tar" in uri for uri in report.skipped["uri"].to_pylist())
    assert any("a.tar" in uri for uri in report.skipped["uri"].to_pylist())
    shard(tmp_path / "a.tar", 0, 6)  # fetched again
    again = photos.add_images(tmp_path / "a.tar")
    assert again.known == report.added
    assert again.added == 6 - report.added
    assert len(again.skipped) == 0


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar.bz2", "0.tar.xz", "0.tar"])
def test_compressed_shards(
    photos: Collection, con: Con, tmp_path: Path, encoder: Counting, name: str
) -> None:
    data = tmp_path / "laion"
    data.mkdir()
    pq.write_table(pa.table({"jpg": [b"x"]}), data / "0.parquet")  # is about the shard
    path = shard(data / name, 0, 5)
    sources = Sources(data)
    assert len(list(sources)) == sources.total == 5
    assert photos.add_images(data, batch=2).added == 5
    shard(path, 0, 8)
    report = photos.add_images(data)
    assert (report.added, report.known, len(report.skipped), encoder.count) == (3, 5, 0, 8)
    assert uris(con)[7] == f"{data.resolve()}/{name}#000000007.jpg"
    rows = con.execute("SELECT caption, similarity FROM photos ORDER BY id").fetchall()
    assert rows == [(f"number {n}", n or None) for n in range(8)]
    got = load_image(open_uri(uris(con)[7]))
    assert np.array_equal(np.asarray(got), np.asarray(load_image(io.BytesIO(picture(7, "JPEG")))))
    with pytest.raises(boxwood.InputError, match="cannot be read"):
        open_uri(f"{path}#none.jpg")
    photos.verify()


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tar.bz2", "0.tar.xz", "0.tar"])
def test_damaged_shards(photos: Collection, tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / name, 0, 60)
    whole = path.read_bytes()
    added = 0
    cuts = (3, 20, len(whole) // 2, 3 * len(whole) // 4, len(whole) - 5)
    for cut in cuts[:-1] if name.endswith("r") else cuts:  # the last bytes of a tar are padding
        path.write_bytes(whole[:cut])
        report = photos.add_images(path)
        assert list(report.reasons) == ["truncated"], cut
        assert report.skipped["uri"].to_pylist() == [str(path.resolve())]
        assert report.known == added
        added += report.added
    assert added > 20
    at = 512 * 20 if name.endswith("r") else len(whole) // 3
    path.write_bytes(
        whole[:at] + bytes(255 - byte for byte in whole[at:][:600]) + whole[at + 600 :]
    )
    photos.drop()
    other = Collection.create(photos.con, "photos", encoder=Counting(), texts=["a"])
    report = other.add_images(path)
    assert set(report.reasons) <= {"broken", "truncated", "not an image"}
    assert report.reasons
    assert report.added < 60
    path.write_bytes(whole)
    again = other.add_images(path)
    assert again.known + again.added == 60
    assert len(again.skipped) == 0
    other.verify()


def test_a_bomb_in_a_compressed_shard(
    photos: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_LARGEST", 100_000)
    monkeypatch.setattr(sources_module, "_HELD", 1000)  # and all are of one name
    with tarfile.open(tmp_path / "0.tgz", "w:gz") as tar:
        for number, data in enumerate((picture(1), bytes(1 << 20), picture(2), picture(3))):
            member = tarfile.TarInfo(f"one.{number}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    report = photos.add_images(tmp_path)
    assert (report.added, report.reasons) == (3, {"decompression bomb": 1})
    assert "1,048,576 bytes are more" in report.skipped["detail"][0].as_py()


def test_parquet_of_bytes_and_of_paths(
    photos: Collection, con: Con, folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "00000.parquet"
    pq.write_table(
        pa.table({"key": ["a", "b", "c"], "url": ["u"] * 3, "caption": ["x", "y", None],
                  "id": [7, 8, 9], "jpg": [picture(20), None, b"no image"]}),
        data,
    )  # fmt: skip
    report = photos.add_images(data)
    assert report.added == 1
    assert report.reasons == {"unreadable": 1, "not an image": 1}
    assert report.skipped["uri"].to_pylist() == [f"{data.resolve()}#b", f"{data.resolve()}#c"]
    assert con.execute("SELECT id, uri, caption, source_id, key FROM photos").fetchall() == [
        (0, f"{data.resolve()}#a", "x", 7, "a")
    ]
    assert load_image(open_uri(uris(con)[0])).size == (16, 12)
    bare = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"picture": [picture(21), picture(22)]}), bare)
    with pytest.raises(boxwood.InputError, match=r"column=.*picture"):
        photos.add_images(bare)
    assert photos.add_images(bare, column="picture").added == 2
    assert uris(con)[1:] == [f"{bare.resolve()}#0", f"{bare.resolve()}#1"]
    listed = tmp_path / "listed.parquet"
    paths = sorted(map(str, folder.glob("*.png")))
    pq.write_table(pa.table({"path": paths, "stars": [1, 2.5, None]}), listed)
    assert photos.add_images(listed).added == 3
    assert con.execute("SELECT stars FROM photos ORDER BY id OFFSET 3").fetchall() == [
        (1.0,), (2.5,), (None,),
    ]  # fmt: skip
    for column, says in (("none", "no column 'none'"), ("stars", "must hold paths or bytes")):
        with pytest.raises(boxwood.InputError, match=says):
            photos.add_images(listed, column=column)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(boxwood.InputError, match="as Parquet"):
        photos.add_images(tmp_path / "bad.parquet")


def test_tables(photos: Collection, con: Con, folder: Path) -> None:
    con.execute("CREATE TABLE pictures (id INT, file VARCHAR, title VARCHAR, data BLOB)")
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        con.execute("INSERT INTO pictures VALUES (?, ?, ?, ?)",
                    [number, str(path), f"title {number}", picture(number + 30)])  # fmt: skip
    assert photos.add_images(con.sql("SELECT file, title FROM pictures")).added == 3
    assert photos.add_images(con.table("pictures"), column="data").added == 3
    assert uris(con)[3:] == ["pictures#0", "pictures#1", "pictures#2"]
    again = photos.add_images(con.table("pictures"), column="data")
    assert (again.added, again.known) == (0, 3)
    named = con.sql("SELECT 'n' || id AS name, data FROM pictures")
    with pytest.raises(boxwood.InputError, match="tells them apart"):
        photos.add_images(named, column="data")
    report = photos.add_images(named, column="data", key="name")
    assert report.reasons == {"duplicate": 3}
    con.execute("CREATE TEMP TABLE passing AS SELECT 'x' AS uri, data AS image FROM pictures "
                "WHERE id = 1")  # fmt: skip
    assert photos.add_images(con.table("passing"), duplicates="keep").added == 1
    frame = con.sql("SELECT file FROM pictures").arrow()
    frame = frame if isinstance(frame, pa.Table) else frame.read_all()
    assert photos.add_images(frame).known == 3
    assert con.execute("SELECT count(*) FROM photos WHERE title = 'title 1'").fetchall() == [(2,)]
    photos.verify()


def test_a_table_of_the_users_own(con: Con, encoder: Counting, folder: Path) -> None:
    con.execute("CREATE TABLE mine (id BIGINT, uri VARCHAR, caption VARCHAR)")
    known = str((folder / "2.png").resolve())
    con.execute("INSERT INTO mine VALUES (50, ?, 'kept')", [known])
    photos = Collection.create(con, "photos", encoder=encoder, texts=["a"], table="mine")
    listed = pa.table({"path": [known, str(folder / "4.png")], "caption": ["no", "new"],
                       "stars": [1, 2]})  # fmt: skip
    assert photos.add_images(listed).added == 2
    (folder / "same.png").write_bytes(picture(4))
    assert photos.add_images(folder / "same.png").added == 1  # the table keeps no hashes
    assert con.execute("FROM mine ORDER BY id").fetchall() == [
        (50, known, "kept"), (51, str((folder / "4.png").resolve()), "new"),
        (52, str((folder / "same.png").resolve()), None),
    ]  # fmt: skip


def test_columns_that_change_their_kind(photos: Collection, con: Con, tmp_path: Path) -> None:
    for number, value in enumerate((None, 3, 4.5, "many", [1, 2])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name, data in (("a.png", picture(number)),
                               ("a.json", json.dumps({"n": value}).encode())):  # fmt: skip
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        assert photos.add_images(tmp_path / f"{number}.tar").added == 1
    rows = con.execute("SELECT n FROM photos ORDER BY id").fetchall()
    assert [value for (value,) in rows] == [None, "3.0", "4.5", "many", "[1, 2]"]


def write_clip_retrieval(folder: Path, parts: int, rows: int) -> NDArray[np.float32]:
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    (folder / "text_emb").mkdir()
    every = np.random.default_rng(0).normal(size=(parts * rows, 48)).astype(np.float16)
    for part in range(parts):
        here = range(part * rows, (part + 1) * rows)
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", every[part * rows :][:rows])
        pq.write_table(
            pa.table({"image_path": [f"/img/{n}.jpg" if part else f"{n:09}" for n in here],
                      "caption": [f"number {n}" for n in here], "id": list(here)}),
            folder / "metadata" / f"metadata_{part}.parquet",
        )  # fmt: skip
    return every.astype(np.float32)


def test_embeddings_of_clip_retrieval(con: Con, tmp_path: Path) -> None:
    every = write_clip_retrieval(tmp_path / "out", 12, 40)
    (photos := Collection.from_clip_retrieval(con, "photos", tmp_path / "out")).verify()
    assert len(photos) == 480
    rows = con.execute("SELECT id, uri, caption, image_path FROM photos ORDER BY id").fetchall()
    assert rows[440] == (440, "/img/440.jpg", "number 440", "/img/440.jpg")  # part 11, after 10
    assert rows[3][1].endswith("metadata_0.parquet#3")
    for row in (3, 440):
        assert photos.search_embedding(every[row], k=1)["id"].to_pylist() == [row]
    with pytest.raises(boxwood.InputError, match="already"):
        photos.add_clip_retrieval(tmp_path / "out")
    assert len(photos) == 480
    np.save(tmp_path / "out" / "img_emb" / "img_emb_3.npy", every[:7])
    for place, says in (("out", "has 7 rows, but"), ("none", "no img_emb")):
        with pytest.raises(boxwood.InputError, match=says):
            Collection.from_clip_retrieval(con, "other", tmp_path / place)
    (tmp_path / "out" / "metadata" / "metadata_3.parquet").unlink()
    with pytest.raises(boxwood.InputError, match="says what"):
        ClipRetrieval(tmp_path / "out")
    assert Collection.list(con) == ["photos"]


# --- what is left out -----------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))  # fmt: skip


def test_every_reason(photos: Collection, folder: Path, tmp_path: Path) -> None:
    whole = picture(1, "JPEG")
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "whole.webp")
    flipped = bytearray(picture(50))
    flipped[60] ^= 255  # within the compressed pixels
    cases = {
        "half.jpg": (whole[: len(whole) // 2], "truncated"),
        "half.png": (picture(3)[:300], "truncated"),
        "half.webp": ((folder / "whole.webp").read_bytes()[:5000], "truncated"),
        "text.png": (b"this is no image", "not an image"),
        "empty.png": (b"", "not an image"),
        "bomb.png": (png(30000, 20000), "decompression bomb"),
        "none.png": (png(0, 7), "zero pixels"),
        "none.bmp": (
            b"BM" + bytes(12) + struct.pack("<IIIHH", 40, 0, 7, 1, 24) + bytes(24),
            "zero pixels",
        ),
        "none.gif": (b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\x02\x02D\x01\0;", "zero pixels"),
        "broken.png": (bytes(flipped), "broken"),
        "same.png": (picture(0), "duplicate"),
    }
    for name, (data, _) in cases.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    expected = {name: reason for name, (_, reason) in cases.items()}
    expected |= {"pipe.png": "unreadable", "gone.png": "unreadable"}
    expected["gone.png"] = "unreadable"
    report = photos.add_images(folder)
    rows = report.skipped.to_pylist()
    got = {Path(row["uri"]).name: row["reason"] for row in rows}
    got["gone.png"] = got.pop("nowhere")  # a file is called by where it is
    assert got == expected
    assert all(row["detail"] for row in rows)
    assert report.added == 7
    assert report.reasons["duplicate"] == 1
    assert len(report.failed) == len(rows) - 1
    report.write(tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_text().count("\n") == len(rows) + 1


# --- duplicates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_embeddings", [False, True])
def test_duplicates(con: Con, encoder: Counting, folder: Path, keep_embeddings: bool) -> None:
    photos = Collection.create(
        con, "photos", encoder=encoder, texts=["a"], keep_embeddings=keep_embeddings
    )
    (folder / "0b.png").write_bytes(picture(0))  # in the same batch
    report = photos.add_images(folder)
    assert (report.added, report.reasons, encoder.count) == (6, {"duplicate": 1}, 6)
    assert report.skipped["detail"].to_pylist() == [f"the same bytes as {folder.resolve()}/0.png"]
    again = photos.add_images(folder)  # it is left out again, and not embedded
    assert (again.added, again.known, again.reasons, encoder.count) == (0, 6, {"duplicate": 1}, 6)
    (folder / "new.png").write_bytes(picture(60))
    (folder / "new too.png").write_bytes(picture(60))
    (folder / "sub" / "1b.png").write_bytes(picture(1))
    kept = photos.add_images(folder, duplicates="keep")
    assert (kept.added, kept.known, len(kept.skipped), encoder.count) == (4, 6, 0, 7)
    photos.verify()
    codes = ", ".join(boxwood.catalog.COLUMNS)
    pairs = con.execute(
        f"SELECT count(*), count(DISTINCT hash), count(DISTINCT concat_ws(',', {codes})) "
        "FROM photos JOIN boxwood.photos_codes c USING (id)"
    ).fetchall()
    assert pairs == [(10, 7, 7)]
    if keep_embeddings:
        assert con.execute("SELECT count(*) FROM boxwood.photos_embeddings").fetchall() == [(10,)]
    with pytest.raises(boxwood.InputError, match="duplicates must be"):
        photos.add_images(folder, duplicates="merge")  # type: ignore[arg-type]


def test_a_duplicate_in_another_batch(photos: Collection, folder: Path, encoder: Counting) -> None:
    for number in range(4):
        (folder / f"x{number}.png").write_bytes(picture(90))
    report = photos.add_images(folder, batch=2)
    assert (report.added, report.reasons, encoder.count) == (7, {"duplicate": 3}, 7)


def test_one_name_twice_in_a_call(
    photos: Collection, con: Con, folder: Path, tmp_path: Path, encoder: Counting
) -> None:
    for batch, start in ((256, 100), (1, 200)):  # before the first is committed, and after that
        names = ["a", "b", "a", "c", "b"]
        rows = pa.table({"key": names, "jpg": [picture(start + n) for n in range(5)]})
        other = Collection.create(con, f"names_{batch}", encoder=encoder, texts=["a"])
        report = other.add_images(rows, batch=batch)
        assert (report.added, report.known, report.reasons) == (3, 0, {"same name": 2})
        assert report.skipped["uri"].to_pylist() == ["a", "b"]
        assert "key=" in report.skipped["detail"][0].as_py()
        assert len(report.failed) == 2
    path = str(folder / "0.png")
    link = folder / "link.png"
    link.symlink_to(path)
    report = photos.add_images([path, link, folder / "sub" / "1.png"])
    assert (report.added, report.reasons) == (2, {"duplicate": 1})
    assert "the same file" in report.skipped["detail"][0].as_py()
    captions = pa.table({"path": [path] * 3, "caption": ["x", "y", "z"]})
    report = photos.add_images(captions)
    assert (report.added, report.known, len(report.skipped)) == (0, 3, 0)


def test_what_cannot_be_added_is_refused_before_anything_is_embedded(
    database: Path, folder: Path, encoder: Counting
) -> None:
    known = str((folder / "2.png").resolve())
    with boxwood.connect(database) as con:
        con.execute("CREATE TABLE mine (number BIGINT, uri VARCHAR)")
        con.execute("INSERT INTO mine VALUES (7, ?), (-5, ?)", [known, known[:-5] + "4.png"])
        photos = Collection.create(
            con, "photos", encoder=encoder, texts=["a"], table="mine", id_column="number"
        )
        with pytest.raises(boxwood.InputError, match=r"'mine' gives .*4\.png the id -5 .*'number'"):
            photos.add_images(folder)
        for wrong in (0, -1, float("nan"), float("inf"), "a"):
            with pytest.raises(boxwood.InputError, match="timeout must be"):
                photos.add_images(folder, timeout=wrong)  # type: ignore[arg-type]
    with boxwood.connect(database, read_only=True) as con:
        boxwood.catalog.keep_encoder(encoder)
        with pytest.raises(boxwood.ReadOnly, match="cannot add images"):
            Collection.open(con, "photos").add_images(folder)
    assert encoder.count == 0


# --- resuming -------------------------------------------------------------------------------------

KILLED = """
    import os, sys
    import boxwood
    from boxwood import Collection
    sys.path.insert(0, {tests!r})
    from test_images import RECIPE, Counting

    con = boxwood.connect(sys.argv[1])
    photos = Collection.create(con, "photos", encoder=Counting(RECIPE), texts=["a cat"])
    append, batches = photos._append, []

    def tell(*arguments, **options):
        if len(batches) == 3:
            os.kill(os.getpid(), 9)
        batches.append(append(*arguments, **options))

    photos._append = tell
    photos.add_images(sys.argv[2], batch=20, workers=2)
"""


def workers() -> set[int]:
    """Process numbers of decoding workers of this user's."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"boxwood.encode.decode import serve" in entry.read_bytes():
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_killed_in_a_shard(database: Path, tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", 0, 100)
    shard(tmp_path / "00001.tar", 100, 30)
    before = workers()
    program = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent))
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    started = subprocess.run(
        [sys.executable, "-c", program, str(database), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path}, timeout=60,
    )  # fmt: skip
    assert started.returncode == -signal.SIGKILL
    with boxwood.connect(database) as con:
        boxwood.catalog.keep_encoder(rest := Counting(RECIPE))
        photos = Collection.open(con, "photos")
        assert len(photos) == 60
        report = photos.add_images(tmp_path, batch=20)
        assert (report.added, report.known, rest.count) == (70, 60, 70)
        photos.verify()
        ids = con.execute("SELECT count(DISTINCT uri), max(id) FROM photos").fetchall()
        assert ids == [(130, 129)]
    deadline = time.monotonic() + 20
    while workers() - before:  # those of the killed process have gone with it
        assert time.monotonic() < deadline
        time.sleep(0.02)
    boxwood.catalog._encoders.clear()


# --- workers --------------------------------------------------------------------------------------


def items(count: int, kind: str = "PNG") -> list[Item | Broken]:
    return [Item(f"image {number}", picture(number, kind)) for number in range(count)]


def taken(decoder: Decoder, size: int = 50) -> list[Decoded | Broken]:
    found: list[Decoded | Broken] = []
    while some := decoder.take(size):
        found += some
    return found


def same(found: Sequence[Decoded | Broken], expected: Sequence[Item | Broken]) -> None:
    assert len(found) == len(expected)
    for one, item in zip(found, expected, strict=True):
        alone = decode(item, RECIPE) if isinstance(item, Item) else item
        if isinstance(alone, Decoded):
            assert isinstance(one, Decoded)
            assert np.array_equal(one.pixels, alone.pixels)
            assert (one.item.uri, one.hash, one.bytes) == (item.uri, alone.hash, alone.bytes)
        else:
            assert one == alone


def test_processes_and_threads_decode_the_same(tmp_path: Path) -> None:
    mixed = items(90)
    mixed[7] = Item("bad", b"no image")
    mixed[30] = Broken("gone", "unreadable", "before it came here")
    path = tmp_path / "two.bin"
    path.write_bytes(b"xx" + picture(5) + b"rest")
    mixed[31] = Item("slice", Slice(str(path), 2, len(picture(5))))
    mixed[32] = Item("cut", Slice(str(path), 2, 1 << 20))
    with Decoder(mixed, RECIPE, 2) as decoder:
        assert decoder.processes
        same(taken(decoder), mixed)
        alive = [worker.process for worker in decoder._all]
    assert alive
    assert all(process.poll() is not None for process in alive)
    with Decoder(mixed, RECIPE, 0) as decoder:
        same(taken(decoder), mixed)
        assert not decoder._all
    with Decoder(mixed[:20], RECIPE) as decoder:
        same(taken(decoder), mixed[:20])
        assert not decoder._all
    with Decoder(mixed, None, 2) as decoder:
        assert [type(one) for one in taken(decoder)] == [
            Broken if n in (7, 30, 32) else Decoded for n in range(90)
        ]


def test_a_worker_that_is_killed_loses_nothing() -> None:
    many = items(400)
    with Decoder(many, RECIPE, 2, ahead=40) as decoder:
        found = decoder.take(100)
        for worker in list(decoder._all):
            worker.process.kill()
        found += taken(decoder)
        assert decoder.processes
    same(found, many)


def test_an_image_that_kills_workers_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a crash in a decoder's C code does."""
    program = decoding._PROGRAM.replace(
        "from boxwood.encode.decode import serve;",
        "import os; from boxwood.encode import decode; load = decode.load_image; "
        "decode.load_image = lambda file: os.kill(os.getpid(), 9) if file.read(5) == b'crash' "
        "else (file.seek(0), load(file))[1]; serve = decode.serve;",
    )
    monkeypatch.setattr(decoding, "_PROGRAM", program)
    many = items(100)
    many[70] = Item("bad", b"crash")
    with Decoder(many, RECIPE, 2) as decoder:
        found = taken(decoder)
    assert found[70] == Broken("bad", "broken", "decoding it ended the process that did")
    same(found[:70] + found[71:], many[:70] + many[71:])


HANGS = """
    import time
    from boxwood.encode import decode
    load = decode.load_image
    def load_image(file):
        if file.read(4) == b"hang":
            time.sleep(3600)
        file.seek(0)
        return load(file)
    decode.load_image = load_image
    serve = decode.serve
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_a_decoder_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    hanging = threading.Event()
    if processes:
        program = decoding._PROGRAM.replace(
            "from boxwood.encode.decode import serve;", f"exec({textwrap.dedent(HANGS)!r});"
        )
        monkeypatch.setattr(decoding, "_PROGRAM", program)
    else:
        load = decoding.load_image

        def load_image(file: Any) -> Any:
            if file.read(4) == b"hang":
                hanging.wait(60)
            file.seek(0)
            return load(file)

        monkeypatch.setattr(decoding, "load_image", load_image)
    many = items(60)
    many[20] = Item("first", b"hang 1")  # in the middle of a chunk
    many[23] = Item("second", b"hang 2")
    many[24] = Broken("gone", "unreadable", "before it came here")
    many[59] = Item("last", b"hang 3")
    start = time.monotonic()
    with Decoder(many, RECIPE, processes, ahead=40, timeout=1) as decoder:
        found = taken(decoder)
        assert decoder.processes == bool(processes)
        assert len(decoder._hung) == (0 if processes else 3)
        alive = [worker.process for worker in decoder._all]
    assert time.monotonic() - start < 40
    hanging.set()
    for number, name in ((20, "first"), (23, "second"), (59, "last")):
        detail = "decoding it took more than 1 seconds, the time limit"
        assert found[number] == Broken(name, "timeout", detail)
        found[number] = many[number] = Broken("", "timeout", "")
    same(found, many)
    assert all(process.poll() is not None for process in alive)


def test_too_many_hanging_threads_end_an_add(
    photos: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(decoding, "load_image", lambda file: hanging.wait(60))
    monkeypatch.setattr(decoding, "_HUNG", 3)
    with pytest.raises(boxwood.Error, match=r"3 images hang .*workers=1"):
        photos.add_images(folder, timeout=0.05)
    hanging.set()


def test_a_hanging_image_is_reported_and_the_rest_added(
    photos: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    opened = Image.open

    def hang(file: Any, **options: Any) -> Any:
        if file.read(4) == b"hang":
            hanging.wait(60)
        file.seek(0)
        return opened(file, **options)

    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "open", hang)
    (folder / "2.png").write_bytes(b"hang")
    report = photos.add_images(folder, timeout=1)
    assert (report.added, report.reasons) == (5, {"timeout": 1})
    assert report.skipped["uri"].to_pylist() == [str(folder.resolve() / "2.png")]
    hanging.set()
    deadline = time.monotonic() + 10
    while limit != Image.MAX_IMAGE_PIXELS:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("program", ["/nonexistent/python", "/bin/false", "", "idle"])
def test_where_no_process_starts_threads_decode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    if program == "idle":  # another program, which Python is part of, and that waits
        program = str(tmp_path / "idle")
        Path(program).write_text("#!/bin/sh\nexec sleep 100\n")
        Path(program).chmod(0o755)
        monkeypatch.setattr(decoding, "_PATIENCE", 0.1)
    monkeypatch.setattr(sys, "executable", program)
    many = items(80)
    with Decoder(many, RECIPE, 2) as decoder:
        same(taken(decoder), many)
        assert not decoder.processes


def test_when_processes_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(count: int, cores: int, workers: int | None = None) -> bool:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        broken = [Broken(str(number), "unreadable", "") for number in range(count)]
        with Decoder(broken, RECIPE, workers) as decoder:
            assert len(taken(decoder)) == count
            return decoder.processes

    assert not chosen(1000, 2)
    assert chosen(1000, 4)
    assert not chosen(200, 4)
    assert chosen(200, 2, 1)
    assert not chosen(1000, 4, 0)


def test_ending_early_leaves_no_process() -> None:
    with Decoder(items(3000), RECIPE, 2) as decoder:
        decoder.take(10)
        started = [worker.process for worker in decoder._all]
    assert all(process.poll() is not None for process in started)


# --- recipes --------------------------------------------------------------------------------------


def test_recipes_make_what_open_clip_does() -> None:
    if find_spec("open_clip") is None:
        pytest.skip("needs open_clip")
    import torch

    from boxwood.encode import open_clip

    library = open_clip.load()
    random.seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    for options in ({}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}):
        preprocess = library.image_transform(64, is_train=False, **options)
        recipe = Recipe.of(preprocess)
        assert recipe is not None, options
        sizes = [(random.randint(8, 400), random.randint(8, 400)) for _ in range(25)]
        for size in [*sizes, (64, 64), (64, 100), (400, 64), (400, 13)]:
            given = Image.fromarray(noise).resize(size)
            pixels = torch.from_numpy(recipe.pixels(given).copy()).permute(2, 0, 1)
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (recipe.mean, recipe.std))
            values = pixels.float().div(255).sub(mean).div(std)
            assert torch.equal(values, preprocess(given)), (options, size)
    assert Recipe.of(library.image_transform(64, is_train=False, resize_mode="longest")) is None
    assert Recipe.of(library.image_transform(64, is_train=True)) is None
    assert Recipe.of(None) is None


def test_a_picture_of_extreme_length() -> None:
    assert RECIPE.pixels(Image.new("RGB", (200_000, 1), (9, 8, 7))).shape == (24, 24, 3)
    strip = Image.fromarray(np.tile(np.arange(0, 256, 2, np.uint8)[:, None, None], (7, 4, 3)))
    near = Recipe(24, (24, 24), 3, RECIPE.mean, RECIPE.std)
    exact = strip.resize((24, int(24 * strip.height / 4)), 3)
    top = round((exact.height - 24) / 2)
    exact = np.asarray(exact.crop((0, top, 24, top + 24))).astype(int)
    assert np.abs(near.pixels(strip).astype(int) - exact).max() <= 2


def test_encoder_of_pictures_and_of_pixels() -> None:
    if find_spec("open_clip") is None:
        pytest.skip("needs open_clip")
    from boxwood.encode import Encoder

    encoder = Encoder.open("tiny-scenes")
    recipe = encoder.recipe
    assert recipe is not None
    noise = np.random.default_rng(0).integers(0, 256, (6, 90, 70, 3)).astype(np.uint8)
    given = [Image.fromarray(pixels) for pixels in noise]
    pixels = np.stack([recipe.pixels(image) for image in given])
    rows = encoder.images(given)
    assert np.array_equal(encoder.pixels(pixels), rows)
    own, encoder._recipe = encoder._recipe, None  # by open_clip's own preprocessing
    assert np.array_equal(encoder.images(given), rows)
    with pytest.raises(boxwood.InputError, match="no recipe"):
        encoder.pixels(pixels)
    encoder._recipe, encoder._mixed = own, True  # as on a GPU
    mixed = encoder.pixels(pixels)
    assert not np.array_equal(mixed, rows)
    assert (mixed * rows).sum(1).min() > 0.999
    assert encoder.images([]).shape == encoder.pixels(pixels[:0]).shape == (0, encoder.dims)


# --- reports --------------------------------------------------------------------------------------


def test_progress_tells_rate_and_rest(
    photos: Collection, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "0.tar", 0, 40)
    sources = Sources([folder, tmp_path / "0.tar"])
    assert sources.total >= 6
    assert len(list(sources)) == sources.total == 46
    photos.add_images([folder, tmp_path / "0.tar"], progress=True)
    assert "46/46" in capsys.readouterr().err


def test_report_by_itself() -> None:
    table = pa.table({"uri": ["a", "b"], "reason": ["broken"] * 2, "detail": ["x", "y"]})
    report = AddReport(10, 3, table, 2.0)
    assert report.images_per_second == 5
    assert report.reasons == {"broken": 2}
    assert repr(report) == "AddReport(10 added, 3 known, 2 broken; 2.0 s)"
    assert report.failed == [("a", "x"), ("b", "y")]


# --- command line ---------------------------------------------------------------------------------


def test_command_line(
    database: Path, folder: Path, tmp_path: Path, encoder: Counting,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with boxwood.connect(database) as con:
        Collection.create(con, "photos", encoder=encoder, texts=["a cat"])
        con.execute("CREATE TABLE pictures AS SELECT ? AS path, 'first' AS title",
                    [str(folder / "0.png")])  # fmt: skip

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["add", str(database), "photos", *map(str, arguments)])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, out, _ = run("--table", "pictures")
    assert (code, out[:7]) == (0, "1 added")
    shard(tmp_path / "0.tar", 0, 3)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "same.png").write_bytes(picture(0))
    report = tmp_path / "skipped.csv"
    code, out, err = run(folder, tmp_path / "*.tar", "--report", report, "--workers", 1)
    assert code == 0
    assert out.startswith("8 added, 1 were there already, 1 could not be added; ")
    assert out.endswith("left out: 1 not an image, 1 duplicate\n")
    assert "bad.png: not an image" in err
    assert f"same.png: the same bytes as {folder.resolve()}/0.png" in err
    assert '"duplicate"' in report.read_text()
    code, out, _ = run(folder / "same.png")
    assert (code, out[:7]) == (0, "0 added")
    assert run(folder / "bad.png")[0] == 1
    code, out, _ = run(folder / "same.png", "--duplicates", "keep", "--timeout", "2.5")
    assert out.startswith("1 added")
    code, _, err = run("--table", "none")
    assert (code, "no table none" in err) == (1, True)
    wrongs = (
        [], ["--npy", "x.npy", "--column", "a"], [folder, "--table", "pictures"],
        ["--npy", "x.npy", "--timeout", "5"], [folder, "--timeout", "0"],
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(SystemExit):
            run(*wrong)
    write_clip_retrieval(tmp_path / "out", 2, 40)
    made = tmp_path / "made.duckdb"
    arguments = ["create", str(made), "rows", "--clip-retrieval", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert cli.main(["add", str(made), "rows", "--clip-retrieval", "none"]) == 1
    assert "no img_emb" in capsys.readouterr().err


def test_the_time_limit_on_the_command_line(
    database: Path, folder: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with boxwood.connect(database) as con:
        Collection.create(con, "photos", encoder=encoder, texts=["a cat"])
    given: list[float] = []

    def run(self: Adding, batch: int, workers: Any, progress: bool, timeout: float) -> AddReport:
        given.append(timeout)
        return AddReport(1, 0, adding.SKIPPED.empty_table(), 1.0)

    monkeypatch.setattr(Adding, "run", run)
    for words in ([], ["--timeout", "2.5"]):
        assert cli.main(["add", str(database), "photos", str(folder), *words]) == 0
    assert given == [60, 2.5]  # as the help says


def test_a_contact_sheet_of_a_shard(tmp_path: Path) -> None:
    from boxwood.report import Cell, contact_sheet

    path = shard(tmp_path / "0.tar", 0, 2)
    there, gone = (Cell(Path(f"{path}#{name}")) for name in ("000000001.jpg", "none.jpg"))
    drawn, empty = (np.asarray(contact_sheet([cell])) for cell in (there, gone))
    assert drawn.std() > 1.5 * empty.std()
