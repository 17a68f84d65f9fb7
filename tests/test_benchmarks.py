"""The benchmark's calculations (operations, ratios, rates), its tables, and one quick run of everything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cases, reference, run, sampling, web
from benchmarks.machine import available_cores, describe_machine, matrix_product_rates, peak_memory_bytes, peak_rate
from benchmarks.operations import encoder_operations
from voxsam.errors import FileError
from voxsam.kernels import install
from voxsam.kernels.linear import packs, precisions
from voxsam.lab.evaluation.tables import markdown_table, three_digits, write_between_markers
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.sizes import TINY, VIT_B, ModelConfig
from voxsam.preprocess import RELEASED

MEGABYTE = 2**20
SETTINGS = {"size": "tiny", "crop": 32, "threads": 1, "quick": True}


# Operations


@pytest.mark.parametrize("shape", [(32, 32, 32), (20, 32, 12)])
def test_the_count_is_what_torch_counts_in_the_reference_implementation(shape):
    config = TINY.model_copy(update={"depth": 4})
    encoder = cases.build(VoxSAMNetwork, config, RELEASED["colon"], 0).image_encoder
    found = encoder_operations(config, shape)
    tokens = torch.zeros(1, *[n // config.stride for n in shape], config.width)

    def counted(work, *inputs: object) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work(*inputs)
        return counter.get_total_flops()

    assert found.blocks == sum(
        counted(reference.encode_block, b, tokens, i % 2 == 0) for i, b in enumerate(encoder.blocks)
    )
    assert found.necks == sum(counted(reference.neck, neck, tokens) for neck in encoder.necks)
    embedding = encoder.patch_embedding
    composing = counted(embedding.composed)
    assert found.patch_embedding == counted(embedding, torch.zeros(1, 1, *shape)) - composing
    assert found.encoder == found.blocks + found.necks + found.patch_embedding


def test_the_operations_of_vit_b_by_hand():
    """32^3 tokens, windows of 512, twelve blocks: 6.0 TFLOP of projections, MLP and adapter, and attention."""
    found = encoder_operations(VIT_B, (128, 128, 128))
    tokens, c = 32**3, 768
    linear = 2 * tokens * (4 * c * c + 8 * c * c + c * c)
    attention = 2 * tokens * c * (2 * 512 + 24)
    assert 12 * linear == pytest.approx(6.03e12, rel=1e-3)
    assert found.blocks == 12 * (linear + attention + 2 * tokens * 384 * 27)
    assert found.patch_embedding == 2 * tokens * 6**3 * c


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return made


def cost(form: type[VoxSAMNetwork], config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Operations, and bytes of the largest tensor, of encoding and of a click; on paper: nothing is computed."""
    with torch.device("meta"):
        network = form(Card(name="counted", config=config, preprocessing=RELEASED["colon"]))
        if form is VoxSAMNetwork:
            install(network)
        crop, prompt_features = torch.zeros(1, 1, *[config.crop] * 3), torch.zeros(1, 1, config.feature_width)
    found, kept = {}, []
    steps = {
        "encode": lambda: kept.extend([network.encode(crop)]),
        "static": lambda: kept.extend([network.static(kept[0], crop)]),
        "click": lambda: network.decode(kept[0], crop, prompt_features=prompt_features, static=kept[1]),
    }
    for name, step in steps.items():
        with torch.no_grad(), FlopCounterMode(display=False) as operations, Largest() as largest:
            step()
        found[name] = operations.get_total_flops(), largest.nbytes
    return found


def test_vit_b_takes_a_fraction_of_the_reference_implementations_operations_and_memory():
    """These ratios hold on every machine, so that a regression is seen even where nothing can be timed."""
    reference_, voxsam_ = cost(reference.ReferenceNetwork, VIT_B), cost(VoxSAMNetwork, VIT_B)
    assert reference_["click"][0] > 7 * voxsam_["click"][0]
    assert sum(n for n, _ in voxsam_.values()) < 0.95 * sum(n for n, _ in reference_.values())
    assert max(n for _, n in reference_.values()) > 7 * max(n for _, n in voxsam_.values())
    assert reference_["encode"][1] > 15 * voxsam_["encode"][1]


# Ratios and rates


def test_ratios_are_reference_over_voxsam():
    slow = {"first_click_s": 60.0, "next_click_s": 6.0, "peak_memory_bytes": 8e9, "sample": [0.5, 0.25]}
    fast = {"first_click_s": 15.0, "next_click_s": 1.0, "peak_memory_bytes": 2e9, "sample": [0.5, 0.3]}
    assert run.compare(slow, fast) == {
        "first_click_s": 4,
        "next_click_s": 6,
        "peak_memory_bytes": 4,
        "largest_difference_of_probability": pytest.approx(0.05),
    }
    assert run.compare(None, fast) is None


