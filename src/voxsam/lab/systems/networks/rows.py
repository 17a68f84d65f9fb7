"""Registers the networks of Table 1 and beyond as rows of a comparison, with what has to be known of each."""

from __future__ import annotations

from voxsam.lab.systems.common_loop import CommonLoop
from voxsam.lab.systems.compared import EXTRA, About, ComparedSystem, Job, register
from voxsam.lab.systems.networks import file_of

RESEARCH = "https://github.com/Project-MONAI/research-contributions"
LIBRARY = "dynamic-network-architectures"
NNUNET = (
    "the network alone, trained by the common loop: nnU-Net's own spacing, patches, deep supervision, augmentation, "
    "mirroring and ensembles are left out; without deep supervision the heads of the coarser levels stay as they are"
)

ABOUT = {
    "nnunet-network": About(
        title="nnU-Net (network)",
        paper="Isensee et al., nnU-Net, Nature Methods 2021",
        source="https://github.com/MIC-DKFZ/nnUNet",
        licence="Apache-2.0",
        library=LIBRARY,
        differences=NNUNET,
        install=f"pip install --no-deps {LIBRARY}",
    ),
    "resenc-unet": About(
        title="ResEnc U-Net",
        paper="Isensee et al., nnU-Net Revisited, MICCAI 2024",
        source="https://github.com/MIC-DKFZ/nnUNet",
        licence="Apache-2.0",
        library=LIBRARY,
        differences=NNUNET,
        install=f"pip install --no-deps {LIBRARY}",
    ),
    "transbts": About(
        title="TransBTS",
        paper="Wang et al., TransBTS, MICCAI 2021",
        source="https://github.com/Wenxuan-1119/TransBTS",
        licence="Apache-2.0",
        library="VoxSAM",
        differences="the dropout after the first convolution is off in evaluation (the original leaves it on); without "
        "the 67,072 parameters that the original never uses; for any crop of multiples of 8, any number of channels",
    ),
    "nnformer": About(
        title="nnFormer",
        paper="Zhou et al., nnFormer, IEEE TIP 2023",
        source="https://github.com/282857341/nnFormer",
        licence="MIT",
        library="VoxSAM",
        differences="each difference of positions in a window has its own learned bias (the original's index lets many "
        "share one: 547 of 3,375 rows are used; original_index keeps that); without deep supervision, as in the copy "
        "of 3D UX-Net's repository that the paper's baselines come from",
    ),
    "swin-unetr": About(
        title="Swin-UNETR",
        paper="Hatamizadeh et al., Swin UNETR, BrainLes 2021",
        source=f"{RESEARCH}/tree/main/SwinUNETR",
        licence="Apache-2.0",
        library="MONAI",
        differences="begins with random weights unless `weights` names MONAI's model_swinvit.pt; the paper's row began "
        "with those self-supervised weights, unlike its other rows",
        install=EXTRA,
    ),
    "unetr": About(
        title="UNETR",
        paper="Hatamizadeh et al., UNETR, WACV 2022",
        source=f"{RESEARCH}/tree/main/UNETR",
        licence="Apache-2.0",
        library="MONAI",
        install=EXTRA,
    ),
    "unetrpp": About(
        title="UNETR++",
        paper="Shaker et al., UNETR++, IEEE TMI 2024",
        source="https://github.com/Amshaker/unetr_plus_plus",
        licence="Apache-2.0",
        library="VoxSAM, with MONAI's residual blocks",
        differences="the spatial attention's answer keeps its tokens apart (the original mixes tokens and channels "
        "as it joins the heads; original_order keeps that); without deep supervision; for any crop",
    ),
    "ux-net": About(
        title="3D UX-Net",
        paper="Lee et al., 3D UX-Net, ICLR 2023",
        source="https://github.com/MASILab/3DUX-Net",
        licence="MIT by its README, no licence file",
        library="VoxSAM, with MONAI's blocks of UNETR",
    ),
    "segresnet": About(
        title="SegResNet",
        paper="Myronenko, 3D MRI brain tumor segmentation using autoencoder regularization, BrainLes 2018",
        source="https://github.com/Project-MONAI/MONAI",
        licence="Apache-2.0",
        library="MONAI",
        differences="without the paper's autoencoder",
    ),
    "mednext": About(
        title="MedNeXt",
        paper="Roy et al., MedNeXt, MICCAI 2023",
        source="https://github.com/MIC-DKFZ/MedNeXt",
        licence="Apache-2.0",
        library="MONAI",
        differences="without deep supervision, and without its larger kernels made from trained smaller ones (UpKern)",
    ),
}


class PlainLoop(CommonLoop):
    """A network that takes no clicks, trained by the common loop."""

    def __init__(self, name: str) -> None:
        super().__init__(name, ABOUT[name], {"system": name, "prompts": "none"}, file_of(name).OPTIONS.lines())

    def check(self, job: Job) -> None:
        """As for every system, and that the network can be built: values of options, crop, libraries, weights."""
        from voxsam.lab.training.start import make_network

        super().check(job)
        make_network(self.recipe(job))


def _register(name: str) -> None:
    @register(name)
    def _make() -> ComparedSystem:
        return PlainLoop(name)


for _name in ABOUT:
    _register(_name)
