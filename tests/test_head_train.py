"""Training heads: what it gains, checkpoints, bad input, and ``boxwood head`` end to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from boxwood import encode
from boxwood.encode import Head, measure
from boxwood.encode.groups import held_out, same_rows
from boxwood.errors import InputError, StorageError
from boxwood.pairs import Pairs, embed_pairs, read_embeddings, read_pairs

train = pytest.importorskip("boxwood.encode.train", exc_type=ImportError)

Floats = NDArray[np.float32]
Run = Callable[..., tuple[int, str, str]]


def pairs(n: int, seed: int, width: int = 48) -> tuple[Floats, Floats]:
    """Pairs that share 16 directions, in the midst of 30 that are each modality's own."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n, 16)) @ np.random.default_rng(7).normal(size=(16, width)) * 0.3
    out = []
    for modality in (0, 1):
        mix = np.random.default_rng(modality + 50)
        noise = rng.normal(size=(n, 30)) @ mix.normal(size=(30, width)) * 0.3
        out.append((content + noise + 3 * mix.normal(size=width)).astype("f4"))
    return out[0], out[1]


def right(head: Head, images: Floats, texts: Floats) -> int:
    """Of so many texts the right image is the nearest."""
    near = head.texts(texts) @ head.images(images).T
    return int((near.argmax(1) == np.arange(len(near))).sum())


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


class StopAt:
    """Ctrl-C after some epochs."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.seen = epoch, [(0, 0.0, 0.0)][:0]

    def __call__(self, epoch: int, _: int, held: float, trained: float) -> None:
        self.seen.append((epoch, held, trained))
        if epoch == self.epoch:
            raise KeyboardInterrupt


# --- what it gains ------------------------------------------------------------------------------


def test_pairs_beat_pca_and_the_start() -> None:
    images, texts = pairs(600, 1, 96)
    new_images, new_texts = pairs(200, 2, 96)
    head = train.train_pairs(images, texts, epochs=25)
    found = right(head, new_images, new_texts)
    pca = right(Head.pca(images, texts), new_images, new_texts)
    start = right(train.shared_start(images, texts, 32), new_images, new_texts)
    assert found >= pca + 20, (found, pca)
    assert found >= start + 10, (found, start)


@pytest.mark.parametrize("hidden", [[64], [96, 80], [64, 64, 64]])
def test_networks_start_from_the_linear_head(hidden: list[int]) -> None:
    images, texts = pairs(60, 1)
    start = train.shared_start(images, texts, 32)
    head = train.train_pairs(images, texts, hidden=hidden, epochs=0, start=start)
    assert [len(bias) for _, bias in head.layers] == [*hidden, 32]
    assert np.allclose(head.images(images), start.images(images), atol=1e-4)
    moved = train.train_pairs(images, texts, hidden=hidden, epochs=2, start=start)
    assert Head.from_bytes(moved.to_bytes()) == moved


def test_neighbours_are_kept_better_than_by_pca() -> None:
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(80, 96))
    images, new = (
        (centres[rng.integers(80, size=n)] + rng.normal(size=(n, 96)) * 0.3).astype("f4")
        for n in (900, 300)
    )
    head = train.train_neighbours(images, epochs=20)
    assert head.kind == "neighbours"
    kept = {
        of.kind: measure.neighbours_kept(measure._unit(new - images.mean(0)), of.images(new))
        for of in (head, Head.pca(images))
    }
    assert kept["neighbours"] > kept["pca"] + 0.005, kept


def test_neighbours_learn_what_texts_find() -> None:
    """Texts of any kind make text queries find what they find in the full space."""
    images, texts = pairs(600, 1, 96)
    start = Head.shared(images, texts[::-1], a=0.5, steps=0)
    head = train.train_neighbours(images, texts[::-1], epochs=15, start=start)
    new_images, new_texts = pairs(200, 2, 96)
    assert right(head, new_images, new_texts) >= 5 + right(
        Head.pca(images, texts), new_images, new_texts
    )


def test_same_arguments_same_head_and_seeds_differ() -> None:
    images, texts = pairs(150, 1)
    first, again, other = (
        train.train_pairs(images, texts, hidden=64, epochs=3, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_fine_heads_and_devices() -> None:
    images, texts = pairs(60, 1, width=140)
    assert train.train_pairs(images, texts, dims=128, epochs=2, device="cpu").dims == 128
    assert train.train_neighbours(images, dims=128, epochs=1).dims == 128


def test_groups_stay_on_one_side() -> None:
    group = np.repeat(np.arange(50), 3)
    held = held_out(group, 3)
    assert held.sum() == 15
    assert all(len(set(held[group == g])) == 1 for g in range(50))
    assert (held != held_out(group, 4)).any()
    assert not held_out(np.arange(19), 0).any()
    rows = np.float32([[1, 0], [0, 1], [1, 0]])
    assert same_rows(rows).tolist() == [0, 1, 0]


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pairs", "network", "neighbours"])
def test_resumed_is_uninterrupted(kind: str, tmp_path: Path) -> None:
    images, texts = pairs(300, 1)
    calls: dict[str, Callable[..., Head]] = {
        "pairs": lambda **o: train.train_pairs(images, texts, batch=64, epochs=6, **o),
        "network": lambda **o: train.train_pairs(images, texts, hidden=64, epochs=6, **o),
        "neighbours": lambda **o: train.train_neighbours(images, texts, epochs=6, **o),
    }
    seen: list[tuple[int, float, float]] = []
    whole = calls[kind](progress=lambda e, _, held, of: seen.append((e, held, of)))
    path = tmp_path / "state.ckpt"
    for epoch in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            calls[kind](checkpoint=path, progress=StopAt(epoch))
        assert [file.name for file in tmp_path.iterdir()] == ["state.ckpt"]
    again = StopAt(99)
    assert calls[kind](checkpoint=path, progress=again) == whole
    assert again.seen == seen, "epochs of the checkpoint are told again, and none twice"
    assert calls[kind](checkpoint=path) == whole, "a training that is over gives its head"


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_head_train import pairs
from boxwood.encode import train_pairs
images, texts = pairs(300, 1)
def say(epoch, *_):
    print(epoch, flush=True)
train_pairs(images, texts, batch=8, epochs=1000000, checkpoint=sys.argv[2], progress=say)
"""


