"""A simulated user works through a project's scans while the model learns from them: clicks per scan.

    python -m benchmarks.learning DATA -o FOLDER [--model FILE] [--seeds 1,2,3,4,5] [--minutes 20] [--every 6]
                                  [--last 6] [--scans N] [--no-painted] [--jobs 2]
    python -m benchmarks.learning DATA -o FOLDER --source sarcoma_mr --leave-one-out

DATA is a folder like the shared data. For each seed, the 18 sarcomas of the training part are clicked in a different
order: a random first click, then corrections up to a Dice of 0.85, at most 10 clicks. The true mask is stored, as if
the user had finished it by brush. After every six scans the project learns, and uses any model that is offered. The
last six scans are also clicked with the start model, unless that is still in use. On the data engine's painted
validation lesions, the last model's Dice is compared with the start model's. After a stop, the same command resumes:
FOLDER/seed-N is the project, FOLDER/seed-N.json has the counts, and is all that is needed of a finished seed. With
--jobs, seeds run in parallel on shares of the cores; a training of given minutes then has fewer steps: set --steps.

--leave-one-out is for too few scans to work through, such as the four in MR: each is left out of one training on the
others, without a gate, and clicked with the start model and with the learned one, with a first click for each seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from voxsam.atomic import atomic_path, make_folder
from voxsam.io import read_volume
from voxsam.lab.data.cases import Case, find_cases
from voxsam.lab.data.parallel import available_cores
from voxsam.lab.engine.check import check
from voxsam.lab.engine.load import cases as split_cases
from voxsam.lab.engine.validation import painted
from voxsam.lab.evaluation.clicks import ClickMaker, clicks_needed
from voxsam.lab.evaluation.systems import SessionSystem
from voxsam.lab.evaluation.tables import markdown_table, write_between_markers
from voxsam.lab.learning import learn
from voxsam.lab.learning.samples import load_stream, preprocessing_for, recipe_for
from voxsam.lab.training.run import train
from voxsam.network.promptable import Promptable
from voxsam.project import Project
from voxsam.prompts import Point
from voxsam.weights.checkpoint import load_model
from voxsam.weights.file import read_card
from voxsam.weights.registry import find_model

MARKER = "learning"
LEFT_OUT_STEPS = 480
START = "milestones/voxsam-tiny-start.safetensors"
Lines = Callable[[str], None]


@dataclass(frozen=True)
class Simulation:
    """The settings of a simulation. The `steps` of each training follow from `minutes` unless given.

    `data` is the folder of the data engine's validation lesions; None: they are left out.
    """

    cases: Sequence[Case]
    model: str
    minutes: float = 20.0
    every: int = 6
    last: int = 6
    steps: int | None = None
    data: Path | None = None

    def run(self, folder: Path, seed: int, say: Lines = lambda line: None) -> dict[str, Any]:
        """Run one seed: {"clicks": by case in working order, "start": of the last cases, "models": used, in order}.

        With `data` also "painted": the last model's Dice on the painted lesions.
        """
        kept = folder / f"seed-{seed}.json"
        known = json.loads(kept.read_text()) if kept.is_file() else {"clicks": {}, "start": {}, "learned": []}
        if "models" in known:
            return known
        project = self._project(folder / f"seed-{seed}", seed)
        by_name = {case.name: case for case in self.cases}
        order = [scan.name for scan in project.scans]
        for number, name in enumerate(order):
            if number and number % self.every == 0 and number not in known["learned"]:
                model = learn(project, minutes=self.minutes, log=say, steps=self.steps, low_priority=False)
                if model.state == "offered":
                    project.use(model.name)
                known["learned"].append(number)
                _write(kept, known)
            if name not in known["clicks"]:
                known["clicks"][name] = self._work(project, by_name[name], seed, project.model_source(), keep=True)
                if project.in_use == project.settings.start and name in order[-self.last :]:
                    known["start"][name] = known["clicks"][name]  # the same clicks on the same model
                say(f"seed {seed}, scan {number + 1} of {len(order)}: {known['clicks'][name]} clicks")
                _write(kept, known)
        for name in order[-self.last :]:
            if name not in known["start"]:
                known["start"][name] = self._work(project, by_name[name], seed, self.model, keep=False)
                _write(kept, known)
        known["start"] = {name: known["start"][name] for name in order[-self.last :]}
        if self.data is not None:
            known["painted"] = painted_dice(load_model(project.model_source()), self.data)
        known["models"] = list(project.settings.used)
        _write(kept, known)
        return known

    def _project(self, folder: Path, seed: int) -> Project:
        """The project, created from a table that lists the scans in an order drawn with the seed."""
        if (folder / "project.json").is_file() and Project(folder).scans:
            return Project(folder)
        order = np.random.default_rng(seed).permutation(len(self.cases))
        table = folder.with_suffix(".csv")
        rows = [f"{self.cases[n].image.absolute()},{self.cases[n].name}" for n in order]
        table.write_text("\n".join(["scan,name", *rows]), encoding="utf-8")
        project = Project(folder) if (folder / "project.json").is_file() else Project.new(folder, start=self.model)
        _, left_out = project.add(table)
        assert not left_out, left_out
        return project

    def _work(self, project: Project, case: Case, seed: int, source: str, keep: bool) -> int:
        """Click one scan and return the number of clicks; the first click depends only on seed and case."""
        scan = read_volume(case.image)
        label = read_volume(case.label, labels=True, scan=scan)
        truth = label.array > 0
        (first,) = ClickMaker(truth, scan.grid.spacing_mm).draw(1, seed, case.name)
        count, _, clicks = clicks_needed(SessionSystem(load_model(source)), scan, truth, first)
        if keep:
            points = [Point.at_index(scan.grid, at, positive) for at, positive in clicks]
            project.done(case.name, label.with_array(truth.astype(np.uint8)), points, scan=scan)
        return count

    def forgotten(self, folder: Path, seeds: Sequence[int]) -> str:
        """A sentence on the change of Dice on the painted lesions over finished seeds."""
        assert self.data is not None
        start = painted_dice(load_model(self.model), self.data)
        after = [json.loads((folder / f"seed-{seed}.json").read_text())["painted"] for seed in seeds]
        mean, low, high = interval([dice - start for dice in after])
        return f"Dice on painted lesions: {start:.3f} at the start; change {mean:+.3f} ({low:+.3f} to {high:+.3f})."

    def leave_one_out(
        self, folder: Path, seeds: Sequence[int], say: Lines = lambda line: None
    ) -> dict[str, dict[str, list[int]]]:
        """Clicks by case, as lists over seeds: {"start": with the start model, "learned": trained on the other cases}.

        FOLDER/left-out is the project, FOLDER/without-CASE a training run, FOLDER/left-out.json has the counts.
        """
        kept = folder / "left-out.json"
        counts: dict[str, dict[str, list[int]]] = json.loads(kept.read_text()) if kept.is_file() else {}
        project = self._project(folder / "left-out", 0)
        for case in self.cases:
            if case.name not in project.done_cases():
                label = read_volume(case.label, labels=True, scan=read_volume(case.image))
                project.done(case.name, label.with_array((label.array > 0).astype(np.uint8)), [])
        for case in self.cases:
            if case.name not in counts:
                learned = str(self._trained_without(project, case.name, folder / f"without-{case.name}"))
                counts[case.name] = {
                    model: [self._work(project, case, seed, source, keep=False) for seed in seeds]
                    for model, source in (("start", self.model), ("learned", learned))
                }
                say(f"{case.name}: {counts[case.name]}")
                _write(kept, counts)
        return counts

    def _trained_without(self, project: Project, name: str, run: Path) -> Path:
        """The weights of a training on all cases but one, with the settings of a project's learning."""
        weights = run / "model.safetensors"
        if not weights.is_file():
            others = [reading for case, reading in project.done_cases().items() if case != name]
            card = read_card(find_model(self.model))
            preprocessing = preprocessing_for(card, [project.scan(reading.case).modality for reading in others])
            recipe = recipe_for(card, self.model, run.name, self.steps or LEFT_OUT_STEPS, preprocessing, data=False)
            train(recipe, None, run, stream=load_stream(project, others, recipe, None))
        return weights


