"""Attacks on `boxwood serve`, each tried: on files, on pictures, by other web pages, by size."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import os
import re
import socket
import struct
import tarfile
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import boxwood
from conftest import clustered_codes

pytest.importorskip("fastapi")
image_module = pytest.importorskip("PIL.Image")

from starlette.requests import Request  # noqa: E402
from starlette.responses import PlainTextResponse, StreamingResponse  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from boxwood import errors  # noqa: E402
from boxwood.encode.sources import open_uri  # noqa: E402
from boxwood.serve import Limits, create_app, images, security  # noqa: E402
from boxwood.serve.images import Pictures, Unavailable  # noqa: E402

BASE = "http://127.0.0.1:8321"
OURS = {"X-Boxwood": "1"}
TOKEN = "a-token-of-24-characters"


def picture(size: tuple[int, int] = (60, 40), kind: str = "JPEG", **options: Any) -> bytes:
    """A picture that differs from side to side."""
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    ramp[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    buffer = io.BytesIO()
    image_module.fromarray(ramp).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def opened(data: bytes) -> Any:
    return image_module.open(io.BytesIO(data))


class Site:
    """A server over rows that each lead to one uri."""

    def __init__(self, folder: Path, uris: dict[str, str | None], **options: Any) -> None:
        self.numbers = {name: n for n, name in enumerate(uris)}
        database = folder / "attacked.duckdb"
        con = boxwood.connect(database)
        collection = boxwood.Collection.create(con, "photos")
        collection.append(
            np.arange(len(uris)), codes=clustered_codes(len(uris)),
            metadata={"uri": pa.array(list(uris.values()), pa.string()),
                      "words": ["<script>alert(1)</script>"] * len(uris)},
        )  # fmt: skip
        con.close()
        self.app = create_app(database, cache=folder / "cache", **options)
        self.client = TestClient(
            self.app, base_url=BASE, headers=OURS, raise_server_exceptions=False,
            follow_redirects=False,
        )  # fmt: skip

    def get(self, name: str, what: str = "thumbnail", **options: Any) -> Any:
        path = f"/api/collections/photos/images/{self.numbers[name]}/{what}"
        return self.client.get(path, **options)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Make a server of uris by name."""
    clients: list[TestClient] = []

    def make(uris: dict[str, str | None], **options: Any) -> Site:
        made = Site(tmp_path, uris, **options)
        made.client.__enter__()
        clients.append(made.client)
        return made

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one good picture, by its own path."""
    made = Path(os.path.realpath(tmp_path)) / "pictures"
    made.mkdir()
    (made / "good.jpg").write_bytes(picture())
    return made


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Pictures]:
    made = Pictures(None, cache=tmp_path / "cache", limits=Limits())
    yield made
    made.close()


# --- files ----------------------------------------------------------------------------------------


def test_only_files_of_the_collection_are_sent(
    site: Callable[..., Site], folder: Path, tmp_path: Path
) -> None:
    outside = Path(os.path.realpath(tmp_path)) / "secret.jpg"
    outside.write_bytes(picture())
    (folder / "link.jpg").symlink_to(outside)
    (folder / "away").symlink_to(outside.parent, target_is_directory=True)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    bad = {
        "up": (f"{folder}/../secret.jpg", "outside"),
        "link": (f"{folder}/link.jpg", "outside"),
        "folder link": (f"{folder}/away/secret.jpg", "outside"),
        "passwd": ("/etc/passwd", "not-image"),
        "relative": ("secret.jpg", "outside"),
        "relative up": ("../../../../etc/passwd", "outside"),
        "file scheme": ("file:///etc/passwd", "not-image"),
        "file of another machine": ("file://example.org/etc/passwd", "outside"),
        "zero": (f"{folder}/good.jpg\0.png", "missing"),
        "gone": (f"{folder}/gone.jpg", "missing"),
        "folder": (f"{folder}/folder.jpg", "not-image"),
        "pipe": (f"{folder}/pipe.jpg", "unreadable"),
        "device": ("/dev/zero", "unreadable"),
        "remote": ("http://127.0.0.1/x.jpg", "remote"),
        "bucket": ("s3://bucket/x.jpg", "remote"),
        "gopher": ("gopher://127.0.0.1/x", "remote"),
        "empty": ("", "no-uri"),
        "none": (None, "no-uri"),
    }
    # A string with a zero byte cannot be stored in every DuckDB; `locate` is asked below.
    uris = {name: uri for name, (uri, _) in bad.items() if name != "zero"}
    made = site({"good": f"{folder}/good.jpg", **uris})
    assert made.get("good").status_code == 200
    for name in uris:
        for what in ("thumbnail", "picture", "original"):
            answer = made.get(name, what)
            assert answer.status_code == 404, (name, what)
            error = answer.json()["error"]
            assert error["kind"] == bad[name][1], name
            assert "root:" not in answer.text
    with pytest.raises(Unavailable, match="zero byte"):
        made.app.state.pictures.locate(f"{folder}/good.jpg\0.png")


def test_ids_are_numbers_and_nothing_else(site: Callable[..., Site], folder: Path) -> None:
    made = site({"good": f"{folder}/good.jpg"})
    for number in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e", "-1", "1e3", "0x0", "7",
                   "99999999999999999999", "0%00", "' OR 1=1 --"):  # fmt: skip
        answer = made.client.get(f"/api/collections/photos/images/{number}/thumbnail")
        assert answer.status_code in (404, 422), number
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py",
                 "/static//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"):  # fmt: skip
        answer = made.client.get(path)
        assert answer.status_code in (404, 405), path
        assert b"create_app" not in answer.content


def test_with_roots_links_may_lead_anywhere_within_them(
    site: Callable[..., Site], folder: Path, tmp_path: Path
) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "linked.jpg").write_bytes(picture())
    (folder / "link.jpg").symlink_to(other / "linked.jpg")
    (folder.parent / "outside.jpg").write_bytes(picture())
    (folder / "out.jpg").symlink_to(folder.parent / "outside.jpg")
    (folder.parent / "pictures-of-others").mkdir()
    (folder.parent / "pictures-of-others" / "x.jpg").write_bytes(picture())
    made = site(
        {
            "good": f"{folder}/good.jpg", "relative": "good.jpg", "link": f"{folder}/link.jpg",
            "out": f"{folder}/out.jpg", "outside": f"{folder.parent}/outside.jpg",
            "up": f"{folder}/../outside.jpg", "relative up": "../outside.jpg",
            "same beginning": f"{folder}-of-others/x.jpg", "passwd": "/etc/passwd",
        },
        roots=[folder, other],
    )  # fmt: skip
    for name in ("good", "relative", "link"):
        assert made.get(name).status_code == 200, name
    for name in ("out", "outside", "up", "relative up", "same beginning", "passwd"):
        answer = made.get(name)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (404, "outside"), name
        assert "--root" in answer.json()["error"]["message"]


def test_a_file_that_becomes_a_link_while_it_is_opened_is_refused(
    pictures: Pictures, folder: Path
) -> None:
    found = pictures.locate(f"{folder}/good.jpg")
    (folder.parent / "secret.jpg").write_bytes(picture())
    (folder / "good.jpg").unlink()
    (folder / "good.jpg").symlink_to(folder.parent / "secret.jpg")
    with pytest.raises(Unavailable):
        pictures.read(found)
    (folder / "good.jpg").unlink()
    folder.rename(folder.parent / "moved")
    folder.symlink_to(folder.parent / "moved", target_is_directory=True)
    (folder.parent / "moved" / "good.jpg").write_bytes(picture())
    with pytest.raises(Unavailable, match="replaced"):
        pictures.read(found)


def test_members_of_archives(site: Callable[..., Site], folder: Path) -> None:
    shard = folder / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in (("a.jpg", picture()), ("../up.jpg", picture()),
                           ("page.jpg", b"<html><script>alert(1)</script></html>")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    table = folder / "table.parquet"
    pq.write_table(pa.table({"key": ["x", "y"], "jpg": [picture(), b"no picture"]}), table)
    (folder / "linked.tar").symlink_to("/etc/passwd")
    (folder.parent / "out.tar").write_bytes(shard.read_bytes())
    (folder / "out.tar").symlink_to(folder.parent / "out.tar")
    made = site(
        {
            "member": f"{shard}#a.jpg", "dots": f"{shard}#../up.jpg", "row": f"{table}#x",
            "page": f"{shard}#page.jpg", "link": f"{shard}#link.jpg", "no row": f"{table}#z",
            "no member": f"{shard}#/etc/passwd", "no picture": f"{table}#y",
            "linked": f"{folder}/out.tar#a.jpg", "no tar": f"{folder}/linked.tar#a.jpg",
            "no archive": f"{folder}/none.tar#a.jpg",
        }
    )  # fmt: skip
    for name in ("member", "dots", "row"):  # a name within a tar leads nowhere
        assert made.get(name).status_code == 200, name
    kinds = {"page": "not-image", "link": "missing", "no row": "missing", "no member": "missing",
             "no picture": "not-image", "linked": "outside", "no tar": "outside",
             "no archive": "missing"}  # fmt: skip
    for name, kind in kinds.items():
        answer = made.get(name)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (404, kind), name


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path, folder: Path) -> None:
    large, most = 24 << 20, 1 << 20

    def shard(name: str, mode: Any, **more: Any) -> None:
        with tarfile.open(folder / name, mode, **more) as tar:
            for member, data in (("a.jpg", picture()), ("large.jpg", bytes(large))):
                about = tarfile.TarInfo(member)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))

    shard("packed.tar.gz", "w:gz", compresslevel=1)
    shard("packed.tar.xz", "w:xz", preset=0)
    with (folder / "sparse.tar").open("wb") as file:
        for name, size in (("a.jpg", len(picture())), ("large.jpg", 1 << 30)):
            member = tarfile.TarInfo(name)
            member.size = size
            file.write(member.tobuf())
            data = picture() if name == "a.jpg" else b""
            file.write(data + bytes(-len(data) % 512))
        file.truncate((1 << 30) + (1 << 16))
    with (folder / "large.jpg").open("wb") as file:
        file.truncate(1 << 30)
    # A dictionary holds the large one once.
    values = [picture(), *[bytes(large)] * 3, None, picture()]
    table = pa.table({"key": list("axyznb"), "jpg": pa.array(values, pa.binary())})
    pq.write_table(table, folder / "rows.parquet", row_group_size=4)
    pq.write_table(table.select(["jpg"]), folder / "numbered.parquet", row_group_size=4)
    made = Pictures(None, cache=tmp_path / "c", limits=Limits(bytes=most))

    def kind(uri: str) -> str:
        with pytest.raises(Unavailable) as caught:
            made.read(made.locate(uri))
        return caught.value.kind

    tracemalloc.start()
    try:
        for name in ("packed.tar.gz#large.jpg", "packed.tar.xz#large.jpg", "sparse.tar#large.jpg",
                     "large.jpg", "rows.parquet#x", "numbered.parquet#3"):  # fmt: skip
            tracemalloc.reset_peak()
            assert kind(f"{folder}/{name}") == "too-large", name
            assert tracemalloc.get_traced_memory()[1] < 16 << 20, name
    finally:
        tracemalloc.stop()
    for name in ("packed.tar.gz#a.jpg", "packed.tar.xz#a.jpg", "sparse.tar#a.jpg",
                 "rows.parquet#a", "rows.parquet#b", "numbered.parquet#0",
                 "numbered.parquet#5"):  # fmt: skip
        assert made.read(made.locate(f"{folder}/{name}")) == picture(), name
    for name in ("rows.parquet#n", "rows.parquet#0", "numbered.parquet#4", "numbered.parquet#6",
                 "numbered.parquet#00", "numbered.parquet#" + "9" * 30,
                 "numbered.parquet#\u0663"):  # fmt: skip
        assert kind(f"{folder}/{name}") == "missing", name
    made.close()


def test_what_is_given_up_lets_its_thread_go(tmp_path: Path, folder: Path) -> None:
    class Here:
        async def is_disconnected(self) -> bool:
            return False

    ended: list[float] = []

    def slow() -> None:
        stop = errors.stopping.get()
        assert stop is not None
        stop.wait(20)
        ended.append(time.monotonic())

    made = Pictures(None, cache=tmp_path / "c", limits=Limits(seconds=0.1))
    start = time.monotonic()
    request: Any = Here()
    with pytest.raises(Unavailable, match="too long"):
        asyncio.run(made.run(request, slow))
    while not ended and time.monotonic() < start + 10:
        time.sleep(0.01)
    assert ended
    assert ended[0] < start + 10
    made.close()

    # That is what the reading of archives looks at.
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as tar:
        tar.add(folder / "good.jpg", "good.jpg")
    pq.write_table(pa.table({"key": ["x"], "jpg": [picture()]}), folder / "rows.parquet")

    def read() -> None:
        stop = threading.Event()
        errors.stopping.set(stop)
        for uri in (f"{folder}/packed.tar.gz#good.jpg", f"{folder}/rows.parquet#x"):
            stop.clear()
            assert isinstance(open_uri(uri), io.BytesIO)
            stop.set()
            with pytest.raises(boxwood.Cancelled):
                open_uri(uri)

    contextvars.copy_context().run(read)


# --- pictures -------------------------------------------------------------------------------------


def test_what_is_sent_is_upright_webp_without_metadata(pictures: Pictures, folder: Path) -> None:
    exif = image_module.Exif()
    exif[0x0112] = 6  # to be turned to the right
    exif[0x010E] = "where I live"
    exif.get_ifd(0x8825)[2] = (51.0, 30.0, 26.0)  # GPS latitude
    file = folder / "phone.jpg"
    file.write_bytes(picture((400, 200), exif=exif, comment=b"where I live"))
    assert b"where I live" in file.read_bytes()
    for side, size in ((160, (80, 160)), (320, (160, 320)), (640, (200, 400)), (2048, (200, 400))):
        data = pictures.picture(str(file), side)
        shown = opened(data)
        assert (shown.format, shown.size) == ("WEBP", size)
        assert not dict(shown.getexif())
        assert b"where I live" not in data
        assert b"EXIF" not in data
    told = pictures.describe(str(file))
    assert (told.available, told.width, told.height) == (True, 200, 400)
    assert told.bytes == file.stat().st_size
    data = file.read_bytes()
    name, width, height = pictures.keep_upload(data)
    assert (width, height) == (200, 400)
    assert b"where I live" not in pictures.upload(name)
    assert pictures.original(str(file)).data == data  # the file itself is asked for


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_small_pictures_look_like_the_large_one(
    pictures: Pictures, folder: Path, kind: str
) -> None:
    file = folder / "large"
    file.write_bytes(picture((2400, 1600), kind))
    whole = opened(file.read_bytes())
    for side in (160, 320, 640, 2048):
        shown = opened(pictures.picture(str(file), side))
        assert shown.width == side
        assert abs(shown.height - side * 2 / 3) < 1
        wanted = np.asarray(whole.resize(shown.size), int)
        assert np.abs(np.asarray(shown.convert("RGB"), int) - wanted).mean() < 4


def test_colour_profiles_are_applied_and_left_out(pictures: Pictures, folder: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, known in (("srgb", profile), ("broken", b"no profile"), ("none", b"")):
        file = folder / f"{name}.png"
        file.write_bytes(picture(kind="PNG", icc_profile=known))
        data = pictures.picture(str(file), 160)
        assert "icc_profile" not in opened(data).info
        shown = np.asarray(opened(data).convert("RGB"), int)
        wanted = np.asarray(opened(file.read_bytes()).convert("RGB"), int)
        assert np.abs(shown - wanted).mean() < 4, name


def test_nothing_is_decoded_for_those_who_have_gone(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    let_go = threading.Event()
    at_work = [pictures._pool.submit(let_go.wait, 20) for _ in range(pictures._workers)]
    begun: list[int] = []
    request: Any = Gone()
    try:
        with pytest.raises(Unavailable, match="nobody waits"):
            asyncio.run(pictures.run(request, begun.append, 1))
    finally:
        let_go.set()
    for future in at_work:
        future.result()
    assert not begun


def test_a_page_that_is_a_picture_as_well_is_only_a_picture(
    site: Callable[..., Site], folder: Path
) -> None:
    script = b"<html><script>alert(1)</script></html>"
    good = picture(kind="GIF")
    (folder / "both.html").write_bytes(good + script)
    (folder / "both.jpg").write_bytes(picture(comment=script))
    made = site({"gif": f"{folder}/both.html", "jpeg": f"{folder}/both.jpg"})
    for name, kind in (("gif", "image/gif"), ("jpeg", "image/jpeg")):
        for what in ("thumbnail", "picture"):
            answer = made.get(name, what)
            assert answer.headers["content-type"] == "image/webp"
            assert b"<script" not in answer.content
        answer = made.get(name, "original")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["x-content-type-options"] == "nosniff"
    answer = made.client.post("/api/uploads", content=good + script,
                              headers={"Content-Type": "image/gif"})  # fmt: skip
    kept = made.client.get(f"/api/uploads/{answer.json()['upload']}")
    assert kept.headers["content-type"] == "image/webp"
    assert b"<script" not in kept.content


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
         "not-image"),
        ("html", b"<!doctype html><script>alert(1)</script>", "not-image"),
        ("empty", b"", "not-image"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not-image"),
        ("pdf", b"%PDF-1.4\n1 0 obj\n", "not-image"),
        ("bomb", png_header(100_000, 100_000), "too-large"),
        ("wide bomb", png_header(2**31 - 1, 1), "too-large"),
        ("no pixels", png_header(0, 5), "damaged"),
        ("half", picture((300, 300))[:2000], "damaged"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_neither_sent_nor_kept(
    site: Callable[..., Site], folder: Path, name: str, data: bytes, kind: str
) -> None:
    (folder / "bad.png").write_bytes(data)
    made = site({"bad": f"{folder}/bad.png"})
    start = time.monotonic()
    for what in ("thumbnail", "picture", "original"):
        answer = made.get("bad", what)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (404, kind)
    answer = made.client.post("/api/uploads", content=data, headers={"Content-Type": "image/png"})
    assert answer.status_code == (413 if kind == "too-large" else 400)
    assert answer.json()["error"]["kind"] == kind
    assert time.monotonic() - start < 10


def test_limits_of_bytes_pixels_and_time(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, site: Callable[..., Site]
) -> None:
    made = Pictures(None, cache=tmp_path / "c", limits=Limits(bytes=100, pixels=10_000))
    with pytest.raises(Unavailable, match="larger than") as caught:
        made.picture(f"{folder}/good.jpg", 160)
    assert caught.value.kind == "too-large"
    made.close()
    (folder / "large.png").write_bytes(picture((101, 100), "PNG"))
    made = Pictures(None, cache=tmp_path / "c", limits=Limits(pixels=10_000))
    with pytest.raises(Unavailable, match="101 x 100 pixels"):
        made.picture(f"{folder}/large.png", 160)
    made.close()

    real = images.load_image
    let_go = threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        let_go.wait(20)
        return real(*args, **options)

    monkeypatch.setattr(images, "load_image", slow)
    server = site({"good": f"{folder}/good.jpg"}, limits=Limits(seconds=0.3))
    try:
        start = time.monotonic()
        answer = server.get("good")
        assert (answer.status_code, answer.json()["error"]["kind"]) == (404, "slow")
        assert time.monotonic() - start < 5
    finally:
        let_go.set()


def test_huge_pictures_are_decoded_one_at_a_time(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_SMALL", 1000)
    made = Pictures(None, cache=tmp_path / "c", limits=Limits())
    real, at_work, most = images.load_image, [0], [0]

    def watched(*args: Any, **options: Any) -> Any:
        if options["pixels"] > 1000:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
            time.sleep(0.02)
        try:
            return real(*args, **options)
        finally:
            at_work[0] -= options["pixels"] > 1000

    monkeypatch.setattr(images, "load_image", watched)
    threads = [
        threading.Thread(target=made.original, args=[f"{folder}/good.jpg"]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    made.close()


def test_names_to_save_by_are_only_names(site: Callable[..., Site], folder: Path) -> None:
    strange = 'a"; filename="x.html\r\nSet-Cookie: a=b <script>.jpg'
    (folder / strange).write_bytes(picture())
    made = site({"strange": str(folder / strange)})
    answer = made.get("strange", "original")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    said = answer.headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename=\"[\w .()-]+\"; filename\*=UTF-8''[\w%.~-]+", said)
    for given, safe in {
        "../../etc/passwd": ".._.._etc_passwd".strip(" ."), "con.txt": "picture_con.txt",
        "": "picture", "...": "picture", "a\u202egpj.exe": "a_gpj.exe", "nul": "picture_nul",
        "x" * 400 + ".jpg": "x" * 150 + ".jpg", "é.png": "é.png", "C:\\x.png": "C__x.png",
    }.items():  # fmt: skip
        assert images.safe_name(given) == safe


# --- the cache ------------------------------------------------------------------------------------


def test_thumbnails_are_kept_on_disk_and_made_anew_when_the_file_changes(
    site: Callable[..., Site], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "good.jpg"
    made = site({"good": str(file)})
    first = made.get("good", params={"side": 160})
    assert first.headers["cache-control"].startswith("private")
    tag = first.headers["etag"]
    assert len(list((tmp_path / "cache").glob("??/*.webp"))) == 1

    def fail(*args: Any, **options: Any) -> Any:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(images, "load_image", fail)
        assert made.get("good", params={"side": 160}).content == first.content
        for known in (tag, f'"x", W/{tag}'):
            again = made.get("good", params={"side": 160}, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
            assert "content-security-policy" in again.headers
    file.write_bytes(picture((30, 60)))
    changed = made.get("good", params={"side": 160}, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert opened(changed.content).size == (30, 60)
    assert made.get("good", params={"side": 161}).status_code == 422
    assert made.get("good", params={"side": 640}).status_code == 200


def test_the_cache_is_bounded_and_lets_go_of_what_was_used_longest_ago(
    tmp_path: Path, folder: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 150, 150, 3), np.uint8)
    for n, pixels in enumerate(noise):
        image_module.fromarray(pixels).save(folder / f"{n}.png")
    cache = tmp_path / "cache"
    made = Pictures(None, cache=cache, limits=Limits(cache_bytes=200_000))
    for n in range(40):
        made.picture(f"{folder}/{n}.png", 160)
        for file in cache.glob("??/*.webp"):  # an hour goes by
            os.utime(file, (file.stat().st_mtime - 4000,) * 2)
        made.picture(f"{folder}/0.png", 160)
        held = sum(file.stat().st_size for file in cache.glob("??/*"))
        assert held < 200_000 + 2 * 200_000 // 16 + 30_000
    kept = {file.name for file in cache.glob("??/*.webp")}
    assert 1 < len(kept) < 40
    of = [made._key(made.locate(f"{folder}/{n}.png"), 160) + ".webp" for n in range(40)]
    assert of[0] in kept  # used again and again
    assert of[39] in kept
    assert of[1] not in kept
    made.close()


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    made = Pictures(tmp_path / "x.duckdb", cache=blocked / "cache", limits=Limits())
    elsewhere = made._folder
    assert elsewhere != blocked / "cache"
    assert opened(made.picture(f"{folder}/good.jpg", 160)).format == "WEBP"
    assert elsewhere.is_dir()
    made.close()
    assert not elsewhere.exists()
    made = Pictures(tmp_path / "x.duckdb", limits=Limits())
    assert made._folder == tmp_path / "x.duckdb.boxwood" / "thumbnails"

    def full(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "_write", full)
    assert opened(made.picture(f"{folder}/good.jpg", 160)).format == "WEBP"
    with pytest.raises(boxwood.StorageError, match=r"cannot be kept.*No space left.*--cache"):
        made.keep_upload(picture())
    made.close()


def test_old_uploads_are_swept(pictures: Pictures) -> None:
    first = pictures.keep_upload(picture((10, 10)))[0]
    file = pictures._folder / "uploads" / f"{first}.jpg"
    os.utime(file, (time.time() - 40 * 86400,) * 2)
    second = pictures.keep_upload(picture((20, 10)))[0]
    assert opened(pictures.upload(second)).format == "JPEG"
    for name in (first, "../../x", "0" * 64, "A" * 64):
        with pytest.raises(Unavailable, match="upload it again"):
            pictures.upload(name)


# --- addresses in the network ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.1.2.3", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254",
     "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1",
     "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "ff02::1",
     "fe80::1%eth0"],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    assert not images.public(address)


def test_addresses_of_the_open_network_are_public() -> None:
    for address in ("93.184.216.34", "8.8.8.8", "2606:4700:4700::1111"):
        assert images.public(address)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/loop":
            self._redirect("/loop")
        elif self.path == "/inside":
            self._redirect("http://internal.test/secret")
        elif self.path == "/file":
            self._redirect("file:///etc/passwd")
        elif self.path == "/moved":
            self._redirect("/good.jpg")
        elif self.path == "/good.jpg":
            self._send(picture())
        elif self.path == "/page":
            self._send(b"<script>alert(1)</script>")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.1)
            except OSError:
                pass
        else:
            self.send_error(404)

    def _redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server under a public name: `open.test` counts as public, nothing else changes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    port = server.server_address[1]
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        names = {"open.test": "93.184.216.34", "internal.test": "10.0.0.1"}
        return real(names.get(host, host), *args, **options)

    connect = socket.create_connection
    asked: list[Any] = []

    def connected(address: Any, *args: Any, **options: Any) -> Any:
        asked.append(address)
        assert address[0] == "93.184.216.34", "connected to an address that was not checked"
        return connect(("127.0.0.1", port), *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connected)
    yield "http://open.test"
    server.shutdown()
    server.server_close()
    thread.join()


def test_remote_pictures_only_where_allowed_and_never_from_inside(
    web: str, pictures: Pictures, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="--remote"):
        pictures.picture(f"{web}/good.jpg", 160)
    made = Pictures(
        None, cache=tmp_path / "c", remote=True, limits=Limits(bytes=1 << 20, seconds=1.5)
    )
    for path in ("good.jpg", "moved"):
        assert opened(made.picture(f"{web}/{path}", 160)).size == (60, 40)
    for uri, words in {
        "http://127.0.0.1/x": "open network", "http://localhost:8321/api/info": "open network",
        "http://[::1]/x": "open network", "http://169.254.169.254/latest": "open network",
        "http://internal.test/x": "open network", f"{web}/inside": "open network",
        f"{web}/file": "plain http", f"{web}/loop": "on and on", f"{web}/none": "answered 404",
        "http://user:word@open.test/x": "plain http", "ftp://open.test/x": "ftp://",
        "http://0x7f000001/": ".", "http://2130706433/": ".",
        f"{web}/good.jpg\r\nX: y": ".", f"{web}/page": "not an image",
        f"{web}/endless": "larger than 1 MiB", f"{web}/slow": "too long",
    }.items():  # fmt: skip
        start = time.monotonic()
        with pytest.raises(Unavailable, match=words):
            made.picture(uri, 160)
        assert time.monotonic() - start < 8, uri
    made.close()


# --- other web pages, tokens, headers -------------------------------------------------------------


async def _small(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers in several ways."""
    if scope["path"].endswith("/fail"):
        raise ValueError("a secret of the server")
    if scope["path"] == "/api/stream":

        async def events() -> Any:
            for n in range(3):
                yield f"data: {n}\n\n"

        await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)
        return
    request = Request(scope, receive)
    body = await request.body()
    await PlainTextResponse(str(len(body)), headers={"server": "leaky"})(scope, receive, send)


