"""`voxsam compare`: run the missing jobs of a plan of systems, data sets and seeds, and write tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxsam.cli.progress import ProgressBar
from voxsam.errors import InputError
from voxsam.lab.cli.evaluate import listed_names

FAILED = 1


def command(
    plan: Annotated[
        Path | None, typer.Argument(metavar="PLAN", help="A plan in YAML, or the name of one of VoxSAM's: table1-tiny.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The folder of the comparison; one begun before goes on.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Where a data set of the plan lies; may stand several times."),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="ROW[,ROW]", help="Only these rows of the plan.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Jobs at once; default: as many as fit.")] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="DOCUMENT", help="A Markdown file: the block between the plan's markers is replaced."),
    ] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Run nothing: tables of what is there; without -o, of the kept results.")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep small results here; default for --tables: results/ beside the plan."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Import the Python modules that the plan names; which can do anything."),
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="All systems that a plan can name, and stop.")] = False,
) -> None:
    """Train and score every system of a plan on the same cases; a row that fails costs itself only."""
    if listed:
        _list()
        return
    if plan is None or (output is None and not tables):
        raise InputError("no plan or no output", "voxsam compare PLAN -o FOLDER", "add what is missing, or take --list")
    from voxsam.atomic import make_folder
    from voxsam.lab.compare.output import write_output
    from voxsam.lab.compare.plan import read_plan
    from voxsam.lab.compare.results import read_results, result_of, save_results
    from voxsam.lab.compare.runner import Room, Task, alone_in, make_tasks, run
    from voxsam.lab.evaluation.tables import require_markers
    from voxsam.lab.training.recipe import find_named

    chosen = read_plan(plan, _folders(data or []), data_needed=output is not None)
    if chosen.python and not trust:
        given = f"{plan} runs Python of its own: {', '.join(chosen.python)}"
        expected = "a plan without `modules` and checkouts, or your word for them"
        raise InputError(given, expected, "read them, then add --trust")
    if only is not None:
        chosen = chosen.only(listed_names(only))
    if write is not None:
        require_markers(write, chosen.name)
    if output is None:
        folder = results or find_named(plan, "plans").parent / "results" / chosen.name
        typer.echo(write_output(chosen, read_results(chosen, folder), [], folder, write))
        return
    make_folder(output)
    with alone_in(output), ProgressBar() as progress:
        tasks = make_tasks(chosen, output, progress)
        known = read_results(chosen, results) if results is not None and results.is_dir() else []
        done = {one.key: one for one in known if one.outcome is not None}

        def keep(task: Task) -> None:
            if results is not None:
                save_results([result_of(chosen, task)], results)

        if not tables:
            missing = [task for task in tasks if task.key not in done]
            run(chosen, missing, Room.for_plan(chosen, jobs), output, progress, keep)
        progress("tables and figures")
        for task in tasks:
            keep(task)
        found = [
            done[task.key] if task.outcome is None and task.key in done else result_of(chosen, task) for task in tasks
        ]
        text = write_output(chosen, found, tasks, output, write)
    typer.echo(text)
    failed = [task for task in tasks if task.outcome is None and task.key not in done]
    if failed and not tables:
        for task in failed:
            typer.echo(f"voxsam: {task} failed: {task.failure}; its log: {task.folder / 'log.txt'}", err=True)
        raise typer.Exit(FAILED)


def _folders(words: list[str]) -> dict[str, str]:
    folders = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--data {word}", "NAME=FOLDER", "write for example --data kits=KiTS21/dataset")
        if not Path(folder).exists():
            raise InputError(f"--data {word}: no such folder", "a data set as it was unpacked", "check the path")
        folders[name] = folder
    return folders


def _list() -> None:
    from voxsam.lab.systems.common_loop import compared_system
    from voxsam.lab.systems.compared import COMPARED

    compared_system("voxsam")  # registers them all
    for name in sorted(COMPARED):
        system = compared_system(name)
        about = system.about
        typer.echo(f"{name}: {about.title}")
        facts = {
            "paper": about.paper,
            "original": f"{about.source} ({about.licence})",
            "here": about.library,
            "differs": about.differences,
            "given": about.note,
            "install": about.install,
        }
        for key, fact in facts.items():
            if fact:
                typer.echo(f"    {key}: {fact}")
        for option, meaning in system.options.items():
            typer.echo(f"    option {option}: {meaning}")
