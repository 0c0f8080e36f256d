"""Pictures: from an image of a collection to bytes that a browser may show.

A picture is asked for by the id of a row, never by a path. Its `uri` leads to a file, a member of
a tar shard, a row of a Parquet file or, where that is allowed, an address in the network. What is
found is decoded within limits and encoded again as WebP, so that nothing but pixels reaches the
page: no metadata (a camera's place in the world among them), and nothing that hides in a file that
is an image as well. Small pictures are kept on disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import ipaddress
import os
import re
import shutil
import socket
import ssl
import stat
import tempfile
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath

from boxwood import errors
from boxwood.encode.images import ImageError, load_image
from boxwood.encode.sources import is_tar, open_uri
from boxwood.errors import StorageError
from boxwood.serve.library import Cursor, Refusal
from boxwood.serve.schemas import ErrorBody, Limits, PictureInfo, Upload

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

SIDES = (160, 320, 640)
"""Of thumbnails: their longer side, in pixels."""
LARGE = 2048
"""The longer side, at most, of a picture that is looked at by itself."""
UPLOAD_SIDE = 1024
"""The longer side, at most, of a picture that is kept to search by."""
FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "HEIF",
)  # fmt: skip
"""What is decoded, as Pillow calls it. Others that it knows run programs (EPS) or are no photos."""
_UPLOADED = tuple(name for name in FORMATS if name != "TGA")  # has no mark that tells it from text
_TYPES = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "GIF": "image/gif",
    "WEBP": "image/webp", "BMP": "image/bmp", "TIFF": "image/tiff", "AVIF": "image/avif",
    "JPEG2000": "image/jp2", "HEIF": "image/heif",
}  # fmt: skip
_SMALL = 24_000_000  # pixels; images of more are decoded one at a time, for the memory they take
_CHUNK = 1 << 16
_KEPT_UPLOADS = 30 * 86400  # seconds since it was last used
_HASH = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\u202a-\u202e\u2066-\u2069]')
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_REDIRECTS = 4


class Unavailable(Refusal):
    """A picture cannot be shown: 404. `kind` is one of: missing, outside, remote, not-image,
    damaged, too-large, slow, unreadable, no-uri; the message says why, for people."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(404, kind, reason)


class Found(NamedTuple):
    """Where a picture's bytes are. `path` is the file's own path, free of links, or None for an
    address; `key` changes when the file does."""

    uri: str
    path: str | None
    member: bool
    key: str


class Original(NamedTuple):
    """A stored file, with its media type and a name to save it by."""

    data: bytes
    type: str
    name: str


