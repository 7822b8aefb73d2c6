"""SEVLM's text format: tokens, truncation, supervision, parsing."""

from __future__ import annotations

import pytest
from transformers import GPT2Tokenizer

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from data.sevlm_text import SPECIAL, SevlmTemplate
from data.text import IGNORED, Template
from data.tokenizer import load_tokenizer
from tests.helpers.sevlm_reference import frame
from tests.helpers.tiny import sentences, write_tokenizer

EOS, PAD, PREFIX, EMOTION, EXPLANATION = 50256, 50257, 50258, 50259, 50260
BECAUSE = 780
TEXTS = ["the “tiny” boat , lost … under café skies", "'s odd 's", "  two spaces", "1890 , or so", "", "wow! it's 🌊"]


@pytest.fixture(scope="module")
def real(shared_data):
    return SevlmTemplate(load_tokenizer(str(shared_data / "gpt2_bpe")), max_length=30)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tiny(tokenizer_folder):
    return SevlmTemplate(load_tokenizer(str(tokenizer_folder)), max_length=30)


@pytest.fixture(params=["real", "tiny"])
def template(request):
    return request.getfixturevalue(request.param)


# --- the four tokens of its own ---------------------------------------------------------------------------------------


def test_ids_are_the_published_ones(real):
    assert real.tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [PAD, PREFIX, EMOTION, EXPLANATION]
    assert (real.pad_id, real.segment_ids, real.eos_id, real.bos_id) == (PAD, (EMOTION, EXPLANATION), EOS, EOS)
    assert len(real.tokenizer) == 50261


def test_rest_of_the_tokenizer_is_unchanged(tokenizer_folder, tiny):
    before = load_tokenizer(str(tokenizer_folder))
    assert len(tiny.tokenizer) == len(before) + 4
    assert tiny.tokenizer.get_vocab().items() > before.get_vocab().items()
    plain = Template(before, max_length=60)
    for text in sentences(5):
        assert tiny.encode(text, 0).input_ids[1:-1] == plain.encode(text, 0).input_ids[1:-1][:29]


def test_tokens_survive_saving_and_are_not_added_again(template, tmp_path):
    template.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))  # as trainer/runs/checkpoint.py does
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    vocabulary = template.tokenizer.get_vocab()
    assert loaded.get_vocab() == vocabulary
    again = SevlmTemplate(loaded, max_length=30)
    assert again.tokenizer.get_vocab() == vocabulary and len(loaded) == len(template.tokenizer)
    assert (again.pad_id, again.segment_ids, again.ends) == (template.pad_id, template.segment_ids, template.ends)
    for text in [*TEXTS, "a <emotion> in <pad> words"]:
        assert again.encode(text, INDEX["awe"]) == template.encode(text, INDEX["awe"])


def test_published_tokenizer_folder_keeps_its_ids(tokenizer_folder, tmp_path):
    """As saved by the transformers version of that time: added tokens in a separate file."""
    saved = GPT2Tokenizer.from_pretrained(str(tokenizer_folder))
    base = len(saved)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tokenizer_folder / name).read_bytes())
    rows = ", ".join(f'"{token}": {base + i}' for i, token in reversed([*enumerate(SPECIAL)]))
    (tmp_path / "added_tokens.json").write_text(f"{{{rows}}}")
    others = ", ".join(f'"{token}"' for token in SPECIAL[1:])
    (tmp_path / "special_tokens_map.json").write_text(
        f'{{"eos_token": "<|endoftext|>", "pad_token": "<pad>", "additional_special_tokens": [{others}]}}'
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    template = SevlmTemplate(load_tokenizer(str(tmp_path)), max_length=30)
    assert template.tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [base, base + 1, base + 2, base + 3]
    assert len(template.tokenizer) == base + 4
    assert template.ends.isdisjoint(template.encode("a <pad> b <explanation>", 0).input_ids[1:-1])


def test_text_cannot_contain_special_tokens(template):
    encoded = template.encode("a <emotion> b <pad> <explanation> <prefix> <|endoftext|> c", INDEX["fear"])
    assert template.ends.isdisjoint(encoded.input_ids[1:-1])
    assert encoded.truncated or encoded.input_ids[-1] == template.eos_id


# --- framing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("emotion", "tokens"),
    [("contentment", [262, 9942, 318, 2695, 434, BECAUSE]), ("awe", [262, 9942, 318, 25030, BECAUSE])],
)
def test_gpt2_tokens_of_a_text(real, emotion, tokens):
    words = real.tokenizer(" tiny boat").input_ids
    assert real.encode("tiny boat", INDEX[emotion]).input_ids == [EOS, *tokens, *words, EOS]


def test_position_of_because(real):
    single = {"amusement": 30184, "awe": 25030, "excitement": 14067, "anger": 8993}
    single |= {"disgust": 16234, "fear": 3252, "sadness": 25303}
    pieces = {name: [token] for name, token in single.items()}
    pieces |= {"contentment": [2695, 434], "something else": [1223, 2073]}
    assert pieces.keys() == set(EMOTIONS)
    for name, tokens in pieces.items():
        encoded = real.encode("a boat", INDEX[name])
        because = encoded.input_ids.index(BECAUSE)
        assert encoded.input_ids[4:because] == tokens
        assert because == (5 if name in single else 6)
        assert encoded.segment == [0] * because + [1] * (len(encoded.input_ids) - because)
        assert (encoded.emotion_start, encoded.explanation_start) == (4, because + 1)


