"""Video clips for tests."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, count: int, *, size: int = 32, audio_only: bool = False) -> Path:
    """Write a clip of `count` gray frames; the brightness of frame i is about 8·i."""
    with av.open(str(path), "w") as container:
        if audio_only:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        else:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for i in range(count):
                picture = np.full((size, size, 3), 8 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
