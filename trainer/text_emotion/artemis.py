"""ArtEmis' published text→emotion classifier and its vocabulary (Achlioptas et al., 2021), read without running them.

The classifier is a whole pickled module, in the zip file that torch has written since 1.6 or in the form before it; a
state dict of the same names is read too. Of either only the tensors are taken, under their known names and with their
shapes checked. What cannot be read: the tar files of torch before 0.2, files of a big-endian machine, and classifiers
that look at the picture as well.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from data.emotions import EMOTIONS
from errors import UserError
from foreign import read_bytes
from model.checkpoint_import.plain import StandIn, as_dict, as_state, read_torch, stand_ins, unreadable
from model.text_emotion import build_text_emotion
from trainer.text_emotion.classifier import PADDING, UNKNOWN, TextClassifier, Vocabulary

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
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.dropout.Dropout",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.sparse.Embedding",
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
PARAMETERS = {
    "embedding": ("weight",),
    **dict.fromkeys(("words.1", "words.4", "head.0", "head.4"), ("weight", "bias")),
    "rnn": ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"),
    "head.1": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
}


def import_classifier(module: Path, vocabulary: Path, *, zero_in_max: bool = True) -> TextClassifier:
    """The classifier in `module`, which was trained on the words of `vocabulary`.

    Args:
        zero_in_max: a zero takes part in the maximum over time, as for every text of ArtEmis' batches but the longest.

    Raises:
        UserError: a file cannot be read, is refused, or does not hold what it should.
    """
    words = read_vocabulary(vocabulary)
    tensors = _tensors(module, _read_module(module))
    arguments = _arguments(tensors, module, zero_in_max)
    if arguments["vocabulary"] != len(words):
        raise UserError(
            f"{module} knows {arguments['vocabulary']} words and {vocabulary} has {len(words)}; "
            "give the vocabulary that the classifier was trained on"
        )
    with torch.device("meta"):  # takes no memory before the shapes are known to fit
        network = build_text_emotion(arguments)
    for name, expected in network.state_dict().items():
        if tensors[name].shape != expected.shape:
            raise UserError(f"{module}: {_theirs(name)} is {_shape(tensors[name])} instead of {_shape(expected)}")
    network.to_empty(device="cpu").load_state_dict(tensors)
    settings = {
        "network": arguments,
        "embeddings": "of the imported file",
        "source": {"imported": module.name, "sha256": hashlib.sha256(module.read_bytes()).hexdigest()},
    }
    return TextClassifier(network.eval(), words, settings)


def _read_module(path: Path) -> Any:
    """Return the module, with every object as a StandIn, or the state dict.

    `weights_only` refuses whole modules of torch before 1.6, as ArtEmis published one. Of those files torch reads the
    form, and the objects are found in `_unpickler` alone. A zip file must not get there: with weights_only=False torch
    would run a TorchScript archive.
    """
    try:
        data = read_bytes(path, largest=LARGEST_CLASSIFIER)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if data.startswith(b"PK"):
        return read_torch(path, allowed=stand_ins(NAMES))
    try:  # from memory: of a file with a name torch would first try to unpack a tar archive
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_unpickler(NAMES))
        return as_dict(found) if isinstance(found, dict) else found
    except Exception as error:  # a damaged file fails in many ways
        raise unreadable(path, error) from None


def _unpickler(names: Iterable[str]) -> SimpleNamespace:
    """Return what torch.load takes for `pickle_module`: it finds stand-ins, and what rebuilds tensors and containers.

    All of them are new at every call, as a pickle may change attributes of what it finds. Python's own unpickler takes
    no memory for an index of the memo, where the one in C does.
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

    return SimpleNamespace(
        __name__=__name__,
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
    )


def _tensors(path: Path, root: Any) -> dict[str, Tensor]:
    """Return every tensor of our network, by our name."""
    ours = [f"{module}.{last}" for module, parameters in PARAMETERS.items() for last in parameters]
    names = {name: _theirs(name) for name in ours}
    if not isinstance(root, dict):
        _check_kind(path, root)
        found = {name: _parameter(root, name) for name in names.values()}
        root = {name: tensor for name, tensor in found.items() if tensor is not None}
    state = as_state(root, path)
    if others := sorted(state.keys() - names.values()):
        raise UserError(f"{path} holds {others[0]}, which is no part of ArtEmis' text→emotion classifier")
    if missing := [name for name in names.values() if name not in state]:
        raise UserError(f"{path}: {missing[0]} is missing")
    return {ours: state[theirs] for ours, theirs in names.items()}


def _theirs(name: str) -> str:
    module, _, last = name.rpartition(".")
    return f"{MODULES[module]}.{last}"


def _module(root: Any, name: str) -> Any:
    """Return a module by its name, where the empty name is the outermost; None where it is missing."""
    for part in name.split(".") if name else ():
        root = as_dict(_attributes(root).get("_modules")).get(part)
    return root


def _attributes(module: Any) -> dict[str, Any]:
    return module.state if isinstance(module, StandIn) else {}


def _parameter(root: Any, name: str) -> Any:
    module, _, last = name.rpartition(".")
    attributes = _attributes(_module(root, module))
    return as_dict(attributes.get("_parameters")).get(last, as_dict(attributes.get("_buffers")).get(last))


def _check_kind(path: Path, root: Any) -> None:
    """The parts are of the classes and settings that our network computes."""
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


def _arguments(tensors: Mapping[str, Tensor], module: Path, zero_in_max: bool) -> dict[str, Any]:
    """Of EmotionLSTM, by the sizes that the matrices have."""
    matrices = {name: tensors[f"{name}.weight"] for name in ("embedding", "words.4", "head.4")}
    matrices["rnn"] = tensors["rnn.weight_hh_l0"]
    for name, matrix in matrices.items():
        if matrix.ndim != 2:
            raise UserError(f"{module}: the weight of {MODULES[name]} is {_shape(matrix)}, not a matrix")
    classes, head_dim = matrices["head.4"].shape
    if classes != len(EMOTIONS):
        raise UserError(f"{module} tells {classes} classes apart, not the {len(EMOTIONS)} emotions of ArtEmis")
    return {
        "name": "lstm",
        "vocabulary": matrices["embedding"].shape[0],
        "classes": classes,
        "embedding_dim": matrices["embedding"].shape[1],
        "word_dim": matrices["words.4"].shape[0],
        "hidden_dim": matrices["rnn"].shape[1],
        "head_dim": head_dim,
        "trained_embedding": False,
        "zero_in_max": zero_in_max,
    }


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def read_vocabulary(path: Path) -> Vocabulary:
    """ArtEmis' `vocabulary.pkl`: a pickled object that knows the row of every word.

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
        raise UserError(f"{path} holds no vocabulary of ArtEmis, which has the row of every word (word2idx)")
    words = sorted(rows, key=rows.__getitem__)
    if sorted(rows.values()) != list(range(len(rows))) or tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise UserError(f"{path}: its rows are not counted from 0 with {', '.join(SPECIALS)} first")
    return Vocabulary(words)
