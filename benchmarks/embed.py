"""Throughput of `Collection.add_images` against open_clip alone, on the same images.

    python benchmarks/embed.py IMAGES [--model tiny-scenes ViT-B-32] [--images 512] [--rounds 3]

IMAGES is a folder of image files, or a zip of them. open_clip alone is what its documentation
shows: open, preprocess, stack, encode, normalise, a batch at a time; and the same with torch's
DataLoader over it, with as many workers as Boxwood has. Boxwood does all that, and hashes, looks
for duplicates, makes codes, and commits rows, metadata and an index. A model without weights at
hand has random ones: they take as long. Batch size and torch's threads are the same for all; the
sides take turns within a round, and ratios are of the same round. `cpu` is CPU seconds of this
process and those that it started: on a machine that others use as well it says more than the clock.

Without the folder the script says so and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import boxwood
from boxwood.encode import Encoder, find_images, open_clip
from boxwood.report import text_table

WARM = 32  # images that decide head and quantizer before the clock runs


def encoder_of(name: str) -> Encoder:
    """An encoder by name; one of open_clip's models without a tag has random weights."""
    if name == "tiny-scenes":
        return Encoder.open(name)
    import torch

    library = open_clip.load()
    torch.manual_seed(0)
    model, _, preprocess = library.create_model_and_transforms(name)
    return Encoder(name, model, preprocess, library.get_tokenizer(name))


class Files:
    """What torch's DataLoader draws from."""

    def __init__(self, files: Sequence[Path], preprocess: Any) -> None:
        self.files, self.preprocess = files, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, n: int) -> Any:
        from PIL import Image

        return self.preprocess(Image.open(self.files[n]).convert("RGB"))


def alone(encoder: Encoder, files: Sequence[Path], batch: int, workers: int | None) -> np.ndarray:
    """Embeddings by open_clip; with `workers`, by way of a DataLoader."""
    import torch

    data = Files(files, encoder._preprocess)
    batches: Any = (
        torch.stack([data[n] for n in range(start, min(start + batch, len(files)))])
        for start in range(0, len(files), batch)
    )
    if workers is not None:
        batches = torch.utils.data.DataLoader(data, batch, num_workers=workers)  # type: ignore[arg-type]
    rows = []
    for pixels in batches:
        with torch.inference_mode():
            made = encoder._model.encode_image(pixels.to(encoder._device)).float()
            rows.append(torch.nn.functional.normalize(made, dim=-1).cpu().numpy())
    return np.concatenate(rows)


def cpu() -> float:
    own, others = (resource.getrusage(who) for who in
                   (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # fmt: skip
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    start, used = time.perf_counter(), cpu()
    result = work()
    return time.perf_counter() - start, cpu() - used, result


def measure(
    name: str, files: Sequence[Path], rounds: int, batch: int, workers: int
) -> list[list[object]]:
    encoder = encoder_of(name)
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            con = boxwood.connect(Path(folder, f"{number}.duckdb"))

            def collection(which: str, con: Any = con) -> boxwood.Collection:
                made = boxwood.Collection.create(con, which, encoder=encoder, texts=["a photo"])
                made.add_images(files[:WARM], workers=0)
                return made

            processes, threads = collection("processes"), collection("threads")
            rest = files[WARM:] if number else files[WARM : WARM + 80]  # round 0 only warms up
            sides: dict[str, Callable[[], Any]] = {
                "open_clip": lambda rest=rest: alone(encoder, rest, batch, None),
                "open_clip, DataLoader": lambda rest=rest: alone(encoder, rest, batch, workers),
                "boxwood, processes": lambda rest=rest, c=processes: c.add_images(
                    rest, batch=batch, workers=workers
                ),
                "boxwood, threads": lambda rest=rest, c=threads: c.add_images(
                    rest, batch=batch, workers=0
                ),
            }
            order = list(sides)
            order = order[number % 4 :] + order[: number % 4]
            for side in order:
                wall, used, result = timed(sides[side])
                if side.startswith("boxwood") and result.added != len(rest):
                    raise SystemExit(f"{side}: {result.added} of {len(rest)} images were added")
                if number:
                    seconds.setdefault(side, []).append((wall, used))
            con.close()
    rows: list[list[object]] = []
    base = seconds["open_clip"]
    for side in ("open_clip", "open_clip, DataLoader", "boxwood, threads", "boxwood, processes"):
        walls, useds = zip(*seconds[side], strict=True)
        ratio = [
            [one / other for one, other in zip(mine, theirs, strict=True)]
            for mine, theirs in zip((walls, useds), zip(*base, strict=True), strict=True)
        ]
        rows.append(
            [name, side, f"{len(rest) / statistics.median(walls):.1f}",
             f"{statistics.median(useds) / len(rest) * 1e3:.1f}",
             *(f"{statistics.median(r):.3f} ({min(r):.3f}-{max(r):.3f})" for r in ratio)]
        )  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="add_images against open_clip alone")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", nargs="+", default=["tiny-scenes", "ViT-B-32"])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if not args.folder.exists():
        print(f"there is no {args.folder}: nothing is measured")
        return 0
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.folder.suffix == ".zip":
            with zipfile.ZipFile(args.folder) as archive:
                archive.extractall(folder)
            args.folder = Path(folder)
        files = find_images(args.folder)[: args.images + WARM]
        print(
            f"{len(files) - WARM} images a round, {args.rounds} rounds, batch {args.batch}, "
            f"{args.threads} threads of torch, {args.workers} workers; torch {torch.__version__}, "
            f"{os.cpu_count()} cores"
        )
        columns = [
            "model",
            "side",
            "images/s",
            "CPU ms/image",
            "time : open_clip",
            "CPU : open_clip",
        ]
        for name in args.model:
            rows = measure(name, files, args.rounds, args.batch, args.workers)
            print(text_table(columns, rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
