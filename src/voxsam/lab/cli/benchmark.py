"""`voxsam benchmark`: the lesion board's clicks sent to any server of the nnInteractive protocol, or to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from voxsam.cli.parse import given_path
from voxsam.cli.progress import ProgressBar
from voxsam.cli.segment import set_threads
from voxsam.errors import InputError
from voxsam.lab.cli.evaluate import listed_names, load_system

if TYPE_CHECKING:
    from voxsam.lab.evaluation.systems import System

CLICKS, CORRECTIVE = (1, 3, 5, 10), 10
LOCAL = ("127.0.0.1", "localhost", "::1")
NOT_KNOWN = "not known: the server runs elsewhere"


def command(
    folder: Annotated[
        Path, typer.Argument(parser=given_path, metavar="DATA", help="Labelled cases, as for `voxsam evaluate`.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the results.")],
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="A server of the nnInteractive protocol: http://HOST:PORT.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Instead of a server: a name or a .safetensors file.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="NN_INTERACTIVE_API_KEY", help="If the server wants one.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="What tables call a server's model.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of a server's model, for the tables.")] = None,
    negative: Annotated[bool, typer.Option(help="Whether a server's model takes negative clicks.")] = True,
    cases: Annotated[str | None, typer.Option(help="Only these cases: a,b,c.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials for each number of clicks.")] = 3,
    whole: Annotated[bool, typer.Option("--whole", help="Click the whole label, not each lesion by itself.")] = False,
    tolerance_mm: Annotated[float, typer.Option(help="Of both NSDs.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the clicks; the same seed sends everyone the same.")] = 0,
    device: Annotated[str, typer.Option(help="Of a model: auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of a model; default: all.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Score random clicks (1, 3, 5, 10) and up to 10 corrective ones: curves, areas under them, seconds, memory."""
    from voxsam.lab.data.layouts import choose_cases, find_labelled
    from voxsam.lab.evaluation.output import check_output, write_evaluation
    from voxsam.lab.evaluation.protocol import EvaluationSettings, evaluate
    from voxsam.lab.evaluation.tables import write_tables

    if (server is None) == (model is None):
        raise InputError("a server and a model, or neither", "--server URL or --model NAME", "give one of them")
    check_output(output)
    found, labels = find_labelled(folder)
    chosen = choose_cases(found, None if cases is None else listed_names(cases))
    settings = EvaluationSettings(
        clicks=CLICKS,
        trials=trials,
        corrective=CORRECTIVE,
        per_lesion=not whole,
        labels=labels,
        tolerance_mm=tolerance_mm,
        seed=seed,
        voxel_nsd=True,
    )
    set_threads(threads)
    with ProgressBar(quiet) as progress:
        progress("asking the server" if server else "loading the model")
        system = _served(server, api_key, title, negative) if server else load_system(str(model), device)
        evaluation = evaluate(system, chosen, settings, folder.resolve().name, progress)
        known = getattr(getattr(system, "card", None), "description", {}).get("licence")
        facts = {"Licence": licence or known or "not stated", "Peak memory": _memory(server)}
        evaluation = replace(evaluation, facts=facts)
        progress("writing tables and figures")
        write_evaluation(evaluation, system, {case.name: case for case in chosen}, output)
    if not quiet:
        typer.echo(write_tables(evaluation))
        typer.echo(f"Report {output / 'report.html'}")


def _served(address: str, api_key: str | None, title: str | None, negative: bool) -> System:
    from voxsam.lab.systems.common_loop import compared_system
    from voxsam.lab.systems.compared import Job

    options = {"address": address, "api_key": api_key, "negative": negative, **({"title": title} if title else {})}
    job, remote = Job(Path(), Path(), options=options), compared_system("remote")
    remote.check(job)
    return remote.load(job)


def _memory(server: str | None) -> str:
    """In words: this process's peak memory with a model, or what a server on this machine holds now."""
    import psutil

    if server is None:
        from voxsam.lab.compare.work import peak_gb

        return f"{peak_gb():.2f} GB, scans and scores included"
    address = urlsplit(server)
    if address.hostname not in LOCAL:
        return NOT_KNOWN
    port = address.port or (443 if address.scheme == "https" else 80)
    for process in psutil.process_iter():
        try:
            listens = [one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
            if port in listens:
                return f"{process.memory_info().rss / 1e9:.2f} GB, held by the server after the last click"
        except psutil.Error:  # another user's process, or one that has ended
            continue
    return NOT_KNOWN