def test_killed_training_leaves_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "1\n"
        time.sleep(0.02)  # it is in the midst of something now
        child.send_signal(signal.SIGKILL)
    images, texts = pairs(300, 1)
    resume = StopAt(1)
    with pytest.raises(KeyboardInterrupt):
        train.train_pairs(
            images, texts, batch=8, epochs=1_000_000, checkpoint=path, progress=resume
        )
    assert resume.seen[0][0] == 1


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    images, texts = pairs(60, 1)
    path = tmp_path / "state.ckpt"
    train.train_pairs(images, texts, epochs=1, checkpoint=path)
    for change, message in (
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"koleo": 0.5}, "its koleo is 0.1, not 0.5"),
        ({"hidden": 64}, r"its layers is \[\], not \[64\]"),
        ({"groups": np.arange(60) // 2}, "its embeddings, groups or start are others"),
    ):
        with pytest.raises(InputError, match=message):
            train.train_pairs(images, texts, checkpoint=path, **{"epochs": 1, **change})
    with pytest.raises(InputError, match="its kind is pairs, not neighbours"):
        train.train_neighbours(images, epochs=1, checkpoint=path)
    state = train.torch.load(path, weights_only=True)
    for change in ({"network": {}}, {"rng": "{}"}, {"history": [[1.0]]}, {"about": "[1]"}):
        train.torch.save({**state, **change}, path)
        with pytest.raises(InputError, match="no checkpoint of a training, or a damaged one"):
            train.train_pairs(images, texts, epochs=1, checkpoint=path)
    for damage in (b"", b"no checkpoint", path.read_bytes()[:-400]):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="no checkpoint of a training, or a damaged one"):
            train.train_pairs(images, texts, epochs=1, checkpoint=path)
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        train.train_pairs(images, texts, epochs=1, checkpoint=tmp_path / "missing" / "state.ckpt")


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": [64, 63]}, "hidden must be from 64"),
        ({"hidden": [64] * 8}, "7 hidden layers, not 8"),
        ({"dims": 64}, "dims must be 32, or 128"),
        ({"koleo": float("nan")}, "koleo must be 0 or more"),
        ({"neighbours": -1}, "neighbours must be 0 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"seed": 2**64}, "seed must be below"),
        ({"batch": 1}, "batch must be 2 or more"),
        ({"device": "tpu"}, "device must be"),
        ({"groups": [0] * 30}, "at least 2 groups"),
        ({"groups": [[0]] * 30}, "must be one value, .* not a list"),
        ({"groups": [0.0] * 29 + [float("nan")]}, "the group in row 29 is NaN"),
        ({"start": Head.identity()}, "start takes 32 dimensions, but the embeddings have 48"),
        ({"texts": pairs(30, 1)[1][:, :40]}, "40 dimensions, but 48 are expected"),
        ({"images": np.full((30, 48), np.nan, "f4")}, "row 0 holds a NaN"),
    ],
)
def test_training_refuses(change: dict[str, Any], message: str) -> None:
    images, texts = pairs(30, 1)
    with pytest.raises(InputError, match=message):
        train.train_pairs(**{"images": images, "texts": texts, **change})


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = pairs(30, 1)
    monkeypatch.setattr(train.torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        train.train_pairs(images, texts, device="cuda")


def test_sources_refuse(tmp_path: Path) -> None:
    images, texts = pairs(4, 1)
    con = duckdb.connect()
    good, path = {"image": list(images), "text": list(texts)}, str(tmp_path / "p.parquet")
    for change, message in (
        ({"text": [*texts[:3], None]}, "row 3 of .* has no 'text'"),
        ({"text": [*texts[:3], texts[3][:5]]}, "48 values in row 0 of .* but 5 in row 3"),
        ({"image": ["a", "b", "c", "d"]}, "must hold lists of floats"),
        ({"image": [*images[:3], np.full(48, np.nan, "f4")]}, "row 3 holds a NaN"),
        ({"group": ["a", None, "b", "c"]}, "rows without a 'group'"),
        ({"image": list(images)[:0], "text": list(texts)[:0]}, "has no rows"),
    ):
        pq.write_table(pa.table({**good, **change}), path)
        with pytest.raises(InputError, match=message):
            read_pairs(con, path)
    with pytest.raises(InputError, match="no column 'vector'; it has: image, text"):
        read_pairs(con, path, image="vector")
    with pytest.raises(InputError, match="there is no file"):
        read_pairs(con, str(tmp_path / "missing.parquet"))
    with pytest.raises(InputError, match="nor a table of the database"):
        read_pairs(con, "missing")
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"no \.npy file.* it does not begin as one"):
        read_embeddings(con, str(tmp_path / "x.npy"))
    np.savez(tmp_path / "x.npz", images)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(InputError, match="an archive of arrays"):
        read_embeddings(con, str(tmp_path / "x.npy"))


