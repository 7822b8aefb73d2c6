"""EmoScribe in Python and as a command.

    from emoscribe import EmoScribe
    model = EmoScribe.from_pretrained("runs/demo")
    print(model.explain("painting.jpg"))

`emoscribe predict pretrained_name=demo image=painting.jpg` is `python run.py mode=predict …`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from common.cli import exit_at_signals, run_program
from common.errors import UserError
from common.hub import offline_if_unreachable

if TYPE_CHECKING:
    from trainer.interface import EmoScribe, Explanation, WordMaps

__all__ = ["EmoScribe", "Explanation", "UserError", "WordMaps"]
MODES = ("train", "test", "predict", "serve")


def __getattr__(name: str) -> Any:
    """Import the interface when it is used: torch is slow to load, and a command checks its keys first."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "huggingface_hub" not in sys.modules:  # which reads this setting once
        offline_if_unreachable()
    from trainer import interface

    return getattr(interface, name)


def main() -> None:
    """Run `emoscribe MODE KEY=VALUE …`."""
    exit_at_signals()
    if sys.argv[1:2] and sys.argv[1] in MODES:
        sys.argv[1] = f"mode={sys.argv[1]}"
    import run  # imported here: it needs the signal handlers

    run_program(run.main)


if __name__ == "__main__":
    main()
