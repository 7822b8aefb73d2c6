"""How much memory a batch takes, measured on one and on two of its images, and how many would fit.

The tensors are counted as torch makes them and gives them up, so the peak is that of the very network, precision and
lengths of text. What the operations need inside (workspaces, caches of the allocator) is not in it: hence MARGIN.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from data.schema import Batch
from errors import UserError
from faults import first_line, gigabytes, out_of_memory

MARGIN = 0.85  # of the free memory is given out
OF_IMAGES = ("frames", "frame_mask", "histogram", "tokens")  # fields of a batch with a row for each image, not text
CONTROL_GROUP = (  # most and used bytes, where a container has a limit
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


Result = TypeVar("Result")


class Peak(TorchDispatchMode):
    """Bytes of the tensors made while it is on: `most` is the most that there were at once.

    Args:
        known: tensors that were there before; views of them take nothing.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {id(tensor.untyped_storage()) for tensor in known}
        self._kept = [tensor.untyped_storage() for tensor in known]  # so that no other gets their identity
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a batch takes beside what is there all the time: `fixed`, and `per_image` for each of its images."""

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        return self.fixed + images * self.per_image

    def fitting(self, free: int) -> int:
        """Images that fit into so many free bytes, with a margin."""
        return max(int((MARGIN * free - self.fixed) / max(self.per_image, 1)), 0)


def measure(work: Callable[[Batch], object], batch: Batch, model: nn.Module, *, kept: int = 0) -> Need | None:
    """What `work` takes, measured on the two images of `batch` whose texts are of the most usual length.

    Args:
        kept: bytes that it needs besides, whatever the number of images.

    Returns:
        None: not even two images could be done.
    """
    texts = (batch.labels != -100).sum(dim=1).to("cpu")
    lengths = torch.zeros(len(batch.ids)).index_add_(0, batch.text_image.to("cpu"), texts.float())
    usual = (lengths - lengths.mean()).abs().argsort(stable=True)[:2].sort().values.tolist()
    peaks = []
    try:
        for rows in (usual[:1], usual):
            part = select(batch, rows)
            tensors = [getattr(part, f.name) for f in fields(part) if isinstance(getattr(part, f.name), Tensor)]
            with Peak([*model.parameters(), *model.buffers(), *tensors]) as peak:
                work(part)
            peaks.append(peak.most)
            model.zero_grad(set_to_none=True)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None
    per_image = peaks[-1] - peaks[0] if len(usual) > 1 else peaks[0]
    return Need(max(peaks[0] - per_image, 0) + kept, per_image + batch.frames[:1].nbytes)


def select(batch: Batch, images: list[int]) -> Batch:
    """Some of its images, with their texts."""
    chosen = torch.isin(batch.text_image, torch.tensor(images, device=batch.text_image.device))
    order = {image: i for i, image in enumerate(images)}
    taken: dict[str, Any] = {"ids": [batch.ids[i] for i in images], "skipped": []}
    for f in fields(batch):
        if isinstance(value := getattr(batch, f.name), Tensor):
            taken[f.name] = value[images] if f.name in OF_IMAGES else value[chosen]
    numbers = [order[i] for i in taken["text_image"].tolist()]
    taken["text_image"] = torch.tensor(numbers, dtype=torch.int64, device=batch.text_image.device)
    return replace(batch, **taken)


def attempt(work: Callable[[], Result]) -> tuple[Result | None, str]:
    """What `work` gives and "", or None and what torch said as memory ran out; what it held is given up by then."""
    try:
        return work(), ""
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None, first_line(error)


def release(model: nn.Module, device: torch.device) -> None:
    """Give up what a batch that broke off has left."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    with suppress(AttributeError, OSError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still have; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    free = [psutil.virtual_memory().available]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - psutil.Process().memory_info().vms + _unused())
    for most, used in CONTROL_GROUP:
        try:
            free.append(int(Path(most).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return max(min(free), 0)


def within_memory(work: Callable[[Batch], Result], batch: Batch, model: nn.Module, *, key: str, others: str) -> Result:
    """What `work` gives for the batch.

    Args:
        key: the setting that decides how many images a batch has.
        others: what else counts, for the message.

    Raises:
        UserError: memory ran out; how many images would fit.
    """
    result, said = attempt(lambda: work(batch))
    if not said:
        return result
    device = batch.frames.device
    release(model, device)
    need = measure(work, batch, model)
    text, _ = advice(need, images=len(batch.ids), free=free_memory(device), key=key, value=len(batch.ids))
    raise UserError(f"memory ran out ({said}): {text}; {others}")


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "free", "top")
    ]


def _unused() -> int:
    """Bytes of this process that were given up and can be had again, as glibc keeps them; 0 where it does not say."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    mallinfo.restype = _Mallinfo2
    return mallinfo().free


def advice(need: Need | None, *, images: int, free: int | None, key: str, value: int) -> tuple[str, int | None]:
    """What to set the setting `key` to, and why: half a sentence, and that value, if one could be found.

    Args:
        images: of the batch for which memory ran out.
        value: of the setting now.
    """
    if need is None or free is None:
        return f"lower {key} (now {value})", None
    fits = min(need.fitting(free), int(MARGIN * images))  # where it should have fitted, the estimate is too low
    text = f"{images} images take about {gigabytes(need.of(images))} beside the network, {gigabytes(free)} are free"
    if fits < 1:
        return f"{text}, too little for one: take a smaller network, or more memory", None
    return f"{text}, so about {fits} would fit: set {key}={fits}", fits
