"""Words and pictures in SQL: clip_text and clip_image, their batches, caches, templates and
weights; and the encoders behind them: large ones, from files, without a network."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import boxwood
from boxwood import Collection, catalog, scenes
from boxwood.catalog import Coding, Phrase
from boxwood.cli import main
from boxwood.encode import Encoder, Head, Quantizer
from conftest import PlainEncoder

Con = duckdb.DuckDBPyConnection
Floats = NDArray[np.float32]


class Counting(PlainEncoder):
    """Counts its calls, and what each was given."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.text_calls: list[int] = []
        self.image_calls: list[int] = []

    def texts(self, texts: Sequence[str]) -> Floats:
        self.text_calls.append(len(texts))
        return super().texts(texts)

    def images(self, images: Sequence[Image.Image]) -> Floats:
        self.image_calls.append(len(images))
        return super().images(images)


@pytest.fixture
def encoder() -> Iterator[Counting]:
    catalog.vectors.clear()
    yield Counting()
    catalog.vectors.clear()
    catalog._encoders.clear()


@pytest.fixture
def photos(con: Con, encoder: Counting) -> Collection:
    """120 pictures by an encoder that counts."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (120, 8, 8, 3)).astype(np.uint8)
    vectors = encoder.images([Image.fromarray(rows) for rows in pixels])
    texts = ["a cat", "a dog"]
    head = Head.pca(vectors, encoder.texts(texts))
    made = Collection.create(con, "photos", encoder=encoder, texts=texts, head=head)
    made.append(np.arange(120), embeddings=vectors)
    encoder.text_calls.clear()
    encoder.image_calls.clear()
    catalog.vectors.clear()
    return made


def one(con: Con, query: str, parameters: Any = None) -> Any:
    [row] = con.execute(query, parameters).fetchall()
    return row[0] if len(row) == 1 else row


# --- texts ----------------------------------------------------------------------------------------


def test_a_column_of_texts_is_one_call(con: Con, photos: Collection, encoder: Counting) -> None:
    con.execute("CREATE TABLE said AS SELECT 'thing ' || i % 500 AS text FROM range(2000) t(i)")
    rows = con.execute("SELECT text, clip_text('photos', text) FROM said").fetchall()
    assert encoder.text_calls == [500]
    con.execute("SELECT clip_text_fine('photos', text) FROM said").fetchall()
    assert encoder.text_calls == [500]  # known by now
    by_text = dict(rows)
    assert len(rows) == 2000
    for text in ("thing 0", "thing 499"):
        assert by_text[text] == photos.encode_text(text).tolist()
    # A column is not a search: the shell's phrases stay what they were.
    assert one(con, "SELECT count(*) FROM boxwood.texts") == 4
    con.execute("SELECT clip_text('photos', 'few ' || i) FROM range(50) t(i)").fetchall()
    assert one(con, "SELECT count(*) FROM boxwood.texts") == 54
    assert encoder.text_calls == [500, 50]
    nearest = con.execute(
        "SELECT text, boxwood_knn_list(boxwood_path('photos'), clip_text('photos', text), 2)[1].id "
        "FROM (SELECT DISTINCT text FROM said) ORDER BY text LIMIT 5"
    ).fetchall()
    for text, found in nearest:
        assert photos.search_text(text, 1)["id"].to_pylist() == [found]


def test_the_cache_is_bounded(
    con: Con, photos: Collection, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.vectors, "LIMIT", 100)
    con.execute("SELECT clip_text('photos', 'thing ' || i) FROM range(500) t(i)").fetchall()
    assert len(catalog.vectors._rows) == 100
    con.execute("SELECT clip_text('photos', 'thing ' || i) FROM range(400, 500) t(i)").fetchall()
    assert encoder.text_calls == [500]
    con.execute("SELECT clip_text('photos', 'thing 3')").fetchall()
    assert encoder.text_calls == [500, 1]


def test_mixtures_are_those_of_python(con: Con, photos: Collection, encoder: Counting) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("'a cat'", {"text": "a cat"}),
        ("['a cat', 'a dog']", {"text": ["a cat", "a dog"]}),
        ("['a cat', 'snow'], weights := [1, .5]",
         {"text": ["a cat", "snow"], "weights": [1, 0.5]}),
        ("['a cat', 'snow'], weights := [1, -.5]",
         {"text": ["a cat", "snow"], "weights": [1, -0.5]}),
        ("'cat', template := 'a photo of a {}'", {"text": "cat", "template": "a photo of a {}"}),
        ("'cat', template := ['a {}', 'the {}, a {}']",
         {"text": "cat", "template": ["a {}", "the {}, a {}"]}),
        ("['cat', 'dog'], weights := [2, 1], template := ['a {}', 'the {}']",
         {"text": ["cat", "dog"], "weights": [2, 1], "template": ["a {}", "the {}"]}),
        ("'[a cat]'", {"text": "[a cat]"}),
    ]  # fmt: skip
    codes = set()
    for sql, python in cases:
        encoded = photos.encode(**python)
        code, fine = one(con, f"SELECT clip_text('photos', {sql}), clip_text_fine('photos', {sql})")
        assert code == encoded.code.tolist() == photos.encode_text(**python).tolist(), sql
        assert encoded.fine is not None
        assert fine == encoded.fine.tolist(), sql
        hits = con.execute(f"FROM search_text('photos', {sql}, k := 7)").fetchall()
        assert [row[0] for row in hits] == photos.search_text(**python, k=7)["id"].to_pylist()
        codes.add(tuple(code))
    assert len(codes) == len(cases)
    # One text in one template is a text, which is kept for the shell.
    assert one(con, "SELECT count(*) FROM boxwood.texts WHERE text = 'a photo of a cat'") == 1
    assert one(con, "SELECT count(*) FROM boxwood.texts") == 4
    # Also as parameters, as columns, and where a macro takes words.
    assert one(con, "SELECT clip_text('photos', ?, weights := ?, template := ?)",
               [["a", "b"], [1.0, 2.0], ["x {}"]]) == photos.encode_text(
                   ["a", "b"], weights=[1, 2], template="x {}").tolist()  # fmt: skip
    rows = con.execute(
        "SELECT clip_text('photos', words, weights := w) FROM (VALUES (['a', 'b'], [1, 2]), "
        "(['a'], [1]), (NULL, [1])) v(words, w)"
    ).fetchall()
    assert rows[0][0] == photos.encode_text(["a", "b"], weights=[1, 2]).tolist()
    assert rows[1][0] == photos.encode_text("a").tolist()
    assert rows[2][0] is None
    assert con.execute("SELECT id FROM refine('photos', text := ['a cat', 'a dog'])").fetchall()
    assert one(con, "SELECT model FROM train_model('photos', text := 'a cat', rerank := true)")


def test_nothing_in_nothing_out(con: Con, photos: Collection, encoder: Counting) -> None:
    row = one(
        con,
        "SELECT clip_text('photos', NULL), clip_text(NULL, 'a'), clip_text('photos', ['a', NULL]), "
        "clip_text_fine('photos', NULL), clip_image('photos', NULL), clip_image(NULL, 'a.png'), "
        "clip_image_fine('photos', NULL), clip_image('photos', NULL::BLOB)",
    )
    assert row == (None,) * 8
    assert encoder.text_calls == encoder.image_calls == []
    rows = con.execute(
        "SELECT clip_text('photos', CASE WHEN i % 2 = 0 THEN 'even' END) IS NULL FROM range(9) t(i)"
    ).fetchall()
    assert [null for (null,) in rows] == [i % 2 == 1 for i in range(9)]
    plain = Collection.create(con, "plain", encoder=encoder, texts=["a", "b"], fine=False)
    plain.append([1], embeddings=np.ones((1, 192)))
    assert one(con, "SELECT clip_text_fine('plain', 'a'), clip_text('plain', 'a') IS NULL") == (
        None, False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("''", "must not be empty"),
        ("['a', ' ']", "must not be empty"),
        ("[]::VARCHAR[]", "there is no text: the list is empty"),
        ("'a', weights := [1, 2]", "1 texts cannot go with 2 weights"),
        ("'a', weights := [0]", "all weights are 0"),
        ("'a', weights := ['nan'::DOUBLE]", "a weight must be a number"),
        ("'a', weights := [NULL]", "a weight must be a number"),
        ("['a', 'a'], weights := [1, -1]", "cancel each other out"),
        ("'a', template := 'a photo'", r"has no \{\}"),
        ("'a', template := ['a {}', '']", "a template must not be empty"),
    ],
)
def test_words_that_make_no_sense(
    con: Con, photos: Collection, arguments: str, message: str
) -> None:
    for name in ("clip_text", "clip_text_fine"):
        with pytest.raises(duckdb.Error, match=message):
            con.execute(f"SELECT {name}('photos', {arguments})").fetchall()


def test_collections_that_words_do_not_reach(con: Con, photos: Collection) -> None:
    Collection.create(con, "none").append([1, 2], embeddings=np.eye(2, 40))
    Collection.create(con, "empty", encoder="counting")
    for name, message in (
        ("nobody", "no collection 'nobody'; it has: empty, none, photos"),
        ("none", "'none' has no encoder"),
        ("empty", "'empty' holds no embeddings yet"),
    ):
        for call in (f"clip_text('{name}', 'a')", f"clip_image('{name}', '\\x00'::BLOB)"):
            with pytest.raises(duckdb.Error, match=message):
                con.execute(f"SELECT {call}").fetchall()


def test_blend_goes_where_the_weights_say() -> None:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=64).astype("f4")
    mean *= 0.8 / np.linalg.norm(mean)
    basis = np.linalg.qr(rng.normal(size=(64, 32)))[0].astype("f4")
    head = Head("pca", mean, mean, ((basis, np.zeros(32, np.float32)),))
    coding = Coding(head, Quantizer(-1, 2 / 255))
    texts = rng.normal(size=(3, 64)) * 0.05 + mean
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    for weights in ([1, 1, 1], [2, 1, 0], [1, -0.5, 0], [-1, 0, 0], [1e-5, 2e-5, 0]):
        [mixed] = coding.blend(texts.astype("f4"), weights)
        assert np.linalg.norm(mixed) == pytest.approx(1, abs=1e-6)
        # A linear head maps the mixture to the weighted sum of the texts' own centred directions.
        wanted = (np.array(weights) @ (texts - mean)) @ basis
        [got] = head.texts(mixed[None])
        assert got @ wanted / np.linalg.norm(wanted) == pytest.approx(1, abs=1e-4)
    assert np.allclose(coding.blend(texts[:1].astype("f4") * 7, [3]), texts[:1], atol=1e-6)
    assert Phrase.of("a", [2.0]).plain == "a"
    assert Phrase.of("a", [-2.0]).plain is None


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    try:
        return Encoder.open("tiny-scenes")
    except boxwood.MissingDependency as error:
        pytest.skip(str(error))


@pytest.mark.one_duckdb
def test_negative_words(con: Con, tiny: Encoder) -> None:
    drawn = scenes.sample(600, 7)
    vectors = tiny.images([Image.fromarray(pixels) for pixels in scenes.render(drawn, 1)])
    head = tiny.default_head()
    world = Collection.create(con, "world", encoder=tiny, texts=scenes.phrases(60), head=head)
    world.append(np.arange(600), embeddings=vectors)

    def share(query: str, **options: Any) -> float:
        found = world.search_text(**options, k=30)["id"].to_numpy()
        return float(scenes.matches(drawn[found], query).mean())

    for wanted, unwanted in (("circle", "red"), ("star", "a blue object"), ("heart", "green")):
        assert share(unwanted, text=wanted) > 0.05
        without = {"text": [wanted, unwanted], "weights": [1, -0.5]}
        assert share(unwanted, **without) <= 0.03
        assert share(wanted, **without) >= 0.9
    for text in ("green", "square"):
        assert share(text, text=["green", "square"]) >= 0.6


def test_words_on_the_command_line(
    con: Con, photos: Collection, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = photos.search_text(
        ["cat", "dog", "tree"], 5, weights=[1, -0.5, -0.5], template=["a {}", "the {}"]
    )
    con.close()
    words = ["cat", "--without", "dog", "--without", "tree"]
    words += ["--template", "a {}", "--template", "the {}"]
    assert main(["search", str(database), "photos", *words, "-k", "5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == wanted["id"].to_pylist()
    with pytest.raises(SystemExit):
        main(["search", str(database), "photos", "--like", "3", "--without", "dog"])


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_by_path_and_bytes(
    con: Con, photos: Collection, encoder: Counting, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    for number in range(9):
        pixels = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"bild-ä{number}.png")
    con.execute(f"CREATE TABLE files AS FROM read_blob('{tmp_path}/*.png')")
    rows = con.execute(
        "SELECT filename, clip_image('photos', filename), clip_image('photos', content), "
        "clip_image_fine('photos', content) FROM files"
    ).fetchall()
    assert sum(encoder.image_calls) == 9  # each once, by whatever name
    assert len(encoder.image_calls) == 1
    for path, by_path, by_bytes, fine in rows:
        encoded = photos.encode(image=path)
        assert by_path == by_bytes == encoded.code.tolist()
        assert encoded.fine is not None
        assert fine == encoded.fine.tolist()
        found = con.execute("FROM search_image('photos', ?, k := 3)", [path]).fetchall()
        assert [row[0] for row in found] == photos.search_image(path, 3)["id"].to_pylist()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    for image, message in (
        (f"'{tmp_path}/broken.png'", "broken.png"),
        (f"'{tmp_path}/none.png'", "there is no image file .*none.png"),
        (f"'{tmp_path}'", "there is no image file"),
        ("'no picture'::BLOB", "not an image"),
    ):
        with pytest.raises(duckdb.Error, match=message):
            con.execute(f"SELECT clip_image('photos', {image})").fetchall()


# --- encoders -------------------------------------------------------------------------------------


def test_paths_are_read_only_where_duckdb_may_read_them(
    con: Con, photos: Collection, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    for path in (tmp_path / "open" / "a[1]*.png", tmp_path / "b.png"):
        Image.new("RGB", (8, 8)).save(path)
    ours, theirs = str(tmp_path / "open" / "a[1]*.png"), str(tmp_path / "b.png")
    code = one(con, "SELECT clip_image('photos', ?)", [theirs])
    con.execute(f"SET allowed_directories = ['{tmp_path / 'open'}']")
    con.execute("SET enable_external_access = false")
    assert one(con, "SELECT clip_image('photos', ?)", [ours]) == code
    for function in ("clip_image", "clip_image_fine"):
        for path in (theirs, f"{tmp_path}/open/../b.png"):
            with pytest.raises(duckdb.Error, match="may not read"):
                con.execute(f"SELECT {function}('photos', ?)", [path])
    content = (tmp_path / "b.png").read_bytes()
    assert one(con, "SELECT clip_image('photos', ?)", [content]) == code
    with pytest.raises(duckdb.Error, match="no image file"):
        con.execute("SELECT clip_image('photos', 'https://localhost/a.png')")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network; what asked for it."""
    asked: list[str] = []

    def refused(*arguments: Any, **_: Any) -> Any:
        asked.append(repr(arguments[-1:]))
        raise OSError("there is no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refused)
    return asked


TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


@pytest.fixture(scope="module")
def library() -> Any:
    from boxwood.encode import open_clip

    try:
        return open_clip.load()
    except boxwood.MissingDependency as error:
        pytest.skip(str(error))


def register(library: Any, folder: Path, name: str, config: dict[str, Any]) -> Any:
    """Make open_clip know a model; one of random weights."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config))
    library.add_model_config(folder / f"{name}.json")
    return library.create_model(name)


@pytest.mark.one_duckdb
@pytest.mark.parametrize(
    ("width", "half", "suffix"), [(768, True, "safetensors"), (1024, False, "pt")]
)
def test_wide_models_from_files(
    con: Con, tmp_path: Path, library: Any, offline: list[str], width: int, half: bool, suffix: str,
) -> None:  # fmt: skip
    import torch
    from safetensors.torch import save_file

    name = f"boxwood-test-{width}"
    config = {"embed_dim": width, "vision_cfg": VISION, "text_cfg": TEXT}
    model = register(library, tmp_path / "configs", name, config)
    weights = {key: value.half() if half else value for key, value in model.state_dict().items()}
    folder = tmp_path / "weights"
    folder.mkdir()
    path = folder / f"model.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    encoder = Encoder.open(f"{name}/{path}")
    assert (encoder.dims, encoder.name) == (width, f"{name}/{path}")
    same = Encoder.open(f"{name}/{folder}")  # the only weights of a folder
    assert (same.name, same.fingerprint) == (encoder.name, encoder.fingerprint)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    pictures = [Image.fromarray(rows) for rows in pixels]
    vectors = encoder.images(pictures)
    # Weights are what the file holds, and pictures are prepared as the file beside it says.
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    values = torch.from_numpy(pixels[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.eval().encode_image(values), dim=-1)
    assert np.abs(vectors[:4] - expected.numpy()).max() < 1e-3
    photos = Collection.create(
        con, "photos", encoder=encoder, texts=["a", "b c"], head=Head.pca(vectors), fine=False
    )
    photos.append(np.arange(60), embeddings=vectors)
    photos.verify()
    catalog._encoders.clear()
    again = Collection.open(con, "photos")  # by its name, from the file
    assert again.search_image(pictures[7], 1)["id"].to_pylist() == [7]
    assert len(one(con, "SELECT clip_text('photos', 'some words')")) == 32
    assert offline == []
    # The file has moved: the same weights are taken from there, others are not.
    path.rename(tmp_path / f"moved.{suffix}")
    catalog._encoders.clear()
    with pytest.raises(boxwood.InputError, match="neither a pretrained tag"):
        Collection.open(con, "photos").search_text("other words")
    moved = Collection.open(con, "photos", encoder=f"{name}/{tmp_path}/moved.{suffix}")
    assert len(moved.search_text("other words", 3)) == 3
    torch.manual_seed(9)
    torch.save(library.create_model(name).state_dict(), tmp_path / "others.pt")
    with pytest.raises(boxwood.IndexMismatch, match=encoder.fingerprint):
        Collection.open(con, "photos", encoder=f"{name}/{tmp_path}/others.pt")
    catalog._encoders.clear()


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
    "post_processor": None,
    "model": {"type": "WordLevel", "unk_token": "<unk>",
              "vocab": {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "circle": 4}},
}  # fmt: skip


def test_a_tokenizer_beside_the_weights(
    tmp_path: Path, library: Any, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SigLIP's: one that does not come with open_clip."""
    import torch

    name = "boxwood-test-SigLIP"
    text = {**TEXT, "vocab_size": 32, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True,
            "pool_type": "last"}  # fmt: skip
    config = {"embed_dim": 768, "init_logit_bias": -10, "custom_text": True, "vision_cfg": VISION,
              "text_cfg": text}  # fmt: skip
    model = register(library, tmp_path / "configs", name, config)
    torch.save(model.state_dict(), tmp_path / "siglip.pt")
    with pytest.raises(boxwood.Error, match=r"does not come with open_clip: put its files, such "):
        Encoder.open(f"{name}/{tmp_path}/siglip.pt")
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>",
                    "unk_token": "<unk>"})
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "transformers", None)
        with pytest.raises(boxwood.MissingDependency, match=r"boxwood\[siglip\]"):
            Encoder.open(f"{name}/{tmp_path}/siglip.pt")
    assert offline == []
    pytest.importorskip("transformers")
    encoder = Encoder.open(f"{name}/{tmp_path}/siglip.pt")
    assert encoder.dims == 768
    rows = encoder.texts(["a red circle", "A red, circle!", "a circle", "unheard of"])
    assert np.allclose(rows[0], rows[1], atol=1e-6)
    assert np.abs(rows[0] - rows[2]).max() > 1e-3
    assert offline == []


def test_the_default_needs_no_network(con: Con, offline: list[str], tiny: Encoder) -> None:
    catalog._encoders.clear()
    drawn = scenes.sample(40, 1)
    head = tiny.default_head()
    world = Collection.create(
        con, "world", encoder="tiny-scenes", texts=scenes.phrases(40), head=head
    )
    pictures = [Image.fromarray(pixels) for pixels in scenes.render(drawn, 1)]
    encoder = world.encoder
    assert encoder is not None
    assert encoder.fingerprint == tiny.fingerprint
    world.append(np.arange(40), embeddings=encoder.images(pictures))
    assert len(world.search_text("a red circle", 5)) == 5
    assert one(con, "SELECT count(*) FROM search_text('world', 'star', template := 'a {}')") == 40
    assert len(world.search(world.train(text="a red circle"))) >= 0
    assert offline == []
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("localhost", 9))
    assert len(offline) == 1  # the wire is live
    catalog._encoders.clear()
