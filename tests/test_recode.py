"""Fingerprints, kept embeddings, and a collection's change of head."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import boxwood
from boxwood import Collection, Model
from boxwood.cli import main
from boxwood.encode import Head, Quantizer
from conftest import PlainEncoder, clustered_codes, clustered_embeddings

Con = duckdb.DuckDBPyConnection
ROWS = 700


def made(con: Con, name: str = "photos", **options: Any) -> Collection:
    """A collection of ROWS clustered embeddings with the ids 0, 2, 4, .."""
    photos = Collection.create(con, name, **{"keep_embeddings": True, **options})
    vectors = clustered_embeddings(ROWS)
    photos.append(np.arange(400) * 2, embeddings=vectors[:400])
    photos.append(np.arange(400, ROWS) * 2, embeddings=vectors[400:])
    return photos


def state(photos: Collection) -> tuple[Any, ...]:
    """What a change of head changes: fingerprints, and rows as SQL and the index have them."""
    info = photos.info()
    prints = tuple(info[name] for name in ("generation", "head_fingerprint", "quantizer", "fine"))
    rows = photos.con.execute(
        "SELECT * EXCLUDE (generation) FROM boxwood.photos_codes ORDER BY id"
    ).fetchall()
    texts = photos.con.execute("FROM boxwood.texts ORDER BY text").fetchall()
    near = photos.knn(like=10, k=20).to_pylist()
    return prints, rows, texts, near


def turned(seed: int = 1) -> Head:
    """A head of 48 dimensions that no fit gives."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(48, 48)))[0][:, :32]
    zero = np.zeros(48, np.float32)
    return Head("pca", zero, zero, ((basis.astype(np.float32), np.zeros(32, np.float32)),))


# --- changing the head ----------------------------------------------------------------------------


def test_recode_is_as_if_made_with_that_head(con: Con) -> None:
    photos, vectors = made(con), clustered_embeddings(ROWS)
    before = photos.info()
    head = turned()
    assert photos.recode(head) == (ROWS, 0, 0)
    after = photos.info()
    assert (after["generation"], after["segments"], after["rows"]) == (3, 1, ROWS)
    assert after["head_fingerprint"] == head.fingerprint != before["head_fingerprint"]
    assert after["quantizer"] != before["quantizer"]
    assert after["fine"] not in ("", None, before["fine"])
    photos.verify()
    quantizer = Quantizer.fit(head.images(vectors))
    expected = quantizer.encode(head.images(vectors)).astype(int)
    stored = con.execute("SELECT COLUMNS('d..') FROM boxwood.photos_codes ORDER BY id").fetchnumpy()
    codes = np.stack([np.asarray(column) for column in stored.values()], axis=1).astype(int)
    assert np.abs(codes - expected).max() <= 1  # batches of other sizes round otherwise
    # Neither head of before is left.
    heads = con.execute("SELECT fingerprint FROM boxwood.heads").fetchall()
    assert len(heads) == 2
    assert (head.fingerprint,) in heads
    # What is appended, encoded and searched from now on is of the new head, by any object.
    again = Collection.open(con, "photos")
    again.append([5000], embeddings=vectors[:1])
    assert photos.knn(photos.encode(embedding=vectors[0]), k=2)["id"].to_pylist() == [0, 5000]
    assert photos.head == again.head == head
    con.execute("FROM search_like('photos', 10)").fetchall()


