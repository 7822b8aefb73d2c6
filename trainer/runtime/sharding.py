"""FSDP: weights, gradients and optimizer states split over the processes of a job, by torch's fully_shard.

accelerate's configuration switches it on; torch does it, on CPUs as on GPUs. accelerate itself runs without: it has no
FSDP on a CPU, and it matches an optimizer's parameters by the address of their shard, which an empty shard lacks.

A unit is all-gathered when it is called and freed afterwards; parameters outside any unit are there from the beginning
of the forward to the end of the backward pass. So all processes must call the same units equally often: training does;
for validation the network is `whole`. Precision is autocast's, as elsewhere: shards, gradient sums and gathered
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
ASKED = "ACCELERATE_USE_FSDP"
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}


@dataclass(frozen=True, slots=True)
class Sharding:
    """Args:
    reshard: whether a unit is freed between its forward and its backward pass, and gathered again.
    """

    reshard: bool

    def split(self, captioner: Captioner, accelerator: Accelerator) -> str:
        """Keep this process's shard of every parameter, on the device; call it before the optimizer is built.

        Returns:
            its size, as a sentence to print.
        """
        _make_equal([*captioner.parameters(), *captioner.buffers()], accelerator.device)
        _show_tensors_to_torch()
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for unit in units(captioner):
            fully_shard(unit, mesh=mesh, reshard_after_forward=self.reshard)
        fully_shard(captioner, mesh=mesh, reshard_after_forward=False)
        fully_shard.state(captioner)._lazy_init()  # else the first unit called becomes the root
        parameters = [*captioner.parameters()]
        sizes = [sum(tensor.nbytes for tensor in tensors) for tensors in (map(share, parameters), parameters)]
        held, everything = map(gigabytes, sizes)
        return f"FSDP: each of {accelerator.num_processes} processes holds about {held} of {everything} of weights"

    @contextmanager
    def whole(self, captioner: Captioner) -> Iterator[None]:
        """Within the context every process has all parameters, and may call the network in any way but train it.

        Its state_dict() ends this too early, see `gathered`.
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
        if block.to_keys_values is not None:
            yield block.to_keys_values
        yield block
    for part in (captioner.vision, captioner.mapper, captioner.resampler):
        if part is not None:
            yield part


@torch.no_grad()
def _make_equal(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Copy the tensors of the first process to all."""
    for tensor in tensors:
        sent = tensor.detach().to(device).contiguous()
        torch.distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


@cache
def _show_tensors_to_torch() -> None:
    """FSDP's hooks must find the tensors in the output; newer versions of torch do so by themselves."""
    pytree.register_dataclass(CaptionerOutput)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # never changed in place here


# --- the launcher's configuration -----------------------------------------------------------------------------------


def refuse_unknown() -> None:
    """Raise UserError if the launcher's configuration wants the network split in a way that is not supported."""
    way_out = f"launch it with distributed_type: MULTI_GPU (every card holds the whole network), or as {FILE} does"
    for variable, name in REFUSED.items():
        if _is_on(variable):
            raise UserError(f"accelerate's configuration asks for {name}, which EmoScribe does not do: {way_out}")
    if not _is_on(ASKED):
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            f"accelerate's configuration asks for FSDP in its first version: set fsdp_version: 2, as {FILE} does"
        )
    instead = {
        "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", "more processes leave each a smaller share"),
        "FSDP_ACTIVATION_CHECKPOINTING": ("fsdp_activation_checkpointing", "trainer.gradient_checkpointing=true"),
    }
    for variable, (key, other) in instead.items():
        if _is_on(variable):
            raise UserError(f"{key}: true in accelerate's configuration is not supported: leave it out; {other}")


def unseen() -> AbstractContextManager[None]:
    """Hide FSDP from accelerate in this context."""
    return patch_environment(**{ASKED: "false"})


def asked_for(*, stage: str, precision: str) -> Sharding | None:
    """The sharding that the training was launched with; None: each process holds the whole network.

    Args:
        precision: as accelerate names it.

    Raises:
        UserError: this stage or precision does not support it.
    """
    if not _is_on(ASKED) or world_size() == 1:
        return None
    if stage != "caption":
        raise UserError(
            f"stage={stage} trains a small network, which is not split over cards: launch it with "
            "distributed_type: MULTI_GPU"
        )
    if precision == "fp16":
        raise UserError("trainer.precision=fp16 does not go with FSDP: set trainer.precision=bf16 or fp32")
    # transformers would leave every process but the first without the pretrained weights, for accelerate to send them
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return Sharding(reshard=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "0", "no"))


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


# --- one tensor, or a state of many ----------------------------------------------------------------------------------


def full(tensor: Tensor) -> Tensor:
    """The whole tensor; every process must call this."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor) -> Tensor:
    """This process's shard of the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(state: Any, *, keep: bool) -> Any:
    """A nested state with whole tensors; every process must call this.

    Args:
        keep: whether this process keeps the gathered tensors, on the CPU; otherwise None stands in their place.
    """

    def whole(tensor: DTensor) -> Tensor | None:
        found = full(tensor)
        return found.cpu() if keep else None

    return pytree.tree_map_only(DTensor, whole, state)


def shared_out(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an unsharded optimizer, split as this process's parameters are."""
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
