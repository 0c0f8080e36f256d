"""The packaged open_clip model for the scene world: its shape, and its weights on disk.

Weights are stored as float16 in an ``.npz`` file without pickles. Of CLIP's 49,408 token rows only
those are kept that the words of the scene world use; the others are zero when the model is loaded,
so a word that the model never saw says nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxwood import scenes
from boxwood.encode import open_clip as _open_clip
from boxwood.errors import InputError

NAME = "tiny-scenes"
FOLDER = Path(__file__).parent / "tiny"
HEAD = "head.npz"
"""The head's file, beside ``weights.npz`` and ``config.json``."""

CONTEXT = 24
"""Tokens a text may have; the longest caption has 22."""

CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": scenes.SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None,
    },
    "text_cfg": {
        "context_length": CONTEXT, "vocab_size": 49408, "width": 96, "heads": 4, "layers": 2,
    },
}  # fmt: skip

_TOKENS = "token_embedding.weight"


def tokenizer() -> Any:
    """CLIP's byte-pair tokenizer for `CONTEXT` tokens; it comes with open_clip."""
    return _open_clip.load().SimpleTokenizer(context_length=CONTEXT)


def used_tokens() -> torch.Tensor:
    """The token numbers that texts of the scene world can have, ascending, padding included."""
    return torch.from_numpy(np.unique(tokenizer()(list(scenes.WORDS)).numpy()))


def build(vocabulary: int | None = None) -> Any:
    """An untrained ``open_clip.CLIP``; `vocabulary` shrinks its token table for training."""
    text = dict(CONFIG["text_cfg"])
    if vocabulary is not None:
        text["vocab_size"] = vocabulary
    return _open_clip.load().CLIP(CONFIG["embed_dim"], dict(CONFIG["vision_cfg"]), text)


def save(model: torch.nn.Module, tokens: torch.Tensor, folder: Path, note: dict[str, Any]) -> None:
    """Write ``weights.npz`` and ``config.json``; `model` has the token rows of `tokens` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: value.detach().cpu().numpy().astype(np.float16)
        for name, value in model.state_dict().items()
        if not name.endswith(("num_batches_tracked", "attn_mask"))
    }
    np.savez(folder / "weights.npz", tokens=tokens.numpy().astype(np.int32), **arrays)
    document = {"name": NAME, "model": CONFIG, **note}
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")


def load(folder: Path = FOLDER) -> Any:
    """The trained model in eval mode, float32, with the full token table."""
    path = folder / "weights.npz"
    if not path.is_file():
        raise InputError(
            f"no weights of the encoder {NAME!r} in {folder}: reinstall boxwood, or train them "
            f"with python -m boxwood.encode.train_tiny --out {folder}"
        )
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    tokens = arrays.pop("tokens")
    rows = arrays[_TOKENS].astype(np.float32)
    arrays[_TOKENS] = np.zeros((CONFIG["text_cfg"]["vocab_size"], rows.shape[1]), np.float32)
    arrays[_TOKENS][tokens] = rows
    model = build()
    state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise InputError(f"{path} is of another model: {[*missing, *unexpected][:3]} do not fit")
    return model.eval()
