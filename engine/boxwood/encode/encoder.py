"""Encoders: open_clip models that embed images and texts in one space."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boxwood.encode.decode import Recipe
from boxwood.encode.head import Head, check_embeddings
from boxwood.encode.vocabulary import TINY, vocabulary
from boxwood.errors import Error, InputError, MissingDependency

if TYPE_CHECKING:
    import torch
    from PIL import Image

Floats = NDArray[np.float32]

_IMAGE_BATCH = 64
_TEXT_BATCH = 256
# Values of each tensor that go into a fingerprint: enough to tell any two trained models apart,
# without reading gigabytes.
_SAMPLE = 4096


class Encoder:
    """An open_clip model: images or texts to L2-normalised float32 embeddings.

    `name` is the name it was opened by, `dims` the embeddings' number of dimensions, `fingerprint`
    16 hexadecimal digits of the weights: equal fingerprints mean embeddings that can be compared.
    Embedding is deterministic on one machine; threads are torch's own affair.
    """

    def __init__(self, name: str, model: Any, preprocess: Any, tokenizer: Any) -> None:
        import torch

        self.name = name
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)
        self._mixed = self._device == "cuda"
        self._preprocess = preprocess
        self._recipe = Recipe.of(preprocess)
        self._tokenizer = tokenizer
        self.fingerprint = _fingerprint(self._model)
        self.dims = int(self._embed_texts(["a"]).shape[1])

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, {self.dims}, {self.fingerprint})"

    @classmethod
    def open(cls, name: str) -> Encoder:
        """Open an encoder by name.

        ``"tiny-scenes"`` is the packaged model of the scene world; it needs no network. Any other
        name is ``MODEL/PRETRAINED`` as open_clip has them (``"ViT-B-32/laion2b_s34b_b79k"``), where
        PRETRAINED is a tag, whose weights are fetched once, or the path of a checkpoint file
        (.safetensors, .pt, .bin; also of half precision), or of a folder with one. A path is used
        as it is, without a network; `name` then has it in full. A tokenizer that does not come with
        open_clip, as those of SigLIP, must lie beside the file.
        Raises MissingDependency without torch, open_clip or pillow, InputError for a name that does
        not exist, Error for weights that cannot be fetched or loaded.
        """
        from boxwood.encode import open_clip

        library = open_clip.load()
        if name == TINY:
            from boxwood.encode import tiny_model

            size = tiny_model.CONFIG["vision_cfg"]["image_size"]
            preprocess = library.image_transform(size, is_train=False)
            return cls(name, tiny_model.load(), preprocess, tiny_model.tokenizer())

        model_name, slash, pretrained = name.partition("/")
        models = library.list_models()
        if model_name not in models:
            near = difflib.get_close_matches(model_name, [TINY, *models], 5, 0.5)
            hint = f"Close names: {', '.join(near)}." if near else "See open_clip.list_models()."
            raise InputError(f"there is no encoder {model_name!r}. {hint}")
        tags = library.list_pretrained_tags_by_model(model_name)
        listed = f"its tags are: {', '.join(tags)}" if tags else "it has no tags"
        if not slash or not pretrained:
            raise InputError(
                f"the encoder {name!r} needs its pretrained weights named, as in "
                f"'{model_name}/{tags[0] if tags else 'checkpoint.pt'}'; {listed}"
            )
        is_file = pretrained not in tags
        if is_file:
            path = open_clip.checkpoint(Path(os.path.abspath(os.path.expanduser(pretrained))))
            if path is None:
                near = difflib.get_close_matches(pretrained, tags, 3, 0.5)
                hint = f"Close tags: {', '.join(near)}; " if near else ""
                raise InputError(
                    f"{pretrained!r} is neither a pretrained tag of {model_name} nor a checkpoint "
                    f"file, nor a folder with one. {hint}{listed}"
                )
            pretrained, name = str(path), f"{model_name}/{path}"
        try:
            if is_file:
                model, preprocess, tokenizer = open_clip.from_file(
                    library, model_name, Path(pretrained)
                )
            else:
                model, _, preprocess = library.create_model_and_transforms(
                    model_name, pretrained=pretrained
                )
                tokenizer = library.get_tokenizer(model_name)
        except Error:
            raise
        except ImportError as error:  # some models build on further packages
            raise MissingDependency(f"encoder {name!r} needs another package: {error}") from error
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
            if is_file:
                raise Error(f"{pretrained} is no checkpoint of {model_name}: {reason}") from error
            raise Error(
                f"cannot fetch the weights of {name!r}: {reason}. Fetching them needs the network, "
                f"once; without it, pass a checkpoint file as '{model_name}/PATH', or use {TINY!r}"
            ) from error
        return cls(name, model, preprocess, tokenizer)

    @property
    def recipe(self) -> Recipe | None:
        """How pictures become `pixels`; None where only `images` knows: of a model that wants
        something unusual, and of a subclass with its own `images`."""
        return self._recipe if type(self).images is Encoder.images else None

    def images(self, images: Sequence[Image.Image]) -> Floats:
        """Embed Pillow images of any mode and size, shape ``(n, dims)``."""
        import torch

        out = []
        for start in range(0, len(images), _IMAGE_BATCH):
            some = [image.convert("RGB") for image in images[start : start + _IMAGE_BATCH]]
            if self._recipe is not None:
                out.append(self.pixels(np.stack([self._recipe.pixels(image) for image in some])))
            else:
                values = torch.stack([self._preprocess(image) for image in some])
                out.append(_normalised([self._embed_images(values.to(self._device))]))
        return np.concatenate(out) if out else np.empty((0, self.dims), np.float32)

    def pixels(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embed pictures as the `recipe` makes them, uint8 ``(n, height, width, 3)``."""
        import torch

        if self._recipe is None:
            raise InputError(f"the encoder {self.name!r} has no recipe: pass pictures to images()")
        if not len(pixels):
            return np.empty((0, self.dims), np.float32)
        mean, std = (
            torch.tensor(values, device=self._device).view(-1, 1, 1)
            for values in (self._recipe.mean, self._recipe.std)
        )
        out = []
        for start in range(0, len(pixels), _IMAGE_BATCH):
            some = torch.from_numpy(pixels[start : start + _IMAGE_BATCH]).to(self._device)
            values = some.permute(0, 3, 1, 2).contiguous().float().div_(255)
            out.append(self._embed_images(values.sub_(mean).div_(std)))
        return _normalised(out)

    def _embed_images(self, values: torch.Tensor) -> torch.Tensor:
        """Embed normalised values. On a GPU in mixed precision, which halves the time and moves
        embeddings by less than their codes tell apart; what overflows is done again in full. A CPU
        gains nothing by it."""
        import torch

        with torch.inference_mode():
            if self._mixed:
                with torch.autocast(self._device, torch.float16):
                    rows: torch.Tensor = self._model.encode_image(values)
                if bool(torch.isfinite(rows).all()):
                    return rows
            rows = self._model.encode_image(values)
            return rows

    def texts(self, texts: Sequence[str]) -> Floats:
        """Embed texts, shape ``(n, dims)``; what is longer than the model's context is cut."""
        if isinstance(texts, str):
            raise InputError("texts must be a list of texts: pass [text] for one")
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"text {row} must be a text that is not empty, not {text!r}")
        if not texts:
            return np.empty((0, self.dims), np.float32)
        return self._embed_texts(texts)

    def _embed_texts(self, texts: Sequence[str]) -> Floats:
        import torch

        out = []
        for start in range(0, len(texts), _TEXT_BATCH):
            tokens = self._tokenizer(list(texts[start : start + _TEXT_BATCH]))
            with torch.inference_mode():
                out.append(self._model.encode_text(tokens.to(self._device)))
        return _normalised(out)

    def default_head(self) -> Head | None:
        """The head that comes with the encoder; only the packaged one brings its own."""
        if self.name != TINY:
            return None
        from boxwood.encode import tiny_model

        return Head.from_bytes((tiny_model.FOLDER / tiny_model.HEAD).read_bytes())


def default_head(
    encoder: Encoder, image_embeddings: ArrayLike, phrases: Sequence[str] | None = None
) -> Head:
    """The head to use where nothing better is known: the encoder's own, if it brings one, else the
    directions that `image_embeddings` (a sample of some thousand will do) share with `phrases`, by
    default the encoder's `vocabulary`. Embedding that takes a large model minutes on a CPU."""
    head = encoder.default_head()
    if head is not None:
        return head
    images = check_embeddings(image_embeddings, encoder.dims, "image embedding")
    words = vocabulary(encoder.name) if phrases is None else list(phrases)
    return Head.shared(images, encoder.texts(words))


def _normalised(batches: list[torch.Tensor]) -> Floats:
    import torch

    rows = torch.cat(batches).float()
    unit: Floats = torch.nn.functional.normalize(rows, dim=-1).cpu().numpy()
    return unit


def _fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().reshape(-1)
        flat = flat[:: max(1, len(flat) // _SAMPLE)].float().cpu().numpy()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(flat.astype("<f4").tobytes())
    return digest.hexdigest()[:16]
