"""The refinement head: a small U-shaped network at half resolution that knows where the clicks are (an extension).

The paper's network knows one kind of tumour in a crop around its click, and needs only the prompt features under the
click. A network for any tumour needs the click's position, and a finer resolution than its tokens. What no click
changes, the crop's details and their part of the first convolutions, is computed once; the rest costs some 6 GFLOP per
click for a crop of 64^3.

B batch, N points, D H W crop, w width at half resolution, C feature width, m head width; shapes with /2, /4 ... are at
that fraction of the crop's resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxsam.network.prompt_encoder import NEGATIVE, POSITIVE, in_crop
from voxsam.network.sizes import ModelConfig

OUTSIDE = 3.0  # logits: how sure an untrained head is that a voxel far from all clicks is no tumour
FULL = 8  # channels at full resolution
NARROW, WIDE = 2.5, 4.0  # the crop is seen twice: clamped to -NARROW .. NARROW, and whole, divided by WIDE
SEED = 1.0  # squared distance, in a map's voxels, within which a voxel belongs to the click itself
GROWN = 24  # steps of a path, at most: more than half of what fits well into a crop
FAINT = 1e-20  # what a click map has below this is 0: denormal numbers slow a convolution down several times
PREVIOUS_LOGIT = 6.0  # at which the logits that the head is given are clamped


class Details(NamedTuple):
    """What no click changes: parts of the first convolutions at 1/2 and 1/4, and of the last at full resolution."""

    half: Tensor  # (B, w, D/2, H/2, W/2)
    quarter: Tensor  # (B, 2 w, D/4, H/4, W/4)
    full: Tensor  # (B, FULL, D, H, W)
    image: Tensor  # (B, K, D/2, H/2, W/2) the crop, smoothed: what clicks are compared with


def click_maps(
    points_BN3: Tensor, labels_BN: Tensor | None, shape: tuple[int, ...], deviations: tuple[float, ...], step: int = 1
) -> Tensor:
    """(B, 2 K, *shape) for each polarity and each of K s.d. (crop voxels), the highest Gaussian of its clicks.

    Positive ones come first. Points are crop voxels (d, h, w); a map's voxel holds `step` of the crop's on each axis.
    Points outside the crop, and padding, draw nothing.
    """
    labels = torch.full(points_BN3.shape[:2], POSITIVE, device=points_BN3.device) if labels_BN is None else labels_BN
    inside = in_crop(points_BN3, tuple(n * step for n in shape))
    squares = [
        (torch.arange(n, device=points_BN3.device) * step + (step - 1) / 2 - points_BN3[..., axis, None]).square()
        for axis, n in enumerate(shape)
    ]  # (B, N, n) each
    maps = []
    for kind in (POSITIVE, NEGATIVE):
        far = torch.where(inside & (labels == kind), 0.0, torch.inf)[..., None]
        for deviation in deviations:
            d, h, w = (torch.exp(-(square + far) / (2 * deviation**2)) for square in squares)
            each = d[..., :, None, None] * h[..., None, :, None] * w[..., None, None, :]  # Gaussians are separable
            highest = F.pad(each, (0, 0) * 3 + (1, 0)).amax(1)  # 0 where there is no click
            maps.append(torch.where(highest > FAINT, highest, 0.0))
    return torch.stack(maps, 1)


def similarity_maps(
    image_BKDHW: Tensor, points_BN3: Tensor, labels_BN: Tensor | None, spreads: tuple[float, ...], step: int = 1
) -> Tensor:
    """(B, 4 S, D, H, W): how similar each voxel is to what was clicked, and how strongly it is connected to a click.

    For each polarity, positive first, and each of S spreads (s.d. in the crop's intensities): the similarity of a voxel
    to the surroundings of the most similar click, and its connectedness to a click. The strength of a path through
    faces is the lowest similarity along it, that of a voxel its best path's (fuzzy connectedness: Udupa and
    Samarasekera, Graph. Models Image Process. 58, 1996). Points are as in `click_maps`.
    """
    labels = torch.full(points_BN3.shape[:2], POSITIVE, device=points_BN3.device) if labels_BN is None else labels_BN
    shape = image_BKDHW.shape[2:]
    inside = in_crop(points_BN3, tuple(n * step for n in shape))
    places = [torch.arange(n, device=points_BN3.device) * step + (step - 1) / 2 for n in shape]
    d, h, w = (((at - points_BN3[..., axis, None]) / step).square() for axis, at in enumerate(places))  # (B, N, n) each
    about = [torch.exp(-square / 2) for square in (d, h, w)]
    about = [x / x.sum(-1, keepdim=True).clamp(min=1e-6) for x in about]
    clicked = torch.einsum("bkdhw,bnd,bnh,bnw->bnk", image_BKDHW, *about)
    away = d[..., :, None, None] + h[..., None, :, None] + w[..., None, None, :]
    off = (image_BKDHW[:, None] - clicked[..., None, None, None]).square().mean(2)
    alike, seeds = [], []
    for kind in (POSITIVE, NEGATIVE):
        far = torch.where(inside & (labels == kind), 0.0, torch.inf)[..., None, None, None]
        least, nearest = (F.pad(x + far, (0, 0) * 3 + (1, 0), value=torch.inf).amin(1) for x in (off, away))
        alike += [torch.exp(-least / (2 * spread**2)) for spread in spreads]
        seeds += [nearest <= SEED] * len(spreads)
    alike = torch.stack(alike, 1)
    joined = torch.where(torch.stack(seeds, 1), alike, torch.zeros_like(alike))
    for _ in range(min(GROWN, max(shape))):
        joined = torch.minimum(alike, highest_near(joined))
    return torch.stack([alike, joined], 2).flatten(1, 2)


def highest_near(x_BCDHW: Tensor) -> Tensor:
    """The highest value of each voxel and its face neighbours; values are at least 0.

    Ten to twenty times faster on a CPU than max_pool3d along each axis.
    """
    padded, highest = F.pad(x_BCDHW, (1,) * 6), x_BCDHW
    for axis in (2, 3, 4):
        for start in (0, 2):
            beside = padded
            for along in (2, 3, 4):
                beside = beside.narrow(along, start if along == axis else 1, x_BCDHW.shape[along])
            highest = torch.maximum(highest, beside)
    return highest


class Stage(nn.Module):
    """3x3x3 convolution, InstanceNorm, LeakyReLU; then another, added to the first: a residual of two convolutions."""

    def __init__(self, width: int, given: int | None = None, stride: int = 1) -> None:
        super().__init__()
        self.enter = nn.Conv3d(width if given is None else given, width, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = (nn.InstanceNorm3d(width, affine=True) for _ in range(2))
        self.conv = nn.Conv3d(width, width, 3, padding=1, bias=False)

    def forward(self, x_BcDHW: Tensor, known: Tensor | None = None) -> Tensor:
        """Run the stage; `known`, the part of the first convolution's sum that was computed before, is added to it."""
        x = self.enter(x_BcDHW)
        x = F.leaky_relu(self.norm1(x if known is None else x + known), 0.01)
        return F.leaky_relu(x + self.norm2(self.conv(x)), 0.01)


