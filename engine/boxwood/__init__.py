"""Search by classification over images, in DuckDB.

`connect` opens a database, `Collection` makes, fills and searches collections of images, `Model` is
what refining learns. Everything that is raised on purpose is an `Error`.
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from boxwood.collection import AddReport, Collection, Refined
from boxwood.connection import connect, load
from boxwood.encode import Encoder, Head, Quantizer
from boxwood.encode.vocabulary import TINY
from boxwood.errors import (
    Cancelled,
    DatabaseLocked,
    Error,
    IndexCorrupt,
    IndexMismatch,
    IndexMissing,
    IndexProblem,
    IndexStale,
    InputError,
    MissingDependency,
    OutOfMemory,
    ReadOnly,
    StorageError,
)
from boxwood.model import Model
from boxwood.native import extension_path
from boxwood.native import version as _native_version

try:
    __version__ = _version("boxwood")
except PackageNotFoundError:  # run from a source tree
    __version__ = _native_version()

__all__ = [
    "TINY",
    "AddReport",
    "Cancelled",
    "Collection",
    "DatabaseLocked",
    "Encoder",
    "Error",
    "Head",
    "IndexCorrupt",
    "IndexMismatch",
    "IndexMissing",
    "IndexProblem",
    "IndexStale",
    "InputError",
    "MissingDependency",
    "Model",
    "OutOfMemory",
    "Quantizer",
    "ReadOnly",
    "Refined",
    "StorageError",
    "__version__",
    "connect",
    "extension_path",
    "load",
]
