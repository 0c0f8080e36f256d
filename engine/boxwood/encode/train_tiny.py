"""Train and evaluate the packaged encoder: ``python -m boxwood.encode.train_tiny --help``.

The model is a small CLIP (ModifiedResNet and a two-layer text transformer) trained from scratch on
rendered scenes with the symmetric contrastive loss. Three things differ from the usual recipe:

- Half of every batch are near twins of the other half (one attribute changed, objects exchanged),
  since telling those apart is what first place among similar scenes takes.
- Some captions drop words at random. Such a caption is true of other scenes of the batch too; those
  are left out of its softmax, as the scenes' truth tells which they are.
- Short queries such as "red circle" are trained on directly: all pictures of the batch that a query
  is true of must come before all others.
- A linear layer, thrown away afterwards, tells the shapes in a picture from its embedding. Colours
  and places alone tell most scenes apart, so that captions leave the image tower blind to shapes
  for thousands of steps; named outright, it sees them after a few hundred.

The first two losses are means of two: over all dimensions, and over the first 32 alone (Matryoshka
representation learning, Kusupati et al. 2022), so that the head loses little.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from boxwood import scenes
from boxwood.encode import open_clip as _open_clip
from boxwood.encode import tiny_model
from boxwood.encode.head import DIMS, Head
from boxwood.encode.quantizer import Quantizer
from boxwood.encode.train import train_pairs
from boxwood.errors import Error, InputError

BATCH = 256
POOL = 32768
"""Scenes rendered for training; half are twins of the others."""

QUERIES = 64
"""Short queries in a step."""

PEAK_RATE = 2e-3
RANKING = 0.5
"""Weight of the short queries' loss against the captions'."""

GALLERY = 1000
"""Scenes of each evaluation set."""

FIT = 4000
"""Scenes that the evaluation fits heads on; they are neither trained on nor searched."""

Log = Callable[[str], None]
Floats = NDArray[np.float32]


def _pixels(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Pictures as open_clip's preprocessing gives them: ``(n, 3, 64, 64)``, normalised."""
    clip = _open_clip.load()
    mean = torch.tensor(clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def _loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, also_true: torch.Tensor
) -> torch.Tensor:
    """Symmetric contrastive loss; pairs that are true but not matched are left out."""
    logits = scale * F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    logits = logits.masked_fill(also_true, -math.inf)
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _ranking_loss(
    images: torch.Tensor, queries: torch.Tensor, scale: torch.Tensor, truth: torch.Tensor
) -> torch.Tensor:
    """``log(1 + sum over false pictures of exp(their score - a true one's))``, the mean over the
    true pictures of a query, then over queries."""
    logits = scale * F.normalize(queries, dim=-1) @ F.normalize(images, dim=-1).T
    false = logits.masked_fill(truth, -math.inf).logsumexp(1, keepdim=True)
    loss = F.softplus(false - logits) * truth
    return (loss.sum(1) / truth.sum(1)).mean()


def _kinds(drawn: scenes.Scenes) -> torch.Tensor:
    """Which shapes a scene shows, which of the 56 pairs of shape and colour seen in training, and
    which pairs of shape and pattern: zeros and ones of shape ``(n, 88)``."""
    shown = np.zeros((len(drawn), 8 + 64 + 24), np.float32)
    for first in (1, 6):
        rows = np.flatnonzero(drawn[:, first] != scenes.NONE)
        shape, colour, _, pattern = drawn[rows, first : first + 4].astype(int).T
        shown[rows, shape] = 1
        shown[rows, 8 + 8 * shape + colour] = 1
        shown[rows, 72 + 3 * shape + pattern] = 1
    held_out = [8 + 8 * shape + colour for shape, colour in scenes.HELD_OUT]
    return torch.from_numpy(np.delete(shown, held_out, axis=1))


def _short(batch: scenes.Scenes, rng: np.random.Generator) -> scenes.Query:
    """Queries for one object of some scenes of the batch: its shape, and now and then a detail."""
    rows = batch[rng.permutation(len(batch))[:QUERIES]].copy()
    second = (rows[:, 6] != scenes.NONE) & (rng.random(len(rows)) < 0.5)
    rows[second, 1:6] = rows[second, 6:11]
    rows[:, 5:] = scenes.ANY
    # Background, shape, colour, size, pattern.
    said = rng.random((len(rows), 5)) < (0.15, 0.9, 0.55, 0.2, 0.4)
    said[:, 1] |= ~said.any(axis=1)
    rows[:, :5][~said] = scenes.ANY
    return rows


