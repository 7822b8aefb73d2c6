"""The configured tokenizer must be the language model's own, or extend it."""

from __future__ import annotations

import json
import shutil

import pytest
from omegaconf import OmegaConf

from common.errors import UserError
from data.tokenizer import load_tokenizer
from tests.helpers.tiny import write_gpt2, write_tokenizer
from tests.helpers.tokenizer_kinds import write_kind
from trainer.setup.vocabulary import configured_tokenizer


def config(tokenizer, pretrained_name, *, new_vocabulary=False):
    text = {"pretrained_name": pretrained_name and str(pretrained_name), "new_vocabulary": new_vocabulary}
    return OmegaConf.create({"dataset": {"tokenizer": str(tokenizer)}, "model": {"text": text}})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with config.json and its tokenizer."""
    return write_kind(tmp_path_factory.mktemp("model"), "sentencepiece BPE", model_type="llama")


def test_auto_and_the_same_folder(model, tmp_path):
    own = configured_tokenizer(config("auto", model))
    assert own.get_vocab() == configured_tokenizer(config(model, model)).get_vocab()
    copy = shutil.copytree(model, tmp_path / "copy")
    assert own.get_vocab() == configured_tokenizer(config(copy, model)).get_vocab()


def test_tokens_may_be_added_at_the_end(model, tmp_path):
    tokenizer = load_tokenizer(str(model))
    tokenizer.add_tokens(["<emotion>", "<explanation>"])
    tokenizer.save_pretrained(str(tmp_path / "more"))
    assert len(configured_tokenizer(config(tmp_path / "more", model))) == len(tokenizer)


def test_another_tokenizer_is_refused(model, tmp_path):
    other = write_kind(tmp_path / "other", "sentencepiece unigram")
    with pytest.raises(UserError, match=r"token \d+ is .* instead of .*dataset\.tokenizer=auto.*new_vocabulary=true"):
        configured_tokenizer(config(other, model))
    assert configured_tokenizer(config(other, model, new_vocabulary=True)).eos_token == "</s>"
    assert configured_tokenizer(config(other, None)).eos_token == "</s>", "random weights fit any tokenizer"


def test_two_tokens_that_change_places_are_noticed(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "swapped")
    parts = json.loads((folder / "tokenizer.json").read_text())
    words = parts["model"]["vocab"]
    words["▁boat"], words["▁tiny"] = words["▁tiny"], words["▁boat"]
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match=r"'▁(boat|tiny)' instead of '▁(boat|tiny)'"):
        configured_tokenizer(config(folder, model))


@pytest.mark.parametrize(("rows", "fits"), [(330, True), (334, True), (345, True), (50257, False), (120, False)])
def test_sizes_are_compared_without_the_language_models_tokenizer(tmp_path, rows, fits):
    weights = write_gpt2(tmp_path / "gpt2", vocab_size=330)
    stored = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps(stored | {"vocab_size": rows}))
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    if fits:
        assert len(configured_tokenizer(config(tokenizer, weights))) == 330
    else:
        with pytest.raises(UserError, match=rf"it has 330 tokens instead of {rows:,}"):
            configured_tokenizer(config(tokenizer, weights))
