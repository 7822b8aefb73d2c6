"""VLE's encoder: DeBERTa and CLIP, fused by co-attention (iflytek/VLE, after METER).

Axes: B pictures, N texts, L text tokens, P patches, K boxes of a text, d width of the fusion encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionModel, DebertaV2Model
from transformers.utils import ModelOutput

from common.errors import UserError
from model.vle.configuration import VLEConfig
from model.vle.fusion import FusionLayer, Pooler
from model.vle.loading import VLEPreTrainedModel

Boxes = Sequence[Sequence[Sequence[int]]]  # per text, its boxes; of a box, the patches, from 0


@dataclass
class VLEModelOutput(ModelOutput):
    """Outputs of the encoder: (N, 2d), (N, L, d), (N, 1 + P + K, d)."""

    pooler_output: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


class VisionTower(nn.Module):
    """CLIP's vision transformer under its published name, vision_model.vision_model."""

    def __init__(self, config: VLEConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config.vision_config)


class VLEModel(VLEPreTrainedModel):
    """Pictures and texts → VLEModelOutput."""

    encoder_prefix = ""
    supports_gradient_checkpointing = True

    def __init__(self, config: VLEConfig) -> None:
        super().__init__(config)
        width, layers = config.hidden_size, config.num_hidden_layers
        self.vision_model, self.text_model = VisionTower(config), DebertaV2Model(config.text_config)
        self.text_projection_layer = nn.Linear(config.text_config.hidden_size, width)
        self.image_projection_layer = nn.Linear(config.vision_config.hidden_size, width)
        self.token_type_embeddings = nn.Embedding(config.num_token_types, width)
        self.cross_modal_text_layers = nn.ModuleList(FusionLayer(config) for _ in range(layers))
        self.cross_modal_image_layers = nn.ModuleList(FusionLayer(config) for _ in range(layers))
        self.cross_modal_text_pooler, self.cross_modal_image_pooler = Pooler(config), Pooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.word_embeddings

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return DeBERTa's last states (N, L, Dt)."""
        return self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return CLIP's last states (B, 1 + P, Dv), class token first, all of them after the final layer norm.

        Raises:
            UserError: the pictures have another size than the position table.
        """
        tower, side = self.vision_model.vision_model, self.config.vision_config.image_size
        if tuple(pixel_values.shape[-2:]) != (side, side):
            height, width = pixel_values.shape[-2:]
            raise UserError(
                f"the pictures have {width} × {height} pixels, and the position table of this VLE is for {side} × "
                f"{side}: set the size in preprocessor_config.json, or load it with from_pretrained(…, "
                f"image_size={height}), which resizes the table"
            )
        return tower.post_layernorm(tower(pixel_values=pixel_values).last_hidden_state)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,  # here and below: arguments of the published code without an effect
        token_type_ids: Tensor | None = None,
        patch_ids: Boxes | None = None,
        extend_token_type_ids: tuple[Sequence, Sequence] | None = None,
        image_index: Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
        pooled_only: bool = False,
    ) -> VLEModelOutput | tuple[Tensor, ...]:
        """Encode and fuse; see `fuse`.

        Args:
            input_ids, attention_mask: (N, L).
            pixel_values: (B, 3, H, W).
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        text, image = self.get_text_features(input_ids, attention_mask), self.get_image_features(pixel_values)
        fused = self.fuse(
            text,
            attention_mask,
            image,
            image_index=image_index,
            patch_ids=patch_ids,
            extend_token_type_ids=extend_token_type_ids,
            pooled_only=pooled_only,
        )
        return fused if return_dict in (None, True) else fused.to_tuple()

    def fuse(
        self,
        text_states: Tensor,
        attention_mask: Tensor,
        image_states: Tensor,
        *,
        image_index: Tensor | None = None,
        patch_ids: Boxes | None = None,
        extend_token_type_ids: tuple[Sequence, Sequence] | None = None,
        pooled_only: bool = False,
    ) -> VLEModelOutput:
        """Fuse the towers' outputs. In each layer, both streams read the other's output of the layer before.

        Args:
            image_index: (N,) row of `image_states` for each text; None: one picture per text, in the same order.
            patch_ids: the mean of a box's patches is appended to the picture as one more token.
            extend_token_type_ids: token types of each text's boxes, and of each text's tokens (a short list is filled
                up with 0); None: 1 and 0.
            pooled_only: return pooler_output alone, which needs only the first tokens of the last layer.

        Raises:
            UserError: a box without a patch, a patch outside the picture, a type that is not in the table, or numbers
                of texts, pictures, boxes and types that do not belong together.
        """
        self._check(text_states, image_states, image_index, patch_ids, extend_token_type_ids)
        text, image = self.text_projection_layer(text_states), self.image_projection_layer(image_states)
        types, text_mask, image_mask = self.token_type_embeddings, attention_mask.bool(), None
        text_types = torch.zeros_like(attention_mask, dtype=torch.long)
        image_types = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        if patch_ids is not None:
            if image_index is not None:
                image, image_types, image_index = image[image_index], image_types[image_index], None
            image, image_mask = append_boxes(image, patch_ids)
            box_types = [[1] * len(boxes) for boxes in patch_ids]
            if extend_token_type_ids is not None:
                box_types = extend_token_type_ids[0]
                text_types = self._types(extend_token_type_ids[1], text_types.shape[1], image.device)
            added = self._types(box_types, image.shape[1] - image_types.shape[1], image.device)
            image_types = torch.cat([image_types, added], dim=1)
        text, image = text + types(text_types), image + types(image_types)
        text_mask = None if bool(text_mask.all()) else text_mask
        rows, last = image_index, self.config.num_hidden_layers - 1
        layers = zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True)
        for number, (text_layer, image_layer) in enumerate(layers):
            first = pooled_only and number == last
            text, image = (
                text_layer(text, image, mask=text_mask, other_mask=image_mask, other_rows=rows, first=first),
                image_layer(image, text, mask=image_mask, other_mask=text_mask, rows=rows, first=first),
            )
            rows = None
        pooled = torch.cat([self.cross_modal_text_pooler(text), self.cross_modal_image_pooler(image)], dim=-1)
        if pooled_only:
            return VLEModelOutput(pooler_output=pooled)
        return VLEModelOutput(pooler_output=pooled, text_embeds=text, image_embeds=image)

    def _check(self, text: Tensor, image: Tensor, index: Tensor | None, boxes: Boxes | None, types: Any) -> None:
        texts = len(text)
        if index is None and len(image) != texts:
            raise UserError(f"{texts} texts need as many pictures, not {len(image)}, or image_index")
        if index is not None and (
            index.shape != (texts,) or (texts and not 0 <= int(index.min()) <= int(index.max()) < len(image))
        ):
            raise UserError(f"image_index needs a row of the {len(image)} pictures, from 0, for each of {texts} texts")
        if types is not None and boxes is None:
            raise UserError("extend_token_type_ids needs patch_ids: the boxes that the types refer to")
        if boxes is not None and len(boxes) != texts:
            raise UserError(f"patch_ids: {len(boxes)} lists of boxes for {texts} texts")
        if types is not None and [len(some) for some in types[0]] != [len(some) for some in boxes]:
            raise UserError("extend_token_type_ids needs one type for each box of patch_ids")
        if types is not None and (len(types[1]) != texts or max(map(len, types[1]), default=0) > text.shape[1]):
            raise UserError(f"extend_token_type_ids needs at most {text.shape[1]} types for each of {texts} texts")

    def _types(self, given: Sequence[Sequence[int]], length: int, device: torch.device) -> Tensor:
        """Return the types as (N, length), filled up with 0."""
        types = torch.zeros(len(given), length, dtype=torch.long, device=device)
        for row, some in zip(types, given, strict=True):
            row[: len(some)] = torch.as_tensor(some, dtype=torch.long, device=device)
        wrong = types[(types < 0) | (types >= self.config.num_token_types)]
        if len(wrong):
            raise UserError(
                f"token type {int(wrong[0])}: this VLE has {self.config.num_token_types}, from 0 (num_token_types in "
                f"config.json), so a text can refer to {self.config.num_token_types - 2} objects at most"
            )
        return types


