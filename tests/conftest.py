"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

import boxwood
from boxwood import cli
from boxwood.encode import Encoder

if TYPE_CHECKING:
    from PIL.Image import Image

ROOT = Path(__file__).resolve().parent.parent

# Whoever starts the tests in the background of a shell has Ctrl-C ignored, here and in all that is
# started from here; but it is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "boxwood", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("thorough", parent=settings.get_profile("boxwood"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "boxwood"))


def clustered_codes(n: int, seed: int = 0, clusters: int = 20) -> NDArray[np.uint8]:
    """Codes (n, 32) in clusters, as those of images are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(127, 40, (clusters, 32))
    rows = centres[rng.integers(clusters, size=n)] + rng.normal(0, 15, (n, 32))
    return np.clip(np.rint(rows), 0, 255).astype(np.uint8)


def clustered_embeddings(n: int, dims: int = 48, seed: int = 0) -> NDArray[np.float32]:
    """Embeddings (n, dims) in clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (12, dims))
    rows = centres[rng.integers(12, size=n)] + rng.normal(0, 0.4, (n, dims))
    return rows.astype(np.float32)


class PlainEncoder(Encoder):
    """An encoder without a network: an image is its 8 x 8 thumbnail, a text its letters."""

    def __init__(self, name: str = "plain", seconds: float = 0.0) -> None:
        self.name = name
        self.dims = 192
        self.fingerprint = f"plain-{name}"
        self.seconds = seconds  # a batch

    def images(self, images: Sequence[Image]) -> NDArray[np.float32]:
        time.sleep(self.seconds)
        pixels = [np.asarray(image.convert("RGB").resize((8, 8)), np.float32) for image in images]
        return np.stack(pixels).reshape(len(images), -1) + 1

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.ones((len(texts), self.dims), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for place, letter in enumerate(text):
                row[(7 * place + ord(letter)) % self.dims] += 3
        return rows

    def default_head(self) -> None:
        return None


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The path of a database that does not exist yet."""
    return tmp_path / "photos.duckdb"


@pytest.fixture
def con(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A Boxwood connection to a new database."""
    connection = boxwood.connect(database)
    yield connection
    connection.close()


@pytest.fixture
def photos(con: duckdb.DuckDBPyConnection) -> boxwood.Collection:
    """A collection of 3,000 ready codes with the ids 0, 3, 6, .. and metadata."""
    collection = boxwood.Collection.create(con, "photos")
    ids = np.arange(3000) * 3
    metadata = {"camera": [f"camera {i % 7}" for i in range(3000)]}
    collection.append(ids, codes=clustered_codes(3000), metadata=metadata)
    return collection


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of evaluation data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("BOXWOOD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs the evaluation data: set BOXWOOD_DATA to its folder")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
