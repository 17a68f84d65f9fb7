"""`voxsam segment`: a scan and prompts in, a mask on the scan's own grid out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxsam.atomic import check_writable, refuse_inputs, remove_leftovers
from voxsam.cli.parse import PromptWords, given_path
from voxsam.cli.progress import ProgressBar
from voxsam.errors import FileError, InputError, PromptError

if TYPE_CHECKING:
    from voxsam.interactive.confidence import Confidence
    from voxsam.interactive.predictor import Prediction
    from voxsam.interactive.session import Session
    from voxsam.io.dicom.web import Archive
    from voxsam.network.promptable import Promptable
    from voxsam.prompts import Prompt
    from voxsam.volume import Volume


class Outputs:
    """Output paths by option, None where the option was not given.

    Raises FileError, before anything is written, for a wrong suffix, a file named twice, an input named as an output,
    or a file that cannot be created.
    """

    def __init__(self, paths: Mapping[str, Path | None], inputs: Sequence[Path]) -> None:
        from voxsam.io import MASK_SUFFIXES, SUFFIXES

        endings = {"--sr": (".sr.dcm",), "--probabilities": SUFFIXES, "--preview": (".png",), "--report": (".json",)}
        self.paths = {option: path for option, path in paths.items() if path is not None}
        self.written: list[Path] = []
        taken: dict[Path, str] = {}
        for option, path in self.paths.items():
            allowed = endings.get(option, MASK_SUFFIXES)
            if not path.name.lower().endswith(allowed) or path.is_dir():
                expected = f"a file whose name ends in {', '.join(allowed)}"
                raise FileError(f"{option} {path}", expected, "rename the output")
            first = taken.setdefault(path.resolve(), option)
            if first != option:
                raise FileError(f"{first} and {option} both name {path}", "a file for each", "rename one of them")
            check_writable(path)
            remove_leftovers(path.parent, path.name)
            refuse_inputs([path], inputs, f"change {option}")

    def write(self, option: str, writer: Callable[[Path], None]) -> None:
        """Let `writer` write the option's file, if it was requested.

        An InputError that it raises (the disk is full by now) then also says which files are already written.
        """
        if option not in self.paths:
            return
        path = self.paths[option]
        try:
            writer(path)
        except InputError as error:
            if not self.written:
                raise
            done = ", ".join(map(str, self.written))
            raise type(error)(f"{error.given} (already written: {done})", error.expected, error.remedy) from error
        self.written.append(path)


ShownClick = tuple[tuple[float, float, float], bool]


@dataclass(frozen=True, eq=False)
class Segmented:
    """A mask on its scan, and what it came from: a prediction, or with --each the session of all objects."""

    scan: Volume
    clicks: list[ShownClick]
    mask: Volume
    prediction: Prediction | None = None
    session: Session | None = None

    @classmethod
    def of(
        cls, network: Promptable, images: Sequence[Volume], prompts: Sequence[Prompt], each: bool, **settings: Any
    ) -> Segmented:
        """Segment what the prompts point at: one object, or with `each` one object per prompt."""
        from voxsam.interactive.segment import opened
        from voxsam.interactive.session import Session

        scan = images[0]
        points = [point for prompt in prompts for point in prompt.points(scan.grid)]
        clicks = [(point.index_on(scan.grid), point.positive) for point in points]
        if not each:
            prediction = opened(network, images, prompts, **settings)()
            return cls(scan, clicks, prediction.mask, prediction)
        session = Session(network, images, **settings)
        for number, prompt in enumerate(prompts):
            if number:
                session.new_object()
            session.prompt(prompt)
        return cls(scan, clicks, session.mask, session=session)

    def facts(self, scan_name: str, model: str, seconds: Mapping[str, float], class_name: str | None) -> dict[str, Any]:
        """The facts of the report; `class_name` is the class that the caller gave for the click, None if none."""
        from voxsam.interactive.session import reported
        from voxsam.report.report import report_dict

        found = self.prediction
        facts = report_dict(
            scan=self.scan,
            scan_name=scan_name,
            mask=self.mask,
            model=model,
            clicks=self.clicks,
            seconds=seconds,
            messages=self.mask.remarks,
            objects=None if self.session is None else reported(self.session),
            confidence=found and found.confidence and found.confidence.facts,
            class_name=class_name or (found and found.class_name),
        )
        if class_name and found is not None and found.class_name not in (None, class_name):
            facts["messages"].append(f"what was clicked looks like {found.class_name}, not like {class_name}")
        return facts

    def write(
        self, outputs: Outputs, masks: Sequence[str], model: str, facts: Mapping[str, Any], progress: ProgressBar
    ) -> None:
        """Write all outputs; `masks` are the options of those that hold masks, one for all objects or one each."""
        from voxsam.io import write_mask, write_volume
        from voxsam.io.objects import write_objects
        from voxsam.report.figures import overview_figure
        from voxsam.report.report import write_report_json
        from voxsam.report.sr import write_sr

        def draw(path: Path) -> None:
            progress("drawing")
            overview_figure(self.scan, self.mask, self.clicks, path)

        if (found := self.prediction) is not None:
            outputs.write("-o", lambda path: write_mask(self.mask, path, model=model))
            outputs.write("--probabilities", lambda path: write_volume(found.probabilities, path))
        if (session := self.session) is not None:
            drawn = {number: (session.info(number), one.region) for number, one in session.segmented.items()}
            for number, option in enumerate(masks, 1):
                part = drawn if len(masks) == 1 else {1: drawn[number]}
                outputs.write(option, lambda path, part=part: write_objects(part, self.scan, path, model=model))
        outputs.write("--sr", lambda path: write_sr(path, outputs.paths["-o"], self.scan))
        outputs.write("--report", lambda path: write_report_json(path, facts))
        outputs.write("--preview", draw)


def command(
    scan: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="SCAN",
            help="NIfTI, NRRD, MHA, a folder or zip of a DICOM series, dicomweb+https://...",
        ),
    ],
    channel: Annotated[
        list[Path] | None, typer.Option(help="A further image of the patient, for models of several channels.")
    ] = None,
    series: Annotated[str, typer.Option(help="Number or UID of the DICOM series, where SCAN holds several.")] = "",
    click: Annotated[list[str] | None, typer.Option(help="I,J,K: a voxel in the tumour.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="I,J,K: a voxel that is not tumour.")] = None,
    click_mm: Annotated[list[str] | None, typer.Option(help="X,Y,Z in RAS+ mm.")] = None,
    negative_mm: Annotated[list[str] | None, typer.Option(help="X,Y,Z in RAS+ mm.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="I0,J0,K0,I1,J1,K1: the tumour is inside.")] = None,
    scribble: Annotated[
        list[Path] | None, typer.Option(help="Label file: 1 tumour, 2 not; FILE#N: segment N of a DICOM one.")
    ] = None,
    hint: Annotated[list[Path] | None, typer.Option(help="A rough mask; FILE#N: segment N of a DICOM one.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="No prompts: for models trained without.")] = False,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Keep to one crop, as released.")] = False,
    keep_all: Annotated[
        bool,
        typer.Option("--keep-all", help="Also parts of the mask that hold no click; released models always do."),
    ] = False,
    each: Annotated[bool, typer.Option("--each", help="Every click is an object of its own: labels 1, 2, ...")] = False,
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help="With --each: objects may share voxels; each has a file, but in DICOM."),
    ] = False,
    spacing: Annotated[
        float | None,
        typer.Option(help="Voxel size in mm, of a model for many sizes; default: the lesion chooses it."),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="What was clicked, of a model's classes; default: what it looks like.")
    ] = None,
    model: Annotated[str, typer.Option(help="A name or a .safetensors file.")] = "voxsam-tiny",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, or bf16 or int8: faster, with a small error.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The mask's file, replaced if it exists; default SCAN_mask.nii.gz here."),
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Send the mask, a DICOM-SEG, to the archive that SCAN came from.")
    ] = False,
    measurements: Annotated[
        Path | None,
        typer.Option("--sr", help="Write volumes and diameters as a DICOM SR beside the DICOM-SEG (FILE.sr.dcm)."),
    ] = None,
    probabilities: Annotated[Path | None, typer.Option(help="Write the probabilities.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Write a picture (PNG).")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the facts (JSON).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Segment the tumour that the prompts point at."""
    words = PromptWords(
        click or [], negative or [], click_mm or [], negative_mm or [], box or [], scribble or [], hint or []
    )
    count = _count_objects(words, auto, each, overlap, probabilities)
    from voxsam.interactive.segment import check_class, check_mode, read_images
    from voxsam.io import check_mask_output
    from voxsam.weights import load_model
    from voxsam.weights.file import read_card
    from voxsam.weights.registry import find_model

    target = output or Path(_stem(scan) + ("_mask.seg.dcm" if store else "_mask.nii.gz"))
    archive = _archive(scan, target) if store else None
    _check_measurements(measurements, target)
    masks = _mask_files(target, count if overlap else 0)
    others = {"--sr": measurements, "--probabilities": probabilities, "--preview": preview, "--report": report}
    paths = [scan, *(channel or [])]
    outputs = Outputs({**masks, **others}, inputs=[*paths, *words.scribbles, *words.hints, Path(model)])
    set_threads(threads)
    start = time.perf_counter()
    with ProgressBar(quiet) as progress:
        card = read_card(find_model(model))
        check_mode(card, auto)
        check_class(card, class_name)
        _check_precision(precision, device)
        progress("reading")
        images = read_images(paths, card.config.channels, series)
        check_mask_output(images[0], target)
        prompts = words.on(images[0])
        read = time.perf_counter()
        progress("loading the model")
        network = load_model(model, device, precision)  # type: ignore[arg-type]  # its words are checked there
        settings = {"follow": not no_follow, "keep_clicked": False if keep_all else None, "spacing_mm": spacing}
        settings |= {"overlap": overlap} if each else {}
        found = Segmented.of(network, images, prompts, each, progress=progress, **settings)
        seconds = {"reading": read - start, "segmenting": time.perf_counter() - read}
        facts = found.facts(scan.name, model, seconds, class_name)
        progress("writing")
        found.write(outputs, list(masks), card.name, facts, progress)
        if archive is not None:
            progress("sending")
            for file in filter(None, (target, measurements)):
                archive.store(file)
    if not quiet:
        confidence = found.prediction and found.prediction.confidence
        _say(facts, confidence, masks.values(), each, time.perf_counter() - start)


