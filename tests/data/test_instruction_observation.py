"""data/prepare/instructions/observation.py: explanations without the name of their class."""

from __future__ import annotations

import json
import re

import pytest

from data.emotions import EMOTIONS
from data.prepare.instructions.class_words import class_words
from data.prepare.instructions.observation import tidy, without_class

# Independent of data/prepare/instructions/class_words.py: no text of a class may contain a word that begins so.
STEMS = {
    "amusement": "amus",
    "awe": "aw(e|ed|es|ing|esome\\w*|estruck|estricken)\\b",
    "contentment": "content",
    "excitement": "excit",
    "anger": "ang(er|ri|ry)",
    "disgust": "disgust",
    "fear": "fear",
    "sadness": "sad(\\b|d|l|n)",
    "something else": "something else",
}
FRAMES = [
    "{}",
    "The {} of the old man by the sea is plain to see.",
    "I feel {} because the boats are so small.",
    "a {} man walks along the dark road",
    "The trees are tall and {}, the sky is red",
    "It is {}, lonely and cold in this house.",
    "Nobody is there; {} fills the empty street with {} and dust.",
    "More {} than anything, the dancers turn and turn. The {}-looking crowd stares.",
    "“{}”, the tiny boat says under a huge wave.",
]
TORN = re.compile(r"  | [,.;!?]|[,;]\.|^[,.;!?]|\b(?:and|or|because|but|the|a|an|of|that|which)[.!?]*$", re.IGNORECASE)


@pytest.mark.parametrize("label", EMOTIONS)
def test_no_word_of_the_class_remains(label):
    kept = 0
    for form in class_words(label).forms:
        for frame in FRAMES:
            for word in (form, form.capitalize(), form.upper()):
                text = tidy(frame.replace("{}", word))
                left = without_class(text, label)
                if left is not None:
                    kept += 1
                    assert not re.search(rf"\b{STEMS[label]}", left, re.IGNORECASE), (text, left)
                    assert not TORN.search(left), (text, left)
    assert kept > 3 * len(class_words(label).forms)  # most texts are not dropped


@pytest.mark.parametrize(
    ("label", "text", "left"),
    [
        # a clause that only states the feeling
        ("sadness", "I feel sad because the man is alone.", "The man is alone."),
        ("contentment", "i feel content when i look at the calm blue lake", "the calm blue lake"),
        ("contentment", "The lily pads are beautiful and make me feel content.", "The lily pads are beautiful."),
        ("contentment", "The area is quiet and serene which makes me feel content.", "The area is quiet and serene."),
        ("awe", "The sheer size of the mountains leaves me in awe.", "The sheer size of the mountains."),
        ("fear", "I fear that the ship is going to sink", "The ship is going to sink"),
        ("anger", "It makes me angry that the horse is beaten", "The horse is beaten"),
        ("awe", "I am in awe of this picture because it's so calm on the water", "It's so calm on the water"),
        ("fear", "Because the figure is hidden I feel fear", "The figure is hidden"),
        ("excitement", "I am excited looking at the weird squiggles in the sky.", "The weird squiggles in the sky."),
        ("sadness", "Her lost gaze betrays a sadness that is reinforced by the drab colors.", "Her lost gaze."),
        ("sadness", "The bed is empty, and the whole room looks sad", "The bed is empty"),
        ("sadness", "This looks like home and makes me sad because my trip got cancelled.",
         "This looks like home. My trip got cancelled."),
        ("contentment", "The woman is reading a book, she looks so content.", "The woman is reading a book."),
        # one word of two
        ("sadness", "Her face looks so tired and sad; it hurts.", "Her face looks so tired; it hurts."),
        ("sadness", "It makes me feel sad, confined and beaten.", "It makes me feel confined and beaten."),
        ("sadness", "It conveys a sense of death and sadness.", "It conveys a sense of death."),
        ("sadness", "He looks sad and alone in the big room", "He looks alone in the big room"),
        # a word before its noun, an adverb
        ("sadness", "A sad old woman sits by the window", "An old woman sits by the window"),
        ("awe", "an awe-inspiring view of the mountains", "a view of the mountains"),
        ("anger", "The man's angry eyes stare at the door.", "The man's eyes stare at the door."),
        ("sadness", "Sadly, the mother has lost her child.", "The mother has lost her child."),
        # nothing to remove, also if another class is named
        ("awe", "A sad, lonely boat.", "A sad, lonely boat."),
        ("something else", "Something lurks there, or else a shadow.", "Something lurks there, or else a shadow."),
    ],
)  # fmt: skip
def test_remaining_text(label, text, left):
    assert without_class(text, label) == left


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("sadness", "sad"),
        ("sadness", "It's so sad."),
        ("fear", "I feel fear when I look at this painting."),
        ("sadness", "If I were the girl I would be sad too."),
        ("something else", "I feel something else."),
    ],
)
def test_too_little_remains(label, text):
    assert without_class(text, label) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("This  blend\nof   colours ", "This blend of colours"),
        ("the painting 's light , here", "the painting's light, here"),
        ("A water scene.Not detailed,and dark.But calm", "A water scene. Not detailed, and dark. But calm"),
        ("from 3.5 to 1,000 e.g. www.Art.org", "from 3.5 to 1,000 e.g. www.Art.org"),
    ],
)
def test_tidy(text, wanted):
    assert tidy(text) == wanted == tidy(wanted)


def test_real_explanations_read_well(shared_data):
    """Of 539 real ones, about fifty name their class; most of these leave an observation, the others are unchanged."""
    named = dropped = 0
    for split in ("train", "val", "test"):
        entries = json.loads((shared_data / f"paintings/artEmisX_{split}.json").read_text(encoding="utf-8"))
        for entry in entries.values():
            for label, text in zip(entry["emotions"], map(tidy, entry["explanations"]), strict=True):
                left = without_class(text, label)
                if class_words(label).named_in(text) is None:
                    assert left == text
                    continue
                named += 1
                dropped += left is None
                if left is not None:
                    assert not re.search(rf"\b{STEMS[label]}", left, re.IGNORECASE)
                    assert not TORN.search(left), (text, left)
    assert named > 40 and dropped < named / 5
