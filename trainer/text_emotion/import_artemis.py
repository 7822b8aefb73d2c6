"""Import ArtEmis' published text→emotion classifier and its vocabulary (Achlioptas et al., 2021) without running them.

The classifier is a pickled module, in the zip file that torch has written since 1.6 or in the format before it, or a
state dict of the same names. Only tensors with known names and shapes are used. Not supported: the tar files of torch
before 0.2, and classifiers that also have an image encoder.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from common.errors import UserError
from common.files import sha256
from common.reading import read_bytes
from data.emotions import EMOTIONS
from model.text_emotion import build_text_emotion
from model.weights.layout import Tensors
from model.weights.plain import StandIn, as_dict, as_state, read_torch, stand_ins, unreadable
from trainer.text_emotion.text_classifier import PADDING, UNKNOWN, TextClassifier, Vocabulary

LARGEST_VOCABULARY = 1 << 28  # bytes
LARGEST_CLASSIFIER = 1 << 32  # bytes
SPECIALS = (PADDING, "<sos>", "<eos>", UNKNOWN)
CLASSIFIER, ENCODER, MLP = (
    f"artemis.neural_models.{name}"
    for name in ("text_emotional_clf.TextEmotionClassifier", "lstm_encoder.LSTMEncoder", "mlp.MLP")
)
LSTM = "torch.nn.modules.rnn.LSTM"
NAMES = (
    *(CLASSIFIER, ENCODER, MLP, LSTM),
    *(f"torch.nn.modules.{name}" for name in ("activation.ReLU", "batchnorm.BatchNorm1d", "container.Sequential")),
    *(f"torch.nn.modules.{name}" for name in ("dropout.Dropout", "linear.Linear", "sparse.Embedding")),
    "torch.nn.backends.thnn._get_thnn_function_backend",  # in every module of torch before 1.3
)
VOCABULARY = "artemis.utils.vocabulary.Vocabulary"

# Ours → theirs.
MODULES = {
    "embedding": "text_encoder.word_embedding.0",
    "words.1": "text_encoder.word_embedding.2",
    "words.4": "text_encoder.word_embedding.5",
    "rnn": "text_encoder.rnn",
    "head.0": "clf_head.net.0",
    "head.1": "clf_head.net.1",
    "head.4": "clf_head.net.4",
}


def import_classifier(module: Path, vocabulary: Path, *, zero_in_max: bool = True) -> TextClassifier:
    """Return the classifier in `module`, which was trained on the words of `vocabulary`.

    Args:
        zero_in_max: include a zero in the maximum over time, as for all but the longest text of ArtEmis' batches.

    Raises:
        UserError: a file cannot be read, is refused, or has other content.
    """
    words = read_vocabulary(vocabulary)
    tensors = _read_tensors(module)
    arguments = _arguments(tensors) | {"zero_in_max": zero_in_max}
    if arguments["vocabulary"] != len(words):
        raise UserError(
            f"{module} has {arguments['vocabulary']} words and {vocabulary} has {len(words)}; "
            "give the vocabulary that the classifier was trained on"
        )
    with torch.device("meta"):  # allocates nothing before the shapes are checked
        network = build_text_emotion(arguments)
    layout = {_theirs(name): (name, tuple(value.shape)) for name, value in network.state_dict().items()}
    network.to_empty(device="cpu").load_state_dict(tensors.match(layout))
    source = {"imported": module.name, "sha256": sha256(module)}
    settings = {"network": arguments, "embeddings": "of the imported file", "source": source}
    return TextClassifier(network.eval(), words, settings)


def _read_module(path: Path) -> Any:
    """Return the module, with every object as a StandIn, or the state dict.

    `weights_only` refuses whole modules of torch before 1.6, such as ArtEmis' file. torch.load reads those with
    `_unpickler`, but never a zip file: with weights_only=False it would run a TorchScript archive.
    """
    try:
        data = read_bytes(path, largest=LARGEST_CLASSIFIER)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if data.startswith(b"PK"):
        return read_torch(path, allowed=stand_ins(NAMES))
    stream = io.BytesIO(data)  # with a path, torch would first try to unpack a tar archive
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns that the stand-ins have no source code
            found = torch.load(stream, map_location="cpu", weights_only=False, pickle_module=_unpickler(NAMES))
    except Exception as error:  # a damaged file fails in many ways
        raise unreadable(path, error) from None
    return as_dict(found) if isinstance(found, dict) else found


def _unpickler(names: Iterable[str]) -> SimpleNamespace:
    """Return a `pickle_module` for torch.load that resolves only stand-ins and what rebuilds tensors.

    A pickle can set attributes of the classes and functions that it refers to, so each call creates new ones. Python's
    unpickler is used because the one in C allocates memory for any index of the memo.
    """
    found: dict[str, Any] = {
        "torch._utils._rebuild_tensor_v2": lambda *arguments: torch._utils._rebuild_tensor_v2(*arguments),
        "torch._utils._rebuild_parameter": lambda *arguments: torch._utils._rebuild_parameter(*arguments),
        "collections.OrderedDict": OrderedDict,
        "__builtin__.set": set,
        **{name: kind for kind, name in stand_ins(names)},
    }

    class Unpickler(pickle._Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in found:
                raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
            return found[f"{module}.{name}"]

    return SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=lambda file, **kw: Unpickler(file, **kw).load())


def _read_tensors(path: Path) -> Tensors:
    root = _read_module(path)
    if not isinstance(root, dict):
        _check_kind(path, root)
        root = {
            f"{name}.{last}": value
            for name in MODULES.values()
            for group in ("_parameters", "_buffers")
            for last, value in as_dict(_attributes(_module(root, name)).get(group)).items()
            if value is not None
        }
    return Tensors(str(path), as_state(root, path))


def _theirs(name: str) -> str:
    module, _, last = name.rpartition(".")
    return f"{MODULES[module]}.{last}"


def _module(root: Any, name: str) -> Any:
    """Return a module by its dotted name, the root for an empty name, or None if it is missing."""
    for part in name.split(".") if name else ():
        root = as_dict(_attributes(root).get("_modules")).get(part)
    return root


def _attributes(module: Any) -> dict[str, Any]:
    return as_dict(module.state) if isinstance(module, StandIn) else {}


def _check_kind(path: Path, root: Any) -> None:
    """Raise UserError for a module of another class, or with a setting that our network does not support."""
    wanted = (
        ("", CLASSIFIER, {"img_encoder": None}),
        ("text_encoder", ENCODER, {"feature_type": "max", "word_transformation": None, "init_h": None, "init_c": None}),
        ("text_encoder.rnn", LSTM, {"num_layers": 1, "bidirectional": False, "batch_first": True}),
        ("clf_head", MLP, {}),
    )
    for name, kind, settings in wanted:
        module = _module(root, name)
        if type(module).__name__ != kind:
            raise UserError(f"{path}: {name or 'the object'} is no {kind}, so it is not ArtEmis' classifier")
        attributes = _attributes(module) | as_dict(_attributes(module).get("_modules"))
        for key, value in settings.items():
            found = attributes.get(key)
            if type(found) is not type(value) or found != value:
                raise UserError(f"{path}: {key} of {name or 'the object'} must be {value} for an import")


def _arguments(tensors: Tensors) -> dict[str, Any]:
    """Return the arguments of EmotionLSTM from the sizes of the matrices."""
    vocabulary, embedding_dim = tensors.matrix(_theirs("embedding.weight"))
    classes, head_dim = tensors.matrix(_theirs("head.4.weight"))
    if classes != len(EMOTIONS):
        raise UserError(f"{tensors.source} has {classes} classes, not the {len(EMOTIONS)} emotions of ArtEmis")
    word_dim, hidden_dim = tensors.matrix(_theirs("words.4.weight"))[0], tensors.matrix(_theirs("rnn.weight_hh_l0"))[1]
    sizes = {"embedding_dim": embedding_dim, "word_dim": word_dim, "hidden_dim": hidden_dim, "head_dim": head_dim}
    return {"name": "lstm", "vocabulary": vocabulary, "classes": classes, **sizes, "trained_embedding": False}


def read_vocabulary(path: Path) -> Vocabulary:
    """Return the words of ArtEmis' `vocabulary.pkl`, a pickled object with the row of every word.

    Raises:
        UserError: the file cannot be read, is refused, or does not hold a vocabulary.
    """
    try:
        content = read_bytes(path, largest=LARGEST_VOCABULARY)
        found = _unpickler([VOCABULARY]).load(io.BytesIO(content))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise unreadable(path, error, "ArtEmis' vocabulary.pkl") from None
    rows = as_dict(_attributes(found).get("word2idx"))
    if not rows or not all(type(word) is str and type(row) is int for word, row in rows.items()):
        raise UserError(f"{path} holds no vocabulary of ArtEmis with the row of each word (word2idx)")
    words = sorted(rows, key=rows.__getitem__)
    if sorted(rows.values()) != list(range(len(rows))) or tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise UserError(f"{path}: its rows are not 0, 1, 2, … with {', '.join(SPECIALS)} first")
    return Vocabulary(words)
