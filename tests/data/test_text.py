"""The text template: supervision, segments, truncation; and loading of tokenizers."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from data.text import IGNORED, Template
from data.tokenizer import load_tokenizer
from tests.helpers.tiny import go_offline, make_template, sentences, write_tokenizer

EOS = 50256
REAL_TEXTS = ["the “tiny” boat , lost … under café skies", "wow! it's so-so (really) 🌊", "x", "naïve  double  spaces"]


@pytest.fixture(scope="module")
def gpt2(shared_data):
    return load_tokenizer(str(shared_data / "gpt2_bpe"))


@pytest.fixture(scope="module")
def real(gpt2):
    return Template(gpt2, max_length=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("tokenizer"))


def write_json(path, specials):
    """Write a tokenizers JSON file of a byte-level BPE with these special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f" the emotion is {e} because a boat" for e in EMOTIONS], trainer)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(("emotion", "label"), [("contentment", [2695, 434]), ("awe", [25030])])
def test_gpt2_tokens_of_a_text(real, emotion, label):
    ids = real.encode("calm", INDEX[emotion]).input_ids
    assert ids == [EOS, 262, 9942, 318, *label, 780, *real.tokenizer(" calm").input_ids, EOS]
    assert (real.bos_id, real.eos_id, len(real.tokenizer)) == (EOS, EOS, 50257)


def test_prompt_is_not_supervised(real):
    for emotion in range(9):
        encoded = real.encode("wow! a boat!", emotion)
        assert encoded.labels[:4] == [IGNORED] * 4
        assert encoded.labels[4:] == encoded.input_ids[4:], "emotion, because, explanation and <eos>"
        assert encoded.labels.count(0) == 2, "GPT-2's token 0 is '!', an ordinary token"
        assert encoded.labels[-1] == EOS


def test_emotion_can_be_unsupervised(real):
    for emotion, label in enumerate(real.label_ids):
        taught, shown = (real.encode("a boat", emotion, supervise_emotion=flag) for flag in (True, False))
        assert shown.labels == [IGNORED] * (4 + len(label)) + taught.labels[4 + len(label) :]
        assert (shown.input_ids, shown.segment) == (taught.input_ids, taught.segment)
        assert shown.labels[4 + len(label)] == 780, "because is still supervised"


def test_segment_is_1_from_because_on(real):
    for emotion, ids in enumerate(real.label_ids):
        encoded = real.encode("a boat", emotion)
        head = 4 + len(ids)
        assert encoded.segment == [0] * head + [1] * (len(encoded.input_ids) - head)
        assert encoded.input_ids[head] == 780


@pytest.mark.parametrize("name", ["real", "tiny"])
@pytest.mark.parametrize("supervised", [True, False])
def test_emotion_start_and_explanation_start(name, supervised, request):
    template = request.getfixturevalue(name)
    for emotion, label in enumerate(template.label_ids):
        encoded = template.encode("a boat", emotion, supervise_emotion=supervised)
        ids, start = encoded.input_ids, encoded.explanation_start
        assert ids[encoded.emotion_start :][: len(label)] == label
        assert template.decode(ids[start:]) == "a boat"
        assert template.decode(ids[:start]) == f"the emotion is {EMOTIONS[emotion]} because"
        assert start == len(template.explanation_prompt(emotion)[0])
    encoded = template.encode("a boat", None)
    assert (encoded.emotion_start, encoded.explanation_start) == (-1, 1)


def test_starts_are_inside_a_truncated_text(gpt2):
    for emotion in (None, *range(9)):
        for text in ("", "x", "boat " * 30):
            encoded = Template(gpt2, max_length=9).encode(text, emotion)
            assert encoded.emotion_start < encoded.explanation_start < len(encoded.input_ids) <= 9


def test_truncation_keeps_eos(gpt2):
    template = Template(gpt2, max_length=12)
    whole = Template(gpt2, max_length=60)
    for words in range(1, 12):
        text = " ".join(["boat"] * words)
        expected, cut = whole.encode(text, INDEX["awe"]), template.encode(text, INDEX["awe"])
        assert cut.truncated == (len(expected.input_ids) > 12), words
        assert len(cut.input_ids) == min(12, len(expected.input_ids))
        assert cut.input_ids[:-1] == expected.input_ids[: len(cut.input_ids) - 1]
        assert cut.input_ids[-1] == cut.labels[-1] == EOS
        assert len(cut.labels) == len(cut.segment) == len(cut.input_ids)


