"""Video clips for tests."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TURNED = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise


def turn(path: Path, degrees: int) -> Path:
    """Write into an MP4 file that a player turns it clockwise."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in TURNED[degrees])
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def write_picture_clip(path: Path, picture: np.ndarray, *, pixel_aspect: int = 1, cover: bool = False) -> Path:
    """Write a clip of one frame (H, W, 3); cover: after another one that is the cover of an album."""
    with av.open(str(path), "w") as container:
        if cover:
            front = container.add_stream("mjpeg", rate=1)
            front.width, front.height, front.pix_fmt = 16, 16, "yuvj420p"
            front.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
        if cover:
            container.mux(front.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
            container.mux(front.encode(None))
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


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
