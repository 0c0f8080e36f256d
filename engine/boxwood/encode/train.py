"""Training a head on image-text pairs. Needs torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from boxwood.encode.head import DIMS, Head, check_embeddings
from boxwood.errors import InputError

BATCH = 512
RATE = 1e-3
PATIENCE = 8
HELD_OUT = 0.1
MIN_GROUPS = 20
"""Fewer groups than this are all trained on: a held-out tenth of them would say nothing."""


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def train_pairs(
    images: ArrayLike,
    texts: ArrayLike,
    groups: Sequence[object] | NDArray[np.generic] | None = None,
    *,
    hidden: int | None = None,
    koleo: float = 0.1,
    epochs: int = 60,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Head:
    """A head trained on pairs: row i of `images` belongs to row i of `texts`, both ``(n, width)``.

    `groups`, one value a row, says which rows show the same thing (several captions of an image):
    such rows are never each other's negatives, and stay on one side of the held-out split. The head
    is linear, or has one layer of `hidden` units (at least 64).

    The loss is CLIP's symmetric contrastive loss with a learnt temperature, plus `koleo` times the
    KoLeo regulariser (Sablayrolles et al. 2019), which spreads the vectors and so makes better use
    of 8 bits. Training starts from `Head.shared` and keeps the state with the lowest contrastive
    loss on a held-out tenth of the groups; it stops once that has not improved for 8 epochs. It
    runs on one CPU thread, since a head is too small to gain from more: ten thousand pairs take
    seconds. `progress` is called with (epoch, epochs, held-out loss) after each epoch. The same
    arguments give the same head on one machine.
    """
    images = check_embeddings(images, what="image embedding")
    texts = check_embeddings(texts, images.shape[1], "text embedding")
    n, width = images.shape
    if len(texts) != n:
        raise InputError(f"{n} images and {len(texts)} texts are no pairs: pass a text an image")
    if hidden is not None and not 2 * DIMS <= hidden <= 65536:
        raise InputError(f"hidden must be from {2 * DIMS} to 65536 units, not {hidden}")
    if not (math.isfinite(koleo) and koleo >= 0):
        raise InputError(f"koleo must be 0 or more, not {koleo!r}")
    if epochs < 0:
        raise InputError(f"epochs must be 0 or more, not {epochs}")
    group = _numbered(groups, n)
    count = int(group.max()) + 1 if n else 0
    if count < 2:
        raise InputError(f"training needs pairs of at least 2 groups, not {count}")

    rng = np.random.default_rng(seed)
    held = np.zeros(count, bool)
    if count >= MIN_GROUPS:
        held[rng.permutation(count)[: int(count * HELD_OUT)]] = True
    kept, out = np.flatnonzero(~held[group]), np.flatnonzero(held[group])[:4096]

    start = Head.shared(images[kept], texts[kept])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(width, hidden, start)
    scale = torch.nn.Parameter(torch.tensor(math.log(20.0)))
    optimiser = torch.optim.AdamW(
        [
            {"params": network.parameters(), "weight_decay": 1e-2},
            {"params": [scale], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    x = F.normalize(torch.from_numpy(images), dim=1) - torch.from_numpy(start.image_mean.copy())
    y = F.normalize(torch.from_numpy(texts), dim=1) - torch.from_numpy(start.text_mean.copy())
    g = torch.from_numpy(group)
    steps, done = epochs * math.ceil(len(kept) / BATCH), 0

    def contrast(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u, v = F.normalize(network(x[rows]), dim=1), F.normalize(network(y[rows]), dim=1)
        same = g[rows][:, None] == g[rows]
        other = same & ~torch.eye(len(rows), dtype=torch.bool)
        logits = (scale.exp() * u @ v.T).masked_fill(other, -math.inf)
        target = torch.arange(len(rows))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, _koleo(u, same), _koleo(v, same)

    best, best_state, waited = math.inf, copy.deepcopy(network.state_dict()), 0
    for epoch in range(epochs):
        order = rng.permutation(kept)
        for i in range(0, len(order), BATCH):
            rows = torch.from_numpy(order[i : i + BATCH])
            if len(rows) < 2:
                continue
            for params in optimiser.param_groups:
                params["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * done / steps))
            done += 1
            loss, spread, spread_texts = contrast(rows)
            optimiser.zero_grad()
            torch.autograd.backward(loss + koleo * (spread + spread_texts) / 2)
            optimiser.step()
            with torch.no_grad():
                scale.clamp_(0.0, math.log(100.0))
        with torch.no_grad():
            check = torch.from_numpy(out if len(out) else kept[:4096])
            score = float(contrast(check)[0])
        if progress is not None:
            progress(epoch + 1, epochs, score)
        if not len(out) or score < best - 1e-4:
            best, best_state, waited = score, copy.deepcopy(network.state_dict()), 0
        else:
            waited += 1
            if waited >= PATIENCE:
                break
    network.load_state_dict(best_state)
    layers = tuple(
        (layer.weight.detach().numpy().T, layer.bias.detach().numpy())
        for layer in network
        if isinstance(layer, torch.nn.Linear)
    )
    return Head("pairs", start.image_mean, start.text_mean, layers)


def _numbered(groups: Sequence[object] | NDArray[np.generic] | None, n: int) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise InputError(f"there are {n} pairs, but {len(groups)} groups: pass a group a pair")
    number: dict[object, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in list(groups)], np.int64)


def _network(width: int, hidden: int | None, start: Head) -> torch.nn.Sequential:
    """A network that computes just what the head `start` does, ready to be trained."""
    basis = torch.from_numpy(start.layers[0][0].T.copy())
    if hidden is None:
        linear = torch.nn.Linear(width, DIMS)
        with torch.no_grad():
            linear.weight.copy_(basis)
            linear.bias.zero_()
        return torch.nn.Sequential(linear)
    first, last = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, DIMS)
    with torch.no_grad():
        # gelu(x) - gelu(-x) = x: 64 units pass the shared directions through, the others start
        # with no say.
        first.bias.zero_()
        first.weight[:DIMS], first.weight[DIMS : 2 * DIMS] = basis, -basis
        last.weight.zero_()
        last.bias.zero_()
        last.weight[:, :DIMS], last.weight[:, DIMS : 2 * DIMS] = torch.eye(DIMS), -torch.eye(DIMS)
    return torch.nn.Sequential(first, torch.nn.GELU(approximate="tanh"), last)


def _koleo(unit: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """``-1/n sum log min_j |x_i - x_j|`` over unit vectors, rows of one group left out."""
    with torch.no_grad():
        nearest = (unit @ unit.T).masked_fill(same, -2.0).argmax(dim=1)
    distance = (unit - unit[nearest] + 1e-8).norm(dim=1)
    alone = same.all(dim=1)  # a batch of one group has no neighbour to keep away from
    return -torch.log(distance + 1e-6).masked_fill(alone, 0.0).mean()
