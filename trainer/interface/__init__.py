"""EmoScribe from Python: a trained run as an object. `from emoscribe import EmoScribe`."""

from trainer.interface.model import EmoScribe
from trainer.interface.results import Explanation, WordMaps

__all__ = ["EmoScribe", "Explanation", "WordMaps"]