def _say(
    facts: Mapping[str, Any], confidence: Confidence | None, masks: Collection[Path], each: bool, seconds: float
) -> None:
    """Print what the user should know of the mask, and finally where it is."""
    objects = facts["objects"]
    for remark in facts["messages"]:
        typer.echo(remark)
    if facts["class"]:
        typer.echo(f"class: {facts['class']}")
    for number, found in enumerate(objects * each, 1):
        typer.echo(f"object {number}: {_sizes([found])}")
    if confidence is not None:
        typer.echo(str(confidence))
    size = f"{len(objects)} objects" if each else _sizes(objects)
    typer.echo(f"{', '.join(map(str, masks))}: {size}, {seconds:.1f} s")


def _archive(scan: Path, target: Path) -> Archive:
    """The archive to send a mask to. Raises InputError if it is not a DICOM object, or the scan not from an archive."""
    from voxsam.io import is_address
    from voxsam.io.dicom.web import Archive

    if not is_address(scan):
        given, expected = "--store for a scan that is not in an archive", "dicomweb+https://HOST/.../series/SERIES"
        raise InputError(given, expected, "leave --store out")
    if target.suffix.lower() != ".dcm":
        raise InputError(f"--store with -o {target.name}", "a name that ends in .seg.dcm", "rename the output")
    return Archive.at(scan)


