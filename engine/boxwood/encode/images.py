"""Finding image files, and decoding whatever they hold to RGB."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from boxwood.errors import InputError, MissingDependency

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif",
        ".jp2", ".ppm", ".pgm", ".pbm", ".tga",
    )
)  # fmt: skip
MAX_PIXELS = 500_000_000
"""Images of more pixels are refused: decoding them could take all memory."""

SIDE = 1024
"""Larger images are reduced while they are decoded, to a shorter side of at least this."""

_limit = threading.Lock()
_opening: list[int | None] = []  # Pillow's own limit, once for each call that has put it off

REASONS = (
    "truncated", "not an image", "decompression bomb", "zero pixels", "unreadable", "broken",
    "timeout", "duplicate", "same name",
)  # fmt: skip
"""Why an image is not added: its end is missing; its bytes are of no kind that is known; it has
more than `MAX_PIXELS`, or none at all; the operating system does not give it out, or memory is
short; its bytes are damaged otherwise; decoding it takes too long; another image has the same
bytes; another one before it has the same uri."""


class ImageError(InputError):
    """An image cannot be used. `path` says which one, `reason` why, `kind` is one of `REASONS`."""

    def __init__(self, path: object, reason: str, kind: str = "broken") -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.kind = kind


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The image files in folders, with all that is below them, each file once.

    Each folder's files come sorted; in folders, hidden files and folders are passed over and files
    are taken by suffix (`SUFFIXES`). A path of a file is taken as it is. Raises InputError for a
    path that does not exist.
    """
    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        root = Path(given).expanduser()
        if root.is_dir():
            for folder, subfolders, files in os.walk(root):
                subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
                for name in sorted(files):
                    if not is_hidden(name) and Path(name).suffix.lower() in SUFFIXES:
                        found[Path(folder, name)] = None
        elif root.exists():
            found[root] = None
        else:
            raise InputError(f"no such file or folder: {given}")
    return list(found)


def is_hidden(name: str) -> bool:
    """Whether a name is that of a file or folder that people do not mean to show."""
    return name.startswith(".")