def test_rates_are_shares_of_the_best_matrix_product():
    encoder = {
        "blocks_operations": 6e12,
        "blocks_s": 40.0,
        "encoder_operations": 8e12,
        "encoder_s": 80.0,
        "matrix_product_rates": {"a": 1e11, "b": 2e11},
    }
    assert run.encoder_rates(encoder) == {
        "matrix_product": 2e11,
        "blocks": 1.5e11,
        "blocks_share": 0.75,
        "encoder": 1e11,
        "encoder_share": 0.5,
    }
    known = run.encoder_rates({**encoder, "peak_rate": 3e11})
    assert (known["blocks_of_peak"], known["encoder_share"]) == (0.5, 0.5)


# A whole run


def in_this_process(name: str, settings: dict) -> dict:
    return cases.run_case(name, cases.Settings(**settings))


@pytest.fixture(scope="module")
def results() -> dict:
    threads = torch.get_num_threads()
    found = run.measure(SETTINGS, run_case=in_this_process)
    torch.set_num_threads(threads)
    return json.loads(json.dumps(found))


def test_the_results_have_these_keys(results):
    assert list(results) == ["machine", "settings", "cases", "ratios", "encoder_rates", "precisions"]
    assert list(results["cases"]) == ["encoder", "voxsam", "reference", "precision", "tiny", "reading"]
    assert set(results["machine"]) == {"cpu", "cores", "threads", "system", "python", "torch"}
    clicks = {"first_click_s", "next_click_s", "peak_memory_bytes"}
    more = {"each_click_s", "ten_clicks_s", "undo_s", "moving_click_s"}
    assert set(results["cases"]["reference"]) == clicks
    assert set(results["cases"]["voxsam"]) == clicks | more
    assert len(results["cases"]["voxsam"]["each_click_s"]) == 10
    assert results["cases"]["reading"]["scan_shape"] == [128, 128, 75]
    assert set(results["precisions"]) == set(precisions(torch.device("cpu"))) - {"float32"}
    encoder = results["cases"]["encoder"]
    assert encoder["encoder_operations"] == encoder_operations(cases.Settings(**SETTINGS).config, (32,) * 3).encoder
    assert 0 < encoder["blocks_s"] < encoder["encoder_s"]
    assert results["cases"]["tiny"]["scan_shape"] == [128, 128, 75]


def test_both_forms_gave_the_same_probabilities(results):
    assert results["ratios"]["largest_difference_of_probability"] < 1e-4


def test_the_report_has_a_row_for_each_click_and_for_memory(results):
    text = run.report(results)
    assert "| tiny, crop 32³ | reference | VoxSAM | reference / VoxSAM |" in text
    for row, _, _ in run.MORE_ROWS:
        assert text.count(f"| {row} |") == 2  # of the two forms, and of voxsam-tiny
    shown = three_digits(results["ratios"]["first_click_s"])
    assert f"{shown} |\n| Next click" in text


def test_a_reference_implementation_that_does_not_fit_is_left_out(capsys):
    def run_case(name: str, settings: dict) -> dict:
        if name == "reference":
            raise run.CaseFailedError("reference was killed: most likely it ran out of memory")
        return {**stand_in, "sample": [0.5]}

    stand_in = {"first_click_s": 1.0, "next_click_s": 1.0, "peak_memory_bytes": 1e9, "scan_shape": [1, 2, 3]}
    stand_in |= {f"{part}_{key}": 1.0 for part in ("blocks", "encoder") for key in ("s", "operations")}
    stand_in |= {"matrix_product_rates": {"a": 1.0}, "weights": "random", "packed_bytes": 1e6}
    stand_in |= dict.fromkeys(("ten_clicks_s", "undo_s", "moving_click_s", "unpacking_s", "reading_s"), 1.0)
    stand_in |= {"first_crop_s": 1.0, "float32": {"first_click_s": 1.0, "sample": [0.5]}}
    found = run.measure(SETTINGS, run_case=run_case)
    assert "reference" not in found["cases"] and found["ratios"] is None
    assert "| First click, s | – | 1.00 | – |" in run.report(found)
    assert "left out: reference was killed" in capsys.readouterr().err


def test_a_case_in_its_own_process_has_its_own_peak_of_memory():
    ballast = np.ones(150 * MEGABYTE, dtype=np.uint8)  # a child must not begin with its parent's peak
    here = peak_memory_bytes()
    found = run.run_in_child("voxsam", SETTINGS)
    assert here > ballast.nbytes
    assert 50 * MEGABYTE < found["peak_memory_bytes"] < 1000 * MEGABYTE
    assert found["first_click_s"] > 0


