"""VAD lexicons: word → (valence, arousal, dominance), each in −1..1.

    python -m data.lexicon FILE [--texts FILE …]

says what a file was recognised as, and how much of somebody's texts it covers.
"""

from data.lexicon.files import SCALES, configured_lexicon, read_lexicon
from data.lexicon.words import APOSTROPHES, Lexicon, Vad, normalise

__all__ = ["APOSTROPHES", "SCALES", "Lexicon", "Vad", "configured_lexicon", "normalise", "read_lexicon"]