class Pictures:
    """Finds, decodes and keeps pictures. Methods without `async` work in the calling thread.

    database: keeps thumbnails beside it, in ``<database>.boxwood/thumbnails``, unless `cache` names
        another folder; where neither can be written, in a temporary folder that `close` removes.
    roots: folders; with them, files are sent only from within these, else only from the path that
        is stored, which must not lead through a link. Relative paths are looked for below roots.
    remote: whether pictures at http and https addresses are fetched.
    """

    def __init__(
        self,
        database: str | Path | None,
        *,
        roots: Iterable[str | Path] = (),
        remote: bool = False,
        cache: str | Path | None = None,
        limits: Limits,
    ) -> None:
        self.limits = limits
        self.remote = remote
        self._roots = tuple(os.path.realpath(os.path.expanduser(root)) for root in roots)
        self._temporary: Path | None = None
        self._folder = self._cache_folder(database, cache)
        self._workers = max(2, min(4, os.cpu_count() or 2))
        self._pool = ThreadPoolExecutor(self._workers, "boxwood-picture")
        self._huge = threading.Lock()
        self._sweeping = threading.Lock()
        self._written: int | None = None  # bytes since the cache was last swept; None: never
        self._known: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        self._knowing = threading.Lock()

    def close(self) -> None:
        """Let go of threads and of the temporary folder."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    async def run(self, request: Request, function: Callable[..., T], *args: Any) -> T:
        """`function` in a thread for pictures. It is given up after `limits.seconds` at
        work, and not begun when whoever asked has gone. Raises Unavailable for both. What is given
        up ends soon, so that its thread is there for others: between the members or rows of an
        archive, and before anything is decoded."""
        begun: list[float] = []
        stop = threading.Event()

        def work() -> T:
            begun.append(time.monotonic())
            errors.stopping.set(stop)
            return function(*args)

        future = asyncio.wrap_future(self._pool.submit(work))
        try:
            while True:
                done, _ = await asyncio.wait({future}, timeout=0.1)
                if done:
                    return future.result()
                if begun and time.monotonic() - begun[0] > self.limits.seconds:
                    raise Unavailable("slow", "it takes too long to decode")
                if not begun and await request.is_disconnected():
                    raise Unavailable("slow", "nobody waits for it any more")
        finally:
            stop.set()
            future.cancel()

    # -- what people ask for

    def etag(self, uri: str, side: int) -> str:
        """An entity tag of a picture, found without decoding it. Raises Unavailable."""
        return f'"{self._key(self.locate(uri), side)[:32]}"'

    def picture(self, uri: str, side: int) -> bytes:
        """WebP that fits into `side` x `side` pixels, upright. Raises Unavailable."""
        found = self.locate(uri)
        name = self._key(found, side) + ".webp"
        kept = self._kept(name)
        if kept is not None:
            return kept
        image = self._decode(found, side)[0]
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80 if side <= max(SIDES) else 86, method=2)
        data = buffer.getvalue()
        self._keep(name, data)
        return data

    def describe(self, uri: str) -> PictureInfo:
        """Whether a picture can be shown, the sides and bytes of what is stored, or the reason."""
        try:
            found = self.locate(uri)
            with self._knowing:
                known = self._known.get(found.key)
            if known is None:
                self._decode(found, SIDES[0])
                with self._knowing:
                    known = self._known[found.key]
        except Unavailable as error:
            return PictureInfo(available=False, reason=error.message)
        width, height, size = known
        return PictureInfo(available=True, width=width, height=height, bytes=size)

    def original(self, uri: str) -> Original:
        """The stored bytes, of what decodes as an image in full. Raises Unavailable."""
        found = self.locate(uri)
        image, data = self._decode(found, SIDES[0])
        return Original(
            data, _TYPES.get(image.info["file_format"], "application/octet-stream"), title(uri)
        )

    # -- uploads

    def keep_upload(self, data: bytes) -> tuple[str, int, int]:
        """Keep a picture to search by, re-encoded; its name (a hash), width and height. Raises
        Unavailable for what is no image, StorageError where nothing can be written."""
        image = self._open(io.BytesIO(data), UPLOAD_SIDE, self.limits.upload_pixels, _UPLOADED)
        image = _fit(image, UPLOAD_SIDE)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=92)
        data = buffer.getvalue()
        name = hashlib.sha256(data).hexdigest()
        folder = self._folder / "uploads"
        try:
            folder.mkdir(exist_ok=True)
            self._sweep_uploads(folder)
            _write(folder / f"{name}.jpg", data)
        except OSError as error:
            raise StorageError(
                f"the picture cannot be kept in {folder}: {error.strerror}; name another folder "
                "with --cache"
            ) from error
        return name, image.width, image.height

    def upload(self, name: str) -> bytes:
        """A kept picture, as JPEG. Raises Unavailable where there is none of this name."""
        path = self._folder / "uploads" / f"{name}.jpg"
        if _HASH.fullmatch(name):
            with suppress(OSError):
                data = path.read_bytes()
                os.utime(path)
                return data
        raise Unavailable("missing", "this uploaded picture is not kept any more: upload it again")

    def upload_webp(self, name: str) -> bytes:
        """The same for the page."""
        image = self._open(io.BytesIO(self.upload(name)), SIDES[-1], self.limits.pixels, ("JPEG",))
        buffer = io.BytesIO()
        _fit(image, SIDES[-1]).save(buffer, "WEBP", quality=80, method=2)
        return buffer.getvalue()

    def _sweep_uploads(self, folder: Path) -> None:
        """Remove what was not used for long, and the oldest where it is too much."""
        files = sorted(_files(folder), reverse=True)
        total = 0
        for used, size, path in files:
            total += size
            if used < time.time() - _KEPT_UPLOADS or total > self.limits.kept_bytes:
                with suppress(OSError):
                    os.unlink(path)

    # -- finding

    def locate(self, uri: str | None) -> Found:
        """Where the bytes of a stored uri are; nothing is read yet. Raises Unavailable."""
        if not uri:
            raise Unavailable("no-uri", "the collection does not say where this picture is")
        if "\0" in uri:
            raise Unavailable("missing", "its path holds a zero byte")
        scheme = _SCHEME.match(uri)
        if scheme is not None and scheme[1].lower() != "file":
            return self._locate_address(uri, scheme[1].lower())
        path, member = uri, False
        if scheme is not None:
            parts = urllib.parse.urlsplit(uri)
            if parts.netloc not in ("", "localhost"):
                raise Unavailable("outside", "its address names another machine")
            path = urllib.parse.unquote(parts.path)
        else:
            archive, hash_, name = uri.partition("#")
            packed = is_tar(archive) or archive.lower().endswith(".parquet")
            if hash_ and packed and not os.path.lexists(uri):
                path, member = archive, bool(name)
        real = self._allowed(path)
        try:
            state = os.stat(real)
        except FileNotFoundError as error:
            raise Unavailable("missing", "the file is not there any more") from error
        except OSError as error:
            raise Unavailable("unreadable", _words(error)) from error
        if stat.S_ISDIR(state.st_mode):
            raise Unavailable("not-image", "it is a folder, not an image")
        if not stat.S_ISREG(state.st_mode):
            raise Unavailable("unreadable", "it is not a regular file")
        return Found(uri, real, member, f"{uri}\0{state.st_mtime_ns}\0{state.st_size}")

    def _allowed(self, path: str) -> str:
        """The file's own path, where it may be sent."""
        if self._roots:
            for root in self._roots:
                real = os.path.realpath(os.path.join(root, os.path.expanduser(path)))
                if _within(real, root) and (os.path.isabs(path) or os.path.lexists(real)):
                    return real
            raise Unavailable("outside", "the file is outside of the folders of --root")
        if not os.path.isabs(path):
            raise Unavailable(
                "outside", "its path is not a whole one: say where it begins with --root FOLDER"
            )
        if ".." in Path(path).parts:
            raise Unavailable("outside", "its path leads up through '..'")
        real = os.path.realpath(path)
        if real != os.path.normpath(path):
            raise Unavailable(
                "outside",
                "its path leads through a link to another place: allow that place with "
                "--root FOLDER",
            )
        return real

    def _locate_address(self, uri: str, scheme: str) -> Found:
        if scheme not in ("http", "https"):
            raise Unavailable("remote", f"pictures are not fetched from {scheme}:// addresses")
        if not self.remote:
            raise Unavailable(
                "remote", "it is in the network, and fetching is off: --remote turns it on"
            )
        # Without a date that could be asked for cheaply, a week is how long it counts as the same.
        return Found(uri, None, False, f"{uri}\0{int(time.time()) // (7 * 86400)}")

    # -- reading

    def read(self, found: Found) -> bytes:
        """The stored bytes, image or not. Raises Unavailable."""
        if found.path is None:
            return fetch(found.uri, self.limits.bytes, self.limits.seconds)
        if not found.member:
            with self._open_file(found.path) as file:
                if os.fstat(file.fileno()).st_size > self.limits.bytes:
                    raise self._large()
                return self._whole(file)
        try:
            archive, _, member = found.uri.partition("#")
            # Rows of Parquet files are told by the uri as it is stored.
            uri = f"{found.path}#{member}" if is_tar(archive) else found.uri
            source = open_uri(uri, self.limits.bytes)
        except ImageError as error:
            if error.kind == "decompression bomb":
                raise self._large() from error
            gone = isinstance(error.__cause__, KeyError) or error.reason == "no such row"
            raise Unavailable(
                "missing" if gone else "unreadable",
                "the archive does not hold it any more" if gone else error.reason,
            ) from error
        if not isinstance(source, io.BytesIO):
            raise Unavailable("missing", "the archive has changed")
        return self._whole(source)

    def _open_file(self, real: str) -> IO[bytes]:
        """Open a path that was found to be allowed; what has become a link since is refused."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(real, flags)
        except FileNotFoundError as error:
            raise Unavailable("missing", "the file is not there any more") from error
        except OSError as error:
            raise Unavailable("unreadable", _words(error)) from error
        try:
            state = os.fstat(descriptor)
            same = os.path.realpath(real) == real and os.path.samestat(state, os.stat(real))
            if not same or not stat.S_ISREG(state.st_mode):
                raise Unavailable("outside", "the file was replaced while it was opened")
            return os.fdopen(descriptor, "rb")
        except OSError as error:
            os.close(descriptor)
            raise Unavailable("unreadable", _words(error)) from error
        except BaseException:
            os.close(descriptor)
            raise

    def _whole(self, file: IO[bytes]) -> bytes:
        try:
            data = file.read(self.limits.bytes + 1)
        except OSError as error:
            raise Unavailable("unreadable", _words(error)) from error
        if len(data) > self.limits.bytes:
            raise self._large()
        return data

    def _large(self) -> Unavailable:
        return Unavailable("too-large", f"the file is larger than {self.limits.bytes >> 20} MiB")

    def _decode(self, found: Found, side: int) -> tuple[Image, bytes]:
        data = self.read(found)
        errors.check_stopped()
        image = self._open(io.BytesIO(data), side, self.limits.pixels, FORMATS)
        kind = image.info["file_format"]
        with self._knowing:
            self._known[found.key] = (*image.info["file_size"], len(data))
            while len(self._known) > 4096:
                self._known.popitem(last=False)
        image = _fit(image, side)
        image.info["file_format"] = kind
        return image, data

    def _open(self, file: IO[bytes], side: int, pixels: int, formats: tuple[str, ...]) -> Image:
        try:
            try:
                return load_image(file, longer=side, pixels=min(pixels, _SMALL), formats=formats)
            except ImageError as error:
                if error.kind != "decompression bomb" or pixels <= _SMALL:
                    raise
            with self._huge:
                file.seek(0)
                return load_image(file, longer=side, pixels=pixels, formats=formats)
        except ImageError as error:
            kind = {"decompression bomb": "too-large", "not an image": "not-image"}
            raise Unavailable(kind.get(error.kind, "damaged"), error.reason) from error

    # -- what is kept on disk

    def _cache_folder(self, database: str | Path | None, cache: str | Path | None) -> Path:
        wanted = None if cache is None else Path(cache).expanduser()
        if wanted is None and database is not None and str(database) != ":memory:":
            beside = Path(f"{database}.boxwood")
            wanted = beside / "thumbnails"
        if wanted is not None:
            with suppress(OSError):
                wanted.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=wanted):
                    return wanted
        try:
            self._temporary = Path(tempfile.mkdtemp(prefix="boxwood-pictures-"))
        except OSError:  # then nothing is kept
            return wanted or Path(os.devnull)
        return self._temporary

    def _key(self, found: Found, side: int) -> str:
        return hashlib.sha256(f"1\0{side}\0{found.key}".encode("utf-8", "replace")).hexdigest()

    def _kept(self, name: str) -> bytes | None:
        path = self._folder / name[:2] / name
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # says when it was last used, to the hour
            if path.stat().st_mtime < time.time() - 3600:
                os.utime(path)
        return data

    def _keep(self, name: str, data: bytes) -> None:
        with suppress(OSError):  # a full disk costs time, nothing else
            folder = self._folder / name[:2]
            folder.mkdir(exist_ok=True)
            _write(folder / name, data)
            if self._written is not None:
                self._written += len(data)
            if self._written is None or self._written > self.limits.cache_bytes // 16:
                self.sweep()

    def sweep(self) -> None:
        """Remove what was not used for longest, until the cache fits into `limits.cache_bytes`."""
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            self._written = 0
            files = [
                file
                for folder in os.scandir(self._folder)
                if len(folder.name) == 2 and folder.is_dir(follow_symlinks=False)
                for file in _files(folder.path)
            ]
            total = sum(size for _, size, _ in files)
            if total <= self.limits.cache_bytes:
                return
            for _, size, path in sorted(files):
                with suppress(OSError):
                    os.unlink(path)
                total -= size
                if total <= self.limits.cache_bytes * 7 // 8:
                    break
        finally:
            self._sweeping.release()


def _files(folder: str | os.PathLike[str]) -> list[tuple[float, int, str]]:
    """When each file of a folder was last used, its bytes and path."""
    found = []
    for entry in os.scandir(folder):
        with suppress(OSError):
            state = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(state.st_mode):
                found.append((state.st_mtime, state.st_size, entry.path))
    return found


def _write(path: Path, data: bytes) -> None:
    """A file whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _fit(image: Image, side: int) -> Image:
    """The picture within `side` x `side`, in the colours that screens show, with nothing beside
    its pixels."""
    from PIL import Image as pillow

    profile = image.info.get("icc_profile")
    if max(image.size) > side:
        image.thumbnail((side, side), pillow.Resampling.LANCZOS, reducing_gap=2.0)
    if profile:
        with suppress(Exception):  # a damaged profile, or one of other colours than RGB
            from PIL import ImageCms

            image = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            ) or image  # fmt: skip
    image.info = {}
    return image


