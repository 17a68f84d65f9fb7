"""Window attention with decomposed relative positions in 3D, without a bias tensor.

n windows, t tokens of a window (a box of d, h, w), c width, h heads, e width of a head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.network.windows import SIDE_LOGIT

KERNEL_MULTIPLE = 16  # fused kernels like head widths that fill whole vector registers
OPEN_TOKENS = 256  # from so many tokens of a window on, plain products beat a CPU's fused kernel


class WindowAttention(nn.Module):
    """SAM's multi-head attention inside windows of tokens (docs/released.md, "Image encoder", 4).

    logit(q, k) = scale q.k + gain (q.Rd[dd] + q.Rh[dh] + q.Rw[dw]), with an unscaled q in the second part and
    d = position of q - position of k. For one query the second part takes only as many different values as the window
    has places along d, h and w, so they are appended to the query as so many channels, and the key gets the one-hot
    codes of its position: any fused attention kernel serves and no t x t bias is kept. The mask of shifted windows is 3
    channels more: the side of the wrap, +-8 each.

    With `axes` "hw" it is SAM's own: no table along depth, no gain.
    """

    def __init__(self, width: int, heads: int, relative_rows: int, axes: str = "dhw") -> None:
        super().__init__()
        self.heads, self.axes = heads, axes
        head = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_d = nn.Parameter(torch.zeros(relative_rows, head)) if "d" in axes else None
        self.rel_pos_h = nn.Parameter(torch.zeros(relative_rows, head))
        self.rel_pos_w = nn.Parameter(torch.zeros(relative_rows, head))
        self.rel_pos_gain = nn.Parameter(torch.ones(())) if "d" in axes else None

    def relative_tables(self, window: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """On each of `axes` (places, places, e): the table row for query position (dim 0) and key position (dim 1)."""
        return tuple(
            self._relative_table(getattr(self, f"rel_pos_{axis}"), places)
            for axis, places in zip("dhw", window, strict=True)
            if axis in self.axes
        )

    def _relative_table(self, table: Tensor, places: int) -> Tensor:
        rows = F.interpolate(table.T[None], size=2 * places - 1, mode="linear")[0].T
        offset = torch.arange(places, device=rows.device)
        rows = rows[offset[:, None] - offset[None, :] + places - 1]
        return rows if self.rel_pos_gain is None else self.rel_pos_gain * rows

    def _relative_logits(self, q_nhte: Tensor, window: tuple[int, int, int], tables: tuple[Tensor, ...]) -> Tensor:
        """(n, h, t, r): for each query and axis, its logit towards each of the key positions, r in all."""
        n, h, t, e = q_nhte.shape
        q = q_nhte.reshape(n, h, *window, e)
        found = [
            torch.einsum(f"nodhwe,{axis}je->nodhwj", q, table.to(q.dtype))
            for axis, table in zip(self.axes, tables, strict=True)
        ]
        return torch.cat(found, -1).reshape(n, h, t, -1)

    def forward(
        self, qkv_ntc: Tensor, sides_nt3: Tensor | None, window: tuple[int, int, int], tables: tuple[Tensor, ...]
    ) -> Tensor:
        """(n, t, 3 c) query, key and value of n windows -> (n, t, c) what each token takes from the others.

        `sides_nt3` from Windows.sides, None if all are 0; `tables` from `relative_tables`. What comes before and after,
        `qkv` and `proj`, is multiplied by the block.
        """
        n, t, c = qkv_ntc.shape[0], qkv_ntc.shape[1], qkv_ntc.shape[2] // 3
        q, k, v = qkv_ntc.reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        relative = self._relative_logits(q, window, tables)
        code = _key_code(window, self.axes, k.device).to(k.dtype).expand(n, -1, -1)
        if sides_nt3 is not None:
            sides = (sides_nt3 * SIDE_LOGIT**0.5).to(q.dtype)
            relative = torch.cat([relative, sides[:, None].expand(-1, self.heads, -1, -1)], -1)
            code = torch.cat([code, sides], -1)
        return (_open if t >= OPEN_TOKENS and _plain_cpu(q.device) else _fused)(q, k, v, relative, code).flatten(2)


def _plain_cpu(device: torch.device) -> bool:
    """Whether tensors may be written into on a CPU: no gradients, and no autocast, which changes types on the way."""
    return device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a table made while clicking must also serve training
def _key_code(window: tuple[int, int, int], axes: str, device: torch.device) -> Tensor:
    """(t, r): for each token of a window the one-hot codes of its position on the axes, side by side."""
    position = torch.stack(torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")).flatten(1)
    codes = [F.one_hot(place, side) for place, side, axis in zip(position, window, "dhw", strict=True) if axis in axes]
    return torch.cat(codes, 1).float().to(device)


def _fused(q_nhte: Tensor, k_nhte: Tensor, v_nhte: Tensor, relative_nhtr: Tensor, code_ntr: Tensor) -> Tensor:
    """(n, t, h, e) by torch's fused attention: `relative` and `code` are r channels more of query and key."""
    e, r = q_nhte.shape[-1], relative_nhtr.shape[-1]
    spare = -(e + r) % KERNEL_MULTIPLE
    out = F.scaled_dot_product_attention(
        F.pad(torch.cat([q_nhte * e**-0.5, relative_nhtr], -1), (0, spare)),
        F.pad(torch.cat([k_nhte, code_ntr[:, None].expand(-1, q_nhte.shape[1], -1, -1)], -1), (0, spare)),
        F.pad(v_nhte, (0, r + spare)),
        scale=1.0,
    )
    return out[..., :e].transpose(1, 2)


def _open(q_nhte: Tensor, k_nhte: Tensor, v_nhte: Tensor, relative_nhtr: Tensor, code_ntr: Tensor) -> Tensor:
    """(n, t, h, e) by plain products, head by head: the same as `_fused`, without gradients.

    The logits of one head fit in a core's cache and their memory is used again; query, key and value are read where
    they lie; nothing is padded. With windows of 8^3 this is a fifth faster than torch's fused kernel on a CPU.
    """
    n, h, t, e = q_nhte.shape
    out, logits = q_nhte.new_empty(n, t, h, e), q_nhte.new_empty(t, t)
    for window in range(n):
        code_rt = code_ntr[window].T
        for head in range(h):
            torch.mm(relative_nhtr[window, head], code_rt, out=logits)
            logits.addmm_(q_nhte[window, head], k_nhte[window, head].T, alpha=e**-0.5)
            torch.softmax(logits, -1, out=logits)
            torch.mm(logits, v_nhte[window, head], out=out[window, :, head])
    return out