def test_smallest_max_length_leaves_one_token_of_the_explanation(gpt2, real):
    longest = max(map(len, real.label_ids))
    smallest = 4 + longest + 1 + 2
    template = Template(gpt2, max_length=smallest)
    for emotion in range(9):
        assert sum(template.encode("boat boat boat boat boat boat", emotion).segment) >= 3
    with pytest.raises(UserError, match=rf"dataset\.max_length={smallest - 1} .* at least {smallest}"):
        Template(gpt2, max_length=smallest - 1)


@pytest.mark.parametrize("name", ["real", "tiny"])
def test_labels_are_distinct(name, request):
    labels = request.getfixturevalue(name).label_ids
    assert len(labels) == 9
    for i, label in enumerate(labels):
        assert not any(other[: len(label)] == label for j, other in enumerate(labels) if j != i)


def test_without_emotions_all_but_bos_is_supervised(real):
    encoded = real.encode("A boat on the sea!", None)
    assert encoded.input_ids == [EOS, *real.tokenizer("A boat on the sea!").input_ids, EOS]
    assert encoded.labels == [IGNORED, *encoded.input_ids[1:]]
    assert encoded.segment == [0] * len(encoded.input_ids)
    assert not encoded.truncated
    cut = Template(real.tokenizer, max_length=20).encode("boat " * 50, None)
    assert (len(cut.input_ids), cut.input_ids[-1], cut.truncated) == (20, EOS, True)


@pytest.mark.parametrize("name", ["real", "tiny"])
@pytest.mark.parametrize("emotion", [None, *range(9)])
def test_generation_prompt_is_a_prefix_of_the_training_text(name, emotion, request):
    template = request.getfixturevalue(name)
    prompt, count = template.explanation_prompt(emotion)
    encoded = template.encode("a boat", emotion)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert sum(encoded.segment[: len(prompt)]) == count
    words = "a boat" if emotion is None else f"the emotion is {EMOTIONS[emotion]} because a boat"
    assert template.decode(encoded.input_ids) == words


@pytest.mark.parametrize("text", REAL_TEXTS)
@pytest.mark.parametrize("emotion", [None, 4])
def test_decode_inverts_encode(real, text, emotion):
    prompt, _ = real.explanation_prompt(emotion)
    assert real.decode(real.encode(text, emotion).input_ids[len(prompt) :]) == text


def test_text_cannot_contain_special_tokens(real):
    encoded = real.encode("a <|endoftext|> b", INDEX["awe"])
    assert encoded.input_ids[1:].count(EOS) == 1, "<eos> occurs only at the end"


def test_load_from_folder(tmp_path):
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path / "t")))
    template = Template(tokenizer, max_length=40)
    for text in sentences(5):
        assert template.decode(template.encode(text, None).input_ids) == text


def test_json_file_with_bos_and_eos(tmp_path):
    specials = ["<|startoftext|>", "<|endoftext|>", "<|pad|>"]
    template = Template(load_tokenizer(str(write_json(tmp_path / "t.json", specials))), max_length=60)
    encoded = template.encode("a boat", INDEX["fear"])
    assert (template.bos_id, template.eos_id) == (0, 1)
    assert encoded.input_ids[0] == 0 and encoded.input_ids[-1] == encoded.labels[-1] == 1
    assert set(encoded.input_ids[1:-1]).isdisjoint({0, 1, 2})
    assert encoded.labels[: len(template.prompt)] == [IGNORED] * len(template.prompt)
    assert template.decode(encoded.input_ids) == "the emotion is fear because a boat"


def test_json_file_without_bos_uses_eos(tmp_path):
    template = Template(load_tokenizer(str(write_json(tmp_path / "t.json", ["<|endoftext|>"]))), max_length=60)
    assert template.bos_id == template.eos_id == 0


