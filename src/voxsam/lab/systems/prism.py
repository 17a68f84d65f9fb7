"""PRISM: the authors' network, from your own checkout of their code, clicked like every other system."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxsam.errors import CheckpointError, InputError
from voxsam.geometry import Grid
from voxsam.kernels import choose_device
from voxsam.lab.evaluation.systems import Images, System, pasted_mask
from voxsam.lab.systems.compared import About, Job, Untrained, register
from voxsam.preprocess import Preprocessing, Window, read_crop
from voxsam.prompts import Point
from voxsam.volume import Volume
from voxsam.weights.file import read_pickle

SIDE, AXES = 128, "RAS"  # of the crop at 1 mm, oriented as by torchio
OUTPUTS = 3  # masks of each step, from which the best by the predicted score is taken
STATISTICS: dict[
    str, tuple[tuple[float, float], float, float]
] = {  # clip, mean, s.d. in HU of the authors' four models
    "colon": ((-57, 175), 65.175035, 32.651197),
    "pancreas": ((-39, 204), 68.45214, 63.422806),
    "lits": ((-48, 163), 60.057533, 40.198017),
    "kits": ((-54, 247), 59.53867, 55.457336),
}
BUILDER = "src.models.build_sam3D"


@register("prism")
class Prism(Untrained):
    """A model trained by its authors; the row imports their code, so a plan with it needs `--trust`."""

    name = "prism"
    about = About(
        title="PRISM",
        paper="Li et al., PRISM, MICCAI 2024",
        source="https://github.com/MedICL-VU/PRISM",
        licence="Apache-2.0",
        library="the authors' code, from your own checkout",
        differences="points alone, one a step, as all systems here are clicked: their own test gives boxes, scribbles "
        "and many points a step; a crop about the first click, where theirs lies about the tumour's label",
        trained=False,
        install="git clone https://github.com/MedICL-VU/PRISM, and a model that its README links",
        note="not trained here: its model was trained by its authors on one of four public sets; it sees the 128 mm "
        "about the first click",
    )
    options: Mapping[str, str] = {
        "checkout": "the folder of the authors' code",
        "checkpoint": "a model of theirs",
        "statistics": f"which of their models it is: {', '.join(STATISTICS)}",
        "refine": "false: without the refinement network that the model was trained with; default true",
    }

    def check(self, job: Job) -> None:
        """Check as for every system, and that code and model exist."""
        super().check(job)
        checkout, checkpoint = (Path(str(job.options.get(key, ""))) for key in ("checkout", "checkpoint"))
        if not (checkout / "src" / "models" / "build_sam3D.py").is_file():
            given, remedy = f"the option checkout of prism: {checkout}", f"git clone {self.about.source}"
            raise InputError(given, "a folder with src/models/build_sam3D.py", remedy)
        if not checkpoint.is_file():
            given = f"the option checkpoint of prism: {checkpoint}"
            raise InputError(given, "a file of the authors' models", "download one that their README links")
        if job.options.get("statistics") not in STATISTICS:
            given = f"the option statistics of prism: {job.options.get('statistics')}"
            raise InputError(given, f"one of {', '.join(STATISTICS)}", "say which model it is")

    def load(self, job: Job) -> System:
        """The network with the checkpoint's tensors. Raises CheckpointError for a file that does not fit."""
        options, device = job.options, choose_device(job.device)
        given = SimpleNamespace(
            image_size=SIDE,
            num_multiple_outputs=OUTPUTS,
            multiple_outputs=True,
            refine=bool(options.get("refine", True)),
            use_sam3d_turbo=False,
            device=str(device),
        )
        network = _builder(Path(options["checkout"]))(args=given, checkpoint=None)
        wanted = "a model of PRISM, with model_state_dict"
        contents = read_pickle(Path(options["checkpoint"]), wanted)
        try:
            network.load_state_dict(contents["model_state_dict"])
        except (KeyError, RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split()[:40])
            remedy = "give another, or change `refine`"
            raise CheckpointError(f"{options['checkpoint']} does not fit ({reason})", wanted, remedy) from error
        clip, mean, sd = STATISTICS[options["statistics"]]
        use = Preprocessing(modality="CT", axes=AXES, spacing_mm=(1, 1, 1), clip=clip, mean=mean, sd=sd)
        return PrismSystem(network.to(device).eval(), use, given.refine, device)


