"""Window attention with decomposed relative positions in 3D, without a bias tensor.

n windows, t = w^3 tokens of a window, c width, h heads, e width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.model.windows import SIDE_LOGIT

KERNEL_MULTIPLE = 16  # fused kernels like head widths that fill whole vector registers


class WindowAttention(nn.Module):
    """SAM's multi-head attention inside windows of w^3 tokens (docs/released.md, "Image encoder", 4).

    logit(q, k) = scale q.k + gain (q.Rd[dd] + q.Rh[dh] + q.Rw[dw]), with an unscaled q in the second part and
    d = position of q - position of k. For one query the second part takes only 3 w different values, so they are
    appended to the query as 3 w channels, and the key gets the one-hot code of its position: any fused attention kernel
    serves and no t x t bias exists. The mask of shifted windows is 3 channels more: the side of the wrap, +-8 each.
    """

    key_code: Tensor

    def __init__(self, width: int, heads: int, window: int, relative_rows: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        head = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_d = nn.Parameter(torch.zeros(relative_rows, head))
        self.rel_pos_h = nn.Parameter(torch.zeros(relative_rows, head))
        self.rel_pos_w = nn.Parameter(torch.zeros(relative_rows, head))
        self.rel_pos_gain = nn.Parameter(torch.ones(()))
        position = torch.stack(torch.meshgrid(*[torch.arange(window)] * 3, indexing="ij"), -1).reshape(-1, 3)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("key_code", F.one_hot(position, window).flatten(1).float(), persistent=False)

    def relative_tables(self) -> Tensor:
        """(3, w, w, e): the table row for query position (dim 1) and key position (dim 2) on axes d, h, w."""
        w = self.window
        tables = torch.stack([self.rel_pos_d, self.rel_pos_h, self.rel_pos_w])
        rows = F.interpolate(tables.transpose(1, 2), size=2 * w - 1, mode="linear").transpose(1, 2)
        offset = torch.arange(w, device=rows.device)
        return self.rel_pos_gain * rows[:, offset[:, None] - offset[None, :] + w - 1]

    def _relative_logits(self, q_nhte: Tensor) -> Tensor:
        """(n, h, t, 3 w): for each query and axis, its logit towards each of the w key positions."""
        n, h, _, e = q_nhte.shape
        w = self.window
        q = q_nhte.reshape(n, h, w, w, w, e)
        table = self.relative_tables().to(q.dtype)
        r_d = torch.einsum("nhxyze,xje->nhxyzj", q, table[0])
        r_h = torch.einsum("nhxyze,yje->nhxyzj", q, table[1])
        r_w = torch.einsum("nhxyze,zje->nhxyzj", q, table[2])
        return torch.cat([r_d, r_h, r_w], -1).reshape(n, h, w**3, 3 * w)

    def forward(self, x_ntc: Tensor, sides_nt3: Tensor | None) -> Tensor:
        """(n, t, c) normalised tokens of n windows -> (n, t, c); `sides_nt3` from Windows.sides, None if all are 0."""
        n, t, c = x_ntc.shape
        h, e = self.heads, c // self.heads
        q, k, v = self.qkv(x_ntc).reshape(n, t, 3, h, e).permute(2, 0, 3, 1, 4)
        query = [q * e**-0.5, self._relative_logits(q)]
        key = [k, self.key_code.to(k.dtype).expand(n, h, -1, -1)]
        if sides_nt3 is not None:
            sides = (sides_nt3 * SIDE_LOGIT**0.5).to(q.dtype)[:, None].expand(-1, h, -1, -1)
            query.append(sides)
            key.append(sides)
        used = sum(part.shape[-1] for part in query)
        spare = -used % KERNEL_MULTIPLE
        out = F.scaled_dot_product_attention(
            F.pad(torch.cat(query, -1), (0, spare)),
            F.pad(torch.cat(key, -1), (0, spare)),
            F.pad(v, (0, used + spare - e)),
            scale=1.0,
        )
        return self.proj(out[..., :e].transpose(1, 2).reshape(n, t, c))
