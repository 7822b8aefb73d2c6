"""Create the accelerator: device, precision and processes."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from omegaconf import DictConfig

from common.errors import UserError
from common.ranks import world_size
from trainer.runtime.sharding import hide_fsdp_from_accelerate, refuse_unsupported_launcher

CACHE_TIMEOUT = timedelta(days=1)  # other processes of a machine wait this long while one fills the feature cache


def make_accelerator(config: DictConfig) -> Accelerator:
    """Return an Accelerator with the configured device, precision and timeout.

    Raises:
        UserError: a missing device, a precision that it cannot compute in, or settings of the launcher that are not
            supported.
    """
    refuse_unsupported_launcher()
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
    AcceleratorState._reset_state(reset_partial_state=True)  # from an earlier run of the same sweep, in this process
    timeout = timedelta(minutes=config.trainer.timeout_minutes)
    if config.dataset.feature_cache is not None:
        timeout = max(timeout, CACHE_TIMEOUT)
    single = world_size() == 1
    with hide_fsdp_from_accelerate():
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            cpu=device == "cpu" or not (single or torch.accelerator.is_available()),  # else accelerate sees one process
            device_placement=True,
            dataloader_config=DataLoaderConfiguration(even_batches=False),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # overrides the launcher's file
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        )
    if accelerator.num_processes != world_size():
        raise UserError(
            f"the launcher started {world_size()} processes, which cannot work together on this device "
            f"({accelerator.device.type}): start one, or set trainer.device=cpu"
        )
    return accelerator


def best_precision() -> str:
    """Return bf16 if the GPU computes in it, else fp16 (as an RTX 2080 Ti)."""
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