def _check_measurements(measurements: Path | None, target: Path) -> None:
    """Raises InputError for an SR with a mask that is not a DICOM-SEG."""
    if measurements is None:
        return
    from voxsam.io.dicom import is_seg

    if not is_seg(target):
        given, expected = f"--sr with -o {target.name}", "a mask as DICOM-SEG, which an SR refers to"
        raise InputError(given, expected, "write -o tumour.seg.dcm, or leave --sr out")


def set_threads(count: int | None) -> None:
    """Let torch use `count` CPU threads; None: its default. Raises InputError for less than one."""
    if count is None:
        return
    if count < 1:
        raise InputError(f"--threads {count}", "a whole number from 1 on", "leave it out to use every core")
    import torch

    torch.set_num_threads(count)


def _check_precision(precision: str, device: str) -> None:
    """Refuse, before the scan is read, a precision that the machine has no instructions for."""
    if precision != "float32":
        from voxsam.kernels import choose_device
        from voxsam.kernels.linear import require_precision

        require_precision(precision, choose_device(device))


def _count_objects(words: PromptWords, auto: bool, each: bool, overlap: bool, probabilities: Path | None) -> int:
    """The number of objects requested. Raises PromptError for prompts that are missing, or cannot be combined."""
    if auto == bool(words):
        given = "both --auto and prompts" if auto else "no prompt"
        raise PromptError(given, "prompts, or --auto alone", "click the tumour, for example --click 120,88,45")
    clicks = [*words.clicks, *words.clicks_mm]
    if overlap and not each:
        raise PromptError("--overlap without --each", "objects of their own", "add --each, or leave --overlap out")
    only_clicks = clicks and not (words.boxes or words.scribbles or words.hints)
    if each and (probabilities or not only_clicks or not all(positive for _, positive in clicks)):
        expected = "positive clicks alone, and no --probabilities"
        raise PromptError("--each with other prompts or --probabilities", expected, "segment those lesions one by one")
    return len(clicks) if each else 1


def _mask_files(target: Path, count: int) -> dict[str, Path]:
    """The masks by option: one file for all objects, or `tumour_2.nii.gz` of `tumour.nii.gz` for each of `count`."""
    if not count or target.suffix.lower() == ".dcm":
        return {"-o": target}
    stem = _stem(target)
    ending = target.name[len(stem) :]
    return {f"-o, object {n}": target.with_name(f"{stem}_{n}{ending}") for n in range(1, count + 1)}


def _sizes(objects: list[dict[str, Any]]) -> str:
    """The measurements of one object, or of none, in words."""
    (found,) = objects or [{"volume_ml": 0.0, "longest_axial_diameter_mm": 0.0, "perpendicular": None}]
    across = found["perpendicular"]
    words = f"{found['volume_ml']:.2f} mL, longest axial diameter {found['longest_axial_diameter_mm']:.1f} mm"
    return words + (f", perpendicular {across['mm']:.1f} mm" if across else "")


def _stem(scan: Path) -> str:
    name = scan.resolve().name
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".zip"):
        name = name.removesuffix(suffix)
    return name
