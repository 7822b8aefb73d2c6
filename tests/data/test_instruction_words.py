"""data/prepare/instructions/class_words.py: which words name a class."""

from __future__ import annotations

import pytest

from data.emotions import EMOTIONS
from data.prepare.instructions.class_words import class_words


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("amusement", "amusement amuses amused amusing amusingly"),
        ("awe", "awe awed awesome awe-inspiring awestruck"),
        ("contentment", "content contented contentedly contentment"),
        ("excitement", "excite excited exciting excitedly excitements"),
        ("anger", "anger angers angered angry angrier angrily"),
        ("disgust", "disgust disgusts disgusted disgusting disgustingly"),
        ("fear", "fear fears feared fearful fearfully fearsome fearless"),
        ("sadness", "sad sadder saddest sadly sadness sadden saddens saddening sad-looking"),
        ("joy", "joy joyful joyous joyfully"),
        ("surprise", "surprise surprised surprising surprisingly"),
        ("positive", "positive positively positivity"),
        ("negative", "negative negativity"),
        ("disappointment", "disappointment disappointed disappointing disappoints"),
        ("hope", "hope hopes hoped hoping hopeful hopefully hopeless"),
        ("serenity", "serenity serene serenely"),
        ("pity", "pity pities pitied pitiful pitying"),
    ],
)
def test_inflections_and_derived_words_name_the_class(label, named):
    for word in named.split():
        for text in (f"a {word} here", f"{word.upper()}!", f"“{word.capitalize()}”, she said"):
            assert class_words(label).named_in(text), text


@pytest.mark.parametrize(
    ("label", "others"),
    [
        ("amusement", "muse museum bemused fun"),
        ("awe", "awful away awning jaw saw"),
        ("contentment", "continent discontent tent happy"),
        ("excitement", "exit cite incite"),
        ("anger", "danger hanger angel angle stranger"),
        ("fear", "feat afar scared afraid ear"),
        ("sadness", "saddle said ambassador gloomy"),
        ("something else", "or elsewhere"),
        ("hope", "hop hops hopping shop"),
        ("passion", "pass passing compassion"),
    ],
)
def test_similar_words_do_not_name_the_class(label, others):
    for word in others.split():
        if label == "something else":
            word = f"something {word}"  # neither word alone is the label
        assert class_words(label).named_in(f"the {word} here") is None, word


def test_labels_of_two_words_and_other_forms_of_a_label():
    for text in ("it is something else", "Something  else!", "something-else"):
        assert class_words("something else").named_in(text)
    assert class_words("mixed_feelings").named_in("I have mixed feelings about it")
    assert class_words("Angry").forms == class_words("anger").forms
    assert all(class_words(label).named_in(label) == label for label in EMOTIONS)
