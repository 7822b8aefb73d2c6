"""Training speed and peak memory."""

from __future__ import annotations

import sys
import time

import psutil
import torch


class Speed:
    """Images and texts per second since the last `read`."""

    def __init__(self) -> None:
        self.since, self.images, self.texts = time.monotonic(), 0, 0

    def read(self, images: int, texts: int) -> dict[str, float]:
        now = time.monotonic()
        elapsed = max(now - self.since, 1e-9)
        rates = {
            "speed/images_per_second": (images - self.images) / elapsed,
            "speed/texts_per_second": (texts - self.texts) / elapsed,
        }
        self.since, self.images, self.texts = now, images, texts
        return rates

    def pause(self, seconds: float) -> None:
        """Leave this time out."""
        self.since += seconds


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