def test_recode_by_every_source(con: Con, tmp_path: Path) -> None:
    vectors = clustered_embeddings(ROWS)
    rows = pa.table({
        "key": np.arange(ROWS + 5) * 2,  # some more than the collection has
        "vec": pa.array([*vectors.tolist(), *[[1.0] * 48] * 5], pa.list_(pa.float32())),
    })  # fmt: skip
    con.register("rows", rows)
    con.execute("CREATE TABLE vectors AS FROM rows")
    pq.write_table(rows, tmp_path / "vectors.parquet")
    turned().save(tmp_path / "new.head.npz")
    photos = made(con, keep_embeddings=False)
    states = []
    for source in ("vectors", tmp_path / "vectors.parquet", str(tmp_path / "vectors.parquet")):
        head = tmp_path / "new.head.npz"
        photos.recode(head, embeddings=source, id="key", embedding="vec")
        photos.verify()
        states.append(state(photos)[1])
    assert states[0] == states[1] == states[2]
    small = Collection.create(con, "small", keep_embeddings=True)
    small.append(np.arange(90), embeddings=vectors[:90, :32])
    assert small.info()["head"] == "pca"
    small.recode("shared", texts=vectors[100:200, :32])
    assert small.info()["head"] == "shared"
    small.recode("pca")
    assert small.info()["head"] == "pca"
    small.verify()
    # Ready codes become made ones.
    ready = Collection.create(con, "ready")
    ready.append(np.arange(50) * 2, codes=clustered_codes(50))
    ready.recode(turned(), embeddings="vectors", id="key", embedding="vec")
    assert ready.info()["fine"]
    ready.append([1001], embeddings=vectors[:1])
    ready.verify()


def test_recode_refuses(con: Con, tmp_path: Path) -> None:
    photos = made(con, keep_embeddings=False)
    vectors = clustered_embeddings(ROWS)
    kept = made(con, "kept")
    ids = np.arange(ROWS) * 2

    def table(name: str, ids: Any, vectors: Any) -> None:
        rows = pa.table({"id": ids, "embedding": pa.array(list(vectors), pa.list_(pa.float32()))})
        con.register("rows", rows)
        con.execute(f"CREATE TABLE {name} AS FROM rows")
        con.unregister("rows")

    table("short", ids[1:], vectors[1:])
    table("twice", np.append(ids, 4), np.concatenate([vectors, vectors[:1]]))
    table("other", ids, vectors[:, :40])
    holed = vectors.copy()
    holed[600] = np.nan
    table("holed", ids, holed)
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    (tmp_path / "bad.npz").write_bytes(b"no head")
    wide = Head.pca(clustered_embeddings(100, 40))
    fine = Head.pca(vectors, dims=128)
    before = state(photos)
    with pytest.raises(boxwood.InputError, match=r"lacks 1 images .*the id 0: nothing was changed"):
        photos.recode("pca", embeddings="short")
    for options, message in (
        ({}, "keeps no embeddings"),
        ({"embeddings": "twice"}, "the id 4 more than once"),
        ({"embeddings": "holed"}, r"NaN.*id 1200"),
        ({"embeddings": "none"}, "no table and no Parquet file 'none'"),
        ({"embeddings": tmp_path / "bad.parquet"}, "cannot read"),
        ({"embeddings": "other", "id": "nr"}, "no column 'nr'; it has id, embedding"),
        ({"embeddings": "other", "head": turned()}, "takes embeddings of 48 .* have 40"),
        ({"embeddings": "other", "head": "shared"}, "needs texts"),
        ({"embeddings": "other", "head": "shared", "texts": vectors}, "but texts 48"),
        ({"embeddings": "other", "texts": vectors}, "texts are for the head 'shared'"),
        ({"embeddings": "other", "head": fine}, "must put out 32"),
        ({"embeddings": "other", "head": tmp_path / "bad.npz"}, "no head, or a damaged one"),
        ({"embeddings": "other", "head": 5}, "must be a Head or the path"),
        ({"embeddings": "other", "head": None}, "a head is needed"),
    ):
        with pytest.raises(boxwood.InputError, match=message):
            photos.recode(**{"head": "pca", **options})
    with pytest.raises(boxwood.InputError, match="leave embeddings= out"):
        kept.recode("pca", embeddings="other")
    with pytest.raises(boxwood.InputError, match=r"fingerprint .*takes embeddings of 40"):
        kept.recode(wide)
    with pytest.raises(boxwood.InputError, match="empty"):
        Collection.create(con, "empty").recode("pca")
    assert state(photos) == before
    photos.verify()


