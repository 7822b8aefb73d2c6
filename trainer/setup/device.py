"""Device, precision and processes as configured."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from omegaconf import DictConfig

from common.errors import UserError
from common.ranks import world_size
from trainer.runtime.sharding import refuse_unknown, unseen

FILLING = timedelta(days=1)  # that the other processes of a machine wait while one fills the feature cache


def make_accelerator(config: DictConfig) -> Accelerator:
    """Device and precision as configured; the processes of a job wait for one another as long as it says.

    Raises:
        UserError: a device that is not there, a precision that it cannot compute in, or a launcher that wants what
            is not to be had.
    """
    refuse_unknown()
    device, precision = config.trainer.device, config.trainer.precision
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but torch sees no CUDA device here; set trainer.device=cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("trainer.device=mps, but torch sees no Apple GPU here; set trainer.device=cpu")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if precision == "auto":
        precision = best_precision() if on_gpu else "fp32"
    if precision == "fp16" and not on_gpu:
        raise UserError("trainer.precision=fp16 needs a CUDA device; on this one take fp32 or bf16")
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run of the same sweep, in this process
    patience = timedelta(minutes=config.trainer.timeout_minutes)
    if config.dataset.feature_cache is not None:
        patience = max(patience, FILLING)
    alone = world_size() == 1
    with unseen():
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=device == "cpu" or not (alone or torch.accelerator.is_available()),  # else each thinks itself alone
            device_placement=True,
            dataloader_config=DataLoaderConfiguration(even_batches=False),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # not as the launcher's file has it
            kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)],
        )
    if accelerator.num_processes != world_size():
        raise UserError(
            f"the launcher started {world_size()} processes, which cannot work together on this device "
            f"({accelerator.device.type}): start one, or set trainer.device=cpu"
        )
    return accelerator


def best_precision() -> str:
    """bf16 where the GPU computes in it, else fp16 (an RTX 2080 Ti)."""
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
