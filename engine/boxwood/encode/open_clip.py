"""Getting hold of open_clip, with errors that say what to do."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from boxwood.errors import MissingDependency

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
