"""Weights in oneDNN's blocked layout, for fast generation on a CPU by networks that are no longer trained.

Generating a token multiplies a few rows by matrices of millions of weights, so most time goes into reading the weights
from memory, which oneDNN does much faster in its own layout. Results differ only by the order of summation. bf16 halves
the time; only the output layer stays in fp32, since logits of different words often differ by less than bf16 resolves.
Weights that were stored in 8 bits are multiplied as integers, see model.decoding.int8.
"""

from __future__ import annotations

from functools import cache

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from model.attention import attend, split_heads
from model.captioner import Captioner
from model.decoding.int8 import SMALLEST, Int8Linear, can_multiply
from model.lora import merge_lora

ROWS = 512  # hint for oneDNN's layout; the result suits a single row too
DTYPES = (torch.float32, torch.bfloat16)


class Float32Head(nn.Linear):
    """The language model's output layer, computed in fp32 for inputs of any precision."""

    def __init__(self, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = head.weight.shape
        self.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        self.bias = None if head.bias is None else nn.Parameter(head.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def optimize_for_generation(captioner: Captioner, *, bf16: bool, int8: bool = False) -> None:
    """Optimize a captioner in eval mode for generation, in place; it cannot be trained or saved afterwards.

    Args:
        bf16: weights and computation in bf16, without autocast, which the caller must not enable.
        int8: the weights were stored in 8 bits: without bf16, they are multiplied as integers on a CPU that can.
    """
    merge_lora(captioner.language)
    if bf16:
        head = Float32Head(captioner.language.head)
        captioner.to(torch.bfloat16)
        captioner.language.lm.set_output_embeddings(head)
    pack(captioner, Int8Linear if int8 and not bf16 and can_multiply() else PackedLinear)


@cache
def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether torch has oneDNN and the operators with which torch.compile packs weights of this precision.

    bf16 also needs a processor with certain instructions.
    """
    try:
        x, weight = torch.ones(2, 64, dtype=dtype), torch.eye(64, dtype=dtype)
        return torch.equal(PackedLinear(weight, None)(x), x)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


class PackedLinear(nn.Module):
    """x → x·Wᵀ + b; the packed weights (out, in) can be neither trained, moved nor saved."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = None if bias is None else bias.detach()

    @property
    def weight(self) -> Tensor:
        """A copy in the ordinary layout, for modules that use the weight of a layer without calling it (BEiT)."""
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, "none", [], "")


AnyLinear = PackedLinear | Int8Linear


class PackedSelfAttention(nn.Module):
    """nn.MultiheadAttention as used in open_clip's towers: self-attention, batch first."""

    def __init__(self, attention: nn.MultiheadAttention, linear: type[AnyLinear]) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv = linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: bool) -> tuple[Tensor, None]:
        queries, keys, values = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(attend(queries, keys, values, mask=attn_mask)), None


@torch.no_grad()
def pack(network: nn.Module, linear: type[AnyLinear] = PackedLinear) -> bool:
    """Replace the large linear layers of `network` in place; return False, without changes, if this is impossible.

    Their weights are no longer parameters: the network can only be used, and only on the CPU.
    """
    parameter = next(network.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype not in DTYPES:
        return False
    if linear is PackedLinear and not can_pack(parameter.dtype):
        return False
    _pack(network, linear)
    return True


def _pack(module: nn.Module, linear: type[AnyLinear]) -> None:
    for name, child in module.named_children():
        packed = _packed(child, module, linear)
        if packed is not None:
            setattr(module, name, packed)
        elif not isinstance(child, nn.TransformerEncoderLayer | nn.MultiheadAttention):  # these use `weight` directly
            _pack(child, linear)


def _packed(layer: nn.Module, parent: nn.Module, linear: type[AnyLinear]) -> nn.Module | None:
    if isinstance(layer, nn.MultiheadAttention):
        known = isinstance(parent, ResidualAttentionBlock) and layer.batch_first and layer.in_proj_weight is not None
        return PackedSelfAttention(layer, linear) if known and not hasattr(parent, "ln_1_kv") else None
    if not isinstance(layer, nn.Linear | Conv1D) or layer.weight.numel() < SMALLEST:
        return None
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    return linear(weight, layer.bias)