def guarded(
    address: str = BASE, client: tuple[str, int] = ("127.0.0.1", 50000), **options: Any
) -> TestClient:
    guard = security.Guard(_small, limits=Limits(body_bytes=1000, upload_bytes=5000), **options)
    return TestClient(guard, base_url=address, raise_server_exceptions=False,
                      follow_redirects=False, client=client)  # fmt: skip


def asked(
    app: Any,
    path: str,
    *,
    query: str = "",
    method: str = "GET",
    body: Iterator[bytes] | None = None,
) -> list[Any]:
    """The messages that an app sends for a request as it comes from the network."""
    sent: list[Any] = []

    async def receive() -> Any:
        part = b"" if body is None else next(body)
        return {"type": "http.request", "body": part, "more_body": body is not None}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(),
        "headers": [(b"host", b"box.local" if body is None else b"127.0.0.1"),
                    (b"x-boxwood", b"1")],
        "client": ("127.0.0.1", 1), "scheme": "http",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8321", True), ("localhost:8321", True), ("LOCALHOST", True), ("[::1]:80", True),
        ("localhost.:8321", True), ("attacker.example", False), ("127.0.0.1.x.example", False),
        ("attacker.example:8321", False), ("", False), ("localhost@attacker.example", False),
        ("192.168.1.5:8321", False), ("[::1", False),
    ],
)  # fmt: skip
def test_only_names_of_its_own_are_answered(host: str, allowed: bool) -> None:
    answer = guarded().get("/api/info", headers={"Host": host})
    assert (answer.status_code == 200) is allowed
    if not allowed:
        assert answer.status_code == 421
        assert answer.json()["error"]["kind"] == "host"


