"""Training heads: on image-text pairs, or without pairs to keep neighbours. Needs torch.

Both trainings are of one make. They start from a fitted head, so that they can only gain on it;
hold a tenth of the rows out; go on until the loss of those has not improved for 8 epochs; and give
back the best state. The encoder is frozen: embeddings go in. The same arguments give the same head
on one machine, and after an interruption a checkpoint gives it too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from boxwood.encode.groups import held_out, numbered, same_rows
from boxwood.encode.head import DIMS, FINE_DIMS, MAX_LAYERS, Floats, Head, check_embeddings
from boxwood.errors import InputError, StorageError

Device = Literal["auto", "cpu", "cuda"]
Progress = Callable[[int, int, float, float], None]
"""Called after each epoch with (epoch, epochs, held-out loss, loss of as many trained rows)."""

BATCH = 512
RATE = 1e-3
PATIENCE = 8
MAX_HIDDEN = 65536

_CHECK_ROWS = 4096
_CHECKPOINT = 1
_SMALL = 2_000_000
"""Networks of fewer parameters gain nothing from more threads than one."""
_IMAGE_SCALE, _TEXT_SCALE = 20.0, 100.0
"""Inverse temperatures of cosines in the full space: between images, which are centred, and of
texts to images, which are not, and lie closer; CLIP's own is 100."""
_TEXT_WEIGHT = 0.3
"""Of texts to images beside images to images. Texts gain little from more, and images lose."""
_NEAR, _NEAR_ROWS = 15, 16384
_DAMAGED = (
    ArithmeticError, AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError,
    TypeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
"""What reading a file that is no checkpoint may raise."""
_SCALES = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0)