def test_json_file_without_eos_is_rejected(tmp_path):
    path = write_json(tmp_path / "endless.json", ["<|startoftext|>"])
    with pytest.raises(UserError, match=r"endless\.json has no <\|endoftext\|>"):
        Template(load_tokenizer(str(path)), max_length=60)


def test_json_file_that_is_not_a_tokenizer(tmp_path):
    (tmp_path / "t.json").write_text('{"version": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.json is not a JSON file of the tokenizers library"):
        load_tokenizer(str(tmp_path / "t.json"))


def test_folder_without_tokenizer_files(tmp_path):
    with pytest.raises(UserError, match=rf"folder {tmp_path} has neither vocab\.json and merges\.txt"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("fault", ["no merges", "broken vocabulary", "no end"])
def test_folder_with_unusable_files(tmp_path, fault):
    folder = write_tokenizer(tmp_path / "t")
    if fault == "no merges":
        (folder / "merges.txt").unlink()
    elif fault == "broken vocabulary":
        (folder / "vocab.json").write_text('{"a": 1', encoding="utf-8")
    else:
        (folder / "vocab.json").write_text('{"a": 0, "b": 1}', encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    with pytest.raises(UserError, match=str(folder)) as error:
        load_tokenizer(str(folder))
    assert str(error.value).startswith("dataset.tokenizer: ")


@pytest.mark.parametrize("size", [0.5, 0.98])
def test_half_downloaded_merges_are_refused(tmp_path, size):
    merges = write_tokenizer(tmp_path / "t") / "merges.txt"
    merges.write_bytes(merges.read_bytes()[: int(size * merges.stat().st_size)].rpartition(b"\n")[0])
    with pytest.raises(UserError, match=r"merges\.txt lacks .* of the 330 tokens of vocab\.json.*fetch both again"):
        load_tokenizer(str(merges.parent))


@pytest.mark.parametrize("name", ["gpt2", "gpt2-of-nobody"])
def test_offline_message_names_the_files(tmp_path, monkeypatch, name):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError) as error:
        load_tokenizer(name)
    message = str(error.value)
    assert name in message and "vocab.json" in message and "merges.txt" in message
    assert "dataset.tokenizer=" in message and "\n" not in message


# --- other emotions, and emotions without a reason


def test_other_label_sets(tiny):
    template = Template(tiny.tokenizer, max_length=40, labels=("joy", "fear", "something else"))
    assert template.labels == ("joy", "fear", "something else")
    assert template.label_ids[1:] == [tiny.label_ids[INDEX[name]] for name in template.labels[1:]]
    encoded = template.encode("calm", 0)
    assert template.decode(encoded.input_ids) == "the emotion is joy because calm"
    assert encoded.input_ids[encoded.emotion_start :][: len(template.label_ids[0])] == template.label_ids[0]


def test_emotion_without_explanation_supervises_its_name_only(tiny):
    for emotion, label in enumerate(tiny.label_ids):
        encoded = tiny.encode_name(emotion)
        prompt, behind = tiny.explanation_prompt(emotion)
        assert encoded.input_ids == prompt and tiny.eos_id not in encoded.input_ids[1:]
        assert [token for token in encoded.labels if token != IGNORED] == label
        assert encoded.labels[encoded.emotion_start :][: len(label)] == label
        assert encoded.segment == [0] * (len(prompt) - behind) + [1] * behind
        assert encoded.explanation_start == len(prompt) and not encoded.truncated


def test_label_that_is_a_prefix_of_another_is_rejected(tiny):
    tiny.require_distinct()
    alike = Template(tiny.tokenizer, max_length=40, labels=("joy", "fear", "fear of loss"))
    with pytest.raises(UserError, match=r"dataset\.tokenizer: it encodes 'fear' as .* and 'fear of loss' as .*rename"):
        alike.require_distinct()


@pytest.mark.parametrize(
    "labels",
    [
        ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"),
        ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
        ("negative", "positive"),
    ],
)
def test_published_labels_differ_in_their_first_gpt2_token(gpt2, labels):
    template = Template(gpt2, max_length=60, labels=labels)
    template.require_distinct()
    assert len({ids[0] for ids in template.label_ids}) == len(labels)
