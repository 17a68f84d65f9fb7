"""The benchmark of GPUs, on a CPU: FlexAttention is the same attention, and the program runs."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu
from voxsam.network.attention import WindowAttention
from voxsam.network.sizes import TINY

TOLERANCE = 1e-5


@pytest.mark.parametrize("window", [2, 4])
def test_flex_attention_is_our_attention(window):
    config = TINY.model_copy(update={"window": window})
    torch.manual_seed(0)
    q, k, v, relative, code = gpu.attention_inputs(config, 3, torch.device("cpu"), torch.float32)
    found = gpu.flexible(q, k, v, relative, window)
    expected = WindowAttention(config.width, config.heads, 1).attend(q, k, v, relative, code)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    wrong = gpu.flexible(q, k, v, relative.roll(window, -1), window)  # axes d, h, w in another order
    assert (found - wrong).abs().max() > 0.1


@pytest.mark.slow
def test_the_program_runs_and_says_what_it_lacks(tmp_path, capsys):
    gpu.main(["--size", "tiny", "--crop", "32", "--device", "cpu", "-o", str(tmp_path / "a.json")])
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["float32"]["attention"]["differ_by"] < TOLERANCE
    assert found["bf16"]["clicks"].keys() == {"as it is", "warmed up"}
    assert "| float32 | warmed up |" in capsys.readouterr().out
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main([])
        assert "no NVIDIA GPU" in capsys.readouterr().err