Loss = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Of the rows of a batch: the loss proper, and the KoLeo regulariser."""


def train_pairs(
    images: ArrayLike,
    texts: ArrayLike,
    groups: Sequence[object] | NDArray[np.generic] | None = None,
    *,
    dims: int = DIMS,
    hidden: int | Sequence[int] | None = None,
    koleo: float = 0.1,
    neighbours: float = 1.0,
    epochs: int = 60,
    seed: int = 0,
    batch: int = BATCH,
    start: Head | None = None,
    device: Device = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Head:
    """A head trained on pairs: row i of `images` belongs to row i of `texts`, both ``(n, width)``.

    `groups`, one value a row, says which rows show the same thing (several captions of an image);
    by default those whose image embeddings are equal. Such rows, and rows with equal texts, are
    never each other's negatives, and a group stays on one side of the held-out split.

    The head puts out `dims` dimensions, 32 or 128. It is linear, or has layers of `hidden` units
    (each at least ``2 * dims``; the paper's are ``(8192, 8192)``). The loss is CLIP's symmetric
    contrastive loss (Radford et al. 2021) with a learnt temperature; plus `neighbours` times what
    `train_neighbours` asks of images, without which pairs cost images their neighbours; plus
    `koleo` times the KoLeo regulariser (Sablayrolles et al. 2019), which spreads the vectors and so
    makes better use of 8 bits. Training starts from what the linear head `start` does, by default
    the directions that images and texts share (`shared_start`), runs for at most `epochs` epochs in
    batches of `batch` rows, and gives back the state with the lowest loss, KoLeo apart, on a
    held-out tenth of the groups. Fewer than 20 groups are all trained on, for all epochs.

    `device` "auto" is CUDA where there is one. With `checkpoint`, a path, the state is written
    there between epochs (a file is whole at any time, and at most a tenth of the time goes into
    writing), and a training that finds the file goes on from it: to the same head as if it had
    never stopped. The file stays when training is over. `progress` is called after each epoch, and
    at once for the epochs that a checkpoint holds.

    Raises InputError for arguments that cannot be used, also for a checkpoint of another training;
    StorageError where the checkpoint cannot be written.
    """
    images = check_embeddings(images, what="image embedding")
    texts = check_embeddings(texts, images.shape[1], "text embedding")
    n = len(images)
    if len(texts) != n:
        raise InputError(f"{n} images and {len(texts)} texts are no pairs: pass a text an image")
    layers = _layers(hidden, dims)
    weights = {"koleo": koleo, "neighbours": neighbours}
    run = _Run("pairs", layers, weights, epochs, seed, batch, device, checkpoint, progress)
    group = same_rows(images) if groups is None else numbered(groups, n)
    _check_groups(group)
    held = held_out(group, seed)
    if start is None:
        start = shared_start(images[~held], texts[~held], dims)
    _check_start(start, images.shape[1], dims)

    x = _centred(images, start.image_mean)
    y = _centred(texts, start.text_mean)
    g, t = torch.from_numpy(group), torch.from_numpy(same_rows(texts))
    network = _network(start, layers, seed)
    scales = torch.nn.Parameter(torch.tensor([20.0, _IMAGE_SCALE]).log())

    def loss(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        full = x[rows].to(run.device)
        u = F.normalize(network(full), dim=1)
        v = F.normalize(network(y[rows].to(run.device)), dim=1)
        same = g[rows][:, None] == g[rows]
        other = (same | (t[rows][:, None] == t[rows])) & ~torch.eye(len(rows), dtype=torch.bool)
        logits = (scales[0].exp() * u @ v.T).masked_fill(other.to(run.device), -math.inf)
        target = torch.arange(len(rows), device=run.device)
        value = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        same = same.to(run.device)
        if neighbours:
            value = value + neighbours * _neighbourhoods(full, u, scales[1].exp(), same)
        return value, (_koleo(u, same) + _koleo(v, same)) / 2

    run.train(network, scales, loss, held, _digest(start, images, texts, group))
    return _head("pairs", start, network)


def train_neighbours(
    images: ArrayLike,
    texts: ArrayLike | None = None,
    *,
    dims: int = DIMS,
    hidden: int | Sequence[int] | None = None,
    koleo: float = 0.1,
    epochs: int = 60,
    seed: int = 0,
    batch: int = BATCH,
    start: Head | None = None,
    device: Device = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Head:
    """A head trained without pairs or labels, so that what is near in all dimensions stays near.

    For each row of a batch the softmax of its cosines to the others, in the full space, is what the
    same softmax after the head has to come close to, by the Kullback-Leibler divergence with a
    learnt temperature; that is stochastic neighbour embedding (Hinton and Roweis 2002) of a map
    rather than of points. Half of each batch are near neighbours of the other half, since those are
    what must be told apart. With `texts` of any kind (a vocabulary; they need not belong to the
    images) the same is asked of the cosines between texts and images, for the sake of text queries.

    Training starts from `start`, by default from the directions that images and texts share, and
    without texts from `Head.pca`. The other options, errors and guarantees are those of
    `train_pairs`.
    """
    images = check_embeddings(images, what="image embedding")
    if texts is not None:
        texts = check_embeddings(texts, images.shape[1], "text embedding")
    layers = _layers(hidden, dims)
    weights = {"koleo": koleo}
    run = _Run("neighbours", layers, weights, epochs, seed, batch, device, checkpoint, progress)
    group = same_rows(images)
    _check_groups(group)
    held = held_out(group, seed)
    if start is None:
        start = (
            Head.pca(images[~held], dims=dims) if texts is None
            else shared_start(images[~held], texts, dims)
        )  # fmt: skip
    _check_start(start, images.shape[1], dims)

    x = _centred(images, start.image_mean)
    y = None if texts is None else _centred(texts, start.text_mean)
    image_mean = torch.from_numpy(start.image_mean.copy()).to(run.device)
    text_mean = torch.from_numpy(start.text_mean.copy()).to(run.device)
    g = torch.from_numpy(group)
    network = _network(start, layers, seed)
    scales = torch.nn.Parameter(torch.tensor([_IMAGE_SCALE, _IMAGE_SCALE]).log())

    def loss(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        full = x[rows].to(run.device)
        mapped = F.normalize(network(full), dim=1)
        same = (g[rows][:, None] == g[rows]).to(run.device)
        kept = _neighbourhoods(full, mapped, scales[0].exp(), same)
        if y is not None:
            # Chosen by the rows, so that a checkpoint has nothing more to remember.
            some = (rows * 7919 + rows.sum()).numpy() % len(y)
            said = y[torch.from_numpy(np.unique(some))].to(run.device)
            # Without a centre, as all searches in the full space are.
            cosines = F.normalize(said + text_mean, dim=1) @ F.normalize(full + image_mean, dim=1).T
            words = F.normalize(network(said), dim=1)
            kept = kept + _TEXT_WEIGHT * _divergence(
                _TEXT_SCALE * cosines, scales[1].exp() * words @ mapped.T
            )
        return kept, _koleo(mapped, same)

    data = _digest(start, images, np.empty(0) if texts is None else texts)
    run.train(network, scales, loss, held, data, _Near(x, np.flatnonzero(~held), seed))
    return _head("neighbours", start, network)


def shared_start(images: Floats, texts: Floats, dims: int) -> Head:
    """What a training starts from: the head for those who have no pairs, distilled for codes, and
    for fine codes as `Head.finer` makes it."""
    if dims == DIMS:
        return Head.shared(images, texts)
    return Head.shared(images, texts, dims=dims, steps=0)


def _neighbourhoods(
    full: torch.Tensor, mapped: torch.Tensor, scale: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """How far the rows' neighbourhoods after the head are from those of the full space; rows of one
    group (`same`) are no neighbours."""
    unit = F.normalize(full, dim=1)
    # Not -inf: where all are of one group there would be nothing left to take the softmax of.
    return _divergence(
        (_IMAGE_SCALE * unit @ unit.T).masked_fill(same, -1e4),
        (scale * mapped @ mapped.T).masked_fill(same, -1e4),
    )


def _divergence(wanted: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """The mean Kullback-Leibler divergence of rows of logits."""
    return F.kl_div(
        got.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
    )


class _Run:
    """Batches, the optimiser, early stopping and checkpoints, whatever the loss is."""

    def __init__(
        self,
        kind: str,
        layers: tuple[int, ...],
        weights: dict[str, float],
        epochs: int,
        seed: int,
        batch: int,
        device: Device,
        checkpoint: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> None:
        for weight, of in weights.items():
            if not (math.isfinite(of) and of >= 0):
                raise InputError(f"{weight} must be 0 or more, not {of!r}")
        for name, value, least in (("epochs", epochs, 0), ("seed", seed, 0), ("batch", batch, 2)):
            if value < least:
                raise InputError(f"{name} must be {least} or more, not {value}")
        if seed >= 2**63:
            raise InputError(f"seed must be below 2^63, not {seed}")
        self.device = _device(device)
        self.koleo, self.epochs, self.seed, self.batch = weights["koleo"], epochs, seed, batch
        self.path = None if checkpoint is None else Path(checkpoint).expanduser()
        self.progress = progress
        self.about: dict[str, Any] = {
            "kind": kind, "layers": list(layers), **weights, "epochs": epochs, "seed": seed,
            "batch": batch,
        }  # fmt: skip

    def train(
        self,
        network: torch.nn.Sequential,
        scales: torch.nn.Parameter,
        loss: Loss,
        held: NDArray[np.bool_],
        data: str,
        near: _Near | None = None,
    ) -> None:
        """Train the network in place and leave its best state in it, on the CPU."""
        small = sum(p.numel() for p in network.parameters()) < _SMALL
        with _threads(1 if small else torch.get_num_threads()):
            self._train(network, scales, loss, held, data, near)

    def _train(
        self,
        network: torch.nn.Sequential,
        scales: torch.nn.Parameter,
        loss: Loss,
        held: NDArray[np.bool_],
        data: str,
        near: _Near | None,
    ) -> None:
        network.to(self.device)
        scales.data = scales.data.to(self.device)
        optimiser = torch.optim.AdamW(
            [*_rates(network), {"params": [scales], "lr": 10 * RATE, "weight_decay": 0.0}],
            weight_decay=1e-2,
        )
        rates = [group["lr"] for group in optimiser.param_groups]
        rng = np.random.default_rng((self.seed, 1))
        kept = np.flatnonzero(~held)
        # Losses of batches grow with their rows, so the two that are compared have as many.
        some = min(_CHECK_ROWS, int(held.sum()) or len(kept))
        trained = torch.from_numpy(rng.permutation(kept)[:some])
        out = torch.from_numpy(rng.permutation(np.flatnonzero(held))[:some])

        def measure() -> tuple[float, float]:
            with torch.no_grad():
                of_trained = float(loss(trained)[0])
                return (float(loss(out)[0]) if len(out) else of_trained), of_trained

        # Temperatures that fit the start, lest the first epochs go into finding them.
        with torch.no_grad():
            for place in range(len(scales)):
                tried: list[tuple[float, float]] = []
                for scale in _SCALES:
                    scales[place] = math.log(scale)
                    tried.append((float(loss(trained)[0]), math.log(scale)))
                scales[place] = min(tried)[1]
        best, best_state = measure()[0], _copy(network)
        waited = done = 0
        history: list[tuple[float, float]] = []
        about = {**self.about, "data": data}
        checkpoint = None if self.path is None else _Checkpoint(self.path, about)
        if checkpoint is not None and (state := checkpoint.read()) is not None:
            try:
                network.load_state_dict(state["best_state"])  # fits, too
                network.load_state_dict(state["network"])
                optimiser.load_state_dict(state["optimiser"])
                scales.data.copy_(state["scales"])
                rng.bit_generator.state = json.loads(state["rng"])
                best, best_state = float(state["best"]), state["best_state"]
                waited, done = int(state["waited"]), int(state["done"])
                history = [(float(pair[0]), float(pair[1])) for pair in state["history"]]
            except _DAMAGED as error:
                raise checkpoint.damaged() from error
            if self.progress is not None:
                for number, pair in enumerate(history, 1):
                    self.progress(number, self.epochs, *pair)

        steps = self.epochs * math.ceil(len(kept) / self.batch)
        while len(history) < self.epochs and waited < PATIENCE:
            order = rng.permutation(kept)
            for i in range(0, len(order), self.batch):
                rows = order[i : i + self.batch]
                if near is not None:
                    rows = near.batch(rows, rng)
                if len(rows) < 2:
                    continue
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / steps))
                done += 1
                value, spread = loss(torch.from_numpy(rows))
                optimiser.zero_grad()
                torch.autograd.backward(value + self.koleo * spread)
                optimiser.step()
                with torch.no_grad():
                    scales.clamp_(0.0, math.log(100.0))
            history.append(measure())
            if not len(out) or history[-1][0] < best - 1e-4:
                best, best_state, waited = history[-1][0], _copy(network), 0
            else:
                waited += 1
            over = len(history) == self.epochs or waited >= PATIENCE
            if checkpoint is not None and (over or checkpoint.due()):
                checkpoint.write({
                    "network": network.state_dict(), "optimiser": optimiser.state_dict(),
                    "scales": scales.data, "rng": json.dumps(rng.bit_generator.state), "best": best,
                    "best_state": best_state, "waited": waited, "done": done, "history": history,
                })  # fmt: skip
            if self.progress is not None:
                self.progress(len(history), self.epochs, *history[-1])
        network.cpu()
        network.load_state_dict(best_state)


class _Near:
    """Near rows of a sample of the rows, in the full space. Neighbours are what a head has to tell
    apart, and a random batch of a large collection holds none."""

    def __init__(self, x: torch.Tensor, kept: NDArray[np.int64], seed: int) -> None:
        sample = np.random.default_rng((seed, 2)).permutation(kept)[:_NEAR_ROWS]
        unit = F.normalize(x[torch.from_numpy(sample)], dim=1)
        near = [
            (block @ unit.T).topk(min(_NEAR + 1, len(sample)), dim=1).indices
            for block in torch.split(unit, 1024)
        ]
        self._rows = sample[torch.cat(near).numpy()]

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Half of the rows, and as many more that come with a few of their near ones."""
        half = rows[: (len(rows) + 1) // 2]
        some = self._rows[rng.integers(len(self._rows), size=max(1, len(half) // 8))]
        few = rng.permuted(some[:, 1:], axis=1)[:, :7]
        return np.unique(np.concatenate([half, some[:, 0], few.ravel()]))


class _Checkpoint:
    """A file with the state of a training, and what the training was of."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self._about = about
        self._next = 0.0

    def read(self) -> dict[str, Any] | None:
        """The state, None where there is no file yet."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 (an error here is not one of the content)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read the checkpoint {self._path}: {error}") from error
        try:
            with file:
                state = torch.load(file, map_location="cpu", weights_only=True)
            if state["version"] != _CHECKPOINT:
                raise ValueError(f"version {state['version']}, not {_CHECKPOINT}")
            about = dict(json.loads(state["about"]))
        except _DAMAGED as error:
            raise self.damaged() from error
        for name, value in self._about.items():
            if about.get(name) != value:
                what = (
                    "its embeddings, groups or start are others" if name == "data"
                    else f"its {name} is {about.get(name)}, not {value}"
                )  # fmt: skip
                raise InputError(
                    f"the checkpoint {self._path} is of another training: {what}; remove it to "
                    "start anew, or name another file"
                )
        return dict(state)

    def damaged(self) -> InputError:
        """What to raise for a file that holds something else."""
        return InputError(
            f"{self._path} is no checkpoint of a training, or a damaged one; remove it to "
            "start anew, or name another file"
        )

    def due(self) -> bool:
        """Whether it is time to write: at most a tenth of the time is to go into that."""
        return time.monotonic() >= self._next

    def write(self, state: dict[str, Any]) -> None:
        """Write the state in place of an older one; at no time is the file half written."""
        began = time.monotonic()
        state = {"version": _CHECKPOINT, "about": json.dumps(self._about), **state}
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
            raise StorageError(f"cannot write the checkpoint {self._path}: {error}") from error
        finally:
            part.unlink(missing_ok=True)
        self._next = time.monotonic() + 9 * (time.monotonic() - began)


def _layers(hidden: int | Sequence[int] | None, dims: int) -> tuple[int, ...]:
    if dims not in (DIMS, FINE_DIMS):
        raise InputError(f"dims must be {DIMS}, or {FINE_DIMS} for fine codes, not {dims!r}")
    layers = () if hidden is None else (hidden,) if isinstance(hidden, int) else tuple(hidden)
    if len(layers) >= MAX_LAYERS:
        raise InputError(f"there can be {MAX_LAYERS - 1} hidden layers, not {len(layers)}")
    for units in layers:
        if not 2 * dims <= units <= MAX_HIDDEN:
            raise InputError(f"hidden must be from {2 * dims} to {MAX_HIDDEN} units, not {units}")
    return layers


def _device(device: str) -> torch.device:
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda', not {device!r}")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise InputError("torch finds no CUDA device: use device 'cpu', or 'auto'")
    return torch.device("cuda" if there and device != "cpu" else "cpu")


def _check_groups(group: NDArray[np.int64]) -> None:
    count = int(group.max()) + 1 if len(group) else 0
    if count < 2:
        raise InputError(f"training needs rows of at least 2 groups (images), not {count}")


def _check_start(start: Head, width: int, dims: int) -> None:
    if start.width != width:
        raise InputError(f"start takes {start.width} dimensions, but the embeddings have {width}")
    if start.dims != dims or len(start.layers) != 1:
        raise InputError(f"start must be a linear head of {dims} dimensions, not {start!r}")


def _digest(start: Head, *arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256(start.fingerprint.encode())
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _centred(rows: Floats, mean: Floats) -> torch.Tensor:
    # torch warns of arrays that it could not write to, such as those of a Parquet file.
    x = F.normalize(torch.from_numpy(rows if rows.flags.writeable else rows.copy()), dim=1)
    x -= torch.from_numpy(mean.copy())
    return x


def _network(start: Head, hidden: tuple[int, ...], seed: int) -> torch.nn.Sequential:
    """A network that computes just what the linear head `start` does, ready to be trained."""
    [(matrix, bias)] = start.layers
    dims = matrix.shape[1]
    widths = (start.width, *hidden, dims)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linears = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
    with torch.no_grad():
        first, last = linears[0], linears[-1]
        basis = torch.from_numpy(matrix.T.copy())
        if not hidden:
            first.weight.copy_(basis)
        else:
            # gelu(x) - gelu(-x) = x: 2 * dims units of each layer pass the directions through, and
            # the others start with no say.
            through = torch.cat([torch.eye(dims), -torch.eye(dims)])
            first.bias.zero_()
            first.weight[: 2 * dims] = through @ basis
            for middle in linears[1:-1]:
                middle.bias.zero_()
                middle.weight[: 2 * dims] = 0
                middle.weight[: 2 * dims, : 2 * dims] = through @ through.T
            last.weight.zero_()
            last.weight[:, : 2 * dims] = through.T
        last.bias.copy_(torch.from_numpy(bias.copy()))
    network = torch.nn.Sequential()
    for number, linear in enumerate(linears):
        if number:
            network.append(torch.nn.GELU(approximate="tanh"))
        network.append(linear)
    return network


def _rates(network: torch.nn.Sequential) -> list[dict[str, Any]]:
    """The rate of a layer falls with its inputs (Yang et al. 2022): a step of Adam changes every
    weight by about the rate, and what a unit puts out by the sum of all."""
    linears = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    return [
        {"params": list(layer.parameters()), "lr": RATE * min(1.0, 512 / layer.in_features)}
        for layer in linears
    ]


def _copy(network: torch.nn.Sequential) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _head(kind: str, start: Head, network: torch.nn.Sequential) -> Head:
    layers = tuple(
        (layer.weight.detach().numpy().T, layer.bias.detach().numpy())
        for layer in network
        if isinstance(layer, torch.nn.Linear)
    )
    return Head(kind, start.image_mean, start.text_mean, layers)


def _koleo(unit: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """``-1/n sum log min_j |x_i - x_j|`` over unit vectors, rows of one group left out."""
    with torch.no_grad():
        nearest = (unit @ unit.T).masked_fill(same, -2.0).argmax(dim=1)
    distance = (unit - unit[nearest] + 1e-8).norm(dim=1)
    alone = same.all(dim=1)  # a batch of one group has no neighbour to keep away from
    return -torch.log(distance + 1e-6).masked_fill(alone, 0.0).mean()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
