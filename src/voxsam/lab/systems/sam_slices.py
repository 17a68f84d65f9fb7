"""SAM slice by slice: the 2D model, clicked in every axial slice that holds tumour (paper, Table 1: "n pts/slice").

The authors publish no code for these rows. What they leave open (window, points, which of three masks) is chosen as in
most papers of the time, and is an option. The model is a transformers.SamModel made from SAM's own file (Meta's layout;
sizes follow from the shapes of the tensors) or a folder in transformers' layout, or a small one with random weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxsam.errors import CheckpointError, InputError, UnsupportedError
from voxsam.kernels import choose_device
from voxsam.lab.data.store import open_store
from voxsam.lab.evaluation.systems import Images, System, turned_back
from voxsam.lab.systems.compared import EXTRA, About, Job, Untrained, register
from voxsam.prompts import Point
from voxsam.report.metrics import dice
from voxsam.volume import Volume
from voxsam.weights.file import first_bytes, is_safetensors, open_safetensors, read_pickle

if TYPE_CHECKING:
    from transformers import SamConfig, SamModel

WANTED = "a whole SAM checkpoint (Meta's sam_vit_*.pth, or a folder of transformers' SamModel)"
DECODER_HEADS = 8  # attention heads of SAM's mask decoder, which tensor shapes do not reveal
RANDOM_SIZES = {"seed": 0, "width": 32, "depth": 2, "heads": 2, "image": 128, "patch": 16, "embedding": 32}
RANDOM_SD = 0.1  # of the weights: large enough for every click to give a different mask

_RENAMED = [  # Meta's names -> transformers'; the first pattern that matches is used
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", "shared_image_embedding.positional_embedding"),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.0\.", r"\1proj_in."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.1\.", r"\1layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.2\.", r"\1proj_out."),
]
_SHARED = "shared_image_embedding.positional_embedding"  # the prompt encoder has it under a second name


def load_sam(path: Path) -> SamModel:
    """Load SAM from a file in Meta's layout (.pth, .safetensors) or a folder in transformers', on the CPU in eval mode.

    No code in a file is executed. Raises FileError or CheckpointError.
    """
    if path.is_dir():
        from transformers import SamModel

        try:
            return SamModel.from_pretrained(path, local_files_only=True).eval()
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{path} could not be read ({reason})", WANTED, "give such a folder") from error
    if is_safetensors(first_bytes(path, 16, WANTED)):
        contents: Mapping[str, Any] = open_safetensors(path)[1]
    else:
        contents = read_pickle(path, WANTED)
    return sam_from_tensors(contents, str(path))


def sam_from_tensors(contents: Mapping[str, Any], origin: str) -> SamModel:
    """SAM from tensors with Meta's names. Raises CheckpointError for missing, unexpected or misfitting tensors."""
    from transformers import SamModel

    tensors = {str(name): tensor.float() for name, tensor in contents.items() if isinstance(tensor, Tensor)}
    try:
        model = SamModel(config_of(tensors))
    except KeyError as error:
        raise CheckpointError(f"{origin} has no tensor {error.args[0]}", WANTED, "give such a file") from error
    state = {transformers_name(name): tensor for name, tensor in tensors.items()}
    if _SHARED in state:
        state[f"prompt_encoder.{_SHARED.replace('_image', '')}"] = state[_SHARED]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:40])
        raise CheckpointError(f"{origin} does not fit ({reason})", WANTED, "variants of SAM do not fit") from error
    return model.eval()


def transformers_name(name: str) -> str:
    """The name in transformers' SamModel of a tensor in Meta's layout; common names are unchanged."""
    for pattern, new in _RENAMED:
        renamed, found = re.subn(pattern, new, name)
        if found:
            return renamed
    return name