def test_kept_embeddings_come_and_go_with_rows(con: Con) -> None:
    photos = made(con)
    vectors = clustered_embeddings(ROWS)

    def kept() -> int:
        return int(con.execute("SELECT count(*) FROM boxwood.photos_embeddings").fetchall()[0][0])

    stored = con.execute("SELECT embedding FROM boxwood.photos_embeddings ORDER BY id").fetchnumpy()
    assert np.array_equal(np.stack(list(stored["embedding"])), vectors)
    with pytest.raises(boxwood.InputError, match=r"in the collection .* already"):
        photos.append([0, 9001], embeddings=vectors[:2])
    assert kept() == ROWS
    with pytest.raises(boxwood.InputError, match="keeps its embeddings, so it takes no ready"):
        photos.append([9001], codes=clustered_codes(1))
    con.execute("DELETE FROM boxwood.photos_codes WHERE id < 20")
    photos.refresh()
    photos.append([4], embeddings=vectors[:1])
    photos.recode("pca")
    assert len(photos) == kept() == ROWS - 9
    con.execute("DELETE FROM boxwood.photos_codes WHERE id < 40")
    photos.repair()
    assert len(photos) == kept()
    photos.drop()
    assert con.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE 'photos%'"
    ).fetchall() == [(0,)]  # fmt: skip


def test_models_and_codes_of_before_are_refused(con: Con) -> None:
    photos = made(con)
    model = photos.train(photos.knn(like=10, k=9)["id"])
    code = photos.encode(embedding=clustered_embeddings(1)[0])
    old = photos.info()["quantizer"]
    # A head that only turns the axes: the quantizer alone could be the same.
    head = photos.head
    assert head is not None
    [(matrix, bias)] = head.layers
    flipped = Head(head.kind, head.image_mean, head.text_mean, ((-matrix, -bias),))
    photos.recode(flipped)
    new = photos.info()["quantizer"]
    assert old != new
    for use in (
        lambda: photos.search(model),
        lambda: photos.count(Model.from_json(model.to_json())),
        lambda: photos.knn(like=10, within=model),
        lambda: photos.knn(code),
        lambda: photos.refine(query=code),
    ):
        with pytest.raises(boxwood.IndexMismatch) as caught:
            use()
        assert old in str(caught.value)
        assert new in str(caught.value)
    with pytest.raises(duckdb.Error, match=old):
        con.execute("FROM search_model('photos', ?)", [model.to_json()]).fetchall()


# --- all or nothing -------------------------------------------------------------------------------

POINTS: list[tuple[str, str]] = [
    ("catalog", "raise_generation"), ("catalog", "set_coding"), ("rows", "insert"),
    ("catalog", "remove_texts"), ("native", "write_segment"), ("native", "write_manifest"),
]  # fmt: skip
"""Functions that recode calls, in this order; the last one after the commit."""


@pytest.mark.parametrize(
    ("module", "function", "when"),
    [*((*point, "after") for point in POINTS), ("native", "write_manifest", "before")],
)
def test_a_fault_leaves_old_or_new(
    database: Path, monkeypatch: pytest.MonkeyPatch, module: str, function: str, when: str
) -> None:
    con = boxwood.connect(database)
    photos = made(con)
    before = state(photos)
    where = getattr(boxwood, module)
    real: Callable[..., Any] = getattr(where, function)

    def fails(*arguments: Any, **options: Any) -> None:
        if when == "after":
            real(*arguments, **options)
        raise boxwood.StorageError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, function, fails)
        with pytest.raises(boxwood.StorageError, match="no space left"):
            photos.recode(turned())
        if function != "write_manifest":
            assert state(photos) == before
    photos.verify() if function != "write_manifest" else photos.refresh()
    photos.verify()
    con.close()
    with boxwood.connect(database) as con:
        photos = Collection.open(con, "photos")
        photos.verify()
        new = photos.info()["head_fingerprint"] == turned().fingerprint
        assert new == (function == "write_manifest")
        assert new or state(photos) == before
        photos.recode(turned(2))
        photos.verify()
        photos.compact()  # what a fault has left goes with what no reader needs any more
        files = [path.name for path in photos.index_path.iterdir()]
        assert len(files) == 2, files


KILLED = """
    import os, signal, sys
    import boxwood
    from boxwood import Collection
    from test_recode import turned

    con = boxwood.connect(sys.argv[1])
    photos = Collection.open(con, "photos")
    where = getattr(boxwood, sys.argv[2])
    real = getattr(where, sys.argv[3])

    def dies(*arguments, **options):
        if sys.argv[4] == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(where, sys.argv[3], dies)
    photos.recode(turned())
"""