def run_all(simulation: Simulation, folder: Path, seeds: Sequence[int], jobs: int = 1) -> dict[int, dict[str, Any]]:
    """Run all seeds, and return the results by seed; `jobs` parallel processes share the cores."""
    if jobs == 1:
        return {seed: simulation.run(folder, seed, _say) for seed in seeds}
    threads = max(1, available_cores() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        found = {seed: pool.submit(simulation.run, folder, seed, _say) for seed in seeds}
        return {seed: result.result() for seed, result in found.items()}


def _say(line: str) -> None:
    print(line, flush=True)


def _write(path: Path, facts: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def fewer(results: Sequence[dict[str, Any]]) -> list[float]:
    """For each seed, the fraction of clicks saved on the last scans relative to the start model."""
    pairs = [([r["clicks"][name] for name in r["start"]], list(r["start"].values())) for r in results]
    return [1 - sum(after) / sum(before) for after, before in pairs]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and the ends of its 95 % interval (Student's t); for a single value, that value three times."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def report(results: dict[int, dict[str, Any]], every: int) -> str:
    """The curve, a line per seed, and the mean fraction of clicks saved with its interval."""
    rows = []
    for seed, result in results.items():
        clicks = list(result["clicks"].values())
        parts = {
            f"scans {n + 1}-{min(n + every, len(clicks))}": _mean(clicks[n : n + every]) for n in _firsts(clicks, every)
        }
        start = _mean(list(result["start"].values()))
        rows.append({"seed": str(seed), **parts, "the last, start model": start, "models taken": len(result["models"])})
    mean, low, high = interval(fewer(list(results.values())))
    sure = f"95 % interval {low:.0%} to {high:.0%}" if len(results) > 1 else "one seed: no interval"
    sentence = f"Fewer clicks than the start model on the last scans: {mean:.0%} ({sure})."
    return f"{markdown_table(rows)}\n\n{sentence}"


def curve(results: dict[int, dict[str, Any]], every: int) -> Figure:
    """Clicks per scan from one learning to the next: each seed, their mean, the start model on the last scans."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    seeds = [list(result["clicks"].values()) for result in results.values()]
    starts = _firsts(seeds[0], every)
    names = [f"{n + 1}-{min(n + every, len(seeds[0]))}" for n in starts]
    means = np.array([[np.mean(clicks[n : n + every]) for n in starts] for clicks in seeds])
    axes.plot(names, means.T, color="#9aa5b1", linewidth=1)
    axes.plot(names, means.mean(0), "o-", color="#0072b2", linewidth=2, label="mean of the seeds, learning")
    before = [np.mean(list(result["start"].values())) for result in results.values()]
    axes.plot(names[-1:], [np.mean(before)], "s", color="#d55e00", label="the start model on the last scans")
    axes.set(xlabel="scans in the order of work", ylabel="clicks per scan to a Dice of 0.85, at most 10", ylim=(0, 10))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def left_out_report(counts: dict[str, dict[str, list[int]]]) -> str:
    """A line for each scan with its mean number of clicks over first clicks, and the overall saving."""
    rows = [
        {"scan left out": name, "clicks, start model": _mean(count["start"]), "learned": _mean(count["learned"])}
        for name, count in counts.items()
    ]
    before, after = (sum(sum(count[model]) for count in counts.values()) for model in ("start", "learned"))
    return f"{markdown_table(rows)}\n\nFewer clicks than the start model: {1 - after / before:.0%}."


def _firsts(clicks: Sequence[int], every: int) -> range:
    return range(0, len(clicks), every)


def _mean(counts: Sequence[int]) -> str:
    return f"{np.mean(counts):.2f}"


def painted_dice(model: Promptable, data: Path) -> float:
    """Mean Dice after one click on the data engine's painted validation lesions."""
    return float(np.mean([row.dice[0] for row in check(model, painted(data))]))


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--source", default="sarcoma_ct", help="folder of DATA: sarcoma_ct, or sarcoma_mr")
    parser.add_argument("--model", default=START)
    parser.add_argument("--seeds", default="1,2,3,4,5", help="orders and first clicks; 0 was used for tuning")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, help="of each check, instead of what fits into the minutes")
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--last", type=int, default=6)
    parser.add_argument("--scans", type=int, help="only the first so many")
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side")
    parser.add_argument("--leave-one-out", action="store_true", help="for too few scans to work through")
    parser.add_argument("--no-painted", action="store_true", help="leave out the data engine's lesions")
    parser.add_argument("--plot", type=Path, help="PNG file of the curve")
    parser.add_argument("--write", type=Path, help=f"Markdown file with the markers <!-- {MARKER} -->")
    options = parser.parse_args(arguments)
    parts = ("train", "validation") if options.leave_one_out else ("train",)  # the start model has seen neither
    chosen = {name for part in parts for name in split_cases(options.source, part)}
    cases = [case for case in find_cases(options.data / options.source) if case.name in chosen][: options.scans]
    lesions = None if options.no_painted else options.data
    simulation = Simulation(cases, options.model, options.minutes, options.every, options.last, options.steps, lesions)
    make_folder(options.output)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.leave_one_out:
        marker = f"{MARKER} {options.source}"
        text = left_out_report(simulation.leave_one_out(options.output, seeds, _say))
    else:
        marker, results = MARKER, run_all(simulation, options.output, seeds, options.jobs)
        text = report(results, options.every)
        if options.plot is not None:
            curve(results, options.every).savefig(options.plot, dpi=150)
        text += "" if lesions is None else f"\n\n{simulation.forgotten(options.output, seeds)}"
    print(text)
    if options.write is not None:
        write_between_markers(options.write, marker, text)


if __name__ == "__main__":
    main()