def config_of(tensors: Mapping[str, Tensor]) -> SamConfig:
    """The configuration that follows from tensors with Meta's names. Raises KeyError for a missing one."""
    from transformers import SamConfig

    _, grid, _, width = tensors["image_encoder.pos_embed"].shape
    patch, embedding = (
        tensors["image_encoder.patch_embed.proj.weight"].shape[-1],
        tensors["image_encoder.neck.0.weight"].shape[0],
    )
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("image_encoder.blocks."))
    rows = [tensors[f"image_encoder.blocks.{n}.attn.rel_pos_h"].shape for n in range(depth)]
    everywhere = [n for n, (length, _) in enumerate(rows) if length == 2 * grid - 1]  # attention over the whole image
    layers = 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith("mask_decoder.transformer.layers."))
    first = "mask_decoder.transformer.layers.0."
    return SamConfig(
        vision_config={
            "hidden_size": width,
            "output_channels": embedding,
            "num_hidden_layers": depth,
            "num_attention_heads": width // rows[0][1],
            "image_size": grid * patch,
            "patch_size": patch,
            "mlp_dim": tensors["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
            "window_size": (min(length for length, _ in rows) + 1) // 2,
            "global_attn_indexes": everywhere,
            "num_pos_feats": tensors["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].shape[1],
        },
        prompt_encoder_config={
            "hidden_size": embedding,
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": tensors["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        },
        mask_decoder_config={
            "hidden_size": embedding,
            "mlp_dim": tensors[f"{first}mlp.lin1.weight"].shape[0],
            "num_hidden_layers": layers,
            "num_attention_heads": DECODER_HEADS,
            "attention_downsample_rate": embedding
            // tensors[f"{first}cross_attn_token_to_image.q_proj.weight"].shape[0],
            "iou_head_hidden_dim": tensors["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        },
    )


def random_sizes(**sizes: int) -> dict[str, int]:
    """RANDOM_SIZES, overridden by `sizes`. Raises InputError for an unknown name or impossible sizes."""
    chosen = {**RANDOM_SIZES, **sizes}
    unknown = sorted(set(chosen) - set(RANDOM_SIZES))
    if unknown:
        raise InputError(f"the size {unknown[0]} of a random SAM", f"one of {', '.join(RANDOM_SIZES)}", "change it")
    if chosen["width"] % chosen["heads"] or chosen["image"] % chosen["patch"] or chosen["embedding"] % 16:
        expected = "a width that `heads` divides, an image that `patch` divides, an embedding of 16, 32, ..."
        raise InputError(f"a random SAM of {chosen}", expected, "change it")
    return chosen


def random_sam(**sizes: int) -> SamModel:
    """A small SAM with random weights, the same for the same seed: it runs the protocol, but its masks mean nothing.

    `sizes` are as in `random_sizes`.
    """
    from transformers import SamConfig, SamModel

    chosen = random_sizes(**sizes)
    image = {"image_size": chosen["image"], "patch_size": chosen["patch"]}
    embedding = {"hidden_size": chosen["embedding"]}
    config = SamConfig(
        vision_config={
            **image,
            "hidden_size": chosen["width"],
            "output_channels": chosen["embedding"],
            "num_hidden_layers": chosen["depth"],
            "num_attention_heads": chosen["heads"],
            "num_pos_feats": chosen["embedding"] // 2,
            "window_size": 4,
            "global_attn_indexes": [chosen["depth"] - 1],
        },
        prompt_encoder_config={**image, **embedding},
        mask_decoder_config={**embedding, "mlp_dim": 2 * chosen["embedding"], "iou_head_hidden_dim": 32},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen["seed"])
        model = SamModel(config)
        for parameter in model.parameters():  # transformers initialises the encoder to nearly zero
            torch.nn.init.normal_(parameter, std=RANDOM_SD)
    return model.eval()


Selection = Literal["pred_iou", "first", "oracle"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
UPRIGHT = "LPS"  # a slice's columns run to the patient's left, its rows to the back: radiological convention
NOTE = (
    "it is clicked so often in every axial slice that holds tumour, so it is given where the tumour begins and ends, "
    "and gets tens of clicks for a volume where others get one"
)


@register("sam-slices")
class SamSlices(Untrained):
    """SAM as published, or with random weights, which only show the protocol."""

    name = "sam-slices"
    about = About(
        title="SAM per slice",
        paper="Kirillov et al., Segment Anything, ICCV 2023",
        source="https://github.com/facebookresearch/segment-anything",
        licence="Apache-2.0",
        library="transformers (SamModel)",
        differences="nobody published the code of the paper's rows: window, points and choice of the mask are our "
        "reading",
        trained=False,
        install=EXTRA,
        note=NOTE,
    )
    options: Mapping[str, str] = {
        "weights": "SAM's file in Meta's layout (sam_vit_b_01ec64.pth), or a folder of transformers' SamModel",
        "random": "instead of weights: {seed: 0, width: 32, ...}, a small untrained SAM, which shows the protocol only",
        "selection": "which of three masks of one click: pred_iou (SAM's own guess), first, oracle (given the truth)",
        "window": "[low, high] that become 0 and 255; default: the clip range of the data set",
    }

    def check(self, job: Job) -> None:
        """Check as for every system, and that transformers and the weights exist and the options are valid."""
        super().check(job)
        self._admit(job)
        if find_spec("transformers") is None:
            raise UnsupportedError("SAM without transformers", "the package", EXTRA)
        if ("weights" in job.options) == ("random" in job.options):
            expected = "either `weights: FILE` or `random: {seed: 0}`"
            raise InputError("sam-slices with both or neither of weights and random", expected, "change the plan")
        if "weights" in job.options and not Path(str(job.options["weights"])).exists():
            raise InputError(f"the weights {job.options['weights']}", "a file that there is", "check the path")
        if job.options.get("selection", "pred_iou") not in SELECTIONS:
            given = f"selection {job.options['selection']!r}"
            raise InputError(given, f"one of {', '.join(SELECTIONS)}", "change the plan")
        random_sizes(**job.options.get("random", {}))
        _window(job)

    def load(self, job: Job) -> System:
        """SAM, ready for clicks; its name tells if its weights are random."""
        self._admit(job)
        random = job.options.get("random")
        model = load_sam(Path(str(job.options["weights"]))) if random is None else random_sam(**random)
        selection = job.options.get("selection", "pred_iou")
        return SliceSystem(model.to(choose_device(job.device)), _window(job), selection, self.about.title)  # type: ignore[arg-type]

    def _admit(self, job: Job) -> None:
        """Mention random weights in the title, and in the note under every table."""
        if "random" in job.options:
            note = f"{NOTE}; its weights are random, so its numbers mean nothing"
            self.about = replace(SamSlices.about, title=f"{SamSlices.about.title}, random weights", note=note)


@dataclass(frozen=True)
class Embedded:
    """A slice's embedding (1, C, H', W'), its shape (rows, columns), and the shape it was resized to."""

    embedding: Tensor
    shape: tuple[int, int]
    resized: tuple[int, int]


class SliceSystem:
    """A transformers.SamModel clicked slice by slice; `window` is (low, high) of the scan's intensities."""

    takes_clicks, takes_negative = True, True

    def __init__(
        self, model: SamModel, window: tuple[float, float], selection: Selection = "pred_iou", name: str = "SAM"
    ) -> None:
        from transformers import SamImageProcessorPil

        self.model, self.window, self.selection, self.name = model, window, selection, name
        self.parameters: int | None = sum(p.numel() for p in model.parameters())
        vision: Any = model.config.vision_config
        side = vision.image_size
        self.processor: Any = SamImageProcessorPil(
            size={"longest_edge": side}, pad_size={"height": side, "width": side}
        )

    def open(self, volume: Images) -> OpenedSlices:
        """The scan's axial slices; of several channels the first."""
        return OpenedSlices(self, volume if isinstance(volume, Volume) else volume[0])

    @torch.no_grad()
    def embed(self, picture: NDArray[np.float32]) -> Embedded:
        """SAM's embedding of one slice (rows, columns) of the scan's intensities."""
        low, high = self.window
        grey = np.rint((np.clip(picture, low, high) - low) * (255 / (high - low))).astype(np.uint8)
        colours = np.repeat(grey[..., None], 3, axis=2)
        inputs = self.processor(images=colours, return_tensors="pt", input_data_format="channels_last")
        pixels, resized = inputs["pixel_values"].to(self.model.device), inputs["reshaped_input_sizes"][0].tolist()
        return Embedded(self.model.get_image_embeddings(pixels), picture.shape, (resized[0], resized[1]))

    @torch.no_grad()
    def masks(
        self, picture: Embedded, points: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """(n, rows, columns) masks of a slice and (n,) SAM's predicted IoU of each: three for one click, else one.

        `points` (m, 2) are (column, row) in voxels; `labels` (m,) are 1 for tumour, 0 for background.
        """
        (rows, columns), (new_rows, new_columns) = picture.shape, picture.resized
        scaled, device = points * (new_columns / columns, new_rows / rows), self.model.device
        output = self.model(
            image_embeddings=picture.embedding,
            input_points=torch.as_tensor(scaled, dtype=torch.float32, device=device)[None, None],
            input_labels=torch.as_tensor(labels, device=device)[None, None],
            multimask_output=len(points) == 1,
        )
        whole = self.processor.post_process_masks([output.pred_masks[0].cpu()], [picture.shape], [picture.resized])
        return whole[0][0].numpy(), output.iou_scores[0, 0].cpu().numpy()


class OpenedSlices:
    """A scan, segmented slice by slice. A slice is encoded once, however often it is clicked."""

    def __init__(self, system: SliceSystem, scan: Volume) -> None:
        self.system, self.grid, self.upright = system, scan.grid, scan.reorient(UPRIGHT)
        self.embedded: dict[int, Embedded] = {}
        self.truth: NDArray[Any] | None = None

    def show_truth(self, truth: Volume) -> None:
        """Keep the truth for the oracle, which takes the mask with the highest Dice."""
        self.truth = truth.reorient(UPRIGHT).array if self.system.selection == "oracle" else None

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask in the slices that have points; an oracle without the truth takes the best predicted IoU."""
        mask = np.zeros(self.upright.grid.shape, np.uint8)
        places = np.rint(self.upright.grid.world_to_index(np.array([p.world_mm for p in points]).reshape(-1, 3)))
        labels = np.array([p.positive for p in points], dtype=np.int64)
        for number in np.unique(places[:, 2]).astype(int):
            own = places[:, 2] == number
            mask[:, :, number] = self._slice(number, places[own, :2], labels[own]).T
        return turned_back(Volume(mask, self.upright.grid, "SEG"), self.grid)

    def _slice(self, number: int, points: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        picture = np.asarray(self.upright.array[:, :, number], dtype=np.float32).T
        if number not in self.embedded:
            self.embedded[number] = self.system.embed(picture)
        masks, guesses = self.system.masks(self.embedded[number], points, labels)
        if self.system.selection == "first":
            return masks[0]
        if self.truth is not None:
            guesses = np.array([dice(mask, self.truth[:, :, number].T) for mask in masks])
        return masks[guesses.argmax()]


def _window(job: Job) -> tuple[float, float]:
    low, high = job.options.get("window") or open_store(job.data).preprocessing.clip
    if not low < high:
        raise InputError(f"window [{low}, {high}]", "[low, high] with low < high", "change the plan")
    return float(low), float(high)
