"""FSDP: weights, gradients and optimizer states split over the processes of a job, by torch's fully_shard.

accelerate's configuration switches it on; torch does it, on CPUs as on GPUs. accelerate itself runs without: it has no
FSDP on a CPU, and it matches an optimizer's parameters by the address of their shard, which an empty shard lacks.

A unit is all-gathered when it is called and freed afterwards; parameters outside any unit stay gathered from the
beginning of the forward to the end of the backward pass. So all processes must call the same units equally often:
training does; for validation the network is `unsharded`. Precision is autocast's; shards, gradient sums and gathered
parameters are float32.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree as pytree

from common.errors import UserError
from common.faults import gigabytes
from common.ranks import world_size
from model.captioner import Captioner, CaptionerOutput

FILE = "configs/fsdp.yaml"
ENABLED = "ACCELERATE_USE_FSDP"
MULTI_GPU = f"use distributed_type: MULTI_GPU (every card holds the whole network), or FSDP as in {FILE}"
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", MULTI_GPU),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", MULTI_GPU),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism_config", MULTI_GPU),
}
UNSUPPORTED_WITH_FSDP = {
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", "use more processes, each with a smaller shard"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("fsdp_activation_checkpointing", "set trainer.gradient_checkpointing=true"),
}


@dataclass(frozen=True, slots=True)
class Sharding:
    reshard: bool  # free a unit between its forward and its backward pass, and gather it again

    def split(self, captioner: Captioner, accelerator: Accelerator) -> str:
        """Keep this process's shard of every parameter, on the device, and return its size as a sentence to print.

        Call it before the optimizer is built.
        """
        _make_equal([*captioner.parameters(), *captioner.buffers()], accelerator.device)
        _register_output()
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for unit in units(captioner):
            fully_shard(unit, mesh=mesh, reshard_after_forward=self.reshard)
        captioner.register_forward_hook(_match_second_reading)
        fully_shard(captioner, mesh=mesh, reshard_after_forward=False)
        fully_shard.state(captioner)._lazy_init()  # else the first unit called becomes the root
        parameters = [*captioner.parameters()]
        own = gigabytes(sum(local_shard(parameter).nbytes for parameter in parameters))
        everything = gigabytes(sum(parameter.nbytes for parameter in parameters))
        return f"FSDP: each of {accelerator.num_processes} processes holds about {own} of {everything} of weights"

    @contextmanager
    def unsharded(self, captioner: Captioner) -> Iterator[None]:
        """Gather all parameters in every process within this context, for any use of the network except training.

        Its state_dict() ends this too early; see `gather_state`.
        """
        _make_equal(captioner.buffers(), next(captioner.parameters()).device)
        parts = [module for module in captioner.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(self.reshard and part is not captioner, recurse=False)
                part.reshard()


def units(captioner: Captioner) -> Iterator[nn.Module]:
    """FSDP units, inner ones first. Keys and values are computed before their block is called: a unit of their own."""
    for block in captioner.language.blocks:
        if block.cross_attention is not None:
            yield block.cross_attention.to_kv
        yield block
    for part in (captioner.vision, captioner.mapper, captioner.resampler):
        if part is not None:
            yield part


@torch.no_grad()
def _match_second_reading(captioner: Captioner, args: tuple, output: CaptionerOutput) -> None:
    """Call the blocks once more if this batch has no false explanation to read, as other processes' batches may."""
    if captioner.read_negatives and captioner.contrastive is not None and output.contrastive[:, 1:].isinf().all():
        hidden = output.hidden[:1, :1]
        with torch.random.fork_rng([hidden.device] if hidden.is_cuda else []):  # dropout
            captioner.language(hidden)


@torch.no_grad()
def _make_equal(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Broadcast the tensors of the first process to all."""
    for tensor in tensors:
        sent = tensor.detach().to(device).contiguous()
        torch.distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


@cache
def _register_output() -> None:
    """Let FSDP's hooks find the tensors in the output; newer versions of torch do so by themselves."""
    pytree.register_dataclass(CaptionerOutput)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # never changed in place here


def refuse_unsupported_launcher() -> None:
    """Raise UserError if the launcher's configuration splits the network in a way that is not supported."""
    fsdp = _is_on(ENABLED)
    for variable, (name, way_out) in {**UNSUPPORTED, **(UNSUPPORTED_WITH_FSDP if fsdp else {})}.items():
        if _is_on(variable):
            raise UserError(f"accelerate's configuration enables {name}, which is not supported: {way_out}")
    if fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(f"accelerate's configuration enables FSDP version 1: set fsdp_version: 2, as in {FILE}")


def hide_fsdp_from_accelerate() -> AbstractContextManager[None]:
    """Hide FSDP from accelerate in this context."""
    return patch_environment(**{ENABLED: "false"})


def launched_sharding(*, stage: str, precision: str) -> Sharding | None:
    """Return the sharding that the launcher configured; None: each process holds the whole network.

    Args:
        precision: as accelerate names it.

    Raises:
        UserError: this stage or precision does not support it.
    """
    if not _is_on(ENABLED) or world_size() == 1:
        return None
    if stage != "caption":
        raise UserError(
            f"stage={stage} does not support FSDP, as its network is small: launch it with distributed_type: MULTI_GPU"
        )
    if precision == "fp16":
        raise UserError("trainer.precision=fp16 does not work with FSDP: set trainer.precision=bf16 or fp32")
    # transformers would leave every process but the first without the pretrained weights, for accelerate to send them
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return Sharding(reshard=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "0", "no"))


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole tensor; every process must call this."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_state(state: Any, *, keep: bool) -> Any:
    """Return a nested state with whole tensors; every process must call this.

    Args:
        keep: keep the gathered tensors in this process, on the CPU; otherwise replace them by None.
    """

    def gather(tensor: DTensor) -> Tensor | None:
        whole = full_tensor(tensor)
        return whole.cpu() if keep else None

    return pytree.tree_map_only(DTensor, gather, state)


def shard_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an unsharded optimizer, split like this process's parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return dict(state)
    values = {index: dict(of_one) for index, of_one in state["state"].items()}
    for index, of_one in values.items():
        parameter = parameters[index]
        for name, value in of_one.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # else it is a count, or damaged
                value = value.to(parameter.device)
                of_one[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return {**state, "state": values}