def training_scenes(seed: int | np.random.Generator) -> scenes.Scenes:
    """The scenes that `train` shows, as pairs of near twins: shape ``(POOL / 2, 2, 11)``."""
    rng = np.random.default_rng(seed)
    base = scenes.sample(POOL // 2, rng, pairs="seen")
    return np.stack([base, scenes.edit(base, rng)], axis=1)


def train(out: Path, minutes: float, seed: int, log: Log) -> None:
    """Train for `minutes` of wall time, rendering included, and write the model into `out`."""
    began = time.monotonic()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenize, tokens = tiny_model.tokenizer(), tiny_model.used_tokens()
    model = tiny_model.build(len(tokens)).to(memory_format=torch.channels_last)

    pool = training_scenes(rng)
    flat = pool.reshape(-1, scenes.WIDTH)
    pictures = np.concatenate(
        [scenes.render(flat[i : i + 512], rng) for i in range(0, len(flat), 512)]
    )
    pictures = pictures.reshape(*pool.shape[:2], *pictures.shape[1:])
    parameters = sum(p.numel() for p in model.parameters())
    log(f"{len(flat)} scenes rendered in {time.monotonic() - began:.0f} s; "
        f"{len(tokens)} tokens; {parameters} parameters")  # fmt: skip

    namer = torch.nn.Linear(tiny_model.CONFIG["embed_dim"], 88)
    weights = [*model.parameters(), *namer.parameters()]
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim > 1 and "embedding" not in n)]
    others += namer.parameters()
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_RATE, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    start, budget = time.monotonic(), minutes * 60 - (time.monotonic() - began)
    order: NDArray[np.int64] = np.empty(0, np.int64)
    losses: list[tuple[float, float, float]] = []
    reported = start
    model.train()
    while (elapsed := time.monotonic() - start) < budget:
        rate = PEAK_RATE * 0.5 * (1 + math.cos(math.pi * elapsed / budget))
        for group in optimiser.param_groups:
            group["lr"] = max(rate * min(1, (len(losses) + 1) / 40), 1e-5)
        if len(order) < BATCH // 2:
            order = rng.permutation(len(pool))
        chosen, order = order[: BATCH // 2], order[BATCH // 2 :]
        batch = pool[chosen].reshape(-1, scenes.WIDTH)
        shift = rng.integers(-3, 4, 2)
        view = np.roll(pictures[chosen].reshape(-1, *pictures.shape[2:]), shift, (1, 2))
        drop = np.where(rng.random(BATCH) < 0.6, 0, rng.uniform(0.05, 0.9, BATCH))
        texts, queries = scenes.captions(batch, rng, drop)
        also_true = torch.from_numpy(scenes.matches(batch, queries))
        also_true.fill_diagonal_(False)
        short = _short(batch, rng)
        texts += [scenes.phrase(query, rng) for query in short]
        truth = torch.from_numpy(scenes.matches(batch, short))

        seen = model.encode_image(_pixels(view))
        said = model.encode_text(torch.searchsorted(tokens, tokenize(texts)))
        scale = model.logit_scale.exp()
        told = ranked = torch.zeros(())
        for dims in (DIMS, seen.shape[1]):
            pictures_part, captions_part = seen[:, :dims], said[:BATCH, :dims]
            told = told + _loss(pictures_part, captions_part, scale, also_true) / 2
            ranked = ranked + _ranking_loss(pictures_part, said[BATCH:, :dims], scale, truth) / 2
        odds, shown = namer(seen), _kinds(batch)
        named = F.binary_cross_entropy_with_logits(odds[:, :8], shown[:, :8])
        named = named + 4 * F.binary_cross_entropy_with_logits(odds[:, 8:], shown[:, 8:])
        optimiser.zero_grad()
        torch.autograd.backward(told + RANKING * ranked + named)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append((told.item(), ranked.item(), named.item()))
        now = time.monotonic()
        if now - reported >= 20:
            reported = now
            means = np.mean(losses[-25:], axis=0)
            log(
                f"{now - began:5.0f} s  step {len(losses):5d}  captions {means[0]:.3f}  "
                f"queries {means[1]:.3f}  shapes {means[2]:.3f}  scale {scale.item():.1f}"
            )
    note = {"seed": seed, "minutes": minutes, "steps": len(losses)}
    tiny_model.save(model, tokens, out, note)


def _embed(model: Any, drawn: scenes.Scenes, seed: int) -> tuple[Floats, Floats]:
    """Normalised embeddings of scenes' pictures and of their full captions."""
    rng = np.random.default_rng(seed)
    tokenize = tiny_model.tokenizer()
    images, texts = [], []
    with torch.inference_mode():
        for i in range(0, len(drawn), 250):
            batch = drawn[i : i + 250]
            images.append(model.encode_image(_pixels(scenes.render(batch, rng))))
            texts.append(model.encode_text(tokenize(scenes.captions(batch, rng)[0])))
    return F.normalize(torch.cat(images)).numpy(), F.normalize(torch.cat(texts)).numpy()


def _recall(texts: Floats, images: Floats) -> tuple[float, float]:
    """Text-to-image R@1 and R@10 by distance; row i of one belongs to row i of the other.

    A tie counts against the right picture.
    """
    distance = ((texts[:, None] - images[None]) ** 2).sum(-1, dtype=np.float64)
    nearer = (distance <= np.diagonal(distance)[:, None]).sum(1) - 1
    return float((nearer < 1).mean()), float((nearer < 10).mean())


def _precision(queries: Floats, images: Floats, truth: NDArray[np.bool_]) -> float:
    """Mean average precision of queries whose true pictures are the rows of `truth`."""
    distance = ((queries[:, None] - images[None]) ** 2).sum(-1)
    hits = np.take_along_axis(truth, distance.argsort(1, kind="stable"), 1)
    precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(1) / hits.sum(1)).mean())