def test_an_unspecified_address_stands_for_numeric_addresses_alone() -> None:
    client = guarded(hosts=("0.0.0.0", "box.local"), token=TOKEN)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for host, status in (("192.168.1.5:8321", 200), ("[fd00::1]:8321", 200), ("box.local", 200),
                         ("attacker.example", 421)):  # fmt: skip
        assert client.get("/api/info", headers={"Host": host, **bearer}).status_code == status


def test_other_pages_can_change_nothing() -> None:
    client = guarded()
    ours = {"X-Boxwood": "1"}
    assert client.post("/api/x", headers=ours).status_code == 200
    assert client.post("/api/x", headers={**ours, "Origin": BASE}).status_code == 200
    same = {**ours, "Origin": BASE, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/x", headers=same).status_code == 200
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for headers in (
            {},
            {"X-Boxwood": "0"},
            {"Origin": BASE},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "text/plain"},
            {"Content-Type": "multipart/form-data; boundary=x"},
            {**ours, "Origin": "http://attacker.example"},
            {**ours, "Origin": "null"},
            {**ours, "Origin": "http://localhost:8321"},  # another name is another origin
            {**ours, "Origin": "http://127.0.0.1:9999"},
            {**ours, "Sec-Fetch-Site": "cross-site"},
            {**ours, "Sec-Fetch-Site": "same-site"},
            {**ours, "Sec-Fetch-Site": "none"},
        ):
            answer = client.request(method, "/api/x", headers=headers, content=b"a=b")
            assert (answer.status_code, answer.json()["error"]["kind"]) == (403, "origin"), headers
    # Nor read: a picture or script that another page embeds.
    embed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert client.get("/api/x", headers=embed).status_code == 403
    assert client.get("/static/x.js", headers=embed).status_code == 403
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=visit).status_code == 200  # a link
    assert client.get("/api/x", headers=visit).status_code == 403
    preflight = client.options("/api/x", headers={"Origin": "http://attacker.example"})
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers


