"""Imported by the fork server alone: it loads once what each of its processes would otherwise load again."""

import gc

import datasets  # noqa: F401  (accelerate imports it for the first data loader)
from PIL import Image

import run  # noqa: F401
import tests.helpers.launch  # noqa: F401
import trainer.commands
import trainer.score.measure
import trainer.stages  # noqa: F401
from data.vad import lexicon

Image.init()  # its readers of all formats
lexicon._dictionary()  # a second
gc.freeze()  # a fork need not copy it
