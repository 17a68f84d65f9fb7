"""The rows of Table 2 and beyond: the image encoder tuned in nine ways, without clicks, with the same decoder.

All start from the same SAM weights (`start_from` of the plan) and leave out the prompt encoder (paper, Sec. 4.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voxsam.lab.systems.common_loop import CommonLoop
from voxsam.lab.systems.compared import About, ComparedSystem, Job, register
from voxsam.lab.systems.peft.accounting import tuned

OF_SLICES = "2D: each slice through SAM's own encoder, a slice being the mean of `stride` slices of the crop"
ALONG_DEPTH = "2D with depth in the adapter; a slice is the mean of `stride` slices of the crop"
NECK = "SAM's 2D neck serves all four levels and is trained, which the paper does not count"


class TunedEncoder(CommonLoop):
    """A way of tuning the encoder: the paper's number of its tuned parameters, and that of all that are trained."""

    def tuned_parameters(self, job: Job) -> int:
        """All that is trained, the decoder included."""
        return tuned(self.recipe(job)).trained

    def tuned_encoder_parameters(self, job: Job) -> int:
        """In the image encoder, as Table 2 counts them."""
        return tuned(self.recipe(job)).paper


def _row(name: str, adapter: str, tokens: str, tune: str, about: About) -> None:
    fixed: dict[str, Any] = {
        "prompts": "none",
        "tune": tune,
        "start_part": "sam",
        "model": {"adapter": adapter, "tokens": tokens},
    }
    maker: Callable[[], ComparedSystem] = lambda: TunedEncoder(name, about, fixed)  # noqa: E731
    register(name)(maker)


_row(
    "full-finetuning",
    "none",
    "slices",
    "all",
    About(
        title="Full fine-tuning",
        paper="Kirillov et al., Segment Anything, ICCV 2023",
        source="https://github.com/facebookresearch/segment-anything",
        licence="Apache-2.0",
        library="VoxSAM",
        differences=f"{OF_SLICES}; SAM's neck serves all four levels; 89,670,912 for ViT-B, as in the paper",
    ),
)
_row(
    "adapter",
    "houlsby",
    "slices",
    "adapters",
    About(
        title="Adapter",
        paper="Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019",
        source="https://github.com/google-research/adapter-bert",
        licence="Apache-2.0",
        library="VoxSAM",
        differences=f"{OF_SLICES}; one of 384 behind each mlp, 7.13 M for ViT-B (`model.adapter_twice` with 192: the "
        f"original's two, 7.14 M); the paper's 7.61 M is unexplained: no natural width gives it; {NECK}",
    ),
)
_row(
    "pro-tuning",
    "protuning",
    "slices",
    "adapters",
    About(
        title="Pro-tuning",
        paper="Nie et al., Pro-tuning: Unified Prompt Tuning for Vision Tasks, arXiv 2022",
        source="https://arxiv.org/abs/2207.14381",
        licence="no code by the authors",
        library="VoxSAM",
        differences=f"{OF_SLICES}; our reading: one behind each block, 1 x 1 to 384, depth-wise 3 x 3, 1 x 1, ReLU "
        f"between, which gives the paper's 7.17 M; {NECK}",
    ),
)
_row(
    "st-adapter",
    "st",
    "slices",
    "adapters",
    About(
        title="ST-Adapter",
        paper="Pan et al., ST-Adapter, NeurIPS 2022",
        source="https://github.com/linziyi96/st-adapter",
        licence="MIT",
        library="VoxSAM",
        differences=f"{ALONG_DEPTH}; on SAM instead of CLIP; one of 384 before each attention, kernel 3 along depth "
        f"(`model.adapter_twice`: before the mlp as well), 7.15 M for ViT-B; {NECK}",
    ),
)
_row(
    "med-tuning",
    "med",
    "slices",
    "adapters",
    About(
        title="Med-Tuning",
        paper="Shen et al., Med-Tuning, MIDL 2024 (arXiv 2023)",
        source="https://github.com/jessie-chen99/Med-Tuning-Official",
        licence="Apache-2.0",
        library="VoxSAM",
        differences=f"{ALONG_DEPTH}; ratio 2 where the original's default is 6, for it gives 10.91 M for ViT-B; "
        "the paper's 11.10 M is unexplained, and older than the authors' code; on SAM, not on a ViT of ImageNet; "
        f"{NECK}",
    ),
)
_row(
    "ours-auto",
    "spatial",
    "volume",
    "adapters",
    About(
        title="VoxSAM, automatic",
        paper="Gong et al., 3DSAM-adapter, Medical Image Analysis 2024",
        source="https://github.com/med-air/3DSAM-adapter",
        licence="none stated",
        library="VoxSAM",
        differences="3D tokens; 15,209,984 for ViT-B, as in the paper, of which 7,868,416 are its four 3D necks; "
        "the other rows' necks are not counted there",
    ),
)
_row(
    "lora",
    "lora",
    "volume",
    "adapters",
    About(
        title="LoRA",
        paper="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
        source="https://github.com/microsoft/LoRA",
        licence="MIT",
        library="VoxSAM",
        differences="not in the paper: VoxSAM's 3D tokens and necks, with rank 8 (`model.adapter_rank`) on query "
        "and value in the place of its adapter, the LayerNorms frozen",
    ),
)
_row(
    "samed",
    "samed",
    "slices",
    "adapters",
    About(
        title="SAMed",
        paper="Zhang and Liu, Customized Segment Anything Model for Medical Image Segmentation, arXiv 2023",
        source="https://github.com/hitachinsk/SAMed",
        licence="MIT",
        library="VoxSAM",
        differences=f"not in the paper; {OF_SLICES}; rank 4 on query and value, 147,456 for ViT-B; VoxSAM's decoder in "
        f"the place of SAM's; {NECK}",
    ),
)
_row(
    "ma-sam",
    "masam",
    "slices",
    "adapters",
    About(
        title="MA-SAM",
        paper="Chen et al., MA-SAM, Medical Image Analysis 2024",
        source="https://github.com/cchen-cc/MA-SAM",
        licence="Apache-2.0",
        library="VoxSAM",
        differences=f"not in the paper; {ALONG_DEPTH}; factors of rank 32 and two convolutions along depth in each "
        f"block, 24,892,416 for ViT-B where the original takes ViT-H; VoxSAM's decoder in the place of SAM's; {NECK}",
    ),
)
