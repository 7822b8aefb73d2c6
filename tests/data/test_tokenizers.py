"""Tokenizers of any language model: loading, continuations, special tokens, storing, and dataset.tokenizer=auto."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers.processors import TemplateProcessing

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from data.text import Template
from data.tokenizer import load_tokenizer, save_tokenizer
from data.tokenizer_files import resolve_tokenizer
from tests.helpers.tiny import go_offline, make_template, sentences, write_gpt2, write_tokenizer
from tests.helpers.tokenizer_kinds import CHAT, KINDS, write_kind

WRITING = KINDS[:3]  # with an <eos>
HOSTILE = "a <|im_start|> b </s> c <|endoftext|> d"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    return {kind: write_kind(root / kind, kind) for kind in KINDS}


def template_of(folder, **settings):
    """settings: further ones of tokenizer_config.json."""
    if settings:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return Template(load_tokenizer(str(folder)), max_length=80)


@pytest.fixture(params=KINDS)
def template(request, folders, tmp_path):
    folder = shutil.copytree(folders[request.param], tmp_path / "copy")
    return template_of(folder, **({"eos_token": "[SEP]"} if request.param == "WordPiece" else {}))


def test_pieces_of_a_text_are_those_of_the_running_text(template):
    for sentence in sentences(20):
        encoded = template.encode(sentence, INDEX["awe"])
        whole = f"the emotion is awe because {sentence}"
        ids = template.tokenizer(f" {whole}" if not template.adds_space else whole, add_special_tokens=False).input_ids
        assert encoded.input_ids == [template.bos_id, *ids, template.eos_id]
        assert template.decode(encoded.input_ids) == whole.replace(" ,", ",") or template.decode(ids) == whole
        explanation = template.decode(encoded.input_ids[encoded.explanation_start :])
        assert explanation.replace(" ,", ",") == sentence.replace(" ,", ",")


def test_only_tokenizers_that_double_a_space_add_one(folders):
    assert [template_of(folders[kind]).adds_space for kind in WRITING] == [False, True, False]
    plain = template_of(folders["sentencepiece BPE"])
    for ids in (plain.prompt[1:], plain.because, *plain.label_ids):
        assert "▁" not in plain.tokenizer.convert_ids_to_tokens(ids)[:1] or len(ids) > 1
        assert plain.tokenizer.convert_ids_to_tokens(ids)[0] != "▁▁"


def test_text_without_emotion_is_decoded(template):
    for sentence in sentences(10):
        ids = template.encode(sentence, None).input_ids
        assert template.decode(ids).replace(" ,", ",") == sentence.replace(" ,", ",")


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece BPE"])
@pytest.mark.parametrize("text", ["naïve  double\n spaces", "🌊 wow! it's 42", "«é»"])
def test_lossless_kinds_give_any_text_back(folders, kind, text):
    template = template_of(folders[kind])
    encoded = template.encode(text, INDEX["fear"])
    assert template.decode(encoded.input_ids[encoded.explanation_start :]) == text


@pytest.mark.parametrize("kind", WRITING)
def test_texts_contain_no_special_tokens(folders, kind):
    template = template_of(folders[kind])
    ids = template.encode(HOSTILE, None).input_ids[1:-1]
    special = {i for i, token in template.tokenizer.added_tokens_decoder.items() if token.content != "<unk>"}
    assert special and special.isdisjoint(ids)
    assert template.decode([*ids, *special]) == template.decode(ids), "generated special tokens are left out"


def test_special_tokens_are_the_tokenizers_own(folders):
    byte_level = template_of(folders["byte level"])
    names = byte_level.tokenizer.convert_ids_to_tokens([byte_level.bos_id, byte_level.eos_id])
    assert names == CHAT and byte_level.tokenizer.chat_template is None
    with pytest.raises(UserError, match=r"WordPiece has no <\|endoftext\|>, </s> or other eos_token"):
        template_of(folders["WordPiece"])


@pytest.mark.parametrize("kind", WRITING)
def test_bos_falls_back_to_eos(folders, kind, tmp_path):
    template = template_of(shutil.copytree(folders[kind], tmp_path / "t"), bos_token=None)
    assert template.bos_id == template.eos_id


@pytest.mark.parametrize("kind", WRITING)
def test_stored_tokenizer_is_the_same(folders, kind, tmp_path):
    template = template_of(folders[kind])
    save_tokenizer(template.tokenizer, tmp_path)
    again = Template(load_tokenizer(str(tmp_path / "tokenizer.json")), max_length=80)
    assert (again.bos_id, again.eos_id, again.adds_space) == (template.bos_id, template.eos_id, template.adds_space)
    assert again.tokenizer.get_vocab() == template.tokenizer.get_vocab()
    for text in (HOSTILE, "naïve  🌊", *sentences(5)):
        encoded = template.encode(text, INDEX["awe"])
        assert again.encode(text, INDEX["awe"]) == encoded
        assert again.decode([*encoded.input_ids, 0, 1, 2]) == template.decode([*encoded.input_ids, 0, 1, 2])
    assert (tmp_path / "tokenizer_config.json").is_file() == (kind == "byte level"), "its <eos> is not the usual one"
    assert not [path for path in tmp_path.iterdir() if "messages" in path.read_text()], (
        "the chat template is not stored"
    )


def test_gpt2_is_stored_in_one_file(tmp_path):
    save_tokenizer(load_tokenizer(str(write_tokenizer(tmp_path / "t"))), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"t", "tokenizer.json"}


@pytest.mark.parametrize(
    ("kind", "ends"),
    [("byte level", "<|endoftext|>"), ("sentencepiece BPE", "</s>"), ("sentencepiece unigram", "</s>")],
)
def test_json_file_alone_has_the_usual_ends(folders, kind, ends, tmp_path):
    shutil.copy(folders[kind] / "tokenizer.json", tmp_path / "t.json")
    tokenizer = load_tokenizer(str(tmp_path / "t.json"))
    assert tokenizer.eos_token == ends and tokenizer.bos_token == ("<s>" if ends == "</s>" else None)


def test_code_that_comes_with_a_tokenizer_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["byte level"], tmp_path / "t")
    (folder / "evil.py").write_text("import os\nos.mkdir('marker')\nclass Evil: pass\n")
    settings = {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Evil"}}')
    with pytest.raises(UserError, match="code of its own, which is never executed"):
        load_tokenizer(str(folder))


def test_files_without_a_vocabulary_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "xglm"}')
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"no model")
    pytest.importorskip("sentencepiece")
    with pytest.raises(UserError, match=f"the files in {tmp_path} are not a tokenizer of transformers"):
        load_tokenizer(str(tmp_path))


def test_word_pieces_in_a_text_file(folders, tmp_path):
    vocabulary = load_tokenizer(str(folders["WordPiece"])).get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert load_tokenizer(str(tmp_path)).get_vocab().items() >= vocabulary.items()


@pytest.mark.parametrize(("package", "all_needed"), [("gguf", "gguf"), ("sentencepiece", "sentencepiece protobuf")])
def test_missing_package_is_named(package, all_needed, tmp_path, monkeypatch):
    path = tmp_path / "m.gguf" if package == "gguf" else tmp_path
    (tmp_path / ("m.gguf" if package == "gguf" else "tokenizer.model")).write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"needs the package {package}: pip install {all_needed}$"):
        load_tokenizer(str(path))


def test_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path / "t")))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "gpt2")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count, writer.add_head_count):
        add(8)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = load_tokenizer(str(tmp_path / "tiny.gguf"))
    assert found.get_vocab() == tokenizer.get_vocab() and found.eos_token == "<|endoftext|>"
    text = " the emotion is awe because the serene boat"
    assert found(text).input_ids == tokenizer(text).input_ids


# --- dataset.tokenizer=auto -------------------------------------------------------------------------------------------


def test_a_template_of_the_file_cannot_multiply_texts(tmp_path):
    template = make_template(tmp_path)
    backend = template.tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=" ".join(["$A"] * 5000), special_tokens=[])
    backend.save(str(tmp_path / "many.json"))
    found = load_tokenizer(str(tmp_path / "many.json"))
    plain, text = make_template(tmp_path), "the storm makes me feel small"
    assert found(text).input_ids == plain.tokenizer(text).input_ids
    assert Template(found, max_length=40).encode(text, 3).input_ids == plain.encode(text, 3).input_ids


def test_auto_is_the_language_models_own(folders, tmp_path):
    assert resolve_tokenizer("auto", None) == resolve_tokenizer("gpt2", "ORG/NAME") == "gpt2"
    assert resolve_tokenizer("auto", "ORG/NAME") == "ORG/NAME"
    for folder in folders.values():
        assert resolve_tokenizer("auto", str(folder)) == str(folder)
    assert resolve_tokenizer("auto", str(tmp_path / "m.gguf")) == str(tmp_path / "m.gguf")


def test_auto_for_weights_without_tokenizer(tmp_path):
    folder = write_gpt2(tmp_path / "gpt2", vocab_size=300)
    assert resolve_tokenizer("auto", str(folder)) == "gpt2"
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=f"{folder} has no tokenizer: copy .* tokenizer.json"):
        resolve_tokenizer("auto", str(folder))


def test_offline_message_for_a_language_model(tmp_path, monkeypatch):
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"'ORG/NAME' is not on this machine.*tokenizer\.json.*dataset\.tokenizer="):
        load_tokenizer("ORG/NAME")


def test_labels_have_comparable_tokens(template):
    template.require_distinct()
    assert all(template.decode(ids) == name for ids, name in zip(template.label_ids, EMOTIONS, strict=True))
