"""Getting hold of open_clip, with errors that say what to do."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from boxwood.errors import Error, MissingDependency

_libraries: list[Any] = []


def _declare_torchvision_operators(torch: ModuleType) -> None:
    """Let a CUDA build of torchvision be imported beside a CPU build of torch.

    torchvision registers shape functions for two operators whose schemas only its compiled
    extension declares; where that extension cannot be loaded the import fails with ``operator
    torchvision::nms does not exist``. open_clip uses neither operator, so declaring the schemas is
    all that is needed.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(schema)
    _libraries.append(library)  # the declarations live as long as this object


def load() -> ModuleType:
    """The open_clip module; raises MissingDependency where it or a part of it is not installed."""
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("PIL")
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            _declare_torchvision_operators(torch)
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise MissingDependency(
            f"encoding images and texts needs the package {error.name or 'open_clip'!r}: "
            "pip install 'boxwood[clip]'"
        ) from error


# --- checkpoint files -----------------------------------------------------------------------------

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".npz")
_PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json")
_LOOKS = ("mean", "std", "interpolation", "resize_mode")


def checkpoint(path: Path) -> Path | None:
    """The file of weights that a path means: itself, or, of a folder, the one in it; None where
    there is none, or several and none of the usual names."""
    if not path.is_dir():
        return path if path.is_file() else None
    for name in _PREFERRED:
        if (path / name).is_file():
            return path / name
    found = sorted(file for file in path.iterdir() if file.suffix in WEIGHTS and file.is_file())
    return found[0] if len(found) == 1 else None


def from_file(library: Any, model: str, path: Path) -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer of a checkpoint file, without a network.

    Weights may be of half precision. How pictures are prepared is read from a file
    ``open_clip_config.json`` beside the weights, or is that of the model's published ones. A
    tokenizer that does not come with open_clip, as those of SigLIP, must lie beside them too.
    """
    with _offline():
        made, _, preprocess = library.create_model_and_transforms(
            model, pretrained=str(path), **_looks(library, model, path.parent)
        )
        return made, preprocess, _tokenizer(library, model, path.parent)


def _looks(library: Any, model: str, folder: Path) -> dict[str, Any]:
    """How a model's pictures are prepared, as keywords of open_clip."""
    file = folder / "open_clip_config.json"
    if file.is_file():
        try:
            told = [json.loads(file.read_text(encoding="utf-8")).get("preprocess_cfg", {})]
        except (ValueError, AttributeError) as error:
            raise Error(f"{file} is not what open_clip writes: {error}") from error
    else:
        tags = library.list_pretrained_tags_by_model(model)
        told = [library.get_pretrained_cfg(model, tag) for tag in tags]
    looks = {}
    for name in _LOOKS:
        values = {str(one.get(name)): one.get(name) for one in told}
        if len(values) == 1:  # else the published weights are not of one mind
            looks[f"image_{name}"] = values.popitem()[1]
    return looks


def _tokenizer(library: Any, model: str, folder: Path) -> Any:
    text = (library.get_model_config(model) or {}).get("text_cfg", {})
    if not text.get("hf_tokenizer_name"):
        return library.SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
        )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise Error(
            f"the tokenizer of {model} ({text['hf_tokenizer_name']}) does not come with open_clip: "
            f"put its files, such as tokenizer.json and tokenizer_config.json, into {folder}"
        )
    try:
        importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependency(
            f"the tokenizer of {model} needs the package 'transformers': pip install "
            "'boxwood[siglip]'"
        ) from error
    options = dict(text.get("tokenizer_kwargs", {}))
    if "tokenizer_mode" in text:
        options["tokenizer_mode"] = text["tokenizer_mode"]
    return library.tokenizer.HFTokenizer(
        str(folder), context_length=text.get("context_length", 77), local_files_only=True, **options
    )


_switching = threading.Lock()


@contextmanager
def _offline() -> Iterator[None]:
    """Let nothing that open_clip builds on ask the Hugging Face hub."""
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:
        yield
        return
    with _switching:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
