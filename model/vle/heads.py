"""VLE's tasks: the encoder with one head each, under the published names.

Axes as in model/vle/encoder.py. Every head has `score` (encoder's outputs → logits) and, with `return_loss` and labels,
the mean loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from common.errors import UserError
from model.vle.configuration import VLEConfig
from model.vle.encoder import VLEModel, VLEModelOutput
from model.vle.loading import VLEPreTrainedModel

EMOTION_QUESTION = "what emotion does this painting evoke?"  # beside a picture, if there is no other text


@dataclass
class VLEOutput(ModelOutput):
    """Loss (a scalar, if labels were given) and logits."""

    loss: Tensor | None = None
    logits: Tensor | None = None


def classifier(width: int, labels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, labels))


class VLEHead(VLEPreTrainedModel):
    """Base of the tasks."""

    label_names: tuple[str, ...] = ()
    pooled_only = True  # whether the head reads the pooled vector alone

    def __init__(self, config: VLEConfig) -> None:
        super().__init__(config)
        self.vle = VLEModel(config)
        self.build_head(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vle.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(
            module, Predictions
        ):  # a parameter outside of torch's layers, which the line above leaves as it is
            nn.init.zeros_(module.bias)

    def build_head(self, config: VLEConfig) -> None:
        raise NotImplementedError

    def score(self, fused: VLEModelOutput) -> Tensor:
        """Return the logits of the encoder's outputs."""
        raise NotImplementedError

    def loss(self, logits: Tensor, **labels: Any) -> Tensor:
        """Return the mean loss."""
        raise NotImplementedError

    def forward(
        self, *args: Any, return_loss: bool | None = None, return_dict: bool | None = None, **inputs: Any
    ) -> VLEOutput | tuple[Tensor, ...]:
        """Return logits, and the loss if `return_loss` and the task's labels are given.

        Args:
            args, inputs: of VLEModel.forward, and labels by name.
        """
        labels = {name: inputs.pop(name) for name in self.label_names if inputs.get(name) is not None}
        inputs = {name: value for name, value in inputs.items() if name not in self.label_names}
        logits = self.score(self.vle(*args, **inputs, pooled_only=self.pooled_only))
        loss = self.loss(logits, **labels) if return_loss and len(labels) == len(self.label_names) else None
        output = VLEOutput(loss=loss, logits=logits)
        return output if return_dict in (None, True) else output.to_tuple()


class VLEForVQA(VLEHead):
    """Visual question answering: one logit for each answer of config.id2label, (N, labels)."""

    label_names = ("vqa_labels", "vqa_scores")

    def build_head(self, config: VLEConfig) -> None:
        self.vqa_classifier = classifier(2 * config.hidden_size, len(config.id2label))

    def score(self, fused: VLEModelOutput) -> Tensor:
        return self.vqa_classifier(fused.pooler_output)

    def loss(
        self, logits: Tensor, vqa_labels: Sequence[Sequence[int]], vqa_scores: Sequence[Sequence[float]]
    ) -> Tensor:
        """Binary cross-entropy, summed over the answers; an answer that is not in `vqa_labels` has the score 0.

        Raises:
            UserError: an answer outside the vocabulary, or not one score for each answer.
        """
        targets = torch.zeros_like(logits, dtype=torch.float32)
        for row, labels, scores in zip(targets, vqa_labels, vqa_scores, strict=True):
            if len(labels) != len(scores):
                raise UserError(f"vqa_scores: {len(scores)} scores for {len(labels)} answers")
            if wrong := [label for label in labels if not 0 <= label < len(row)]:
                raise UserError(f"vqa_labels: there is no answer {int(wrong[0])}; this head has {len(row)}, from 0")
            for label, score in zip(labels, scores, strict=True):
                row[label] = score
        return F.binary_cross_entropy_with_logits(logits.float(), targets) * targets.shape[1]


class ITMHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.fc(pooled)


class VLEForITM(VLEHead):
    """Image-text matching: (N, 2), class 1 for a match."""

    label_names = ("itm_labels",)

    def build_head(self, config: VLEConfig) -> None:
        self.itm_score = ITMHead(2 * config.hidden_size)

    def score(self, fused: VLEModelOutput) -> Tensor:
        return self.itm_score(fused.pooler_output)

    def loss(self, logits: Tensor, itm_labels: Sequence[int] | Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), torch.as_tensor(itm_labels, device=logits.device).long())


