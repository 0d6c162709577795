"""Logits in a file without a name."""

import os

import numpy as np
import pytest
import torch

from nnunet_ext.inference.logits_file import LogitsFile


@pytest.fixture
def kept(tmp_path):
    file = LogitsFile((2, 3, 4, 5), torch.float16, tmp_path)
    yield file
    file.close()


def test_what_is_written_is_read_whatever_its_order_in_memory(kept, tmp_path):
    logits = torch.randn(4, 5, 2, 3, generator=torch.Generator().manual_seed(0)).half().permute(2, 3, 0, 1)
    kept.write(logits)
    for index in range(3):
        assert torch.equal(kept[:, index], logits[:, index])
        assert kept[:, index].dtype == torch.float16
    assert list(tmp_path.iterdir()) == []


def test_all_is_on_the_disk_once_it_is_written(kept):
    """Or a full disk would be told where the file is closed, and nobody would name it."""
    kept.write(torch.zeros(2, 3, 4, 5).half())
    assert os.fstat(kept._file.fileno()).st_size == 2 * 3 * 4 * 5 * 2


def test_classes_are_resampled_one_by_one(kept):
    logits = np.random.default_rng(0).normal(0, 1, (2, 3, 4, 1)).astype(np.float16)
    seen = []
    kept.write_resampled(logits, lambda volume: seen.append(volume.shape) or volume.repeat(5, -1))
    assert seen == [(1, 3, 4, 1)] * 2
    found = np.stack([kept[:, index].numpy() for index in range(3)], 1)
    np.testing.assert_array_equal(found, logits.repeat(5, -1))


def test_other_logits_are_refused(kept):
    for wrong in (torch.zeros(2, 3, 4, 6).half(), torch.zeros(2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"expected logits \(2, 3, 4, 5\) of torch.float16, got"):
            kept.write(wrong)


def test_a_file_that_ends_too_early_is_noticed(kept):
    with pytest.raises(OSError, match="ends at slice 0 of 3"):
        kept[:, 0]