@pytest.mark.parametrize(
    ("function", "when"),
    [("insert", "after"), ("write_segment", "after"), ("write_manifest", "before")],
)  # fmt: skip
def test_a_kill_leaves_old_or_new(database: Path, function: str, when: str) -> None:
    with boxwood.connect(database) as con:
        before = state(made(con))
    module = {name: where for where, name in POINTS}[function]
    here = Path(__file__).parent
    paths = [str(here), str(Path(boxwood.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(database), module, function, when],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    with boxwood.connect(database) as con:
        # Between commit and manifest the index knows none of the codes, and SQL does without it.
        near = con.execute("FROM search_like('photos', 10) ORDER BY distance, id").fetchall()
        photos = Collection.open(con, "photos")
        assert near == [tuple(hit.values()) for hit in photos.knn(like=10).to_pylist()]
        photos.verify()
        if function == "write_manifest":
            assert photos.info()["head_fingerprint"] == turned().fingerprint
        else:
            assert state(photos) == before
        con.execute("FROM search_like('photos', 10)").fetchall()


def test_an_interrupt_while_recoding(con: Con, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = made(con)
    before = state(photos)
    with monkeypatch.context() as patch:
        patch.setattr(
            boxwood.collection.Bar, "update", lambda *_: signal.raise_signal(signal.SIGINT)
        )
        with pytest.raises(KeyboardInterrupt):
            photos.recode(turned(), progress=True)
    assert state(photos) == before
    photos.verify()


# --- words ----------------------------------------------------------------------------------------


def test_phrases_are_encoded_anew_or_dropped(con: Con, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PlainEncoder()
    words = ["a cat", "a dog", "a tree"]
    vectors = np.concatenate([encoder.texts([f"{word} {n}" for word in words]) for n in range(40)])
    photos = Collection.create(con, "photos", encoder=encoder, texts=words, keep_embeddings=True)
    photos.append(np.arange(120), embeddings=vectors)
    photos.encode_text("a bird")
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(192, 32)))[0].astype("f4")
    zero = np.zeros(192, np.float32)
    head = Head("pca", zero, zero, ((basis, np.zeros(32, np.float32)),))
    assert photos.recode(head) == (120, 4, 0)
    stored = dict(con.execute("SELECT text, code FROM boxwood.texts").fetchall())
    assert sorted(stored) == sorted([*words, "a bird"])
    assert photos.quantizer is not None
    for word, code in stored.items():
        fresh = photos.quantizer.encode(head.texts(encoder.texts([word])))[0]
        assert np.abs(np.array(code) - fresh.astype(int)).max() <= 1
        assert photos.encode_text(word).tolist() == code
    # Codes of other fingerprints are not used, whoever has put them there.
    con.execute("UPDATE boxwood.texts SET quantizer_fingerprint = 'x', code = list_resize([0], 32)")
    assert photos.encode_text("a cat").tolist() == stored["a cat"]

    def gone(*_: Any) -> None:
        raise boxwood.MissingDependency("no torch")

    with monkeypatch.context() as patch:
        patch.setattr(boxwood.catalog, "open_encoder", gone)
        assert photos.recode("pca") == (120, 0, 4)
    assert con.execute("SELECT count(*) FROM boxwood.texts").fetchall() == [(0,)]
    with pytest.raises(boxwood.InputError, match=r"but 192 are expected .*its encoder 'plain'"):
        photos.append([500], embeddings=np.ones((1, 48)))
    boxwood.catalog._encoders.clear()


# --- what is refused ------------------------------------------------------------------------------


def test_another_encoder_head_or_quantizer_is_named(con: Con, tmp_path: Path) -> None:
    encoder, other = PlainEncoder("one"), PlainEncoder("two")
    texts = ["a cat", "a dog"]
    rows = np.concatenate([encoder.texts([f"{n} {word}" for word in texts]) for n in range(20)])
    photos = Collection.create(con, "photos", encoder=encoder, texts=texts)
    photos.append(np.arange(40), embeddings=rows, encoder=encoder)
    second = Collection.create(con, "second", encoder=other, texts=texts)
    second.append(np.arange(40), embeddings=rows[::-1].copy() + 1, encoder="two")
    for wrong in (other, "two", "plain-two"):
        with pytest.raises(boxwood.IndexMismatch, match=r"two.*'photos' are of 'one' \(fingerprin"):
            photos.append([100], embeddings=rows[:1], encoder=wrong)
    with pytest.raises(
        boxwood.IndexMismatch, match=r"'two' \(fingerprint plain-two\) is not that .* plain-one"
    ):
        Collection.open(con, "photos", encoder=other)
    assert len(Collection.open(con, "photos", encoder=encoder)) == 40
    mine, theirs = photos.info()["quantizer"], second.info()["quantizer"]
    code = second.encode(text="a cat")
    assert code.quantizer == theirs != mine
    with pytest.raises(boxwood.IndexMismatch, match=f"{theirs}.*'photos'.*{mine}"):
        photos.knn(code)
    assert photos.knn(photos.encode(text="a cat"), k=3) == photos.search_text("a cat", 3)
    model = photos.train(query=photos.encode(text="a cat"), rerank=True)
    assert len(photos.search(model)) == photos.count(model)
    with pytest.raises(boxwood.IndexMismatch, match=f"{mine}.*{theirs}"):
        second.search(model)
    # Ready codes carry no mark of where they come from, so they must be told.
    codes = photos.con.execute("SELECT COLUMNS('d..') FROM boxwood.photos_codes").fetchnumpy()
    ready = np.stack([np.asarray(column) for column in codes.values()], axis=1)[:2]
    fine = np.zeros((2, 128), np.uint8)
    with pytest.raises(boxwood.IndexMismatch, match=f"of no known fingerprint, .* are of {mine}"):
        photos.append([200, 201], codes=ready, fine=fine)
    with pytest.raises(boxwood.IndexMismatch, match=f"are of {theirs}, but .* are of {mine}"):
        photos.append([200, 201], codes=ready, fine=fine, fingerprint=theirs)
    photos.append([200, 201], codes=ready, fine=fine, fingerprint=mine)
    copy = Collection.create(con, "copy")
    copy.append([1, 2], codes=ready, fingerprint=mine)
    assert copy.count(photos.train([0, 1, 2])) >= 0  # codes of one fingerprint can be compared
    with pytest.raises(boxwood.IndexMismatch, match="Make another collection for them"):
        copy.append([3], codes=ready[:1], fingerprint=theirs)
    for wrong_mark in ("", "x" * 32, "with space"):
        with pytest.raises(boxwood.InputError, match="a fingerprint goes with codes"):
            copy.append([3], codes=ready[:1], fingerprint=wrong_mark)
    wide = Head.pca(clustered_embeddings(100, 40))
    wide.save(tmp_path / "wide.head.npz")
    with pytest.raises(boxwood.InputError, match=r"'pca' \(fingerprint .* of 40 .*'one' .* 192"):
        Collection.create(con, "x", encoder=encoder, head=tmp_path / "wide.head.npz")
    assert "x" not in Collection.list(con)
    boxwood.catalog._encoders.clear()


def test_recode_on_the_command_line(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", clustered_embeddings(200))
    turned().save(tmp_path / "new.head.npz")
    place = [str(database), "photos"]
    assert main(["create", *place, "--npy", str(tmp_path / "x.npy"), "--keep-embeddings"]) == 0
    assert main(["recode", *place, "--head", str(tmp_path / "new.head.npz")]) == 0
    assert "200 images and 0 phrases re-coded" in capsys.readouterr().out
    assert main(["recode", *place, "--head", "shared"]) == 1
    assert "needs texts" in capsys.readouterr().err
    with boxwood.connect(database) as con:
        photos = Collection.open(con, "photos")
        assert photos.head == turned()
        photos.verify()
    more = [str(database), "other", "--npy", str(tmp_path / "x.npy")]
    assert main(["create", *more, "--head", str(tmp_path / "new.head.npz")]) == 0
    with boxwood.connect(database) as con:
        assert Collection.open(con, "other").head == turned()
    with pytest.raises(SystemExit):
        main(["create", *place, "--encoder", "ViT-B-32/openai", "--pretrained", "x.pt"])