def load_image(
    source: str | Path | IO[bytes],
    *,
    longer: int | None = None,
    pixels: int = MAX_PIXELS,
    formats: Sequence[str] | None = None,
) -> Image.Image:
    """Decode an image file, or an open one, to an RGB picture, upright.

    longer: larger images come reduced, to a longer side of at least this; None: to a shorter one
        of at least `SIDE`.
    pixels: images of more are refused before they are decoded.
    formats: what Pillow calls the kinds that are taken; None: all that it knows but EPS.

    Any mode that Pillow reads will do: grey, palette, CMYK and 16-bit images are converted,
    transparent ones laid on white, of animated ones the first frame is taken, and the camera's
    orientation is applied. ``info["file_size"]`` has the width and height of what the file holds,
    ``info["file_format"]`` its kind. Raises ImageError for what cannot be decoded in full.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "decoding images needs the package 'pillow': pip install 'boxwood[clip]'"
        ) from error

    path = source if isinstance(source, (str, Path)) else getattr(source, "name", "image")
    try:
        with _file(source) as file, _open(Image, file, formats) as image:
            width, height = image.size
            if width * height > pixels:
                raise ImageError(
                    path,
                    f"{width} x {height} pixels are more than {pixels // 1_000_000} million; "
                    "reduce the image first",
                    "decompression bomb",
                )
            shrink = SIDE / max(1, min(width, height))
            if longer is not None:
                shrink = longer / max(1, width, height)
            if shrink < 1:  # JPEG decodes at a half, a quarter or an eighth for less work
                image.draft(None, (int(width * shrink), int(height * shrink)))
            image.load()
            picture = _rgb(Image, image)
            factor = min(picture.size) // SIDE if longer is None else max(picture.size) // longer
            if factor > 1:
                picture = picture.reduce(factor)
            picture = _upright(Image, image, picture)
            turned = (picture.width > picture.height) != (width > height)
            picture.info["file_size"] = (height, width) if turned else (width, height)
            picture.info["file_format"] = image.format or ""
            return picture
    except UnidentifiedImageError as error:
        reason, kind = _unknown(source)
        raise ImageError(path, reason, kind) from error
    except MemoryError as error:
        raise ImageError(path, "not enough memory to decode it", "unreadable") from error
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever a broken file drives them to
        reason = str(error).strip() or type(error).__name__
        raise ImageError(path, f"broken image: {reason}", _kind(reason, source)) from error


def _kind(said: str, source: str | Path | IO[bytes]) -> str:
    """One of `REASONS`, for a file that a decoder says this of."""
    if any(word in said.lower() for word in ("truncat", "unexpected end", "end of file")):
        return "truncated"
    if "decompressed data too large" in said.lower():  # texts in a PNG
        return "decompression bomb"
    start, size = _start(source)  # Pillow does not say it of WebP
    if start[8:12] == b"WEBP" and size < int.from_bytes(start[4:8], "little") + 8:
        return "truncated"
    return "broken"


def _unknown(source: str | Path | IO[bytes]) -> tuple[str, str]:
    """What is wrong with a file that Pillow does not know, and which of `REASONS` that is. It does
    not want to know images without pixels."""
    start, size = _start(source)
    if not size:
        return "not an image: the file is empty", "not an image"
    sides = None
    if start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and len(start) >= 24:
        sides = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    elif start[:4] == b"GIF8" and len(start) >= 10:
        sides = int.from_bytes(start[6:8], "little"), int.from_bytes(start[8:10], "little")
    elif start[:2] == b"BM" and len(start) >= 26:
        sides = int.from_bytes(start[18:22], "little"), int.from_bytes(start[22:26], "little")
    if sides is not None and 0 in sides:
        return f"{sides[0]} x {sides[1]} pixels are none", "zero pixels"
    return "not an image, or of a kind that Pillow cannot read", "not an image"


def _start(source: str | Path | IO[bytes]) -> tuple[bytes, int]:
    """The first bytes of a file, and its size; nothing of one that is gone by now."""
    try:
        with _file(source) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return file.read(32), size
    except (OSError, ValueError, ImageError):
        return b"", 1


@contextmanager
def _file(source: str | Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(source, (str, Path)):
        yield source
        return
    with open_file(source) as file:
        yield file


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file to read. Raises ImageError for what is no file, or not to be read."""
    try:
        # Opening a named pipe would wait for somebody to write to it.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ImageError(path, "not a regular file", "unreadable")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise ImageError(path, "no such file", "unreadable") from error
    except IsADirectoryError as error:
        raise ImageError(path, "a folder, not an image", "not an image") from error
    except PermissionError as error:
        raise ImageError(path, "no permission to read it", "unreadable") from error
    except OSError as error:
        raise ImageError(path, error.strerror or str(error), "unreadable") from error


def _open(pillow: Any, source: IO[bytes], formats: Sequence[str] | None) -> Image.Image:
    pillow.init()
    # Some come with plug-ins. PostScript is a program, which Pillow would have Ghostscript run.
    formats = [name for name in formats or pillow.OPEN if name in pillow.OPEN and name != "EPS"]
    # Pillow's own limit is a third of ours and belongs to the whole process. The lock is not held
    # while a file is opened: one that hangs would stop all others.
    with _limit:
        _opening.append(_opening[0] if _opening else pillow.MAX_IMAGE_PIXELS)
        pillow.MAX_IMAGE_PIXELS = None
    try:
        image: Image.Image = pillow.open(source, formats=formats)
        return image
    finally:
        with _limit:
            before = _opening.pop()
            if not _opening:
                pillow.MAX_IMAGE_PIXELS = before


def _rgb(pillow: Any, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        picture: Image.Image = pillow.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
        return picture
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = pillow.new("RGBA", layer.size, "white")
        picture = pillow.alpha_composite(white, layer).convert("RGB")
        return picture
    return image.convert("RGB")


def _to_bytes(values: Any) -> Any:
    """Values of more than 8 bits as bytes, by the smallest usual range that holds them."""
    pixels = np.nan_to_num(values.astype(np.float64))
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 65535:
        pixels, top = pixels - low, max(high - low, 1e-30)
    elif values.dtype.kind == "f" and high <= 1:
        top = 1.0
    elif values.dtype.itemsize > 2 and high <= 255:
        top = 255.0
    else:
        top = 65535.0
    return np.rint(pixels * (255 / top)).astype(np.uint8)


# EXIF tag 0x0112: how the stored picture must be turned to be seen upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip


def _upright(pillow: Any, image: Image.Image, picture: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged note about the picture is no reason to lose the picture
        return picture
    return picture if turn is None else picture.transpose(pillow.Transpose[turn])