def append_boxes(image: Tensor, boxes: Boxes) -> tuple[Tensor, Tensor | None]:
    """Append the mean of each box's patches as a token, padded with 0: (N, 1 + P, d) → (N, 1 + P + K, d) and its mask.

    Raises:
        UserError: a box without a patch, or a patch outside the picture.
    """
    patches = image.shape[1] - 1
    for text, some in enumerate(boxes):
        for box, rows in enumerate(some):
            if not len(rows) or min(rows) < 0 or max(rows) >= patches:
                wrong = "covers no patch" if not len(rows) else f"names a patch outside 0 to {patches - 1}"
                raise UserError(f"box {box + 1} of text {text + 1} {wrong}: leave it out, or clip it to the picture")
    counts = torch.tensor([len(some) for some in boxes], device=image.device)
    if not counts.any():
        return image, None
    means = [
        torch.stack([states[1:][list(rows)].mean(dim=0) for rows in some]) if len(some) else states[:0]
        for states, some in zip(image, boxes, strict=True)
    ]
    added = pad_sequence(means, batch_first=True)
    there = torch.arange(added.shape[1], device=image.device)[None] < counts[:, None]
    always = torch.ones(len(image), patches + 1, dtype=torch.bool, device=image.device)
    return torch.cat([image, added], dim=1), torch.cat([always, there], dim=1)
