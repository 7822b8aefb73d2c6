"""ArtEmis' published text→emotion classifier and its vocabulary (Achlioptas et al., 2021), read without running them.

The classifier is a whole pickled module, in the zip file that torch has written since 1.6 or in the form before it; a
state dict of the same names is read too. Of either only the tensors are taken, under their known names and with their
shapes checked. What cannot be read: the tar files of torch before 0.2, files of a big-endian machine, and classifiers
that look at the picture as well.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.emotions import EMOTIONS
from errors import UserError
from model.checkpoint_import.inert_pickle import Built, Refused, load
from model.checkpoint_import.inert_torch import TorchFile, refusal
from model.text_emotion import build_text_emotion
from trainer.text_emotion.classifier import PADDING, UNKNOWN, TextClassifier, Vocabulary

LARGEST_VOCABULARY = 1 << 28  # bytes
SPECIALS = (PADDING, "<sos>", "<eos>", UNKNOWN)
CLASSIFIER, ENCODER, MLP = (
    f"artemis.neural_models.{name}"
    for name in ("text_emotional_clf.TextEmotionClassifier", "lstm_encoder.LSTMEncoder", "mlp.MLP")
)
LSTM = "torch.nn.modules.rnn.LSTM"
ALLOWED = frozenset(
    (
        CLASSIFIER,
        ENCODER,
        MLP,
        LSTM,
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.batchnorm.BatchNorm1d",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.dropout.Dropout",
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.sparse.Embedding",
        "torch.nn.backends.thnn._get_thnn_function_backend",  # in every module of torch before 1.3
    )
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
    file = TorchFile(module, allowed=ALLOWED)
    tensors = _tensors(file)
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
        "source": {"imported": module.name, "sha256": hashlib.sha256(file.data).hexdigest()},
    }
    return TextClassifier(network.eval(), words, settings)


def _tensors(file: TorchFile) -> dict[str, Tensor]:
    """Every tensor of our network, by our name."""
    if not isinstance(file.root, dict):
        _check_kind(file)
    names = [f"{module}.{last}" for module, parameters in PARAMETERS.items() for last in parameters]
    if isinstance(file.root, dict) and (others := sorted(map(str, file.root.keys() - set(map(_theirs, names))))):
        raise UserError(f"{file.path} holds {others[0]}, which is no part of ArtEmis' text→emotion classifier")
    return {name: file.tensor(_theirs(name)) for name in names}


def _theirs(name: str) -> str:
    module, _, last = name.rpartition(".")
    return f"{MODULES[module]}.{last}"


def _check_kind(file: TorchFile) -> None:
    """The parts are of the classes and settings that our network computes."""
    wanted = (
        ("", CLASSIFIER, {"img_encoder": None}),
        ("text_encoder", ENCODER, {"feature_type": "max", "word_transformation": None, "init_h": None, "init_c": None}),
        ("text_encoder.rnn", LSTM, {"num_layers": 1, "bidirectional": False, "batch_first": True}),
        ("clf_head", MLP, {}),
    )
    for path, kind, attributes in wanted:
        module = file.module(path)
        if type(module).__name__ != kind:
            raise UserError(f"{file.path}: {path or 'the object'} is no {kind}, so it is not ArtEmis' classifier")
        for key, value in attributes.items():
            found = file.attribute(path, key)
            if type(found) is not type(value) or found != value:
                raise UserError(f"{file.path}: {key} of {path or 'the object'} must be {value} for an import")


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
        if path.stat().st_size > LARGEST_VOCABULARY:
            raise UserError(f"{path} is larger than {LARGEST_VOCABULARY >> 20} MiB, so it is no vocabulary")
        found = load(io.BytesIO(path.read_bytes()), allowed={VOCABULARY})
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except Refused as error:
        raise refusal(path, error) from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(f"{path} cannot be read as ArtEmis' vocabulary.pkl ({type(error).__name__})") from error
    state = found.state if isinstance(found, Built) else None
    rows = state.get("word2idx") if isinstance(state, dict) else None
    if not isinstance(rows, dict) or not all(type(w) is str and type(row) is int for w, row in rows.items()):
        raise UserError(f"{path} holds no vocabulary of ArtEmis, which knows the row of every word (word2idx)")
    words = sorted(rows, key=rows.__getitem__)
    if sorted(rows.values()) != list(range(len(rows))) or tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise UserError(f"{path}: its rows are not counted from 0 with {', '.join(SPECIALS)} first")
    return Vocabulary(words)
