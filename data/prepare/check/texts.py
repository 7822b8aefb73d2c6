"""Statistics of the texts of a split: emotions, number, length in tokens, and coverage by a VAD lexicon."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from data.emotions import EMOTIONS
from data.schema import Sample
from data.text import Template
from data.vad.align import CLITICS, WORD, VadAligner
from data.vad.lexicon import normalize_word

CLITIC = re.compile(f"'({'|'.join(sorted(CLITICS))})$")  # "tree's" counts as tree
LACKING = 60  # words in a report
MAJORITY = 0.5 + 1e-6  # an emotion is dominant with more than half of the votes; shares are ratios of small numbers
WHOLE = 1 << 20  # tokens: cuts no text
# Articles, pronouns, prepositions, auxiliaries and the like: no lexicon needs them.
FUNCTION_WORDS = """
a about above across after again against all almost along also although always am among an and another any anyone
anything are around as at away be because been before behind being below beneath beside between beyond both but by can
cannot could did do does doing down during each either else even ever every everyone everything few for from had has
have having he her here hers him his how however i if in inside into is it its itself just least less lot many may me
might mine more most much must my myself near neither never no nobody none nor not nothing of off often on once one
only onto or other others our out outside over own perhaps quite rather really s same several shall she should since
so some someone something somewhat still such t than that the their them themselves then there these they this those
though through to together too toward towards under until up upon us very via was we were what when where whether
which while who whom whose why will with within without would yet you your
"""


@dataclass(slots=True)
class TextStatistics:
    """Counts over the usable images of a split."""

    labels: Sequence[str] = EMOTIONS
    images: int = 0
    texts: int = 0
    texts_per_image: Counter[int] = field(default_factory=Counter)  # number of texts → images
    votes: Counter[int] = field(default_factory=Counter)  # emotion → texts
    dominant: Counter[int | None] = field(default_factory=Counter)  # emotion → images; None: no majority
    lengths: Counter[int] = field(default_factory=Counter)  # tokens of a whole text → texts; empty: no tokenizer
    truncated: int = 0  # texts longer than dataset.max_length
    tokens: int = 0  # of the texts themselves, without those of the template
    tokens_known: int = 0  # of these, those with a VAD value
    coverage: dict[str, float] = field(default_factory=dict)  # VadAligner.coverage; empty: no lexicon
    lacking: Counter[str] = field(default_factory=Counter)  # words that are not in the lexicon → occurrences


class TextChecker:
    """Counts texts as training reads them.

    Args:
        template: with dataset.max_length; None: no tokenizer, so tokens are not counted.
        aligner: of the lexicon; None: no lexicon.
        with_emotions: False: the sentence contains no emotion, as with dataset.emotions=false.
    """

    def __init__(self, template: Template | None, aligner: VadAligner | None, *, with_emotions: bool) -> None:
        self.aligner = aligner
        self.with_emotions = with_emotions
        self.max_length = template.max_length if template else 0
        self.template = template and Template(template.tokenizer, max_length=WHOLE, labels=template.labels)

    def check(
        self, samples: Iterable[Sample], *, labels: Sequence[str] = EMOTIONS, explained: bool = True
    ) -> TextStatistics:
        """Return the statistics of the samples, which are iterated once.

        Args:
            labels: names of their emotions.
            explained: False: the data has no explanations, so its empty texts are not counted.
        """
        found = TextStatistics(labels)
        words: Counter[str] = Counter()
        texts = self._texts(samples, found, words, explained)
        if self.aligner is None:
            deque(texts, maxlen=0)
        else:
            found.coverage = self.aligner.coverage(texts)
            found.lacking = self._lacking(words)
        return found

    def _texts(
        self, samples: Iterable[Sample], found: TextStatistics, words: Counter[str], explained: bool
    ) -> Iterator[str]:
        """Yield each text after counting it."""
        for sample in samples:
            texts = sample.texts if explained else ()
            found.images += 1
            found.texts += len(texts)
            found.texts_per_image[len(texts)] += 1
            found.votes.update(sample.emotions)
            if sample.histogram is not None:
                best = max(range(len(found.labels)), key=sample.histogram.__getitem__)
                found.dominant[best if sample.histogram[best] > MAJORITY else None] += 1
            emotions = sample.emotions if sample.emotions and self.with_emotions else [None] * len(texts)
            for text, emotion in zip(texts, emotions, strict=False):  # without explanations, no texts
                if self.template is not None:
                    self._count_tokens(text, emotion, found)
                if self.aligner is not None:
                    words.update(CLITIC.sub("", normalize_word(word)) for word in WORD.findall(text))
                yield text

    def _count_tokens(self, text: str, emotion: int | None, found: TextStatistics) -> None:
        ids = self.template.encode(text, emotion).input_ids
        own = slice(len(self.template.explanation_prompt(emotion)[0]), -1)
        found.lengths[len(ids)] += 1
        found.truncated += len(ids) > self.max_length
        found.tokens += len(ids[own])
        if self.aligner is not None:
            found.tokens_known += int(self.aligner.align(ids)[1][own].sum())

    def _lacking(self, words: Counter[str]) -> Counter[str]:
        """Return the content words that are not in the lexicon."""
        function_words = frozenset(FUNCTION_WORDS.split())
        content = (word for word in words if not {word, word.removesuffix("n")} & function_words)  # "isn" of "isn't"
        return Counter({word: words[word] for word in content if self.aligner.lexicon.lookup(word) is None})


def most_frequent(words: Counter[str]) -> list[tuple[str, int]]:
    """Return the first LACKING words with their number, ties in alphabetical order."""
    return sorted(words.items(), key=lambda pair: (-pair[1], pair[0]))[:LACKING]
