"""Bias tables for another window size."""

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table_simple

from scalenet_mm.backbones.swin import resize_bias_table


def test_the_same_window_gives_the_table_itself():
    table = torch.randn(169, 3)
    assert resize_bias_table(table, 7) is table


@pytest.mark.parametrize('window', [4, 8, 12])
def test_another_window_gives_what_timms_resize_gives(window):
    table = torch.randn(169, 3, generator=torch.Generator().manual_seed(0))
    size = (2 * window - 1) ** 2
    expected = resize_rel_pos_bias_table_simple(table, (window, window), (size, 3))
    torch.testing.assert_close(resize_bias_table(table, window), expected, rtol=0, atol=1e-6)


def test_heads_keep_their_place_and_a_row_offset_stays_one_of_rows():
    rows = torch.arange(-6.0, 7).repeat_interleave(13)
    resized = resize_bias_table(torch.stack([rows, 5 + 0 * rows], 1), 12).reshape(23, 23, 2)
    assert torch.allclose(resized[..., 1], torch.tensor(5.0))
    assert torch.allclose(resized[:, 0, 0], resized[:, 22, 0])
    assert (resized[1:, 5, 0] > resized[:-1, 5, 0]).all()


def test_half_precision_tables_keep_their_dtype():
    assert resize_bias_table(torch.randn(9, 2).half(), 3).dtype == torch.float16


@pytest.mark.parametrize('shape', [(35, 3), (16, 3), (169,), (1, 3, 13, 13)])
def test_tables_of_no_square_window_are_refused(shape):
    with pytest.raises(ValueError, match='square window'):
        resize_bias_table(torch.zeros(shape), 7)


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match='at least 1, got 0'):
        resize_bias_table(torch.zeros(9, 1), 0)
