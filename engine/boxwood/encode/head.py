"""The head: the map from an encoder's embedding to 32 or 128 dimensions, in numpy alone."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boxwood.encode.distil import STEPS, distilled
from boxwood.errors import InputError, StorageError

DIMS = 32
"""Dimensions of a head's output, and bytes of a code."""
FINE_DIMS = 128
"""The same of a fine code."""

KINDS = ("pca", "shared", "pairs", "neighbours", "identity")
ACTIVATIONS = ("gelu", "relu")
MAX_INPUT = 65536
MAX_LAYERS = 8

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

_VERSION = 1
_BLOCK = 16384
_DISTILLED = 32768


def check_embeddings(values: ArrayLike, dims: int | None = None, what: str = "embedding") -> Floats:
    """Embeddings as float32 of shape ``(n, dims)`` in C order, or InputError.

    Refused are: integers, another width, NaN, infinity and zero vectors. The message names the
    first bad row, counted from 0.
    """
    array = np.asarray(values)
    if array.dtype.kind != "f":
        raise InputError(f"{what}s must be floats, not {array.dtype}")
    if array.ndim != 2:
        raise InputError(f"{what}s must have the shape (rows, dimensions), not {array.shape}")
    if dims is not None and array.shape[1] != dims:
        raise InputError(f"{what}s have {array.shape[1]} dimensions, but {dims} are expected")
    if array.shape[1] == 0:
        raise InputError(f"{what}s have no dimensions")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(array, np.float32)
    for start in range(0, len(floats), _BLOCK):
        norms = _norms(floats[start : start + _BLOCK])
        bad = ~(np.isfinite(norms) & (norms > 1e-30))
        if bad.any():
            row = start + int(bad.argmax())
            if np.isfinite(floats[row]).all():
                raise InputError(f"the {what} in row {row} is zero: it has no direction")
            raise InputError(f"the {what} in row {row} holds a NaN or infinite value")
    return floats


def _norms(rows: Floats) -> Matrix:
    wide = rows.astype(np.float64)
    norms: Matrix = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return norms


