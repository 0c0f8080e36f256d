"""Finding image files, and decoding whatever they hold to RGB."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
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


class ImageError(InputError):
    """An image cannot be used. `path` says which one, `reason` why."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


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
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                for name in sorted(files):
                    if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                        found[Path(folder, name)] = None
        elif root.exists():
            found[root] = None
        else:
            raise InputError(f"no such file or folder: {given}")
    return list(found)


def load_image(source: str | Path | IO[bytes]) -> Image.Image:
    """Decode an image file, or an open one, to an RGB picture, upright.

    Any mode that Pillow reads will do: grey, palette, CMYK and 16-bit images are converted,
    transparent ones laid on white, of animated ones the first frame is taken, and the camera's
    orientation is applied. Large images come reduced; ``info["file_size"]`` has the width and
    height of what the file holds. Raises ImageError for what cannot be decoded in full.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "decoding images needs the package 'pillow': pip install 'boxwood[clip]'"
        ) from error

    path = source if isinstance(source, (str, Path)) else getattr(source, "name", "image")
    try:
        with _file(source) as file, _open(Image, file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    path,
                    f"{width} x {height} pixels are more than {MAX_PIXELS // 1_000_000} million; "
                    "reduce the image first",
                )
            shrink = SIDE / max(1, min(width, height))
            if shrink < 1:  # JPEG decodes at a half, a quarter or an eighth for less work
                image.draft(None, (int(width * shrink), int(height * shrink)))
            image.load()
            picture = _rgb(Image, image)
            factor = min(picture.size) // SIDE
            if factor > 1:
                picture = picture.reduce(factor)
            picture = _upright(Image, image, picture)
            turned = (picture.width > picture.height) != (width > height)
            picture.info["file_size"] = (height, width) if turned else (width, height)
            return picture
    except UnidentifiedImageError as error:
        raise ImageError(path, "not an image, or of a kind that Pillow cannot read") from error
    except FileNotFoundError as error:
        raise ImageError(path, "no such file") from error
    except IsADirectoryError as error:
        raise ImageError(path, "a folder, not an image") from error
    except PermissionError as error:
        raise ImageError(path, "no permission to read it") from error
    except MemoryError as error:
        raise ImageError(path, "not enough memory to decode it") from error
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever a broken file drives them to
        reason = str(error).strip() or type(error).__name__
        raise ImageError(path, f"broken image: {reason}") from error


@contextmanager
def _file(source: str | Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(source, (str, Path)):
        yield source
        return
    # Opening a named pipe would wait for somebody to write to it.
    mode = os.stat(source).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError(source, "not a regular file")
    with open(source, "rb") as file:
        yield file


def _open(pillow: Any, source: IO[bytes]) -> Image.Image:
    # Pillow's own limit is a third of ours and belongs to the whole process.
    with _limit:
        before, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None
        try:
            image: Image.Image = pillow.open(source)
            return image
        finally:
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
