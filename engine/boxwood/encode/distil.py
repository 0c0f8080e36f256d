"""Fitting a linear map to 32 dimensions so that what is near in all dimensions stays near."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

STEPS = 800
_QUERIES, _BATCH = 128, 512
# The higher a temperature, the further away are the images that count. Words are nearly as far from
# the images that they mean as from others, so they need a lower one.
_WARM_IMAGES, _WARM_TEXTS = 0.07, 0.03
_RATE, _RATE_SCALE = 0.07, 0.01
_FAR = np.float32(-1e4)


def distilled(
    start: NDArray[np.float64], images: Floats, texts: Floats, steps: int = STEPS, seed: int = 0
) -> NDArray[np.float64]:
    """A map ``(width, dims)``, found from `start` of that shape, for unit vectors `images` and
    `texts`, both ``(n, width)``, each around its own mean; they need not be pairs.

    An image, or a text, asks for images: the softmax of its cosines to a batch of them, in all
    dimensions, is what the softmax of the cosines after the map has to come close to, by the
    Kullback-Leibler divergence. That is stochastic neighbour embedding (Hinton and Roweis 2002) of
    a map rather than of points, and distillation of similarities (Fang et al. 2021, "SEED") without
    a network. Adam, a rate that falls with a cosine; the student's two temperatures are learnt.
    In numpy, so that a head can be fitted where there is no torch: seconds on a CPU, however many
    rows there are. The same arguments give the same map on one machine.
    """
    rng = np.random.default_rng(seed)
    matrix = start.astype(np.float32)
    heat = np.log(0.7 / np.array([_WARM_IMAGES, _WARM_TEXTS]))
    adam, adam_heat = _Adam(matrix), _Adam(heat)
    batch, asking = min(_BATCH, len(images)), min(_QUERIES, len(texts))
    own = np.arange(min(_QUERIES, batch))
    for step in range(steps):
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        x = images[rng.choice(len(images), batch, replace=False)]
        y = texts[rng.choice(len(texts), asking, replace=False)]
        (u, u_size), (v, v_size) = _unit(x @ matrix), _unit(y @ matrix)
        queries, asked = x[: len(own)], u[: len(own)]

        wanted = queries @ x.T / np.float32(_WARM_IMAGES)
        wanted[own, own] = _FAR  # an image is no neighbour of itself
        got = asked @ u.T
        slope, warm_images = _divergence(wanted, got, heat[0], own)
        du = slope.T @ asked
        du[: len(own)] += slope @ u

        got = v @ u.T
        slope, warm_texts = _divergence(y @ x.T / np.float32(_WARM_TEXTS), got, heat[1])
        du += slope.T @ v
        dv = slope @ u

        gradient = x.T @ _through(du, u, u_size) + y.T @ _through(dv, v, v_size)
        matrix -= adam.step(gradient) * np.float32(_RATE / math.sqrt(len(matrix)) * fall)
        heat -= adam_heat.step(np.array([warm_images, warm_texts])) * _RATE_SCALE * fall
    return matrix.astype(np.float64)


class _Adam:
    """Adam (Kingma and Ba 2015): the direction of each step, before the rate."""

    def __init__(self, like: NDArray[np.floating]) -> None:
        self._first, self._second = np.zeros_like(like), np.zeros_like(like)
        self._count = 0

    def step(self, gradient: NDArray[np.floating]) -> NDArray[np.floating]:
        self._count += 1
        self._first += 0.1 * (gradient - self._first)
        self._second += 0.001 * (gradient * gradient - self._second)
        first = self._first / (1 - 0.9**self._count)
        second = self._second / (1 - 0.999**self._count)
        out: NDArray[np.floating] = first / (np.sqrt(second) + 1e-8)
        return out


def _unit(rows: Floats) -> tuple[Floats, Floats]:
    """Rows of length 1, and what they were divided by."""
    size: Floats = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    unit: Floats = rows / size
    return unit, size


def _through(slope: Floats, unit: Floats, size: Floats) -> Floats:
    """The gradient by rows, from that by the rows made unit."""
    out: Floats = (slope - unit * np.einsum("ij,ij->i", slope, unit)[:, None]) / size
    return out


def _softmax(rows: Floats) -> Floats:
    rows = rows - rows.max(axis=1, keepdims=True)
    np.exp(rows, out=rows)
    rows /= rows.sum(axis=1, keepdims=True)
    return rows


def _divergence(
    wanted: Floats, cosines: Floats, heat: float, own: NDArray[np.int64] | None = None
) -> tuple[Floats, float]:
    """The gradients of the mean divergence by the cosines and by the logarithm of the scale."""
    scale = np.float32(math.exp(heat))
    logits = cosines * scale
    if own is not None:
        logits[own, own] = _FAR
    slope = (_softmax(logits) - _softmax(wanted)) * (scale / np.float32(len(wanted)))
    return slope, float(np.einsum("ij,ij->", slope, cosines))