def _within(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _words(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "there is no permission to read it"
    return f"it cannot be read: {error.strerror or error}"


def title(uri: str) -> str:
    """The last part of a uri: what people call the picture."""
    end = uri if not _SCHEME.match(uri) else urllib.parse.unquote(urllib.parse.urlsplit(uri).path)
    return re.split(r"[/\\#]", end.rstrip("/\\#"))[-1] or uri


def safe_name(name: str) -> str:
    """A file name that no system takes for anything but a name, of 150 bytes at most."""
    name = _UNSAFE.sub("_", name)
    name = name.encode("utf-8", "replace").decode("utf-8").strip(" .")
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix) > 10:
        stem, dot, suffix = name, "", ""
    stem = stem.encode()[:150].decode("utf-8", "ignore").strip(" .")
    if not stem or re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", stem):
        stem = f"picture_{stem}" if stem else "picture"
    return stem + dot + suffix


def attachment(name: str) -> str:
    """The header Content-Disposition that saves a file by this name."""
    name = safe_name(name)
    plain = re.sub(r"[^A-Za-z0-9 ._()-]", "_", name)
    encoded = urllib.parse.quote(name, safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


# --- addresses in the network ---------------------------------------------------------------------


def public(address: str) -> bool:
    """Whether an IP address is one of the open network: not of this machine, nor of a private
    net, nor one that leads there by another notation."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.teredo is not None or (inner is not None and not public(str(inner))):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _resolved(host: str, port: int) -> str:
    """The address to connect to. All that a name stands for must be public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable("remote", f"there is no machine of the name {host}") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(public, addresses)):
        raise Unavailable("remote", f"{host} is no address of the open network")
    return addresses[0]


def fetch(uri: str, most: int, seconds: float) -> bytes:
    """The body at an http or https address, of `most` bytes, within `seconds`. The address that was
    checked is the one that is connected to, at each redirection. Raises Unavailable."""
    end = time.monotonic() + seconds
    try:
        for _ in range(_REDIRECTS + 1):
            data, onward = _get(uri, most, end)
            if data is not None:
                return data
            uri = urllib.parse.urljoin(uri, onward)
        raise Unavailable("remote", "its address leads on and on")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable("remote", f"it cannot be fetched: {str(error) or 'no answer'}") from error


def _get(uri: str, most: int, end: float) -> tuple[bytes | None, str]:
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise Unavailable("remote", "its address is not a plain http or https one")
    if re.search(r"[\x00-\x20\x7f]", uri):
        raise Unavailable("remote", "its address holds a space or control character")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = _resolved(parts.hostname, port)
    left = end - time.monotonic()
    if left <= 0:
        raise Unavailable("slow", "it takes too long to fetch")
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=min(left, 10.0))
    sock = socket.create_connection((address, port), timeout=min(left, 10.0))
    if secure:
        sock = ssl.create_default_context().wrap_socket(
            sock, server_hostname=parts.hostname, do_handshake_on_connect=False
        )
    # Closing the socket ends every read, also of a server that sends a byte a second.
    timer = threading.Timer(left, _hang_up, [sock])
    timer.daemon = True
    timer.start()
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        connection.sock = sock
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        connection.request(
            "GET", target, headers={"Accept": "image/*", "User-Agent": "boxwood",
                                    "Connection": "close"},
        )  # fmt: skip
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308):
            return None, answer.getheader("Location") or ""
        if answer.status != 200:
            raise Unavailable("remote", f"its server answered {answer.status}")
        data = bytearray()
        while chunk := answer.read(_CHUNK):
            data += chunk
            if len(data) > most:
                raise Unavailable("too-large", f"the file is larger than {most >> 20} MiB")
            if time.monotonic() > end:
                raise Unavailable("slow", "it takes too long to fetch")
        return bytes(data), ""
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() > end:
            raise Unavailable("slow", "it takes too long to fetch") from error
        raise
    finally:
        timer.cancel()
        connection.close()
        sock.close()


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


