"""model/limits.py: a network that is described is counted before it takes memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from foreign import Refused
from model.limits import at_most, bytes_of, rehearse
from tests.test_checkpoint_import import anonymous_memory


class Filled(nn.Module):
    """Fills its weights before it keeps them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size))


def test_weights_are_counted_before_they_are_made():
    with pytest.raises(Refused, match="more than 98 weights"), at_most(98):
        nn.Linear(10, 9)
    with at_most(98), at_most(None):
        nn.Linear(10, 9)
    with at_most(99):
        nn.Linear(10, 9)
    nn.Linear(10, 10)
    before = anonymous_memory()
    with pytest.raises(Refused), at_most(1000):
        nn.ModuleList(nn.Linear(30, 30) for _ in range(10**9))
    with pytest.raises(Refused), at_most(10**9):
        nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9))
    with pytest.raises(Refused), at_most(1000):
        nn.Linear(1 << 15, 1 << 15)
    assert anonymous_memory() - before < 1 << 28


def test_what_fills_its_weights_first_is_rehearsed():
    before = anonymous_memory()
    with pytest.raises(Refused), at_most(1000):
        rehearse(lambda: Filled(1 << 20))
    assert anonymous_memory() - before < 1 << 28
    with at_most(100):
        rehearse(lambda: Filled(10))
        assert Filled(10).weight.device.type == "cpu"


def test_without_a_limit_nothing_is_rehearsed():
    def build() -> None:
        raise AssertionError("it was built")

    rehearse(build)


def test_buffers_count_too_and_absent_ones_do_not():
    module = nn.Module()
    with at_most(10):
        module.register_buffer("a", None)
        module.register_parameter("b", None)
        module.register_buffer("c", torch.zeros(10))
        with pytest.raises(Refused):
            module.register_buffer("d", torch.zeros(1))


def test_a_limit_ends_with_its_block_whatever_happens():
    with pytest.raises(KeyError), at_most(1):
        raise KeyError
    assert isinstance(nn.Linear(9, 9).weight, Tensor)


def test_the_files_of_a_folder_are_more_than_their_weights(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(bytes(7))
    (tmp_path / "b").write_bytes(bytes(5))
    assert bytes_of(tmp_path) == 12
