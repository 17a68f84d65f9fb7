"""Clicks as observations: the prediction is changed to agree with every click, near it and where features are similar.

The tumour logit is modelled as a Gaussian process whose mean is the network's prediction. Its covariance falls with
the distance to a click and with the difference of the fused features; a click observes the logit at its voxel. The
change of the posterior mean is added (Rasmussen and Williams, Gaussian Processes for Machine Learning, eq. 2.25). A
click near one of the other polarity speaks only for its own surroundings: it reaches at most halfway to that click. The
covariance is then no longer that of a process, but the same sum of Gaussians is solved for. An extension: models that
were trained by others are never conditioned.

B batch, N points, m width of the fused features, F fusion grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveFloat
from torch import Tensor

from voxsam.network.prompt_encoder import NEGATIVE, PADDING

NUGGET = 0.05  # variance of an observation, relative to the process's: adjacent clicks need not agree exactly
HALF_WAY = 0.5  # of the way to the nearest click of the other polarity: how far a click reaches at most
NARROWEST = 2.0  # crop voxels that a click reaches at least


class Conditioning(BaseModel):
    """How far a click reaches at most, in crop voxels and in features, and how sure (in logits) its voxel becomes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reach: PositiveFloat  # s.d. of the Gaussian over distance, crop voxels
    likeness: PositiveFloat = 1.0  # s.d. of the Gaussian over the root mean square difference of standardised features
    margin: PositiveFloat = 5.0  # logits; a click changes nothing where the network is this sure already


def condition(
    logits_B2DHW: Tensor, fused_BmFFF: Tensor, points_BN3: Tensor, labels_BN: Tensor, settings: Conditioning
) -> Tensor:
    """(B, 2, D, H, W) logits that agree with the points (d, h, w in crop voxels; labels 1, 0, or -1 for padding).

    Points outside the crop are ignored. The fused features are aligned with the crop as in the decoder, corner voxel on
    corner voxel.
    """
    changes = [
        _change(logits, fused, points, labels, settings)
        for logits, fused, points, labels in zip(logits_B2DHW, fused_BmFFF, points_BN3, labels_BN, strict=True)
    ]
    change = F.interpolate(
        torch.stack(changes)[:, None], tuple(logits_B2DHW.shape[2:]), mode="trilinear", align_corners=True
    )
    return logits_B2DHW + torch.cat([-change / 2, change / 2], 1).to(logits_B2DHW.dtype)


def _change(logits_2DHW: Tensor, fused_mFFF: Tensor, points_N3: Tensor, labels_N: Tensor, use: Conditioning) -> Tensor:
    """(F, F, F) what is added to the difference of the logits, tumour minus background."""
    side = torch.tensor(logits_2DHW.shape[1:], device=points_N3.device)
    kept = (labels_N != PADDING) & (points_N3 >= -0.5).all(1) & (points_N3 <= side - 0.5).all(1)
    grid = tuple(fused_mFFF.shape[1:])
    if not kept.any():
        return torch.zeros(grid, device=logits_2DHW.device)
    points = points_N3[kept].clamp(min=0).minimum(side - 1.0)
    sign = torch.where(labels_N[kept] == NEGATIVE, -1.0, 1.0)
    nearest = points.round().long()
    predicted = (logits_2DHW[1] - logits_2DHW[0]).float()[tuple(nearest.T)]
    missing = sign * (use.margin - sign * predicted).clamp(min=0)
    features = _standardised(fused_mFFF.float())
    prompt_features = _at(features, points / (side - 1.0))
    places = torch.cartesian_prod(
        *(torch.linspace(0, n - 1, g, device=side.device) for n, g in zip(side, grid, strict=True))
    )
    reach = _reach(points, sign, use)
    weights = torch.linalg.solve(
        _covariance(points, prompt_features, points, prompt_features, reach, use)
        + NUGGET * torch.eye(len(points), device=side.device),
        missing,
    )
    return (_covariance(places, features.flatten(1).T, points, prompt_features, reach, use) @ weights).reshape(grid)


def _reach(points: Tensor, sign: Tensor, use: Conditioning) -> Tensor:
    """(N,) how far each click reaches, in crop voxels."""
    others = torch.cdist(points, points).masked_fill(sign[:, None] == sign, torch.inf)
    return (HALF_WAY * others.amin(1)).clamp(min=NARROWEST).clamp(max=use.reach)


def _covariance(
    places: Tensor, features: Tensor, points: Tensor, prompt_features: Tensor, reach: Tensor, use: Conditioning
) -> Tensor:
    """(M, N) covariance: 1 for the same position and features, falling to 0."""
    apart = torch.cdist(places, points) / reach
    unlike = torch.cdist(features, prompt_features) / use.likeness
    return torch.exp(-(apart.square() + unlike.square()) / 2)


def _standardised(fused_mFFF: Tensor) -> Tensor:
    """Mean 0 and s.d. 1 in each of m channels, divided by the root of m, so that distances are root mean squares."""
    spread, mean = torch.std_mean(fused_mFFF, (1, 2, 3), keepdim=True)
    return (fused_mFFF - mean) / spread.clamp(min=1e-3) / len(fused_mFFF) ** 0.5


def _at(features_mFFF: Tensor, fraction_N3: Tensor) -> Tensor:
    """(N, m) the features at points given as fractions (0 to 1) of each axis, trilinear, corner on corner."""
    grid = (2 * fraction_N3 - 1).flip(-1)[None, :, None, None]
    return F.grid_sample(features_mFFF[None], grid, mode="bilinear", align_corners=True)[0, :, :, 0, 0].T