def _builder(checkout: Path) -> Any:
    """The authors' function that builds the network."""
    sys.path.insert(0, str(checkout.resolve()))
    try:
        return importlib.import_module(BUILDER).build_sam3D_vit_b_ori
    except (ImportError, AttributeError) as error:
        given = f"{checkout}: {BUILDER} cannot be imported ({error})"
        raise InputError(given, "the authors' code, and what it needs", "install what is missing") from error
    finally:
        sys.path.remove(str(checkout.resolve()))


class PrismSystem:
    """PRISM's network, on crops of 128 mm."""

    name, takes_clicks, takes_negative = "PRISM", True, True

    def __init__(self, network: Any, use: Preprocessing, refine: bool, device: torch.device) -> None:
        self.network, self.use, self.refine, self.device = network, use, refine, device
        self.parameters: int | None = sum(p.numel() for p in network.parameters())

    def open(self, volume: Images) -> OpenedPrism:
        """Open a scan; of several channels the first."""
        return OpenedPrism(self, volume if isinstance(volume, Volume) else volume[0])


class OpenedPrism:
    """A scan, with the features of the crop around the latest first click."""

    def __init__(self, system: PrismSystem, scan: Volume) -> None:
        self.system, self.scan = system, scan
        self.grid: Grid = system.use.model_grid(scan.grid)
        self.first: Point | None = None

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask after one step per click, each starting from the last mask; clicks outside the crop are ignored."""
        with torch.inference_mode():
            if points[0] != self.first:
                self._encode(points[0])
            at = np.rint(self.grid.world_to_index([point.world_mm for point in points]) - self.window.start)
            inside = np.asarray(((at >= 0) & (at < SIDE)).all(1))
            logits, device = torch.zeros_like(self.image), self.image.device
            given: tuple[list[Tensor], list[Tensor]] = ([], [])
            for place, point, fits in zip(at, points, inside, strict=True):
                if fits:
                    given[0].append(torch.as_tensor(place, dtype=torch.long, device=device).reshape(1, 1, 3))
                    given[1].append(torch.tensor([[int(point.positive)]], device=device))
                    logits = self._step(logits, given)
            probability = torch.sigmoid(logits)[0, 0].float().cpu().numpy()
        return pasted_mask(probability, self.window, self.scan)

    def _encode(self, first: Point) -> None:
        self.window = Window.around(self.grid, self.grid.world_to_index([first.world_mm])[0], (SIDE,) * 3)
        crop = read_crop(self.scan, self.window, self.system.use)
        self.image = torch.from_numpy(crop)[None, None].to(self.system.device)
        self.embedding, features = self.system.network.image_encoder(self.image)
        self.features, self.first = list(features), first

    def _step(self, logits: Tensor, given: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        """(1, 1, 128, 128, 128) logits after the newest click; the refinement network gets all clicks."""
        network, embedding = self.system.network, self.embedding
        newest = (given[0][-1].float(), given[1][-1])
        before = torch.nn.functional.interpolate(logits, scale_factor=0.25)
        tokens, mixed = network.prompt_encoder(points=newest, boxes=None, masks=before, image_embeddings=embedding)
        masks, scores = network.mask_decoder(
            prompt_embeddings=tokens, image_embeddings=mixed, feature_list=self.features
        )
        best = masks[:, scores[0].argmax()][:, None]
        if self.system.refine:
            best, _ = network.mask_decoder.refine(self.image, best, given, best)
        return best