# --- routes ---------------------------------------------------------------------------------------

router = APIRouter(tags=["pictures"])


class Side(IntEnum):
    """The longer side of a thumbnail, in pixels."""

    SMALL, MIDDLE, BIG = SIDES


_WEBP: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}},
        "description": "the picture, upright, without metadata",
    },
    304: {"description": "it is the one that If-None-Match names"},
    404: {"model": ErrorBody, "description": "it cannot be shown; the message says why"},
}
_CACHING = "private, max-age=300"
Name = Annotated[str, InPath(alias="c", max_length=200, description="the collection")]
Number = Annotated[int, InPath(alias="id", ge=0, le=2**63 - 1, description="the image's id")]


async def _uri(
    request: Request, cursor: Cursor, name: str, number: int, *, recall: bool = True
) -> str | None:
    found: str | None = await request.app.state.library.run(
        request, lambda: cursor.uri(name, number, recall=recall)
    )
    return found


async def _answer(request: Request, uri: str | None, side: int) -> Response:
    pictures: Pictures = request.app.state.pictures
    if not uri:
        raise Unavailable("no-uri", "the collection does not say where this picture is")
    tag = await pictures.run(request, pictures.etag, uri, side)
    headers = {"ETag": tag, "Cache-Control": _CACHING}
    known = request.headers.get("if-none-match", "")
    if tag in [part.strip().removeprefix("W/") for part in known.split(",")]:
        return Response(status_code=304, headers=headers)
    data = await pictures.run(request, pictures.picture, uri, side)
    return Response(data, media_type="image/webp", headers=headers)


