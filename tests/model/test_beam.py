"""Beam search on tensors equals a reference search over Python lists, image by image."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from model.decoding.beam import GeneratedText, beam_search

VOCABULARY, EOS = 23, 0


@dataclass
class Chain:
    """A reader whose next token depends on the last token and on the image."""

    logits: torch.Tensor  # (B, V + 1, V); the last row is for the first token
    width: int
    images: torch.Tensor = field(init=False)
    last: torch.Tensor = field(init=False)
    dropped: int = 0

    def __post_init__(self):
        self.images = torch.arange(len(self.logits))

    def start(self):
        self.paths = [[] for _ in range(len(self.images) * self.width)]
        return self.logits[:, -1]

    def step(self, tokens):
        self.paths = [[*path, token] for path, token in zip(self.paths, tokens.tolist(), strict=True)]
        return self.logits[self.images.repeat_interleave(self.width), tokens]

    def reorder(self, rows):
        assert torch.equal(rows // self.width, torch.arange(len(self.images)).repeat_interleave(self.width))
        self.paths = [self.paths[row] for row in rows.tolist()]

    def keep(self, images):
        self.dropped += len(self.images) - len(images)
        rows = (images[:, None] * self.width + torch.arange(self.width)).view(-1)
        self.images, self.paths = self.images[images], [self.paths[row] for row in rows.tolist()]


def reference_search(logits, *, width, max_length) -> GeneratedText:
    """Textbook beam search for one image: hypotheses in lists, compared by mean log-probability."""
    running, finished = [(0.0, [])], []
    for length in range(1, max_length + 1):
        grown = []
        for score, path in running:
            row = logits[path[-1] if path else -1].log_softmax(dim=-1).tolist()
            grown += [(score + value, [*path, token]) for token, value in enumerate(row)]
        best = sorted(grown, key=lambda one: one[0], reverse=True)[: 2 * width]
        finished += [(score / length, path[:-1]) for score, path in best[:width] if path[-1] == EOS]
        finished = sorted(finished, key=lambda one: one[0], reverse=True)[:width]
        running = [one for one in best if one[1][-1] != EOS][:width]
        if len(finished) == width and running[0][0] / length <= finished[-1][0]:
            break
    else:
        finished += [(score / max_length, path) for score, path in running]
    mean, path = max(finished, key=lambda one: one[0])
    return GeneratedText(path, mean)


def random_logits(count, *, seed, ending):
    logits = 2 * torch.randn(count, VOCABULARY + 1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    logits[..., EOS] += ending
    return logits


@pytest.mark.parametrize("ending", [-3.0, 0.0, 2.0], ids="ends {}".format)
@pytest.mark.parametrize("width", [1, 2, 5])
def test_search_equals_a_reference_over_lists(width, ending):
    logits = random_logits(12, seed=width, ending=ending)
    ours = beam_search(Chain(logits, width), eos_id=EOS, width=width, max_length=9)
    expected = [reference_search(one, width=width, max_length=9) for one in logits]
    assert [text.tokens for text in ours] == [text.tokens for text in expected]
    assert [text.log_prob for text in ours] == pytest.approx([text.log_prob for text in expected], abs=1e-5)
    assert (len({len(text.tokens) for text in ours}) > 1) == (ending > -3), "lengths must vary unless texts rarely end"


def test_decided_images_are_dropped_and_results_stay_in_order():
    logits = random_logits(16, seed=1, ending=1.5)
    reader = Chain(logits, 3)
    together = beam_search(reader, eos_id=EOS, width=3, max_length=12)
    assert reader.dropped > 0, "some images must be dropped for this test"
    alone = [beam_search(Chain(one[None], 3), eos_id=EOS, width=3, max_length=12)[0] for one in logits]
    assert [text.tokens for text in together] == [text.tokens for text in alone]


def test_reader_rows_follow_the_paths_of_the_beams():
    """The tokens that the reader got for every row are those of the returned text."""
    logits = random_logits(4, seed=2, ending=-9.0)  # nothing ends
    reader = Chain(logits, 3)
    texts = beam_search(reader, eos_id=EOS, width=3, max_length=7)
    for image, text in enumerate(texts):
        assert text.tokens[:-1] in reader.paths[3 * image : 3 * image + 3]
        rows = [-1, *text.tokens[:-1]]
        score = logits[image, rows].log_softmax(dim=-1)[range(7), text.tokens].mean()
        assert text.log_prob == pytest.approx(float(score), abs=1e-5)


def test_more_beams_than_tokens_in_the_vocabulary():
    logits = random_logits(2, seed=3, ending=0.0)
    texts = beam_search(Chain(logits, 30), eos_id=EOS, width=30, max_length=3)
    assert [t.tokens for t in texts] == [reference_search(one, width=30, max_length=3).tokens for one in logits]
