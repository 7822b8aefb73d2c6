"""Speed and peak memory of a training."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import psutil
import torch


@dataclass(slots=True)
class Speed:
    """Images and texts per second since the last call of `read`."""

    then: float = field(default_factory=time.monotonic)
    images: int = 0
    texts: int = 0

    def read(self, images: int, texts: int) -> dict[str, float]:
        now = time.monotonic()
        elapsed = max(now - self.then, 1e-9)
        rates = {
            "speed/images_per_second": (images - self.images) / elapsed,
            "speed/texts_per_second": (texts - self.texts) / elapsed,
        }
        self.then, self.images, self.texts = now, images, texts
        return rates

    def pause(self, seconds: float) -> None:
        """Leave this time out, as that of a validation."""
        self.then += seconds


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
