"""VLE, the fusion encoder for questions, matching and regions, under the names of its published code."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "configuration": ("VLEConfig",),
    "encoder": ("VLEModel", "VLEModelOutput"),
    "heads": ("VLEForVQA", "VLEForITM", "VLEForPBC", "VLEForMLM", "VLEForEmotion", "VLEForPreTraining"),
    "vcr_heads": ("VLEForVCRQ2A", "VLEForVCRQA2R"),
    "processor": ("VLEProcessor",),
    "pipelines": ("VLEForVQAPipeline", "VLEForITMPipeline", "VLEForPBCPipeline"),
    "vcr_pipelines": ("VLEForVCRQ2APipeline", "VLEForVCRQA2RPipeline"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a class when it is first used: a command that needs one of them does not load the others."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
