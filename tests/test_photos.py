"""Real photos through `add_images`: good, broken, huge, grey, animated, oddly named."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import boxwood

pytestmark = pytest.mark.skipif(find_spec("open_clip") is None, reason="needs open_clip")
image_module = pytest.importorskip("PIL.Image")

PHOTOS = 200


def noise(rng: np.random.Generator, height: int, width: int, *channels: int) -> np.ndarray:
    """A picture with some structure: coarse noise, enlarged."""
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, *channels), np.uint8)
    return np.kron(coarse, np.ones((16, 16, *[1] * len(channels)), np.uint8))[:height, :width]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files as people have them: some good, some not."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    make = image_module.fromarray
    plain = noise(rng, 120, 160, 3)
    make(plain).save(folder / "plain.jpg")
    make(plain).save(folder / "two words.png")
    make(noise(rng, 90, 90, 3)).save(folder / "forêt d'été à l'aube.jpg")
    (folder / "日本語 フォルダ").mkdir()
    make(noise(rng, 64, 80, 3)).save(folder / "日本語 フォルダ" / "猫.PNG")
    make(noise(rng, 100, 140)).save(folder / "grey.jpg")
    make(noise(rng, 100, 140).astype(np.uint16) * 257).save(folder / "grey16.png")
    make(noise(rng, 70, 70, 4)).save(folder / "transparent.png")
    make(noise(rng, 80, 80, 3)).convert("P").save(folder / "palette.gif")
    make(noise(rng, 80, 80, 3)).convert("CMYK").save(folder / "print.jpg")
    frames = [make(noise(rng, 60, 60, 3)) for _ in range(5)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:], duration=50)
    make(noise(rng, 6000, 9000, 3)).save(folder / "huge.jpg", quality=60)
    make(noise(rng, 1, 1, 3)).save(folder / "pixel.png")
    make(noise(rng, 8, 3000, 3)).save(folder / "long.png")
    # Not usable:
    whole = (folder / "plain.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    (folder / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    os.mkfifo(folder / "pipe.png")  # nobody writes to it
    # Not pictures by their names:
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.jpg").write_bytes(whole)
    return folder


BROKEN = {"truncated.jpg", "empty.jpg", "text.png", "header.png", "pipe.png"}
GOOD = {
    "plain.jpg", "two words.png", "forêt d'été à l'aube.jpg", "猫.PNG", "grey.jpg", "grey16.png",
    "transparent.png", "palette.gif", "print.jpg", "animated.gif", "huge.jpg", "pixel.png",
    "long.png",
}  # fmt: skip


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Any]:
    con = boxwood.connect(tmp_path / "photos.duckdb")
    yield boxwood.Collection.create(con, "photos", encoder="tiny-scenes")
    con.close()


def test_odd_files(collection: Any, odd: Path) -> None:
    report = collection.add_images(odd, progress=False)
    assert {Path(path).name for path, _ in report.failed} == BROKEN
    assert all(reason for _, reason in report.failed)
    assert (report.added, report.known) == (len(GOOD), 0)
    paths = [Path(p) for (p,) in collection.con.execute("SELECT uri FROM photos").fetchall()]
    assert {p.name for p in paths} == GOOD
    assert all(p.is_file() for p in paths)
    sizes = dict(
        collection.con.execute(
            "SELECT parse_filename(uri), (width, height)::VARCHAR FROM photos"
        ).fetchall()
    )
    assert sizes["huge.jpg"] == "(9000, 6000)"  # the file's, though it is decoded smaller
    assert sizes["plain.jpg"] == "(160, 120)"
    collection.verify()

    again = collection.add_images(odd, progress=False)
    assert (again.added, again.known) == (0, len(GOOD))
    assert {Path(path).name for path, _ in again.failed} == BROKEN


def test_the_same_picture_in_another_format_is_nearest(collection: Any, odd: Path) -> None:
    collection.add_images(odd, progress=False)
    hits = collection.search_image(odd / "two words.png", 2)
    names = collection.con.execute(
        "SELECT parse_filename(uri), distance FROM hits JOIN photos USING (id) ORDER BY distance",
    ).fetchall()
    assert len(hits) == 2
    assert {names[0][0], names[1][0]} == {"plain.jpg", "two words.png"}
    assert names[0][1] == 0


def test_a_broken_file_that_was_mended_is_added(collection: Any, odd: Path, tmp_path: Path) -> None:
    file = tmp_path / "late.jpg"
    file.write_bytes(b"")
    assert len(collection.add_images([file], progress=False).failed) == 1
    file.write_bytes((odd / "plain.jpg").read_bytes())
    assert collection.add_images([file], progress=False).added == 1


def test_a_path_that_is_not_there_is_an_error(collection: Any, tmp_path: Path) -> None:
    with pytest.raises(boxwood.Error, match="nowhere"):
        collection.add_images(tmp_path / "nowhere", progress=False)
    assert len(collection) == 0


def test_real_photos(
    collection: Any, tmp_path: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = real_data / "images" / "imagenet_1000.zip"
    if not photos.exists():
        pytest.skip("needs the evaluation data: images/imagenet_1000.zip")
    with zipfile.ZipFile(photos) as archive:
        names = [name for name in sorted(archive.namelist()) if name.lower().endswith(".jpg")]
        chosen = names[:: max(1, len(names) // PHOTOS)][:PHOTOS]
        archive.extractall(tmp_path / "photos", chosen)
    report = collection.add_images(tmp_path / "photos", progress=False)
    with capsys.disabled():
        print(f"\n{report.added} photos added, {report.images_per_second:.0f} images/s")
    assert (report.added, report.failed) == (PHOTOS, [])
    assert report.images_per_second == pytest.approx(PHOTOS / report.seconds, rel=0.05)
    some = collection.con.execute("SELECT id, uri FROM photos ORDER BY id LIMIT 5").fetchall()
    for image, path in some:
        assert collection.search_image(path, 1)["id"].to_pylist() == [image]
    ids = collection.search_text("a red circle", 10)["id"].to_pylist()
    found = collection.refine(ids[:5], ids[5:])
    assert set(ids[:5]) & set(found.table()["id"].to_pylist())
    collection.verify()
