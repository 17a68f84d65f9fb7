"""`voxsam evaluate`: score a model on labelled cases with simulated clicks; write tables, figures and a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from voxsam.atomic import make_folder
from voxsam.cli.parse import given_path, whole_numbers
from voxsam.cli.progress import ProgressBar
from voxsam.cli.segment import set_threads
from voxsam.errors import InputError

if TYPE_CHECKING:
    from voxsam.lab.data.cases import Case
    from voxsam.lab.evaluation.protocol import Evaluation
    from voxsam.lab.evaluation.systems import System

MARKER = "held-out"  # of the table of cases in a model card


def command(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=given_path, metavar="FOLDER", help="Labelled cases in MSD or nnU-Net raw layout, or prepared ones."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the results.")],
    model: Annotated[
        str, typer.Option(help="A name or a .safetensors file; region-growing, random-walker: what needs no training.")
    ] = "voxsam-tiny",
    cases: Annotated[str | None, typer.Option(help="Only these cases: a,b,c.")] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Only the cases that this recipe holds out, or the test cases of this prepared folder."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split of dataset.json, e.g. test.")] = None,
    clicks: Annotated[str, typer.Option(help="Numbers of random clicks to score.")] = "1,3,10",
    trials: Annotated[int, typer.Option(help="Trials for each number of clicks.")] = 10,
    region: Annotated[str, typer.Option(help="any, centre, surround, margin or deepest.")] = "any",
    noise: Annotated[float, typer.Option(help="Fraction of the random clicks that miss the tumour.")] = 0.0,
    corrective: Annotated[int, typer.Option(help="Also: up to N clicks, each on the worst fault so far.")] = 0,
    per_lesion: Annotated[bool, typer.Option("--per-lesion", help="Click and score each lesion by itself.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="No clicks: for models trained without.")] = False,
    labels: Annotated[
        str | None, typer.Option(help="Label values that are the tumour; default: all above 0 (less nnU-Net's ignore).")
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Each label that the data names by itself: OUTPUT/NAME, and one table.")
    ] = False,
    tolerance_mm: Annotated[float, typer.Option(help="Of the NSD.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the clicks; the same seed gives the same numbers.")] = 0,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Keep to one crop, as released.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, or bf16 or int8: faster, with a small error.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
    card: Annotated[
        Path | None, typer.Option(help=f"A Markdown file: its table between <!-- {MARKER} --> markers is replaced.")
    ] = None,
    save_masks: Annotated[
        bool, typer.Option("--save-masks", help="Also keep the masks of each case's first trial, in OUTPUT/masks.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Score a model on labelled cases: Dice, NSD, HD95, volume, lesions, for 1, 3, 10 clicks."""
    from voxsam.lab.data.layouts import check_labels, find_labelled
    from voxsam.lab.evaluation.clicks import REGIONS
    from voxsam.lab.evaluation.output import check_output, mask_writer, write_evaluation
    from voxsam.lab.evaluation.protocol import EvaluationSettings, evaluate
    from voxsam.lab.evaluation.tables import require_markers

    settings = EvaluationSettings(
        clicks=whole_numbers("--clicks", clicks, "1,3,10"),
        trials=trials,
        region=next((known for known in REGIONS if known == region), region),  # type: ignore[arg-type]
        noise=noise,
        corrective=corrective,
        per_lesion=per_lesion,
        labels=whole_numbers("--labels", labels, "1,3,10") if labels else (),
        tolerance_mm=tolerance_mm,
        seed=seed,
    )
    if not per_class:
        check_output(output)
    if card is not None:
        require_markers(card, _marker(card, folder))
    found, tumour_labels = find_labelled(folder)
    settings = replace(settings, labels=settings.labels or tumour_labels)
    chosen = _chosen(found, folder, cases, held_out, split)
    check_labels(chosen, settings.labels if labels else ())
    classes = _classes(folder, settings.labels, card) if per_class else {}
    if classes:
        make_folder(output)
        for name in classes:
            check_output(output / name)
    set_threads(threads)
    with ProgressBar(quiet) as progress, TemporaryDirectory(prefix=".masks-", dir=output.absolute().parent) as kept:
        progress("loading the model")
        system = load_system(model, device, precision, auto, not no_follow)
        evaluations = []
        for name, values in (classes or {"": settings.labels}).items():
            masks, target = Path(kept) / name if save_masks else None, output / name
            if masks is not None:
                make_folder(masks)
            watch = None if masks is None else mask_writer(masks)
            asked = replace(settings, labels=values)
            evaluation = evaluate(system, chosen, asked, name or folder.resolve().name, progress, watch)
            progress("writing tables and figures")
            write_evaluation(evaluation, system, {case.name: case for case in chosen}, target, masks)
            evaluations.append(evaluation)
    _finish(evaluations, output, card and (card, _marker(card, folder)), quiet)