@router.get(
    "/collections/{c}/images/{id}/thumbnail", summary="A small picture", responses=_WEBP,
    response_class=Response,
)  # fmt: skip
async def thumbnail(
    request: Request, cursor: Cursor, c: Name, id: Number, side: Side = Side.MIDDLE
) -> Response:
    return await _answer(request, await _uri(request, cursor, c, id), side)


@router.get(
    "/collections/{c}/images/{id}/picture", summary="A picture that fits a screen",
    responses=_WEBP, response_class=Response,
)  # fmt: skip
async def picture(request: Request, cursor: Cursor, c: Name, id: Number) -> Response:
    return await _answer(request, await _uri(request, cursor, c, id), LARGE)


@router.get(
    "/collections/{c}/images/{id}/original",
    summary="The stored file, if it is an image, to be saved",
    response_class=Response,
    responses={
        200: {
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
            "description": "the file as it is, with its metadata",
        },
        404: {"model": ErrorBody, "description": "it cannot be shown; the message says why"},
    },
)
async def original(request: Request, cursor: Cursor, c: Name, id: Number) -> Response:
    pictures: Pictures = request.app.state.pictures
    uri = await _uri(request, cursor, c, id, recall=False)
    if not uri:
        raise Unavailable("no-uri", "the collection does not say where this picture is")
    found = await pictures.run(request, pictures.original, uri)
    return Response(
        found.data, media_type=found.type,
        headers={"Content-Disposition": attachment(found.name), "Cache-Control": "no-store"},
    )  # fmt: skip