def test_the_token() -> None:
    client = guarded("http://box.local:8321", hosts=("box.local",), token=TOKEN)
    for path in ("/", "/api/info", "/static/app.js", "/?x=1"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text
    assert client.get(f"/api/info?token={TOKEN}").status_code == 401  # in no other address
    assert asked(client.app, "//x.example", query=f"token={TOKEN}")[0]["status"] == 401
    assert client.post(f"/?token={TOKEN}", headers=OURS).status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/", headers={"Cookie": f"boxwood={TOKEN}"}).status_code == 401
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/api/info", headers=bearer).status_code == 200
    assert client.post("/api/x", headers=bearer).status_code == 403  # still not by other pages
    entry = client.get(f"/?session=7&token={TOKEN}&x=a%26b")
    assert (entry.status_code, entry.headers["location"]) == (303, "/?session=7&x=a%26b")
    cookie = entry.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert client.get("/api/info").status_code == 200  # by the cookie
    assert client.get(f"/?token={TOKEN}").status_code == 303
    name = cookie.partition("=")[0]
    client.cookies.clear()
    assert client.get("/api/info", headers={"Cookie": f"{name}={'0' * 64}"}).status_code == 401
    secure = guarded("https://box.local", hosts=("box.local",), token=TOKEN)
    assert "; Secure" in secure.get(f"/?token={TOKEN}").headers["set-cookie"]


def test_tokens_cannot_be_tried_one_after_the_other() -> None:
    client = guarded(token=TOKEN)
    codes = [client.get("/api/x", headers={"Authorization": f"Bearer {n:024}"}).status_code
             for n in range(15)]  # fmt: skip
    assert codes == [401] * 10 + [429] * 5
    # Behind a proxy all clients have one address: whoever guesses locks nobody out.
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/api/x", headers=right).status_code == 200
    assert client.get(f"/?token={TOKEN}").status_code == 303
    client.cookies.clear()
    assert client.get("/?token=wrong").status_code == 429
    app: Any = client.app
    other = TestClient(app, base_url=BASE, client=("10.0.0.9", 1))
    assert other.get("/api/x", headers=right).status_code == 200


def test_headers_are_on_every_answer(site: Callable[..., Site], folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"no")
    made = site({"good": f"{folder}/good.jpg", "bad": f"{folder}/bad.jpg"})
    made.app.add_api_route("/api/fail", lambda: 1 / 0)
    client = made.client
    answers = {
        "page": client.get("/"),
        "json": client.get("/api/info"),
        "picture": made.get("good"),
        "original": made.get("good", "original"),
        "no picture": made.get("bad"),
        "unknown": client.get("/nothing"),
        "unknown below the API": client.get("/api/nothing"),
        "method": client.delete("/api/info"),
        "invalid": client.post("/api/collections/photos/search", json={"k": -1}),
        "broken JSON": client.post("/api/collections/photos/search", content=b"{"),
        "refused": client.post("/api/uploads", headers={"X-Boxwood": ""}),
        "host": client.get("/", headers={"Host": "attacker.example"}),
        "fault": client.get("/api/fail"),
        "openapi": client.get("/api/openapi.json"),
    }
    for name, answer in answers.items():
        headers = answer.headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, name
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "geolocation=()" in headers["permissions-policy"]
        assert "cache-control" in headers
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
        if name != "page":
            assert "html" not in headers.get("content-type", ""), name
    assert answers["page"].headers["content-security-policy"] == security.CSP
    assert "script-src" not in answers["json"].headers["content-security-policy"]
    assert answers["fault"].status_code == 500
    assert answers["fault"].json()["error"]["kind"] == "internal"
    assert "division" not in answers["fault"].text
    assert "Traceback" not in answers["fault"].text


def test_faults_of_the_server_say_nothing_of_it() -> None:
    answer = guarded().get("/api/fail")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = guarded().get("/fail")
    assert page.headers["content-type"].startswith("text/plain")
    assert "secret" not in page.text


def test_streams_pass_and_keep_their_headers() -> None:
    answer = guarded().get("/api/stream")
    assert answer.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "leaky" not in str(guarded().get("/api/x").headers)


def test_websockets_are_closed() -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), guarded().websocket_connect("/api/x"):
        pass


