"""The memory, step by step beside a list that keeps what it should."""

import re

import pytest
import torch

from nnunet_ext.networks.memory_reading import read
from nnunet_ext.propagation import Memory

SHAPE = (3, 5, 2, 4)  # K, CV, h, w


def slice_of(index):
    """Key and value that tell slices apart."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(1, 6, 2, 4, generator=generator), torch.randn(1, *SHAPE, generator=generator)


class NaiveMemory:
    """Lists, written from the rule: references, multiples of 5 (the latest ``most``), and the last one."""

    def __init__(self, every=5, include_last=True, most=32):
        self.every, self.include_last, self.most = every, include_last, most
        self.references, self.staying, self.last = [], [], []

    def add(self, index):
        if index % self.every == 0:
            self.staying, self.last = [*self.staying, index][-self.most :], []
        elif self.include_last:
            self.last = [index]

    def read(self, key, top_k):
        slices = [slice_of(index) for index in self.references + self.staying + self.last]
        keys = torch.cat([key.flatten(2) for key, _ in slices], 2)
        values = torch.cat([value.flatten(3) for _, value in slices], 3)
        return read(keys, values, key.flatten(2), top_k).unflatten(3, SHAPE[2:])


@pytest.mark.parametrize("slices", [1, 12])
@pytest.mark.parametrize("settings", [{}, {"include_last": False}, {"every": 3}, {"most": 2}, {"most": 1}])
def test_step_by_step(settings, slices):
    """Up from slice 7, down from slice 31, and up from there, as a driver goes."""
    memory, naive = Memory(top_k=9, slices=slices, **settings), NaiveMemory(**settings)
    for index in (7, 31, 44):
        memory.add_reference(index, *slice_of(index))
        naive.references.append(index)
    query, _ = slice_of(1000)
    for passed in (range(8, 31), range(30, 7, -1), range(45, 75)):
        for index in passed:
            assert memory.wants(index) == (index % naive.every == 0 or naive.include_last)
            memory.add(index, *slice_of(index))
            naive.add(index)
            assert set(memory.indices) == {*naive.references, *naive.staying, *naive.last}
            assert len(memory.indices) == len(set(memory.indices))
            torch.testing.assert_close(memory.read(query), naive.read(query, 9))
        memory.forget_propagated()
        naive.staying, naive.last = [], []
        assert memory.indices == [7, 31, 44]
        torch.testing.assert_close(memory.read(query), naive.read(query, 9))


def test_by_hand():
    memory = Memory()
    memory.add_reference(8, *slice_of(8))
    seen = []
    for index in (9, 10, 11, 12, 15, 16, 20):
        memory.add(index, *slice_of(index))
        seen.append(memory.indices)
    assert seen == [[8, 9], [8, 10], [8, 10, 11], [8, 10, 12], [8, 10, 15], [8, 10, 15, 16], [8, 10, 15, 20]]


def test_references_are_never_evicted():
    memory = Memory(every=1, most=1)
    for index in range(5):
        memory.add_reference(index, *slice_of(index))
    for index in range(5, 50):
        memory.add(index, *slice_of(index))
        assert memory.indices == [0, 1, 2, 3, 4, index]


def test_values_of_a_finished_pass_are_gone():
    """A query that is a propagated key finds its value while it is there, and none of it after that."""
    memory = Memory(top_k=1)
    memory.add_reference(0, *slice_of(0))
    key, value = slice_of(5)
    memory.add(5, key, value)
    torch.testing.assert_close(memory.read(key), value)
    memory.forget_propagated()
    reference = memory.read(key)
    every = slice_of(0)[1].flatten(3)[0]
    for place in reference.flatten(3)[0].unbind(2):
        assert any(torch.allclose(place, one) for one in every.unbind(2))


def test_memory_is_bounded():
    """Tables hold no more than the slices that may be in memory at once, whatever passes through."""
    memory, elements, slices = Memory(most=4, slices=2 + 4 + 1), 8, 7
    for index in (0, 300):
        memory.add_reference(index, *slice_of(index))
    expected = slices * elements * (6 + 3 * 5) * 4
    for passed in (range(1, 300), range(299, 0, -1), range(301, 900)):
        for index in passed:
            memory.add(index, *slice_of(index))
            assert memory.nbytes == expected
            assert len(memory.indices) <= slices
        memory.forget_propagated()


def test_tables_grow_where_no_room_was_made():
    memory, query = Memory(every=1, top_k=3), slice_of(1000)[0]
    memory.add_reference(0, *slice_of(0))
    for index in range(1, 20):
        memory.add(index, *slice_of(index))
        slices = [slice_of(index) for index in range(index + 1)]
        keys, values = (torch.cat([one.flatten(-2) for one in parts], -1) for parts in zip(*slices, strict=True))
        torch.testing.assert_close(memory.read(query).flatten(3), read(keys, values, query.flatten(2), 3))


def test_fewer_elements_than_are_read():
    memory = Memory(top_k=20)
    memory.add_reference(0, *slice_of(0))
    everything = Memory(top_k=None)
    everything.add_reference(0, *slice_of(0))
    query, _ = slice_of(1)
    assert memory.read(query).shape == (1, *SHAPE)
    torch.testing.assert_close(memory.read(query), everything.read(query))


def test_values_given_in_halves_are_kept_whole_on_a_cpu():
    memory = Memory()
    key, value = slice_of(0)
    memory.add_reference(0, key.half(), value.half())
    assert memory.read(key).dtype == torch.float32


@pytest.mark.gpu
def test_values_are_halves_on_a_gpu():
    memory = Memory()
    key, value = (tensor.cuda() for tensor in slice_of(0))
    memory.add_reference(0, key, value)
    assert memory.read(key).dtype == torch.float16
    assert memory.nbytes == 8 * (6 * 4 + 15 * 2)


def test_what_cannot_be_is_refused():
    memory = Memory()
    with pytest.raises(RuntimeError, match="must have a reference before it is read"):
        memory.read(slice_of(0)[0])
    memory.add_reference(0, *slice_of(0))
    key, value = slice_of(1)
    shapes = re.escape(
        "value of shape (1, 3, 5, 2, 4) and a key (1, CK, h, w) of the same h and w, got (1, 2, 5, 2, 4)"
    )
    with pytest.raises(ValueError, match=shapes):
        memory.add(1, key, value[:, :2])
    memory.add(1, key, value)
    with pytest.raises(RuntimeError, match=r"before propagated slices; call forget_propagated\(\) first"):
        memory.add_reference(2, key, value)
    for name in ("top_k", "every", "most", "slices"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Memory(**{name: 0})
