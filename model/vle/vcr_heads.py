"""VLE's heads for visual commonsense reasoning (VCR), under the published names. Axes as in model/vle/encoder.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model.vle.configuration import VLEConfig
from model.vle.encoder import VLEModelOutput
from model.vle.heads import VLEHead, VLEOutput, classifier


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
            texts["pooled_only"] = True
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
        texts = {"patch_ids": boxes, "extend_token_type_ids": types, "image_index": index, "pooled_only": True}
        fused = self.vle(ids, pixel_values, mask, **texts)
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