# --- size and rate --------------------------------------------------------------------------------


def chunks(size: int, count: int) -> Iterator[bytes]:
    """A body without a length."""
    for _ in range(count):
        yield bytes(size)


def test_bodies_are_bounded() -> None:
    client = guarded()
    for path, most in (("/api/x", 1000), ("/api/uploads", 5000)):
        assert client.post(path, content=bytes(most), headers=OURS).text == str(most)
        assert client.post(path, content=chunks(100, most // 100), headers=OURS).text == str(most)
        for body in (bytes(most + 1), chunks(100, most // 100 + 1), chunks(most * 3, 1)):
            answer = client.post(path, content=body, headers=OURS)
            assert (answer.status_code, answer.json()["error"]["kind"]) == (413, "too-large")
            assert answer.headers["connection"] == "close"
    for length in ("-1", "x", "1e3", "9" * 30):
        answer = client.post("/api/x", content=b"", headers={**OURS, "Content-Length": length})
        assert answer.status_code == 400


def test_an_endless_body_is_not_read_to_its_end() -> None:
    read = [0]

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            read[0] += 1
            yield bytes(1000)

    # The client of the tests hands a stream over whole; so the app is asked by hand.
    sent = asked(guarded().app, "/api/x", method="POST", body=endless())
    assert sent[0]["status"] == 413
    assert read[0] <= 2


def test_uploads(site: Callable[..., Site], folder: Path) -> None:
    made = site({"good": f"{folder}/good.jpg"},
                limits=Limits(upload_bytes=100_000, uploads_a_minute=6))  # fmt: skip
    data = picture((1500, 1000))

    def post(body: Any, kind: str = "image/jpeg") -> Any:
        return made.client.post("/api/uploads", content=body, headers={"Content-Type": kind})

    answer = post(data)
    assert answer.status_code == 201
    told = answer.json()
    assert (told["width"], told["height"]) == (1024, 683)
    shown = made.client.get(f"/api/uploads/{told['upload']}")
    assert opened(shown.content).format == "WEBP"
    assert post(data).json() == told  # under its hash
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/json"):
        assert post(data, kind).status_code == 415
    assert post(bytes(100_001)).status_code == 413
    assert post(iter([bytes(60_000), bytes(60_000)])).status_code == 413
    answer = post(data)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 61
    for name in ("..", "%2e%2e%2fx", "0" * 64, "x" * 64):
        assert made.client.get(f"/api/uploads/{name}").status_code in (404, 422)


def test_the_rate_forgets_after_a_minute_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rate, now = security.Rate(2), [100.0]
    monkeypatch.setattr(security.time, "monotonic", lambda: now[0])
    rate.count("a")
    now[0] += 10
    rate.count("a")
    assert rate.wait("a") == 50
    assert rate.wait("b") == 0
    now[0] += 51
    assert rate.wait("a") == 0
    for n in range(3000):
        rate.count(str(n))
    assert len(rate._clients) == 1024


# --- what people put into the database ------------------------------------------------------------


def test_scripts_in_names_and_metadata_are_only_text(
    site: Callable[..., Site], folder: Path
) -> None:
    evil = "<img src=x onerror=alert(1)>.jpg"
    (folder / evil).write_bytes(picture())
    made = site({"evil": str(folder / evil)})
    answer = made.client.get("/api/collections/photos/images/0")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text)["title"] == evil
    for path in ("/api/collections/<script>alert(1)</script>/images/0", "/api/views/%3Cscript%3E",
                 "/<script>alert(1)</script>", "/api/jobs/%3Cscript%3E/file"):  # fmt: skip
        answer = made.client.get(path)
        assert answer.status_code in (404, 422)
        assert "html" not in answer.headers["content-type"]


def test_names_of_collections_are_never_sql(site: Callable[..., Site], folder: Path) -> None:
    made = site({"good": f"{folder}/good.jpg"})
    for name in ("photos'; DROP TABLE photos; --", 'photos" OR "1"="1', "photos%00", "../photos"):
        answer = made.client.get(f"/api/collections/{name}/images/0/thumbnail")
        assert answer.status_code in (404, 422), name
    assert made.get("good").status_code == 200
    with pytest.raises(duckdb.Error):
        made.app.state.library.con.execute("SELECT * FROM no_such_table")
