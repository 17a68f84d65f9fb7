"""VoxSAM's own implementations of attention, against results by hand; and the faults of the originals, corrected."""

from __future__ import annotations

import torch

from tests.lab.systems.networks.tiny import CROP, network
from voxsam.lab.systems.networks.nnformer import WindowBlock, partition, relative_rows, shift_regions
from voxsam.lab.systems.networks.unetrpp import PairedAttention

# Windows


def test_each_difference_of_positions_has_a_row_of_its_own_and_the_originals_share() -> None:
    rows = relative_rows(2)
    assert rows[0, 0] == 13 and rows[0, 7] == 0 and rows[7, 0] == 26  # the middle, and the two ends, of 3^3
    assert rows[0, 1] == 12 and rows[0, 2] == 10 and rows[0, 4] == 4  # a step along W, H, D: 1, 3, 9 less
    assert len(relative_rows(8).unique()) == 15**3
    assert len(relative_rows(8, original_index=True).unique()) == 547


def test_windows_are_cut_in_the_order_of_the_axes() -> None:
    grid = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6, 1)
    windows = partition(grid, 2)[..., 0]
    assert windows.shape == (6, 8)
    assert windows[1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]  # the second along W
    assert windows[3].tolist() == [12, 13, 18, 19, 36, 37, 42, 43]  # the first of the second row along H


def test_what_the_shift_brought_from_the_other_end_is_a_region_of_its_own() -> None:
    regions = shift_regions((4, 4, 4), 4, 2)  # one window; on each axis two tokens, and two from the other end
    along = regions.view(4, 4, 4)
    assert along[0, 0].tolist() == [13, 13, 14, 14] and along[:, 0, 0].tolist() == [13, 13, 22, 22]
    assert along[0, :, 0].tolist() == [13, 13, 16, 16]


def test_tokens_at_opposite_ends_do_not_see_each_other_through_the_shift() -> None:
    torch.manual_seed(0)
    for shifted, reach in ((False, 4), (True, 2)):
        block = WindowBlock(8, 2, (8, 8, 8), 4, shifted=shifted).eval()
        x = torch.randn(1, 8, 8, 8, 8)
        changed = x.clone()
        changed[0, 0, 0, 0, 0] += 5.0
        seen = (block(changed) - block(x)).abs().sum(-1)[0] > 1e-6
        assert seen[:reach, :reach, :reach].all() and int(seen.sum()) == reach**3


def test_a_block_across_asks_one_map_about_another() -> None:
    torch.manual_seed(0)
    block = WindowBlock(8, 2, (4, 6, 8), 4, across=True).eval()  # padded along H
    x, queries, keys = (torch.randn(1, 4, 6, 8, 8) for _ in range(3))
    with torch.no_grad():
        block.qkv.weight[:8] = 0  # all keys alike: every token gets the mean of the values of its window
        block.positions.table.zero_()
        block.proj.weight.copy_(torch.eye(8))
        block.qkv.bias.zero_()
        block.proj.bias.zero_()
        block.mlp[2].weight.zero_()
        block.mlp[2].bias.zero_()
        values = block.norm1(keys) @ block.qkv.weight[8:].T
        answer = block(x, queries, keys)
    torch.testing.assert_close(
        answer[0, :, :4, :4] - x[0, :, :4, :4], values[0, :, :4, :4].mean((0, 1, 2)).expand(4, 4, 4, 8)
    )
    half = values[0, :, 4:, 4:].sum((0, 1, 2)) / 64  # the other half of that window is padding
    torch.testing.assert_close(answer[0, :, 4:, 4:] - x[0, :, 4:, 4:], half.expand(4, 2, 4, 8))


# Paired attention


def test_paired_attention_is_its_equation_for_each_head() -> None:
    torch.manual_seed(0)
    heads, tokens, channels, projected = 2, 10, 8, 3
    block = PairedAttention(channels, tokens, projected, heads, original_order=False).eval()
    x = torch.randn(1, tokens, channels)
    with torch.no_grad():
        block.temperature_channels.copy_(torch.tensor([0.5, 2.0]).view(2, 1, 1))
        block.temperature_space.copy_(torch.tensor([3.0, -1.0]).view(2, 1, 1))
        q, k, over_channels, over_space = (x[0] @ block.qkvv.weight.T).split(channels, 1)  # (tokens, channels) each
        by_channels, by_space = [], []
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            unit_q, unit_k = q[:, part] / q[:, part].norm(dim=0), k[:, part] / k[:, part].norm(dim=0)
            a = (unit_q.T @ unit_k * block.temperature_channels[head]).softmax(1)
            by_channels.append(over_channels[:, part] @ a.T)
            keys, values = block.project(k[:, part].T), block.project(over_space[:, part].T)  # (c, projected)
            a = (unit_q @ keys * block.temperature_space[head]).softmax(1)
            by_space.append(a @ values.T)
        expected = torch.cat(
            [block.out_space(torch.cat(by_space, 1)), block.out_channels(torch.cat(by_channels, 1))], 1
        )
        torch.testing.assert_close(block(x)[0], expected)
        block.original_order = True  # the fault: half of the answer is of other tokens
        assert not torch.allclose(block(x)[0, :, :4], expected[:, :4], atol=1e-3)
        torch.testing.assert_close(block(x)[0, :, 4:], expected[:, 4:])


# Dropout


def test_transbts_drops_nothing_in_evaluation() -> None:
    plain = network("transbts")
    crop = torch.randn(1, 1, CROP, CROP, CROP)
    with torch.inference_mode():
        assert not torch.equal(plain.train()(crop), plain(crop))
        torch.testing.assert_close(plain.eval()(crop), plain(crop), rtol=0, atol=0)