def _trained(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise InputError(f"no trained model in {folder}: train one there first")
    return tiny_model.load(folder)


def _unseen(folder: Path) -> tuple[scenes.Scenes, scenes.Scenes, scenes.Scenes]:
    """Scenes that training did not show: two sets to search, with the pairs of shape and colour of
    training and with held-out ones, and one to fit heads on."""
    seed = int(json.loads((folder / "config.json").read_text())["seed"])
    known = training_scenes(seed).reshape(-1, scenes.WIDTH)
    novel = scenes.sample(GALLERY, 101, pairs="seen", exclude=known)
    held_out = scenes.sample(GALLERY, 102, pairs="held-out")
    fit = scenes.sample(FIT, 103, pairs="seen", exclude=np.concatenate([known, novel]))
    return novel, held_out, fit


def fit_head(folder: Path) -> None:
    """Write the head of the model in `folder`: the directions that scenes and phrases share.

    A head of its own spares the encoder's users the fitting, and serves collections too small to
    fit one.
    """
    model = _trained(folder)
    images, _ = _embed(model, _unseen(folder)[2], 104)
    with torch.inference_mode():
        words = F.normalize(model.encode_text(tiny_model.tokenizer()(scenes.phrases()))).numpy()
    (folder / tiny_model.HEAD).write_bytes(Head.shared(images, words).to_bytes())


def evaluate(folder: Path, log: Log) -> dict[str, tuple[float, float]]:
    """Measure the model in `folder`, print a table, and return its R@1 and R@10 by row name.

    Rows: all dimensions; then, after 8 bits, the model's own head (the directions that phrases and
    images share, no pairs) and a head trained on pairs. The last column is the mean average
    precision of short queries such as "red circle".
    """
    model = _trained(folder)
    tokenize = tiny_model.tokenizer()
    novel, held_out, fit = _unseen(folder)
    fit_images, fit_texts = _embed(model, fit, 104)
    heads = {
        "shared": Head.from_bytes((folder / tiny_model.HEAD).read_bytes()),
        "pairs": train_pairs(fit_images, fit_texts),
    }
    wanted = {text: scenes.matches(novel, text) for text in _short_queries()}
    wanted = {text: truth for text, truth in wanted.items() if truth.sum() >= 3}
    truth = np.array(list(wanted.values()))
    with torch.inference_mode():
        asked = F.normalize(model.encode_text(tokenize(list(wanted)))).numpy()

    log(f"{'scenes':<9} {'vectors':<16} {'R@1':>6} {'R@10':>6} {'mAP, short queries':>20}")
    results = {}
    for name, drawn in (("novel", novel), ("held-out", held_out)):
        images, texts = _embed(model, drawn, 105)
        spaces = {"128 floats": (images, texts, asked)}
        for kind, head in heads.items():
            quantizer = Quantizer.fit(head.images(fit_images))
            image_codes, text_codes, asked_codes = (
                quantizer.encode(rows).astype(np.float32)
                for rows in (head.images(images), head.texts(texts), head.texts(asked))
            )
            spaces[f"{kind}, 32 bytes"] = image_codes, text_codes, asked_codes
        for space, (image_rows, text_rows, asked_rows) in spaces.items():
            first, ten = results[f"{name}, {space}"] = _recall(text_rows, image_rows)
            line = f"{name:<9} {space:<16} {first:>6.3f} {ten:>6.3f}"
            if name == "novel":
                line += f" {_precision(asked_rows, image_rows, truth):>20.3f}"
            log(line)
    return results


def _short_queries() -> list[str]:
    """What people type: a shape, a colour, both, or a detail."""
    pairs = [f"{colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES]
    details = [f"{pattern} {colour} object" for pattern in scenes.PATTERNS
               for colour in scenes.COLOURS]  # fmt: skip
    grounds = [f"{shape} on a {ground} background" for shape in scenes.SHAPES
               for ground in scenes.BACKGROUNDS]  # fmt: skip
    return [*scenes.SHAPES, *(f"{name} object" for name in scenes.COLOURS), *pairs, *details,
            *grounds]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m boxwood.encode.train_tiny",
        description="Train the packaged encoder of the scene world, or measure one.",
        epilog="The packaged weights took --minutes 20 on one shared CPU core.",
    )
    parser.add_argument("--evaluate", action="store_true", help="measure the model, do not train")
    parser.add_argument("--minutes", type=float, default=12, help="time to train (default: 12)")
    parser.add_argument("--out", type=Path, default=tiny_model.FOLDER, metavar="FOLDER",
                        help="folder of the model (default: the packaged one)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="for scenes and weights (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    options = parser.parse_args()
    if not options.evaluate and not options.minutes >= 1:
        parser.error("--minutes must be at least 1: rendering alone takes half of that")
    torch.set_num_threads(max(1, options.threads))

    def log(line: str) -> None:
        print(line, flush=True)

    try:
        if not options.evaluate:
            train(options.out, options.minutes, options.seed, log)
            fit_head(options.out)
        evaluate(options.out, log)
    except (Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
