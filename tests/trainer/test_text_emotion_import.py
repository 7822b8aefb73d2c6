"""Import ArtEmis' published text→emotion classifier: equal results, and no code of the files is run."""

from __future__ import annotations

import functools
import io
import os
import pickle
import pickletools
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from tests.helpers.weight_files import Call
from trainer.text_emotion.__main__ import main
from trainer.text_emotion.import_artemis import import_classifier, read_vocabulary
from trainer.text_emotion.text_classifier import load_classifier

WORDS = ["<pad>", "<sos>", "<eos>", "<unk>", "the", "boat", "is", "lost", "under", "a", "gloomy", "sky", "serene"]
FORMS = ["zip", "legacy"]
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
TEXTS = ["The boat is lost, under a gloomy sky!", "serene", "a zeppelin is serene", "the the the sky"]


# --- files in ArtEmis' format -----------------------------------------------------------------------------------------


class TextEmotionClassifier(nn.Module):
    def __init__(self, text_encoder: nn.Module, clf_head: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.clf_head, self.img_encoder = text_encoder, clf_head, None


class LSTMEncoder(nn.Module):
    def __init__(self, word_embedding: nn.Module, size: int, hidden: int) -> None:
        super().__init__()
        self.word_embedding, self.n_hidden, self.eos, self.feature_type = word_embedding, hidden, 2, "max"
        self.word_transformation = self.init_h = self.init_c = None
        self.rnn = nn.LSTM(size, hidden, batch_first=True)


class MLP(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.hidden_dimensions, self.embedding_dimension = [5], 9
        self.net = nn.Sequential(*layers)


class Vocabulary:
    def __init__(self, words: list[str]) -> None:
        self.word2idx = {word: row for row, word in enumerate(words)}
        self.idx2word = dict(enumerate(words))
        self.idx, self.special_symbols = len(words), words[:4]
        self.pad, self.sos, self.eos, self.unk = range(4)


def _get_thnn_function_backend() -> object:
    return OldBackend()


class OldBackend:
    def __reduce__(self):
        return _get_thnn_function_backend, ()


THEIRS = {
    "torch.nn.backends.thnn": _get_thnn_function_backend,
    "artemis.neural_models.text_emotional_clf": TextEmotionClassifier,
    "artemis.neural_models.lstm_encoder": LSTMEncoder,
    "artemis.neural_models.mlp": MLP,
    "artemis.utils.vocabulary": Vocabulary,
}


@contextmanager
def artemis_classes() -> Iterator[None]:
    """Give the classes the names that they have in ArtEmis while a file is written."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in THEIRS.items():
            packages = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
            for module in (name, *packages):
                if module not in sys.modules:
                    patch.setitem(sys.modules, module, types.ModuleType(module))
            patch.setattr(sys.modules[name], kind.__name__, kind, raising=False)
            patch.setattr(kind, "__module__", name)
        yield
    assert not any(name.split(".")[0] == "artemis" for name in sys.modules)


def network(*, rows: int = len(WORDS), classes: int = 9) -> TextEmotionClassifier:
    torch.manual_seed(0)
    words = nn.Sequential(
        nn.Embedding(rows, 6), nn.Dropout(0.25), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 8)
    )
    head = MLP(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout(0.25), nn.Linear(5, classes))
    found = TextEmotionClassifier(LSTMEncoder(words, 8, 7), head)
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    head.net[1].running_mean.normal_()
    head.net[1].running_var.uniform_(0.5, 2.0)
    return found


def write(path: Path, module: object, form: str) -> Path:
    with artemis_classes():
        torch.save(module, path, _use_new_zipfile_serialization=form == "zip")
    return path


class Files:
    """Writes the two files after a change to their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, form: str, *, change=lambda module: None, **sizes) -> Path:
        found = network(**sizes)
        change(found)
        return write(self.folder / "best_model.pt", found, form)

    def vocabulary(self, words: list[str] = WORDS, *, change=lambda vocabulary: None) -> Path:
        found = Vocabulary(words)
        change(found)
        path = self.folder / "vocabulary.pkl"
        with artemis_classes():
            path.write_bytes(pickle.dumps(found, protocol=2))
        return path


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def official(files, request):
    """Return both files and the weights in the first."""
    return files.module(request.param), files.vocabulary(), dict(network().state_dict())


def plain(weights: dict[str, Tensor], rows: list[int], *, zero: bool) -> Tensor:
    """Return the nine logits of one text, computed from the formulas."""
    part = {name: value.double() for name, value in weights.items()}
    words, net = "text_encoder.word_embedding", "clf_head.net"
    x = part[f"{words}.0.weight"][rows]
    x = (x @ part[f"{words}.2.weight"].T + part[f"{words}.2.bias"]).clamp(min=0)
    x = x @ part[f"{words}.5.weight"].T + part[f"{words}.5.bias"]
    gates = {name: part[f"text_encoder.rnn.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    h = c = torch.zeros(gates["weight_hh"].shape[1], dtype=torch.float64)
    states = []
    for word in x:
        i, f, g, o = (gates["weight_ih"] @ word + gates["bias_ih"] + gates["weight_hh"] @ h + gates["bias_hh"]).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    pooled = torch.stack(states + [torch.zeros_like(h)] * zero).amax(0)
    y = part[f"{net}.0.weight"] @ pooled + part[f"{net}.0.bias"]
    y = (y - part[f"{net}.1.running_mean"]) / (part[f"{net}.1.running_var"] + 1e-5).sqrt()
    y = (y * part[f"{net}.1.weight"] + part[f"{net}.1.bias"]).clamp(min=0)
    return part[f"{net}.4.weight"] @ y + part[f"{net}.4.bias"]


# --- imported classifiers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("official", FORMS, indirect=True)
@pytest.mark.parametrize("zero", [True, False])
def test_the_imported_classifier_equals_the_reference(official, zero):
    module, vocabulary, weights = official
    classifier = import_classifier(module, vocabulary, zero_in_max=zero)
    rows = [[WORDS.index(w) if w in WORDS else 3 for w in t] for t in (
        ["the", "boat", "is", "lost", "under", "a", "gloomy", "sky"], ["serene"], ["a", "?", "is", "serene"],
        ["the", "the", "the", "sky"],
    )]  # fmt: skip
    expected = torch.stack([plain(weights, row, zero=zero).log_softmax(-1) for row in rows])
    assert torch.allclose(classifier.read(TEXTS).log_probabilities, expected, atol=2e-5)


@pytest.mark.parametrize("official", FORMS, indirect=True)
def test_zero_in_max_matters_and_is_saved(official):
    module, vocabulary, _ = official
    with_zero, without = (import_classifier(module, vocabulary, zero_in_max=zero) for zero in (True, False))
    assert not torch.allclose(with_zero.read(TEXTS).log_probabilities, without.read(TEXTS).log_probabilities, atol=0.01)
    for classifier in (with_zero, without):
        classifier.save(module.parent / "imported")
        again = load_classifier(module.parent / "imported", device="cpu")
        assert torch.equal(again.read(TEXTS).log_probabilities, classifier.read(TEXTS).log_probabilities)


def test_zero_in_max_equals_artemis_with_a_longer_text_in_the_batch(files):
    """ArtEmis pads the LSTM's output with zeros up to the longest text of the batch, and takes the maximum of all."""
    classifier = import_classifier(files.module("legacy"), files.vocabulary())
    theirs = network().eval()
    encoder = theirs.text_encoder
    tokens = torch.tensor([[WORDS.index("serene"), 0, 0], [WORDS.index(w) for w in ("the", "gloomy", "sky")]])
    packed = nn.utils.rnn.pack_padded_sequence(encoder.word_embedding(tokens), [1, 3], True, enforce_sorted=False)
    states, _ = nn.utils.rnn.pad_packed_sequence(encoder.rnn(packed)[0], batch_first=True)
    logits = theirs.clf_head.net(states.max(1).values)
    found = classifier.read(["serene", "the gloomy sky"]).log_probabilities
    assert torch.allclose(found[0], logits[0].double().log_softmax(-1), atol=1e-5)


def test_a_classifier_saved_on_a_gpu_by_an_old_torch_is_read(files):
    """Its storages are of torch.cuda, and each module refers to the backend of its functions."""

    def with_backend(module: nn.Module) -> None:
        for part in module.modules():
            part._backend = OldBackend()

    path = files.module("legacy", change=with_backend)
    data = path.read_bytes()
    assert data.count(b"ctorch\nFloatStorage\n") == 1 and b"ctorch.nn.backends.thnn\n" in data
    data = data.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    expected = import_classifier(files.module("zip"), files.vocabulary())
    path.write_bytes(data)
    found = import_classifier(path, files.vocabulary())
    assert torch.equal(found.read(TEXTS).log_probabilities, expected.read(TEXTS).log_probabilities)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_is_read(files, form):
    expected = import_classifier(files.module(form), files.vocabulary())
    state = write(files.folder / "state.pt", network().state_dict(), form)
    found = import_classifier(state, files.vocabulary())
    assert torch.equal(found.read(TEXTS).log_probabilities, expected.read(TEXTS).log_probabilities)


def test_views_of_one_storage_are_read(files):
    """On a GPU the weights of an LSTM are views of one storage."""

    def flatten(module: nn.Module) -> None:
        names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
        values = [getattr(module.text_encoder.rnn, name).data for name in names]
        flat, start = torch.cat([value.flatten() for value in values]), 0
        for name, value in zip(names, values, strict=True):
            getattr(module.text_encoder.rnn, name).data = flat[start : start + value.numel()].view(value.shape)
            start += value.numel()

    expected = import_classifier(files.module("zip"), files.vocabulary())
    for form in FORMS:
        found = import_classifier(files.module(form, change=flatten), files.vocabulary())
        assert torch.equal(found.read(TEXTS).log_probabilities, expected.read(TEXTS).log_probabilities)


def test_a_vocabulary_of_the_published_size_keeps_its_order(files):
    words = WORDS[:4] + [f"word{i}" for i in range(14_465)]
    assert list(read_vocabulary(files.vocabulary(words)).words) == words


def test_the_command_writes_a_classifier_and_needs_overwrite(files, capsys):
    out = files.folder / "classifier"
    command = ["import", str(files.module("legacy")), "--vocabulary", str(files.vocabulary()), "--out", str(out)]
    assert main(command) == 0
    assert load_classifier(out, device="cpu").settings["network"]["zero_in_max"] is True
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--maximum", "words"]) == 0
    assert load_classifier(out, device="cpu").settings["network"]["zero_in_max"] is False


# --- refused files ----------------------------------------------------------------------------------------------------


def raw(*lines: str) -> bytes:
    """Return a pickle of protocol 2 from its opcodes."""
    return b"\x80\x02" + "".join(lines).encode("latin-1") + b"."


def attacks(marker: Path) -> dict[str, object]:
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "import": Call(__import__, "antigravity"),
        "partial": Call(functools.partial, eval, code),
        "open": Call(open, str(marker), "w"),
        "torch.load": Call(torch.load, str(marker)),
        "lambda of numpy": Call(np.load, str(marker)),
        "pathlib": marker,
    }


NAMES = list(attacks(Path()))
HIDDEN = {
    "attribute": lambda module, evil: setattr(module, "note", evil),
    "nested": lambda module, evil: setattr(module.clf_head, "notes", [{"a": (evil,)}]),
    "hook": lambda module, evil: module.clf_head.net._forward_hooks.update(x=evil),
    "parameter": lambda module, evil: module.text_encoder.rnn._parameters.update(weight_ih_l0=evil),
    "key": lambda module, evil: setattr(module, "table", {(1, evil): 1}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_no_call_in_a_module_is_executed(files, form, name):
    marker = files.folder / "marker"
    path = files.module(form, change=lambda module: HIDDEN["attribute"](module, attacks(marker)[name]))
    with pytest.raises(UserError, match="refused, and nothing in it was run: it holds the name"):
        import_classifier(path, files.vocabulary())
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", HIDDEN)
def test_no_hidden_call_is_executed(files, form, place):
    marker = files.folder / "marker"
    path = files.module(form, change=lambda module: HIDDEN[place](module, attacks(marker)["os.system"]))
    with pytest.raises(UserError, match=r"the name '(posix|nt)\.system'"):
        import_classifier(path, files.vocabulary())
    assert not marker.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["attribute", "word", "itself"])
def test_no_call_in_a_vocabulary_is_executed(files, name, place):
    marker, evil = files.folder / "marker", attacks(files.folder / "marker")[name]
    path = files.vocabulary(change=lambda found: setattr(found, "pad", evil))
    if place == "word":
        path = files.vocabulary(change=lambda found: found.word2idx.update(sky=evil))
    if place == "itself":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(UserError, match="refused, and nothing in it was run"):
        read_vocabulary(path)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path):
    """The same bytes create the file if they are loaded unsafely."""
    for name in ("os.system", "eval", "exec", "open"):
        marker = tmp_path / name
        pickle.loads(pickle.dumps(attacks(marker)[name], protocol=2))
        assert marker.exists(), name


TRICKS = {
    "name reached through an allowed module": raw("ctorch.nn.modules.linear\nLinear.__init__.__globals__\n"),
    "module of an allowed module": raw("ctorch.serialization\nos.system\n", "X\x04\x00\x00\x00true", "\x85R"),
    "class without its module": raw("cVocabulary\nVocabulary\n"),
    "name built on the stack": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "old instance": b"(S'true'\nios\nsystem\n.",
    "object of a class on the stack": b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "extension registry": raw("\x82\x01"),
    "persistent id": raw("X\x01\x00\x00\x00aQ"),
    "persistent id in text": b"Pabc\n.",
    "memo of sixteen gigabytes": raw("N", "r\xff\xff\xff\x7f"),
    "out-of-band buffer": b"\x80\x05\x97.",
    "whole protocol 4": pickle.dumps({"a": 1}, protocol=4),
}


REFUSED = r"is refused, and nothing in it was run|cannot be read as|holds no vocabulary"


@pytest.mark.parametrize("trick", TRICKS)
def test_malicious_opcodes_are_refused(files, trick):
    path = files.folder / "vocabulary.pkl"
    path.write_bytes(TRICKS[trick])
    with pytest.raises(UserError, match=REFUSED):
        read_vocabulary(path)
    legacy = files.module("legacy")
    legacy.write_bytes(TRICKS[trick])
    with pytest.raises(UserError, match=REFUSED):
        import_classifier(legacy, files.vocabulary())


@pytest.mark.parametrize("pickle_number", range(5))
def test_every_pickle_of_the_old_format_is_checked(files, pickle_number):
    """Before torch 1.6 a file is five pickles; the last names the storages."""
    data, marker = files.module("legacy").read_bytes(), files.folder / "marker"
    ends = [0]
    for _ in range(5):
        stream = io.BytesIO(data)
        stream.seek(ends[-1])
        list(pickletools.genops(stream))
        ends.append(stream.tell())
    evil = pickle.dumps(attacks(marker)["os.system"], protocol=2)
    path = files.folder / "evil.pt"
    path.write_bytes(data[: ends[pickle_number]] + evil + data[ends[pickle_number + 1] :])
    with pytest.raises(UserError, match="refused"):
        import_classifier(path, files.vocabulary())
    assert not marker.exists()


def test_changes_to_stand_ins_do_not_affect_the_next_file(files):
    good = files.vocabulary()
    expected = read_vocabulary(good).words
    evil = files.folder / "evil.pkl"
    name = "cartemis.utils.vocabulary\nVocabulary\n"
    evil.write_bytes(raw(name, "N}X\x08\x00\x00\x00__init__NsX\x0c\x00\x00\x00__setstate__", "Ns\x86b"))
    with pytest.raises(UserError):
        read_vocabulary(evil)
    assert read_vocabulary(good).words == expected


# --- wrong and damaged files ------------------------------------------------------------------------------------------


def rename(state: str, value: object):
    return lambda module: setattr(module.text_encoder, state, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("feature_type", "last"), "feature_type of text_encoder must be max"),
        (rename("word_transformation", nn.Linear(8, 8)), "word_transformation of text_encoder must be None"),
        (
            rename("rnn", nn.LSTM(8, 7, batch_first=True, bidirectional=True)),
            "bidirectional of text_encoder.rnn must",
        ),
        (rename("rnn", nn.LSTM(8, 7, batch_first=True, num_layers=2)), "num_layers of text_encoder.rnn must be 1"),
        (rename("rnn", nn.LSTM(8, 7, batch_first=True, bias=False)), "bias_ih_l0 is missing"),
        (rename("rnn", nn.Linear(8, 7)), "is no torch.nn.modules.rnn.LSTM"),
        (rename("rnn", nn.LSTM(4, 7, batch_first=True)), "weight_ih_l0 is 28×4 instead of 28×8"),
        (lambda module: setattr(module, "img_encoder", nn.Linear(2, 2)), "img_encoder of the object must be None"),
        (lambda module: delattr(module, "clf_head"), "clf_head is no artemis.neural_models.mlp.MLP"),
        (lambda module: module.clf_head.net.__delitem__(1), r"clf_head\.net\.4\.weight is missing"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_other_networks_are_refused(files, change, message, form):
    path = files.module(form, change=change)
    with pytest.raises(UserError, match=message):
        import_classifier(path, files.vocabulary())


def test_other_kinds_of_files_are_refused(files, tmp_path):
    other = write(tmp_path / "other.pt", nn.Linear(3, 2), "legacy")
    with pytest.raises(UserError, match=r"the object is no artemis.*TextEmotionClassifier"):
        import_classifier(other, files.vocabulary())
    with pytest.raises(UserError, match="holds junk, which is no part"):
        import_classifier(write(other, {**network().state_dict(), "junk": torch.ones(1)}, "zip"), files.vocabulary())
    with pytest.raises(UserError, match=r"missing"):
        import_classifier(write(other, {}, "zip"), files.vocabulary())
    with pytest.raises(UserError, match="has 4 classes"):
        import_classifier(files.module("zip", classes=4), files.vocabulary())
    with pytest.raises(UserError, match=r"has 20 words and .* has 13"):
        import_classifier(files.module("zip", rows=20), files.vocabulary())
    with pytest.raises(UserError, match="cannot be read"):
        import_classifier(tmp_path / "nowhere.pt", files.vocabulary())
    with pytest.raises(UserError, match=r"holds no vocabulary|refused"):
        import_classifier(files.module("zip"), files.module("legacy"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tensor", ["transposed", "float64"])
def test_unusual_tensors_are_converted(files, tensor, form):
    expected = import_classifier(files.module("zip"), files.vocabulary()).read(TEXTS).log_probabilities
    state = network().state_dict()
    key = "clf_head.net.0.weight"
    if tensor == "transposed":
        state[key] = state[key].T.contiguous().T
    else:
        state = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    path = write(files.folder / "state.pt", state, form)
    found = import_classifier(path, files.vocabulary()).read(TEXTS).log_probabilities
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_files_are_refused(files, form):
    path, vocabulary = files.module(form), files.vocabulary()
    whole = path.read_bytes()
    for end in [*range(0, 300, 7), *range(300, len(whole) - 1, max(1, len(whole) // 40))]:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"best_model\.pt"):
            import_classifier(path, vocabulary)


def test_truncated_vocabularies_are_refused(files):
    path = files.vocabulary()
    whole = path.read_bytes()
    for end in range(0, len(whole), 5):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"vocabulary\.pkl"):
            read_vocabulary(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.word2idx.update(sky=99),
        lambda found: found.word2idx.update(sky="11"),
        lambda found: found.word2idx.update(sky=True),
        lambda found: found.word2idx.pop("sky"),
        lambda found: setattr(found, "word2idx", list(found.word2idx)),
        lambda found: setattr(found, "word2idx", {word: 12 - row for word, row in found.word2idx.items()}),
    ],
)
def test_invalid_rows_of_a_vocabulary_are_refused(files, change):
    with pytest.raises(UserError, match=r"vocabulary\.pkl"):
        read_vocabulary(files.vocabulary(change=change))


def test_other_archives_are_refused(files, tmp_path):
    tar = tmp_path / "old.pt"
    tar.write_bytes(struct.pack("257s5s", b"", b"ustar"))
    with pytest.raises(UserError, match=r"old\.pt cannot be read as a file of torch\.save"):
        import_classifier(tar, files.vocabulary())
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    with pytest.raises(UserError, match=r"script\.pt is a compressed archive"):
        import_classifier(script, files.vocabulary())
    squeezed = tmp_path / "squeezed.pt"
    with (
        zipfile.ZipFile(files.module("zip")) as whole,
        zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    with pytest.raises(UserError, match="compressed"):
        import_classifier(squeezed, files.vocabulary())
    numbers = tmp_path / "numbers.pt"
    numbers.write_bytes(pickle.dumps(1, protocol=2) * 3)
    with pytest.raises(UserError, match=r"cannot be read as a file of torch\.save"):
        import_classifier(numbers, files.vocabulary())
