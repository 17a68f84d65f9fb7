"""A first look without clicks: how sure an automatic model is of each scan, so that work can begin with the hardest."""

from __future__ import annotations

import numpy as np

from voxsam.errors import UnsupportedError
from voxsam.interactive.automatic import segment_automatically
from voxsam.interactive.crops import THRESHOLD
from voxsam.interactive.predictor import Prediction
from voxsam.project.project import Project, ReportProgress
from voxsam.weights.checkpoint import load_model


def look_first(
    project: Project,
    model: str,
    device: str = "auto",
    progress: ReportProgress = lambda stage, fraction: None,
) -> dict[str, float]:
    """Let an automatic model segment every scan that is not done; `next` then gives the one it is least sure of.

    `model` is a name or a file. Returns how sure it is of each scan (`sureness`). Scans that it has already looked at
    are skipped, so an interrupted call can be repeated to continue. Raises UnsupportedError for a model that needs
    clicks; the order then stays as it is.
    """
    network = load_model(model, device)
    if not network.card.automatic:
        given = f"a first look with {network.card.name}, which wants clicks"
        raise UnsupportedError(given, "a model trained without clicks", "name one; until then the order is the list's")
    project.order_by(network.card.name)
    missing = [scan.name for scan in project.scans if scan.sure is None and project.state(scan) != "done"]
    for number, case in enumerate(missing):
        progress("looking at the scans", number / len(missing))
        project.keep_look(case, sureness(segment_automatically(network, project.read(case))))
    return {scan.name: scan.sure for scan in project.scans if scan.sure is not None}


def sureness(prediction: Prediction) -> float:
    """The expected Dice of a mask, 0 to 1, if its probabilities are right; 0 if nothing was found.

    2 * sum(p in the mask) / (sum(p) + voxels of the mask), on the model's grid.
    """
    probabilities = [np.asarray(probability, dtype=np.float64) for _, probability in prediction.pieces]
    inside = sum(float(p[p > THRESHOLD].sum()) for p in probabilities)
    voxels = sum(int((p > THRESHOLD).sum()) for p in probabilities)
    return 2 * inside / (sum(float(p.sum()) for p in probabilities) + voxels) if voxels else 0.0