@pytest.mark.parametrize("text", TEXTS)
def test_head_and_tail_are_tokenized_separately(template, text):
    """SEVLM makes two calls: one up to the emotion, one from "because" on."""
    for emotion, name in enumerate(EMOTIONS):
        calls = (f" the emotion is {name}", f" because {text}")
        ids = [id for call in calls for id in template.tokenizer(call).input_ids]
        assert template.encode(text, emotion).input_ids == [template.bos_id, *ids, template.eos_id][:30]


def test_all_but_the_first_token_is_supervised(template):
    for emotion in range(9):
        first, other = (template.encode("a tiny boat", emotion, supervise_emotion=flag) for flag in (True, False))
        assert first == other
        assert first.labels == [IGNORED, *first.input_ids[1:]]
        assert first.input_ids[-1] == template.eos_id and not first.truncated


def test_truncation_after_30_tokens(real):
    for words in range(15, 30):
        encoded = real.encode(" ".join(["boat"] * words), INDEX["awe"])
        whole = [EOS, 262, 9942, 318, 25030, BECAUSE, *real.tokenizer(" boat" * words).input_ids, EOS]
        assert encoded.input_ids == whole[:30] and encoded.truncated == (len(whole) > 30)
        assert (encoded.input_ids[-1] == EOS) == (words <= 23), "truncation removes <eos>"
        assert len(encoded.labels) == len(encoded.segment) == len(encoded.input_ids)
        assert encoded.labels[-1] == encoded.input_ids[-1]


def test_padded_text_equals_the_reference(template):
    """The reference pads to 30 tokens."""
    call = template.tokenizer
    texts = [*TEXTS, *sentences(6), "boat " * 30]
    pairs = [(emotion, text) for emotion in range(9) for text in texts]
    split = [
        (call(f" the emotion is {EMOTIONS[e]}").input_ids, call(f" because {text}").input_ids) for e, text in pairs
    ]
    base = len(call) - len(SPECIAL)
    expected = frame(split, eos=template.eos_id, base=base)
    for row, (emotion, text) in enumerate(pairs):
        encoded = template.encode(text, emotion)
        padding = 30 - len(encoded.input_ids)
        assert expected.ids[row].tolist() == encoded.input_ids + [template.pad_id] * padding
        assert expected.labels[row].tolist() == encoded.labels + [IGNORED] * padding
        segments = [template.segment_ids[segment] for segment in encoded.segment + [1] * padding]
        assert expected.segments[row].tolist() == segments


def test_max_length_without_room_is_rejected(real):
    with pytest.raises(UserError, match=r"dataset\.max_length=8 leaves no room"):
        SevlmTemplate(real.tokenizer, max_length=8)


def test_generation_prompt_is_a_prefix_of_the_training_text(template):
    for emotion in range(9):
        prompt, count = template.explanation_prompt(emotion)
        encoded = template.encode("a boat", emotion)
        assert encoded.input_ids[: len(prompt)] == prompt and sum(encoded.segment[: len(prompt)]) == count == 1
        assert encoded.input_ids[: len(template.prompt)] == template.prompt


# --- reading a written text -------------------------------------------------------------------------------------------


def written(template: Template, text: str) -> list[int]:
    return template.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.mark.parametrize(
    ("text", "emotion", "explanation"),
    [
        (" awe because the sky is lost", "awe", "the sky is lost"),
        (" something else because it is odd", "something else", "it is odd"),
        (" fear because I hide because it storms", "fear", "it storms"),
        (" awe because", "awe", "<unk>"),
        (" because of the sky", "", "of the sky"),
        (" the tiny boat is lost", "the tiny boat is lost", "boat is lost"),
        (" awe", "awe", "<unk>"),
        ("", "", "<unk>"),
        (" awebecause it is", "awe", "it is"),
        (" awe because the sky , the man 's hat .", "awe", "the sky, the man's hat."),
    ],
)
def test_parse(template, text, emotion, explanation):
    for end in ([], [template.eos_id], [template.eos_id, *written(template, " more because more")]):
        parsed = template.parse([*written(template, text), *end], steps=99)
        assert (parsed.emotion, parsed.explanation) == (emotion, explanation)
        assert parsed.full == parsed.full.lstrip()


@pytest.mark.parametrize("token", [EOS, PAD, PREFIX, EMOTION, EXPLANATION])
def test_text_ends_at_the_first_special_token(real, token):
    parsed = real.parse([25030, BECAUSE, 262, token, 6766, EOS])
    assert parsed == ("awe", "the", "awe because the")


def test_25_tokens_without_end_lose_the_last(real):
    tokens = [25030, BECAUSE, *[262] * 23]
    assert len(tokens) == 25
    assert real.parse(tokens).explanation.split() == ["the"] * 22
    assert real.parse(tokens[:24]).explanation.split() == ["the"] * 22, (
        "the end token at position 25 is already removed"
    )
    assert real.parse([*tokens[:24], EOS]).explanation.split() == ["the"] * 22
    assert real.parse(tokens, steps=40).explanation.split() == ["the"] * 23
    assert real.parse([*tokens, *[262] * 15], steps=40).explanation.split() == ["the"] * 37


def test_parse_inverts_encode(template):
    for emotion, name in enumerate(EMOTIONS):
        encoded = template.encode("the tiny boat", emotion)
        parsed = template.parse(encoded.input_ids[len(template.prompt) :])
        assert parsed == (name, "the tiny boat", f"{name} because the tiny boat")