@router.post(
    "/uploads",
    summary="Keep a picture to search by",
    status_code=201,
    responses={
        400: {"model": ErrorBody, "description": "it is no image"},
        413: {"model": ErrorBody, "description": "it is too large"},
        415: {"model": ErrorBody, "description": "the Content-Type is not that of an image"},
        429: {"model": ErrorBody, "description": "too many a minute"},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(request: Request) -> Upload:
    pictures: Pictures = request.app.state.pictures
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/"):
        raise Refusal(415, "input", "send the bytes of one image, with its Content-Type: image/..")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > pictures.limits.upload_bytes:
            most = pictures.limits.upload_bytes >> 20
            raise Refusal(413, "too-large", f"images of {most} MiB at most")
    try:
        name, width, height = await pictures.run(request, pictures.keep_upload, bytes(body))
    except Unavailable as error:
        status = 413 if error.kind == "too-large" else 400
        raise Refusal(status, error.kind, error.message) from error
    return Upload(upload=name, width=width, height=height)


@router.get("/uploads/{upload}", summary="A kept picture", responses=_WEBP, response_class=Response)
async def uploaded(
    request: Request, upload: Annotated[str, InPath(pattern="^[0-9a-f]{64}$")]
) -> Response:
    pictures: Pictures = request.app.state.pictures
    data = await pictures.run(request, pictures.upload_webp, upload)
    return Response(data, media_type="image/webp", headers={"Cache-Control": _CACHING})
