"""Fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

import boxwood

ROOT = Path(__file__).resolve().parent.parent

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
