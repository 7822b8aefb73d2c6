"""data/prepare/cleaning.py: cleaned utterances, and the limits of the spelling correction."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare.cleaning import COMMON, clean, normalise, tokenize, words_of

CLEANED = {
    "The COLORS are bright.": "the colors are bright",
    "trees,water/sky;clouds – all-in-one…": "trees water sky clouds all in one",
    "A relaxing scene.Not detailed!!": "a relaxing scene not detailed",
    'It says "go with the flow" (twice)': "it says go with the flow twice",
    "the 'king' and the ‘queen’": "the king and the queen",
    "the 'starry night' above": "the starry night above",
    "black & white, 50% grey": "black and white 50 grey",
    "the woman's hands, the trees' leaves": "the woman 's hands the trees leaves",
    "A baby’s bottom": "a baby 's bottom",
    "It's calm and they're happy": "it is calm and they are happy",
    "it`s odd": "it is odd",
    "It's been raining, she's got an umbrella": "it has been raining she has got an umbrella",
    "He'd like it; he'd better. She'd been there. How'd he know?": (
        "he would like it he had better she had been there how did he know"
    ),
    "I'm sure I've seen what we'll see": "i am sure i have seen what we will see",
    "I can't, won't, shan't, don't; it ain't": "i can not will not shall not do not it is not",
    "it does'nt, couldn't've": "it does not could not have",
    "im sure it doesnt and thats what theyre for": "i am sure it does not and that is what they are for",
    "It's sprouted and it's just happened; hes lost": "it 's sprouted and it 's just happened he 's lost",  # is or has
    "She'd seen it, he'd put it there": "she had seen it he 'd put it there",  # would or had
    "it's a boat, it's always been": "it is a boat it has always been",
    "its ill, we were well": "its ill we were well",
    "Let's go, y'all, 'cause it's gonna rain": "let us go you all because it is going to rain",
    "noone is infront, alot": "no one is in front a lot",
    "five o'clock in the 1920's": "five o'clock in the 1920 's",
    "cafe\u0301 caf\u00e9": "café café",
    "two\nlines\tand\x00a nul": "two lines and a nul",
    "null nan none": "null nan none",
    "☹ ... '' `` ( )": "",
    "": "",
}


@pytest.mark.parametrize(("written", "cleaned"), CLEANED.items())
def test_cleaned_utterances(written: str, cleaned: str) -> None:
    assert " ".join(tokenize(written)) == cleaned


@pytest.mark.parametrize("written", CLEANED)
def test_cleaning_is_idempotent(written: str) -> None:
    once = " ".join(tokenize(written))
    assert " ".join(normalise(once).split()) == " ".join(tokenize(once)) == once


def common(*words: str) -> list[str]:
    """Return utterances that make these words common."""
    return [" ".join(words)] * COMMON


def test_rare_unknown_word_is_corrected_to_a_common_one() -> None:
    cleaned = clean([*common("autumn", "reflections"), "autum relections and autum"])
    assert cleaned.texts[-1] == "autumn reflections and autumn"
    assert cleaned.corrections == {("autum", "autumn"): 2, ("relections", "reflections"): 1}


@pytest.mark.parametrize(
    "word",
    [
        "cabo",  # unknown, but cab and capo are rare here
        "gaudi",  # too far from everything
        "impasto", "chiaroscuro",  # SymSpell's list
        "underpaints",  # lemminflect's dictionary: an inflection
        "pillowy",  # a known word and -y
        "pillovs",  # not near enough
        "ot", "xyz",  # too short to be corrected
        "1800s", "mañana",  # no English letters
    ],
)  # fmt: skip
def test_words_that_are_not_corrected(word: str) -> None:
    assert clean([*common("money", "pillow", "to", "billow"), word]).texts[-1] == word


def test_names_vocabulary_and_common_words_are_correct(tmp_path: Path) -> None:
    texts = [*common("money", "paint", "beach"), "monex", "paimt", *common("beech", "beachh")]
    assert clean(texts).texts[COMMON : COMMON + 2] == ["money", "paint"]
    (tmp_path / "glove.txt").write_text("the 0.1 0.2\nMonex -0.3 0.4\n", encoding="utf-8")
    known = clean(texts, names=["Style/paimt-er_the-paimt"], vocabulary=tmp_path / "glove.txt")
    assert known.texts[COMMON : COMMON + 2] == ["monex", "paimt"]
    assert known.texts[-1] == "beech beachh"  # in COMMON rows
    assert not known.corrections


def test_names_of_painters_are_not_corrected() -> None:
    assert list(words_of("Post_Impressionism/claude-monet_the-avenue(1)")) == (
        ["post", "impressionism", "claude", "monet", "the", "avenue"]
    )
    texts = [*common("monet", "money", "ernest"), "monett", "ernst"]
    names = ["Impressionism/claude-monet_the-avenue", "Surrealism/max-ernst_the-wood"]
    assert clean(texts, names=names).texts[-2:] == ["monet", "ernst"]


def test_spelling_can_be_off() -> None:
    cleaned = clean([*common("autumn"), "Autum"], spelling=False)
    assert cleaned.texts[-1] == "autum" and not cleaned.corrections


def test_order_of_rows_does_not_matter() -> None:
    texts = [*common("autumn", "colors"), "autum", "colrs of autun", "the autunm"]
    shuffled = random.Random(0).sample(range(len(texts)), len(texts))
    straight, mixed = clean(texts), clean([texts[i] for i in shuffled])
    assert mixed.texts == [straight.texts[i] for i in shuffled]
    assert mixed.corrections == straight.corrections and len(straight.corrections) == 4


def test_real_utterances(shared_data: Path) -> None:
    """Of the corrections in 539 utterances, only that of `sceme` is wrong (scheme)."""
    import csv

    with (shared_data / "paintings/artemis_dataset_release_v0.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cleaned = clean([row["utterance"] for row in rows], names={row["painting"] for row in rows})
    assert set(cleaned.corrections) == {
        ("autum", "autumn"), ("backgroud", "background"), ("beautifull", "beautiful"), ("bfown", "brown"),
        ("ljfe", "life"), ("lonley", "lonely"), ("mthe", "the"), ("peacful", "peaceful"),
        ("relections", "reflections"), ("sceme", "scene"), ("womans", "woman"),
    }  # fmt: skip
    assert all(c.isalnum() or c in " '" for text in cleaned.texts for c in text)


def test_missing_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocabulary .*words\.txt cannot be read"):
        clean(["a b"], vocabulary=tmp_path / "words.txt")