# --- measures -----------------------------------------------------------------------------------


def test_measures_against_plain_loops() -> None:
    rng = np.random.default_rng(3)
    images = measure._unit(rng.normal(size=(40, 6)).astype("f4"))
    texts = measure._unit(images.repeat(2, 0) + rng.normal(size=(80, 6)).astype("f4") / 2)
    group = np.arange(40)
    found = measure.text_recall(texts, images, group.repeat(2), group)
    for k, value in zip(measure.RANKS, found, strict=True):
        hits = [i // 2 in np.argsort(-(texts[i] @ images.T))[:k] for i in range(80)]
        assert value == pytest.approx(np.mean(hits))
    tied = measure.text_recall(texts, images[:1].repeat(40, 0), group.repeat(2), group)
    assert tied == (0.0, 0.0, 0.0), "a tie counts against the right image"
    mapped = measure._unit(images[:, :3])
    same = 0
    for i in range(40):
        near = [set(np.argsort(-np.delete(r @ r[i], i))[:10]) for r in (images, mapped)]
        same += len(near[0] & near[1])
    assert measure.neighbours_kept(images, mapped) == pytest.approx(same / 400)


# --- the command --------------------------------------------------------------------------------


def test_train_and_show(run: Run, tmp_path: Path) -> None:
    images, texts = pairs(300, 1)
    Pairs(images, texts, [f"photo {i // 2}" for i in range(300)]).save(tmp_path / "p.parquet")
    out, page, state = (tmp_path / name for name in ("a.head.npz", "r.html", "s.ckpt"))
    words = ["--out", out, "--epochs", 5, "--report", page, "--checkpoint", state, "--progress"]
    code, text, err = run("head", "train", tmp_path / "p.parquet", *words)
    assert code == 0, err
    for said in ("48 floats", "start, 32 bytes", "pairs, 32 bytes", "R@10", "30 rows that were"):
        assert said in text
    assert "held out" in err
    assert not state.exists()
    head = Head.load(out)
    assert (head.kind, head.width, head.dims) == ("pairs", 48, 32)
    html = page.read_text()
    assert html.count("<polyline") == 2
    assert head.fingerprint in html
    assert "pairs, 32 bytes" in html
    database = tmp_path / "d.duckdb"
    with duckdb.connect(str(database)) as con:
        con.execute(f"CREATE TABLE pairs AS FROM read_parquet('{tmp_path}/p.parquet')")
    code, _, err = run("head", "train", "pairs", "--database", database, "--epochs", 5,
                       "--out", tmp_path / "b.npz")  # fmt: skip
    assert code == 0, err
    assert Head.load(tmp_path / "b.npz") == head, "a table gives what the file gave"
    code, text, _ = run("head", "show", out, "--json")
    shown = json.loads(text)
    assert (code, shown["layers"], shown["fingerprint"]) == (0, [48, 32], head.fingerprint)
    assert "48 -> 32" in run("head", "show", out)[1]


def test_fit_each_kind(run: Run, tmp_path: Path) -> None:
    images, texts = pairs(200, 1)
    np.save(tmp_path / "i.npy", images)
    np.save(tmp_path / "t.npy", texts)
    with_texts = ["--text-embeddings", tmp_path / "t.npy"]
    for kind, more in (("pca", []), ("shared", with_texts), ("neighbours", ["--epochs", 2])):
        out = tmp_path / f"{kind}.npz"
        code, text, err = run("head", "fit", tmp_path / "i.npy", "--kind", kind, "--out", out,
                              *more, "--dims", 32)  # fmt: skip
        assert code == 0, err
        assert f"{kind}, 32 bytes" in text
        assert Head.load(out).kind == kind
    assert Head.load(tmp_path / "pca.npz") == Head.pca(images)


def test_interrupted_command_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pairs(*pairs(200, 1)).save(tmp_path / "p.parquet")
    words = ["head", "train", tmp_path / "p.parquet", "--epochs", 3, "--checkpoint",
             tmp_path / "s.ckpt"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("boxwood.progress.Bar.update", stopped)
        code, _, err = run(*words, "--out", tmp_path / "a.npz")
        assert code == 130
        assert "the same command goes on from there" in err
        assert not (tmp_path / "a.npz").exists()
    assert run(*words, "--out", tmp_path / "a.npz")[0] == 0
    assert run(*words, "--out", tmp_path / "b.npz")[0] == 0
    assert Head.load(tmp_path / "a.npz") == Head.load(tmp_path / "b.npz")


class Letters(encode.Encoder):
    """An image is its colour, a text its letters; no network."""

    def __init__(self) -> None:
        self.name, self.dims, self.fingerprint = "letters", 48, "letters"

    def images(self, images: Any) -> Floats:
        rows = np.stack([np.asarray(image.resize((4, 4)), "f4").ravel() for image in images])
        return rows + 1

    def texts(self, texts: Any) -> Floats:
        rows = [np.bincount([ord(c) % 48 for c in text], minlength=48) for text in texts]
        return np.stack(rows).astype("f4") + 1


def test_captions_of_image_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(2)
    lines = ["path,caption"]
    for i in range(24):
        pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines += [f"{i}.png,{word} number {i}" for word in ("picture", "photo")]
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines += ["broken.png,a broken one", "3.png,", "gone.png,gone"]
    csv = tmp_path / "captions.csv"
    csv.write_text("\n".join(lines))
    pairs_ = embed_pairs(duckdb.connect(), str(csv), Letters())
    assert pairs_.images.shape == pairs_.texts.shape == (48, 48)
    assert pairs_.groups is not None
    assert pairs_.groups[:3] == ["0.png", "0.png", "1.png"]
    assert [name for name, _ in pairs_.skipped] == ["3.png", "broken.png", "gone.png"]
    monkeypatch.setattr("boxwood.head_cli._encoder", lambda name: Letters())
    saved = tmp_path / "saved.parquet"
    code, _, err = run("head", "train", csv, "--encoder", "letters", "--epochs", 1,
                       "--out", tmp_path / "a.npz", "--save-pairs", saved)  # fmt: skip
    assert code == 0, err
    assert "skipped broken.png: not an image" in err
    assert run("head", "train", saved, "--epochs", 1, "--out", tmp_path / "b.npz")[0] == 0
    assert Head.load(tmp_path / "a.npz") == Head.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "x.parquet"], "required: --out"),
        (["train", "x.parquet", "--out", "a.npz", "--hidden", "64,x"], "'x' is not a whole number"),
        (["train", "x.parquet", "--out", "a.npz", "--koleo", "-1"], "0 or more"),
        (["train", "x.parquet", "--out", "a.npz"], "there is no file x.parquet"),
        (["train", "x.csv", "--out", "a.npz"], "name an encoder"),
        (["train", "x", "--out", "a.npz", "--database", "no.duckdb"], "there is no database"),
        (["train", "x.parquet", "--out", "no/a.npz"], "in a folder that exists"),
        (["train", "x.parquet", "--out", "a.npz", "--report", "r.txt"], "must end in .html"),
        (["train", "x.parquet", "--out", "x.parquet"], "--out x.parquet is SOURCE too"),
        (["train", "x.parquet", "--out", "a", "--checkpoint", "./a"], "--checkpoint a is --out"),
        (["train", "x.parquet", "--out", "/dev/null"], "name a file"),
        (["fit", "x.npy", "--out", "a.npz", "--kind", "shared"], "needs texts"),
        (["fit", "x.npy", "--out", "a.npz", "--kind", "pca", "--epochs", "3"], "belongs to --kind"),
        (["fit", "x.npy", "--out", "a.npz", "--kind", "pca", "--texts", "t"], "needs --encoder"),
        (["show", "x.npz"], "cannot read the head file"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage(
    words: list[str], says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("head", *words)
    assert code in (1, 2)
    assert says in err
    assert list(tmp_path.iterdir()) == []