def _classes(folder: Path, labels: tuple[int, ...], card: Path | None) -> dict[str, tuple[int, ...]]:
    """The label values of each class by its name. Raises InputError if the data set names fewer than two."""
    from voxsam.lab.data.layouts import class_names

    if card is not None:
        raise InputError("--per-class with --card", "one of them", "leave --card out")
    found: dict[str, tuple[int, ...]] = {}
    for label, name in class_names(folder).items():
        if not labels or label in labels:
            found[name] = (*found.get(name, ()), label)
    if len(found) < 2 or any(Path(name).name != name for name in found):
        given, expected = f"--per-class with labels named {', '.join(found) or 'nowhere'}", "two names or more"
        raise InputError(given, expected, 'name them in dataset.json: "labels": {"liver": 1, "tumour": 2}')
    return found


def _marker(card: Path, folder: Path) -> str:
    """The marker of the table in a card, with the folder's name if the card has a table for each of several folders."""
    own = f"{MARKER} {folder.resolve().name}"
    return own if card.is_file() and f"<!-- {own} -->" in card.read_text(encoding="utf-8") else MARKER


def _finish(evaluations: list[Evaluation], output: Path, card: tuple[Path, str] | None, quiet: bool) -> None:
    from voxsam.lab.evaluation.tables import (
        case_rows,
        lesion_rows,
        markdown_table,
        overlap_lines,
        paper_rows,
        write_between_markers,
    )

    evaluation = evaluations[0]
    if card is not None:
        rows = lesion_rows if evaluation.settings.per_lesion else case_rows
        write_between_markers(*card, markdown_table(rows(evaluation), right=True))
    if not quiet:
        several = len(evaluations) > 1
        for one in evaluations:
            for case, reason in one.skipped.items():
                typer.echo(f"{case} was skipped{f' for {one.dataset}' * several}: {reason}")
        typer.echo(markdown_table(paper_rows(evaluations), right=True))
        for line in overlap_lines(evaluation):
            typer.echo(line)
        for one in evaluations:
            typer.echo(f"Report {(output / one.dataset if several else output) / 'report.html'}")


def load_system(model: str, device: str, precision: str = "float32", auto: bool = False, follow: bool = True) -> System:
    """What is scored: a baseline by its name, or a model, clicked in a session or (`auto`) by sliding window."""
    import voxsam.lab.systems  # noqa: F401, so that their model files can be evaluated, too
    from voxsam.lab.evaluation.systems import AutomaticSystem, SessionSystem
    from voxsam.lab.systems.classical import CLASSICAL
    from voxsam.weights import load_model

    if model in CLASSICAL:
        return CLASSICAL[model]()
    network = load_model(model, device, precision)  # type: ignore[arg-type]  # both are checked there
    return AutomaticSystem(network) if auto else SessionSystem(network, follow)


def _chosen(found: list[Case], folder: Path, cases: str | None, held_out: Path | None, split: str | None) -> list[Case]:
    from voxsam.lab.data.layouts import choose_cases, split_names
    from voxsam.lab.data.store import open_store
    from voxsam.lab.training.recipe import read_recipe

    if sum(option is not None for option in (cases, held_out, split)) > 1:
        raise InputError("two ways to choose cases", "one of --cases, --held-out, --split", "leave the others out")
    names: list[str] | None = None
    if cases is not None:
        names = listed_names(cases)
    elif held_out is not None and held_out.is_dir():
        names = list(open_store(held_out).split["test"])
    elif held_out is not None:
        names = list(read_recipe(held_out).held_out)
    elif split is not None:
        names = split_names(folder, split)
    return choose_cases(found, names)


def listed_names(words: str) -> list[str]:
    """The names in `a,b,c`."""
    return [name.strip() for name in words.split(",") if name.strip()]