def _normalise(rows: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays one."""
    norms = _norms(rows)
    norms[norms < 1e-30] = 1.0
    return (rows / norms[:, None]).astype(np.float32)


def _gelu(x: Floats) -> Floats:
    # The tanh form: numpy has no erf.
    inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)), np.float32)


@dataclass(frozen=True, eq=False)
class Head:
    """Centre, map, normalise: an embedding of ``width`` dimensions becomes a unit vector of
    ``dims``: 32, or 128 for fine codes.

    An encoder's image and text vectors lie apart (the modality gap), so each modality has a mean of
    its own, and both share the map: `layers`, pairs of a matrix ``(inputs, outputs)`` and a bias
    ``(outputs,)``, with `activation` between them. Embeddings are normalised first, so their length
    does not matter. Heads are equal when their fingerprints are.
    """

    kind: str
    image_mean: Floats
    text_mean: Floats
    layers: tuple[tuple[Floats, Floats], ...] = ()
    activation: str = "gelu"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a head's kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"a head's activation is one of {', '.join(ACTIVATIONS)}, not {self.activation!r}"
            )
        if len(self.layers) > MAX_LAYERS:
            raise InputError(f"a head has at most {MAX_LAYERS} layers, not {len(self.layers)}")
        means = [_frozen(mean, 1, "mean") for mean in (self.image_mean, self.text_mean)]
        layers = tuple((_frozen(w, 2, "matrix"), _frozen(b, 1, "bias")) for w, b in self.layers)
        width = len(means[0])
        if len(means[1]) != width or not 1 <= width <= MAX_INPUT:
            raise InputError("a head's means must both have the encoder's number of dimensions")
        for number, (matrix, bias) in enumerate(layers):
            if matrix.shape != (width, len(bias)):
                raise InputError(
                    f"layer {number} of the head maps {matrix.shape} with {len(bias)} biases, "
                    f"but gets {width} inputs"
                )
            width = len(bias)
        if width not in (DIMS, FINE_DIMS):
            raise InputError(
                f"a head must put out {DIMS} dimensions, or {FINE_DIMS} for fine codes, not {width}"
            )
        object.__setattr__(self, "image_mean", means[0])
        object.__setattr__(self, "text_mean", means[1])
        object.__setattr__(self, "layers", layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Head) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Head({self.kind!r}, {self.width} -> {self.dims}, {self.fingerprint})"

    @property
    def width(self) -> int:
        """Dimensions of the embeddings that the head takes."""
        return len(self.image_mean)

    @property
    def dims(self) -> int:
        """Dimensions of what the head puts out: 32 or 128."""
        return len(self.layers[-1][1]) if self.layers else self.width

    def images(self, embeddings: ArrayLike) -> Floats:
        """Image embeddings ``(n, width)`` to unit vectors ``(n, dims)``."""
        return map_images([self], embeddings)[0]

    def texts(self, embeddings: ArrayLike) -> Floats:
        """Text embeddings ``(n, width)`` to unit vectors ``(n, dims)``."""
        return map_texts([self], embeddings)[0]

    def _map(self, centred: Floats) -> Floats:
        x = centred
        for number, (matrix, bias) in enumerate(self.layers):
            if number:
                x = _gelu(x) if self.activation == "gelu" else np.maximum(x, 0)
            x = x @ matrix + bias
        return _normalise(x)

    # --- fitting --------------------------------------------------------------------------------

    @classmethod
    def identity(cls) -> Head:
        """For embeddings that have 32 dimensions already: normalises them, and nothing else."""
        zero = np.zeros(DIMS, np.float32)
        return cls("identity", zero, zero)

    @classmethod
    def pca(cls, images: ArrayLike, texts: ArrayLike | None = None, dims: int = DIMS) -> Head:
        """The `dims` directions, 32 or 128, in which image embeddings vary most, turned to axes
        along which they vary equally, which is best for 8 bits.

        Texts, where there are some, give the mean by which texts are centred, and nothing else.
        """
        image_mean, covariance = _moments(images, "image embedding")
        text_mean = image_mean
        if texts is not None:
            text_mean, _ = _moments(texts, "text embedding", len(image_mean))
        basis = _orthonormal([_principal(covariance)], dims)
        return cls._linear("pca", image_mean, text_mean, _balanced(basis, covariance))

    @classmethod
    def shared(
        cls,
        images: ArrayLike,
        texts: ArrayLike,
        a: float = 0.25,
        dims: int = DIMS,
        steps: int = STEPS,
    ) -> Head:
        """The `dims` directions, 32 or 128, that images and texts share, turned and stretched so
        that what texts and images are near to stays near. The two need not be pairs: any few
        thousand phrases do as texts (`boxwood.encode.vocabulary`).

        It starts from the leading left singular vectors of ``Ci^(1-a) Ct^a``, with Ci and Ct the
        covariances of image and of text embeddings: a direction counts as much as images and texts
        both vary along it. ``a=0`` is the PCA of the images, ``a=1`` that of the texts. Then come
        `steps` steps of `boxwood.encode.distil`, some seconds whatever the number of rows; with
        ``steps=0`` the directions are those of the start. The axes are such that images vary
        equally along them, which is best for 8 bits.
        """
        if not 0 <= a <= 1:
            raise InputError(f"a must be from 0 to 1, not {a!r}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InputError(f"steps must be a whole number, 0 or more, not {steps!r}")
        image_mean, image_cov = _moments(images, "image embedding")
        text_mean, text_cov = _moments(texts, "text embedding", len(image_mean))
        product = _power(image_cov, 1 - a) @ _power(text_cov, a)
        left, values, _ = np.linalg.svd(product)
        # Where images and texts share fewer directions, those of the images come next.
        shared = left[:, values > values[0] * 1e-9] if values[0] > 0 else left[:, :0]
        basis = _orthonormal([shared, _principal(image_cov), _principal(text_cov)], dims)
        if steps and dims < len(image_mean):  # else nothing is lost, and nothing to be won back
            rows = _around(images, image_mean), _around(texts, text_mean)
            basis = distilled(basis, *rows, steps)
        return cls._linear("shared", image_mean, text_mean, _balanced(basis, image_cov))

    def finer(self, images: ArrayLike, texts: ArrayLike | None = None) -> Head:
        """A head of 128 dimensions to go beside this one, with the same means: the directions that
        `images` share with `texts`, or, for a head of kind 'pca' and without texts, those of `pca`.
        Embeddings of fewer than 128 dimensions are mapped, and zeros follow."""
        if self.kind == "pca" or texts is None:
            fitted = Head.pca(images, texts, FINE_DIMS)
        else:
            # 128 directions lose little by themselves, and refined sets gain nothing by the steps.
            fitted = Head.shared(images, texts, dims=FINE_DIMS, steps=0)
        if fitted.width != self.width:
            raise InputError(
                f"embeddings have {fitted.width} dimensions, but {self.width} are expected"
            )
        return replace(fitted, image_mean=self.image_mean, text_mean=self.text_mean)

    @classmethod
    def _linear(cls, kind: str, image_mean: Matrix, text_mean: Matrix, basis: Matrix) -> Head:
        matrix = basis.astype(np.float32)
        return cls(kind, image_mean.astype(np.float32), text_mean.astype(np.float32),
                   ((matrix, np.zeros(matrix.shape[1], np.float32)),))  # fmt: skip

    # --- bytes ----------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ between heads."""
        digest = hashlib.sha256(f"{_VERSION} {self.kind} {self.activation}".encode())
        for array in self._arrays().values():
            digest.update(struct.pack(f"<{array.ndim + 1}q", array.ndim, *array.shape))
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def _arrays(self) -> dict[str, Floats]:
        arrays = {"image_mean": self.image_mean, "text_mean": self.text_mean}
        for number, (matrix, bias) in enumerate(self.layers):
            arrays[f"matrix{number}"], arrays[f"bias{number}"] = matrix, bias
        return arrays

    def to_bytes(self) -> bytes:
        """The head as an ``.npz`` archive without pickles; equal heads give equal bytes."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            "version": np.array(_VERSION, "<i4"),
            "kind": np.array(self.kind),
            "activation": np.array(self.activation),
            "fingerprint": np.array(self.fingerprint),
            **{name: array.astype("<f4") for name, array in self._arrays().items()},
        }
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """The inverse of `to_bytes`; raises InputError for anything else."""
        try:
            if not data.startswith(b"PK"):  # of which NumPy would say that it may be a pickle
                raise ValueError("they are no .npz archive")
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                names = set(archive.files)
                if len(names) > 2 * MAX_LAYERS + 6:
                    raise ValueError("too many arrays")
                version = int(archive["version"])
                if version != _VERSION:
                    raise ValueError(f"version {version}, but this Boxwood reads {_VERSION}")
                layers: list[tuple[Floats, Floats]] = []
                while f"matrix{len(layers)}" in names:
                    number = len(layers)
                    layers.append((archive[f"matrix{number}"], archive[f"bias{number}"]))
                head = cls(
                    str(archive["kind"]), archive["image_mean"], archive["text_mean"],
                    tuple(layers), str(archive["activation"]),
                )  # fmt: skip
                if str(archive["fingerprint"]) != head.fingerprint:
                    raise ValueError("its fingerprint is another")
        except (
            ArithmeticError, AttributeError, EOFError, KeyError, MemoryError, NotImplementedError,
            OSError, RuntimeError, SyntaxError, TypeError, ValueError,
            struct.error, zipfile.BadZipFile, zlib.error,
        ) as error:  # fmt: skip
            raise InputError(f"these bytes are no head, or a damaged one: {error}") from error
        return head

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a head file, `to_bytes`; by habit its name ends in ``.head.npz``."""
        try:
            Path(path).expanduser().write_bytes(self.to_bytes())
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Head:
        """Read a head file; raises InputError for what is none, StorageError where it cannot be
        read."""
        try:
            data = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise StorageError(
                f"cannot read the head file {path}: {error.strerror or error}"
            ) from error
        try:
            return cls.from_bytes(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def map_images(heads: Sequence[Head], embeddings: ArrayLike) -> list[Floats]:
    """What each of several heads of one width makes of image embeddings ``(n, width)``: unit
    vectors ``(n, head.dims)``."""
    return _map_all(heads, embeddings, [head.image_mean for head in heads], "image embedding")


def map_texts(heads: Sequence[Head], embeddings: ArrayLike) -> list[Floats]:
    """The same of text embeddings."""
    return _map_all(heads, embeddings, [head.text_mean for head in heads], "text embedding")


def _map_all(
    heads: Sequence[Head], embeddings: ArrayLike, means: Sequence[Floats], what: str
) -> list[Floats]:
    rows = check_embeddings(embeddings, heads[0].width, what)
    outs = [np.empty((len(rows), head.dims), np.float32) for head in heads]
    for start in range(0, len(rows), _BLOCK):
        x = _normalise(rows[start : start + _BLOCK])
        for head, mean, out in zip(heads, means, outs, strict=True):
            out[start : start + _BLOCK] = head._map(x - mean)
    return outs


def _frozen(values: Any, ndim: int, what: str) -> Floats:
    array = np.array(values, np.float32, order="C")
    if array.ndim != ndim:
        raise InputError(f"a head's {what} must have {ndim} dimension(s), not {array.ndim}")
    if not np.isfinite(array).all():
        raise InputError(f"a head's {what} holds a NaN or infinite value")
    array.flags.writeable = False
    return array


def _moments(embeddings: ArrayLike, what: str, width: int | None = None) -> tuple[Matrix, Matrix]:
    """Mean and covariance of normalised embeddings, in float64 and in blocks."""
    rows = check_embeddings(embeddings, width, what)
    if len(rows) == 0:
        raise InputError(f"cannot fit a head to no {what}s: pass at least one row")
    blocks: Sequence[slice] = [slice(i, i + _BLOCK) for i in range(0, len(rows), _BLOCK)]
    mean = np.zeros(rows.shape[1])
    for block in blocks:
        mean += _normalise(rows[block]).sum(0, dtype=np.float64)
    mean /= len(rows)
    covariance = np.zeros((len(mean), len(mean)))
    for block in blocks:
        centred = _normalise(rows[block]).astype(np.float64) - mean
        covariance += centred.T @ centred
    return mean, covariance / len(rows)


def _around(embeddings: ArrayLike, mean: Matrix) -> Floats:
    """Some of the embeddings, checked before: normalised, around their mean, normalised again."""
    rows = np.asarray(embeddings)
    rows = rows[:: max(1, -(-len(rows) // _DISTILLED))]
    out = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = _normalise(np.asarray(rows[start : start + _BLOCK], np.float32))
        out[start : start + _BLOCK] = _normalise((block - mean).astype(np.float32))
    return out


def _balanced(matrix: Matrix, covariance: Matrix) -> Matrix:
    """The map with its output turned so that images of that covariance vary as much along one axis
    as along any other; distances stay as they are. One scale then fits all axes, and 8 bits lose
    less (as in Jegou et al. 2010, by a random rotation). The axes are those of the PCA of the
    output, times a Hadamard matrix. Where axes have to stay empty, nothing is turned.
    """
    dims = matrix.shape[1]
    if dims > len(matrix):
        return matrix
    vectors = np.linalg.eigh(matrix.T @ covariance @ matrix)[1]
    turned = matrix @ vectors / np.linalg.norm(matrix, 2)
    largest = np.take_along_axis(turned, np.abs(turned).argmax(axis=0)[None], axis=0)
    turned *= np.where(largest < 0, -1.0, 1.0)  # of the two signs always the same
    hadamard = np.ones((1, 1))
    while len(hadamard) < dims:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    out: Matrix = turned @ hadamard / math.sqrt(dims)
    return out


def _power(covariance: Matrix, exponent: float) -> Matrix:
    """A power of a positive semi-definite matrix; rounding may have left values just below 0."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.clip(values, 0, None)
    return np.asarray((vectors * values**exponent) @ vectors.T, np.float64)


def _principal(covariance: Matrix) -> Matrix:
    """Eigenvectors with a positive eigenvalue, largest first, as columns."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept: Matrix = vectors[:, values > max(values[0], 0) * 1e-9]
    return kept


def _orthonormal(candidates: Sequence[Matrix], dims: int) -> Matrix:
    """`dims` orthonormal columns: the candidates in order, then coordinate axes.

    A column that earlier ones already span is passed over. Signs are fixed (the largest component
    is positive). Embeddings of fewer than `dims` dimensions get zero columns at the end.
    """
    width = len(candidates[0])
    basis = np.zeros((width, dims))
    count = 0
    for column in (*(c for matrix in candidates for c in matrix.T), *np.eye(width)):
        if count == min(dims, width):
            break
        rest = column
        for _ in range(2):  # twice is enough (Kahan), for columns close to the span
            rest = rest - basis @ (basis.T @ rest)
        norm = np.linalg.norm(rest)
        if norm > 1e-4 * np.linalg.norm(column):
            rest = rest / norm
            basis[:, count] = rest * np.sign(rest[np.abs(rest).argmax()])
            count += 1
    return basis