class VLEForPBC(VLEHead):
    """Patch-box classification: (N, P, 2), class 1 for a patch that the text is about."""

    label_names = ("pbc_labels",)
    pooled_only = False

    def build_head(self, config: VLEConfig) -> None:
        self.pbc_classifier = classifier(config.hidden_size, 2)

    def score(self, fused: VLEModelOutput) -> Tensor:
        return self.pbc_classifier(fused.image_embeds[:, 1:])

    def loss(self, logits: Tensor, pbc_labels: Sequence[Sequence[int]] | Tensor) -> Tensor:
        """Mean over all patches; the published code raises an error here."""
        labels = torch.as_tensor(pbc_labels, device=logits.device).long()
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


class Predictions(nn.Module):
    """DeBERTa's word prediction without its output layer, which is the word table."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.transform = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps)}
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        hidden = self.transform["LayerNorm"](F.gelu(self.transform["dense"](hidden)))
        return F.linear(hidden, words, self.bias)


class WordHead(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class VLEForMLM(VLEHead):
    """Masked words: (N, L, vocabulary)."""

    label_names = ("mlm_labels",)
    pooled_only = False

    def build_head(self, config: VLEConfig) -> None:
        text = config.text_config
        self.mlm_score = nn.ModuleList([nn.Linear(config.hidden_size, text.hidden_size), WordHead(text)])

    def score(self, fused: VLEModelOutput) -> Tensor:
        words = self.get_input_embeddings().weight
        return self.mlm_score[1].predictions(self.mlm_score[0](fused.text_embeds), words)

    def loss(self, logits: Tensor, mlm_labels: Tensor) -> Tensor:
        """Mean over the tokens whose label is not -100; 0 if there is none."""
        total = F.cross_entropy(logits.float().flatten(0, 1), mlm_labels.flatten(), reduction="sum")
        return total / (mlm_labels != -100).sum().clamp(min=1)


class VLEForEmotion(VLEHead):
    """Emotions of a picture and a text (a question, or somebody's reason): (N, labels). Not a published head."""

    label_names = ("emotion_shares",)

    def build_head(self, config: VLEConfig) -> None:
        self.emotion_classifier = classifier(2 * config.hidden_size, len(config.id2label))

    def score(self, fused: VLEModelOutput) -> Tensor:
        return self.emotion_classifier(fused.pooler_output)

    def loss(self, logits: Tensor, emotion_shares: Tensor) -> Tensor:
        """Cross-entropy with the annotators' shares (N, labels)."""
        return F.cross_entropy(logits.float(), emotion_shares)


PRETRAINING = {"match": VLEForITM, "patches": VLEForPBC, "words": VLEForMLM}


class VLEForPreTraining(VLEHead):
    """All heads of pre-training; a folder of it loads as VLEForITM, VLEForPBC and VLEForMLM too.

    The head that classifies hidden objects (mpc_classifier) is there if config.object_names lists their classes; its
    code was never published, and this is an interpretation.
    """

    def build_head(self, config: VLEConfig) -> None:
        for kind in PRETRAINING.values():
            kind.build_head(self, config)
        if config.object_names:
            self.mpc_classifier = classifier(config.hidden_size, len(config.object_names))

    def forward(self, *, rows: Mapping[str, Tensor], **inputs: Any) -> dict[str, Tensor]:
        """Return the logits of each task for its texts.

        Args:
            rows: by task (match, patches, object), the texts that it is about; each text of "object" has a box, and the
                logits are those of its first one. Of "words", the tokens, (N, L) bool: the vocabulary is large.
        """
        fused = self.vle(**inputs)
        patches = self.config.vision_config.image_size // self.config.vision_config.patch_size
        found = {}
        for name, some in rows.items():
            if name == "words":
                found[name] = VLEForMLM.score(self, VLEModelOutput(text_embeds=fused.text_embeds[some]))
                continue
            of_rows = VLEModelOutput(*(states[some] for states in fused.to_tuple()))
            if name == "object":
                first = slice(1 + patches**2, 2 + patches**2)  # empty if no text of the batch has a box
                found[name] = self.mpc_classifier(of_rows.image_embeds[:, first].flatten(0, 1))
            else:
                of_rows.image_embeds = of_rows.image_embeds[:, : 1 + patches**2]
                found[name] = PRETRAINING[name].score(self, of_rows)
        return found