def test_a_case_that_fails_says_what_it_said():
    with pytest.raises(run.CaseFailedError, match=r"(?s)nonsense ended with status 1.*KeyError: 'nonsense'"):
        run.run_in_child("nonsense", SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--crop", "130"], "--crop 130: must be a multiple of 4"),
        (["--crop", "0"], "--crop 0: must be a multiple of 4"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--size", "vit_g"], "invalid choice: 'vit_g'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        run.parse(arguments)
    assert words in capsys.readouterr().err


def test_quick_means_small():
    options = run.parse(["--quick"])
    assert (options.size, options.crop) == ("tiny", 32)


# The machine


def test_the_machine_is_described():
    machine = describe_machine(3)
    assert machine["threads"] == 3
    assert machine["cores"] == available_cores() >= 1
    assert machine["torch"] == torch.__version__
    assert machine["cpu"]


def test_matrix_product_rates_name_their_shapes_and_ways():
    """Packed products are measured for the shapes for which VoxSAM uses them."""
    packed = ["8x4 @ 4x2, packed"] if packs(torch.device("cpu")) else []
    rates = matrix_product_rates(((8, 4, 2),))
    assert list(rates) == ["8x4 @ 4x2", *packed] and all(rate > 0 for rate in rates.values())


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "lanes"),
    [
        ("GenuineIntel", 6, "fma avx2 avx512f", 64),
        ("GenuineIntel", 6, "fma avx2", 32),
        ("AuthenticAMD", 25, "fma avx2 avx512f", 32),
        ("AuthenticAMD", 26, "fma avx2 avx512f", 64),
    ],
)
def test_the_peak_is_lanes_times_clock(tmp_path: Path, vendor: str, family: int, flags: str, lanes: int):
    """Two cores at 3 GHz."""
    (tmp_path / "info").write_text(f"vendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: fpu {flags}\n\nx: y\n")
    (tmp_path / "khz").write_text("3000000\n")
    assert peak_rate(2, tmp_path / "info", tmp_path / "khz") == pytest.approx(2 * lanes * 3e9)
    assert peak_rate(2, tmp_path / "info", tmp_path / "none") is None
    (tmp_path / "info").write_text("vendor_id\t: ARM\n\n")
    assert peak_rate(2, tmp_path / "info", tmp_path / "khz") is None


def test_peak_memory_is_in_bytes_and_stays_when_memory_is_given_back():
    ballast = np.ones(50 * MEGABYTE, dtype=np.uint8)
    peak = peak_memory_bytes()
    assert ballast.nbytes < peak < 2**40
    del ballast
    assert peak_memory_bytes() > peak - MEGABYTE  # the kernel counts pages per processor, and adds them up later


# Tables


def test_a_table_has_every_column_and_marks_what_is_missing():
    table = markdown_table([{"case": "a", "Dice": 0.8123}, {"case": "mean", "Dice": 0.5, "mL": 12}])
    assert table.splitlines() == [
        "| case | Dice | mL |",
        "| --- | ---: | ---: |",
        "| a | 0.812 | – |",
        "| mean | 0.500 | 12 |",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (0.8, "0.800"),
        (0.9996, "1.00"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (99.96, "100"),
        (1234.5, "1234"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert three_digits(value) == text


def test_a_table_goes_between_its_markers(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(
        "a\n<!-- bench -->\nold \\1\n<!-- /bench -->\nb\n<!-- other -->\n<!-- /other -->\n", encoding="utf-8"
    )
    for text in ("| new \\1 |", "| newer |"):
        write_between_markers(file, "bench", text)
    expected = "a\n<!-- bench -->\n| newer |\n<!-- /bench -->\nb\n<!-- other -->\n<!-- /other -->\n"
    assert file.read_text(encoding="utf-8") == expected


def test_a_file_without_markers_or_without_file_is_refused(tmp_path):
    file = tmp_path / "page.md"
    with pytest.raises(FileError, match="no such file"):
        write_between_markers(file, "bench", "x")
    file.write_text("<!-- bench -->\n", encoding="utf-8")
    with pytest.raises(FileError, match="without markers; expected <!-- bench --> and <!-- /bench -->"):
        write_between_markers(file, "bench", "x")
    assert file.read_text(encoding="utf-8") == "<!-- bench -->\n"


# Training crops


@pytest.mark.slow
def test_crops_from_the_store_and_from_files(capsys, monkeypatch):
    monkeypatch.setattr(sampling.gunzip, "inflate", sampling.gunzip.inflate)  # what --zlib changes comes back
    sampling.main(["--zlib", "--shape", "64,64,40", "--crop", "32", "--crops", "3"])
    printed = capsys.readouterr().out
    assert "scan of 64 x 64 x 40, crops of 32³" in printed
    assert ".nii.gz unpacked by zlib." in printed
    assert printed.count("\n| ") == 5  # a head of two lines, three ways


def test_a_folder_that_is_not_what_the_sources_make_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["web", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        web.main()
    assert ended.value.code == 2 and "holds no page; expected what `make web` builds" in capsys.readouterr().err
    page = tmp_path / "index.html"
    page.touch()
    os.utime(page, (0, 0))
    with pytest.raises(SystemExit):
        web.main()
    assert "run `make web` again" in capsys.readouterr().err
