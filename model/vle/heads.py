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


@dataclass
class VLEOutput(ModelOutput):
    """Loss (a scalar, if labels were given) and logits."""

    loss: Tensor | None = None
    logits: Tensor | None = None


def classifier(width: int, labels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, labels))


class VLEHead(VLEPreTrainedModel):
    """Base of the tasks."""

    def __init__(self, config: VLEConfig) -> None:
        super().__init__(config)
        self.vle = VLEModel(config)
        self.build_head(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vle.get_input_embeddings()

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
        logits = self.score(self.vle(*args, **inputs))
        loss = self.loss(logits, **labels) if return_loss and len(labels) == len(self.label_names) else None
        output = VLEOutput(loss=loss, logits=logits)
        return output if return_dict in (None, True) else output.to_tuple()

    label_names: tuple[str, ...] = ()


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


class VLEForVCR(VLEHead):
    """Base of the two VCR tasks: one logit for each choice, (B, choices)."""

    label_names = ("vcr_labels",)
    head = ""

    def build_head(self, config: VLEConfig) -> None:
        setattr(self, self.head, classifier(2 * config.hidden_size, 1))

    def score(self, fused: VLEModelOutput) -> Tensor:
        return getattr(self, self.head)(fused.pooler_output)

    def loss(self, logits: Tensor, vcr_labels: Sequence[int] | Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), torch.as_tensor(vcr_labels, device=logits.device).long())

    def forward(
        self,
        input_ids: Sequence[Tensor],
        pixel_values: Tensor,
        attention_mask: Sequence[Tensor] | None = None,
        patch_ids: Sequence[Sequence] | None = None,
        extend_token_type_ids: Sequence[tuple[Sequence, Sequence]] | None = None,
        vcr_labels: Sequence[int] | Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
        flat: bool = False,
        **others: Any,
    ) -> VLEOutput | tuple[Tensor, ...]:
        """Score every choice; all arguments about texts are lists over the choices, each as in VLEModel.forward.

        Args:
            pixel_values: (B, 3, H, W): encoded once for all choices.
            flat: the arguments are those of VLEModel.forward, for N texts of any pictures; the logits are (N, 1).
        """
        if flat:
            texts = {"patch_ids": patch_ids, "extend_token_type_ids": extend_token_type_ids, **others}
            return VLEOutput(logits=self.score(self.vle(input_ids, pixel_values, attention_mask, **texts)))
        choices, pictures = len(input_ids), len(pixel_values)
        lengths = {torch.as_tensor(ids).shape[-1] for ids in input_ids}
        if len(lengths) > 1:
            raise UserError(f"the choices have {sorted(lengths)} tokens: pad them to one length")
        ids = torch.cat([torch.as_tensor(ids) for ids in input_ids])
        mask = (
            torch.ones_like(ids) if attention_mask is None else torch.cat([torch.as_tensor(m) for m in attention_mask])
        )
        boxes = None if patch_ids is None else [boxes for choice in patch_ids for boxes in choice]
        types = None
        if extend_token_type_ids is not None:
            types = tuple([row for choice in extend_token_type_ids for row in choice[side]] for side in (0, 1))
        index = torch.arange(pictures, device=pixel_values.device).repeat(choices)
        fused = self.vle(ids, pixel_values, mask, patch_ids=boxes, extend_token_type_ids=types, image_index=index)
        logits = self.score(fused).view(choices, pictures).T
        loss = self.loss(logits, vcr_labels) if return_loss and vcr_labels is not None else None
        output = VLEOutput(loss=loss, logits=logits)
        return output if return_dict in (None, True) else output.to_tuple()


class VLEForVCRQ2A(VLEForVCR):
    """Visual commonsense reasoning: from the question to the answer."""

    head = "vcr_q2a_logit"


class VLEForVCRQA2R(VLEForVCR):
    """Visual commonsense reasoning: from question and answer to the rationale."""

    head = "vcr_qa2r_logit"


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
            rows: by task (match, patches, words, object), the texts that it is about; each text of "object" has a box,
                and the logits are those of its first one.
        """
        fused = self.vle(**inputs)
        patches = self.config.vision_config.image_size // self.config.vision_config.patch_size
        found = {}
        for name, some in rows.items():
            of_rows = VLEModelOutput(*(states[some] for states in fused.to_tuple()))
            if name == "object":
                found[name] = self.mpc_classifier(of_rows.image_embeds[:, 1 + patches**2])
            else:
                of_rows.image_embeds = of_rows.image_embeds[:, : 1 + patches**2]
                found[name] = PRETRAINING[name].score(self, of_rows)
        return found