class Joined(nn.Module):
    """3x3x3 convolution, InstanceNorm, LeakyReLU: in the stem, and on the way up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(width, affine=True)

    def forward(self, x_BcDHW: Tensor) -> Tensor:
        """The same shape."""
        return F.leaky_relu(self.norm(self.conv(x_BcDHW)), 0.01)


class RefinementHead(nn.Module):
    """Crop, coarse logits, features that clicks have changed, click maps, a previous mask -> logits at full resolution.

    The coarse logits are those of the mask decoder. What an untrained head adds to them says where the clicks are, a
    ball around each positive one, and nothing else. The sides of a crop are multiples of 16.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        w, self.deviations, self.spreads = config.refine_width, config.click_maps, config.click_similarity
        maps = 2 * len(self.deviations)
        # From the crop alone
        self.stem = nn.Conv3d(2 * config.channels, w, 4, 2, 1)
        self.detail_half = Joined(w)
        self.detail_quarter = Stage(2 * w, w, stride=2)
        self.share_half = nn.Conv3d(w, w, 3, padding=1, bias=False)
        self.share_quarter = nn.Conv3d(2 * w, 2 * w, 1, bias=False)
        self.share_full = nn.Conv3d(2 * config.channels, FULL, 3, padding=1)
        # From the clicks
        self.at2 = Stage(w, maps + 2 + 4 * len(self.spreads))
        self.at4 = Stage(2 * w, w, stride=2)
        self.fused = nn.Conv3d(config.head_width, 2 * w, 1, bias=False)
        self.at8 = Stage(3 * w, 2 * w, stride=2)
        self.tokens = nn.Conv3d(config.feature_width, 3 * w, 1, bias=False)
        self.at16 = Stage(4 * w, 3 * w, stride=2)
        self.to8 = nn.ConvTranspose3d(4 * w, 3 * w, 2, 2)
        self.up8 = Joined(3 * w)
        self.to4 = nn.ConvTranspose3d(3 * w, 2 * w, 2, 2)
        self.up4 = Joined(2 * w)
        self.to2 = nn.ConvTranspose3d(2 * w, w, 2, 2)
        self.up2 = Joined(w)
        self.to1 = nn.ConvTranspose3d(w, FULL, 2, 2)
        self.norm1 = nn.InstanceNorm3d(FULL, affine=True)
        self.last = nn.Conv3d(FULL, FULL, 3, padding=1)
        self.classify = nn.Conv3d(FULL, 2, 1)
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]
        self.prior = nn.Conv3d(maps, 1, 1)
        self._begin_at_clicks()

    @torch.no_grad()
    def _begin_at_clicks(self) -> None:
        """Make an untrained head predict tumour within 1.2 s.d. of a positive click, by its widest map, only.

        A head that starts by adding nothing learns a ball in the middle of the crop long before it learns the clicks.
        """
        self.prior.weight.zero_()
        self.prior.weight[:, len(self.deviations) - 1] = 2 * OUTSIDE
        self.prior.weight[:, -1] = -2 * OUTSIDE
        self.prior.bias.fill_(-OUTSIDE)  # type: ignore[union-attr]

    def details(self, crops_B1DHW: Tensor) -> Details:
        """What no click changes: once for each crop."""
        seen = torch.cat(
            [crops_B1DHW.clamp(-NARROW, NARROW), crops_B1DHW / WIDE], 1
        )  # soft tissue in detail, and lung and bone, too
        crops = seen.contiguous(memory_format=torch.channels_last_3d)
        half = self.detail_half(self.stem(crops))
        quarter = self.detail_quarter(half)
        full = self.share_full(crops)
        image = F.avg_pool3d(crops_B1DHW, 2)
        image = (image + F.avg_pool3d(F.pad(image, [1] * 6, mode="replicate"), 3, 1)) / 2
        return Details(self.share_half(half), self.share_quarter(quarter), full, image)

    def forward(
        self,
        details: Details,
        coarse_B2DHW: Tensor,
        fused_BmFFF: Tensor,
        tokens_BCGGG: Tensor,
        points_BN3: Tensor,
        labels_BN: Tensor | None,
        previous_B1DHW: Tensor | None = None,
    ) -> Tensor:
        """(B, 2, D, H, W) logits. `previous`: the logits, tumour minus background, of a mask to start from, if any."""
        shape = tuple(coarse_B2DHW.shape[2:])
        half = tuple(n // 2 for n in shape)
        coarse = coarse_B2DHW[:, 1:] - coarse_B2DHW[:, :1]
        if previous_B1DHW is None:
            previous_B1DHW = torch.zeros_like(coarse)
        seen = [F.avg_pool3d(x.clamp(-PREVIOUS_LOGIT, PREVIOUS_LOGIT), 2) for x in (coarse, previous_B1DHW)]
        maps = click_maps(points_BN3, labels_BN, half, self.deviations, 2).to(coarse.dtype)
        x = [maps, *seen]
        if self.spreads:
            with torch.no_grad():
                x.append(similarity_maps(details.image, points_BN3, labels_BN, self.spreads, 2).to(coarse.dtype))
        x = torch.cat(x, 1).contiguous(memory_format=torch.channels_last_3d)
        at2 = self.at2(x, details.half)
        grid = details.quarter.shape[2:]
        at4 = self.at4(at2, details.quarter + _resized(self.fused(fused_BmFFF), grid))
        at8 = self.at8(at4, _resized(self.tokens(tokens_BCGGG), tuple(-(-n // 2) for n in grid)))
        x = self.at16(at8)
        x = self.up8(at8 + self.to8(x))
        x = self.up4(at4 + self.to4(x))
        x = self.up2(at2 + self.to2(x))
        x = details.full + self.to1(x)
        x = self.last(F.leaky_relu(self.norm1(x), 0.01))
        prior = _resized(self.prior(maps), shape)
        return coarse_B2DHW + self.classify(F.leaky_relu(x, 0.01)) + torch.cat([-prior / 2, prior / 2], 1)


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize trilinearly, aligning the outer faces of the voxels."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, tuple(size), mode="trilinear")
