"""Recipes: the shipped one is valid and complete, and every mistake in a file is reported in one line."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from voxsam.errors import FileError, InputError
from voxsam.lab.data.augmentation import AUGMENTATIONS
from voxsam.lab.training.memory import ERROR, PROGRAM, Footprint
from voxsam.lab.training.recipe import Recipe, names_of, preset_names, read_keys, read_preset, read_recipe
from voxsam.lab.training.start import make_network
from voxsam.lab.training.task import schedule
from voxsam.network.sizes import TINY, VIT_B, VIT_L
from voxsam.preprocess import PAPER, RELEASED
from voxsam.testing import stub_network
from voxsam.weights.checkpoint import _Unfilled, save_model
from voxsam.weights.file import read_card
from voxsam.weights.registry import find_model

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes").glob("*.yaml"))
MACHINES = {"laptop": 16e9, "gpu24": 24e9, "gpu80": 80e9}  # bytes, of the presets' machines
STATISTICS = {"preprocessing": {"clip": [-100, 100], "mean": 0, "sd": 50}}  # what a prepared data set would say
LEAST = {
    "name": "least",
    "model": {"size": "s", "width": 16, "depth": 4, "heads": 2, "adapter_width": 8},
    "preprocessing": {"clip": [-100, 100], "mean": 0, "sd": 50},
    "steps": 100,
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **changes}))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert path.stem.startswith(read_recipe(path, defaults=STATISTICS).name)


def test_voxsam_tiny_is_trained_by_its_recipe() -> None:
    (path,) = [path for path in RECIPES if path.stem == "voxsam-tiny"]
    recipe, card = read_recipe(path), read_card(find_model("voxsam-tiny"))
    assert recipe.model == card.config
    assert recipe.preprocessing == card.preprocessing
    assert len(recipe.held_out) == 6
    assert recipe.description["licence"] == "Apache-2.0"


def test_the_least_recipe_has_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path))
    assert (recipe.batch, recipe.held_out, recipe.phantoms, recipe.augmentation.flip) == (2, (), 0, 0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stepz": 3}, "stepz: Extra inputs are not permitted"),
        ({"model": {**LEAST["model"], "deep": 3}}, "model.deep: Extra inputs are not permitted"),
        ({"augmentation": {"mirror": 1}}, "augmentation.mirror: Extra inputs are not permitted"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"batch": 0}, "batch: Input should be greater than 0"),
        ({"corrected": 2}, "corrected: Input should be less than or equal to 1"),
        ({"prompts": "guess"}, "prompts: Input should be 'clicks', 'paper', 'released' or 'none'"),
        ({"learning_rate": -1}, "learning_rate: Input should be greater than 0"),
        ({"ema": 1.5}, "ema: Input should be less than or equal to 1"),
        ({"phantom_fraction": 60}, "phantom_fraction: Input should be less than or equal to 1"),
        ({"phantom_shape": [72, 72]}, "phantom_shape.2: Field required"),
        ({"preprocessing": {**LEAST["preprocessing"], "sd": 0}}, "preprocessing.sd: Input should be greater than"),
        ({"model": {**LEAST["model"], "heads": 3}}, "model: width must divide by heads"),
    ],
)
def test_a_fault_is_named_in_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}: {words}")
    assert str(error.value).endswith("expected the keys of voxsam.lab.training.recipe.Recipe; correct it")
    assert "\n" not in str(error.value)


def test_a_missing_key_a_missing_file_and_no_yaml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in LEAST.items() if k != "steps"}))
    with pytest.raises(InputError, match="steps, epochs or minutes: one of them, and only one"):
        read_recipe(path)
    path.write_text("name: [")
    with pytest.raises(InputError, match="expected a recipe in YAML; repair the file"):
        read_recipe(path)
    path.write_text("")
    with pytest.raises(InputError, match="no keys; expected a recipe in YAML"):
        read_recipe(path)
    words = "nowhere.yaml: no such file; expected a recipe in YAML; name a file, or one of "
    with pytest.raises(FileError, match=words):
        read_recipe(tmp_path / "nowhere.yaml")


def test_options_have_hyphens_or_underscores(tmp_path: Path) -> None:
    path = write(tmp_path)
    for words in (["--learning-rate", "0.5"], ["--learning_rate=0.5"], ["--learning-rate=0.5"]):
        assert read_recipe(path, words).learning_rate == 0.5
    assert read_recipe(path, ["--augmentation.off-centre=0.25", "--name=a-b_c"]).augmentation.off_centre == 0.25


def test_a_recipe_and_a_plan_are_found_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_recipe(Path("train-demo"), ["--steps=7"], LEAST).steps == 7
    assert read_keys(Path("fine-tune"))["start_from"] == "voxsam-tiny"
    assert read_keys(Path("table1-tiny"), "plan")["reference"] == "voxsam"
    assert {"fine-tune", "voxsam-tiny"} <= set(names_of("recipes"))
    with pytest.raises(FileError, match=r"fine-tuned: no such file; .*or one of .*fine-tune"):
        read_recipe(Path("fine-tuned"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path).rename(tmp_path / "fine-tune")  # a file of that name is itself
    assert read_recipe(Path("fine-tune")).start_from is None


def test_a_recipe_never_changes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_recipe(write(tmp_path)).steps = 5  # type: ignore[misc]


def test_the_learning_rate_by_hand() -> None:
    """Up over 10 steps, level, and down to 0 over the last 30 of 100."""
    recipe = Recipe.model_validate({**LEAST, "warmup": 10, "decay": 0.3})
    at = {step: schedule(step, recipe) for step in (0, 4, 9, 10, 69, 70, 85, 99, 100, 120)}
    wanted = {0: 0.1, 4: 0.5, 9: 1, 10: 1, 69: 1, 70: 1, 85: 0.5, 99: 1 / 30, 100: 0, 120: 0}
    assert at == pytest.approx(wanted)


def test_the_learning_rate_without_warm_up_and_decay() -> None:
    recipe = Recipe.model_validate({**LEAST, "warmup": 0, "decay": 0})
    assert [schedule(step, recipe) for step in (0, 50, 99)] == [1, 1, 1]


def test_options_change_single_keys(tmp_path: Path) -> None:
    path = write(tmp_path, augmentation={"flip": 0.25, "turn": 0.75})
    options = ["--steps=7", "--augmentation.flip", "0", "--held_out", "a,b", "--model.width", "32"]
    recipe = read_recipe(path, options)
    assert (recipe.steps, recipe.augmentation.flip, recipe.augmentation.turn) == (7, 0, 0.75)
    assert (recipe.held_out, recipe.model.width, recipe.model.heads) == (("a", "b"), 32, 2)


def test_the_environment_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "9")
    monkeypatch.setenv("NAME", "other")
    assert (read_recipe(write(tmp_path), ["--batch=1"]).steps, read_recipe(write(tmp_path)).name) == (100, "least")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stepz", "7"], "unrecognized arguments: --stepz 7; expected options as --steps 500"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "many"], "steps: Input should be a valid integer"),
        (["--augmentation.mirror", "1"], "unrecognized arguments: --augmentation.mirror 1"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        read_recipe(write(tmp_path), options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_model_may_be_given_by_its_size(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, model="tiny")).model == TINY


# The data sets of the paper, as released and as in its text: the numbers of docs/released.md, "Training"
OPTIMISER = {
    "released": {"learning_rate": 4e-4, "weight_decay": 0, "epochs": 500, "final_factor": 0.01},
    "paper": {"learning_rate": 1e-4, "weight_decay": 1e-5, "epochs": 200, "final_factor": 0.1},
}
LARGE_CROPS = {("kits", "paper"), ("colon", "paper")}


@pytest.mark.parametrize("profile", ["released", "paper"])
@pytest.mark.parametrize("name", ["kits", "lits", "pancreas", "colon"])
def test_the_recipes_of_the_paper_s_data_sets(name: str, profile: str) -> None:
    (path,) = [path for path in RECIPES if path.stem == f"{name}-{profile}"]
    recipe = read_recipe(path)
    statistics = {"released": RELEASED, "paper": PAPER}[profile][name]
    assert recipe.preprocessing == statistics
    large = {"crop": 256, "stride": 8} if (name, profile) in LARGE_CROPS else {}  # 32 tokens a side in any case
    assert recipe.model == VIT_B.in_profile(profile).model_copy(update=large)  # type: ignore[arg-type]
    assert recipe.model.token_grid == 32
    assert {key: getattr(recipe, key) for key in OPTIMISER[profile]} == OPTIMISER[profile]
    assert (recipe.batch, recipe.accumulate, recipe.gradient_clip, recipe.clip) == (1, 1, 1, "parts")
    assert (recipe.warmup, recipe.decay, recipe.decay_vectors, recipe.ema) == (0, 1, True, 0)
    assert (recipe.prompts, recipe.corrections, recipe.tune, recipe.augmentation) == (
        profile,
        0,
        "adapters",
        AUGMENTATIONS[profile],
    )


def test_an_epoch_is_a_pass_over_the_scans_and_keeps_one_learning_rate(tmp_path: Path) -> None:
    """7 scans, 2 x 1 x 2 crops a step: 2 steps an epoch. Linear from 1 to 0.1 over 3 epochs: 1, 0.7, 0.4."""
    fields = {key: value for key, value in LEAST.items() if key != "steps"}
    given = {**fields, "epochs": 3, "warmup": 0, "decay": 1, "final_factor": 0.1, "batch": 2, "devices": 2}
    recipe = Recipe.model_validate(given).planned(7)
    assert (recipe.steps, recipe.checkpoint_every, recipe.validate_every) == (6, 2, 2)
    assert [schedule(step, recipe) for step in range(6)] == pytest.approx([1, 1, 0.7, 0.7, 0.4, 0.4])
    assert Recipe.model_validate({**given, "checkpoint_every": 5}).planned(7).checkpoint_every == 5


def test_the_released_learning_rate_over_500_epochs() -> None:
    """PyTorch's LinearLR from 1 to 0.01 over 500 epochs, 209 cases: step 0, the middle, the last."""
    import torch

    (path,) = [path for path in RECIPES if path.stem == "kits-released"]
    recipe = read_recipe(path).planned(209)
    assert recipe.steps == 500 * 209
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    linear = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, 500)
    wanted = []
    for _ in range(500):
        wanted.append(linear.get_last_lr()[0])
        optimiser.step()
        linear.step()
    found = [schedule(209 * epoch + 100, recipe) for epoch in range(500)]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_an_option_of_steps_takes_the_place_of_epochs(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert (read_recipe(path, ["--epochs=3"]).steps, read_recipe(path, ["--epochs", "3"]).epochs) == (None, 3)
    with pytest.raises(InputError, match="steps, epochs or minutes: one of them, and only one"):
        read_recipe(path, ["--epochs=3", "--steps=4"])


def test_a_size_needs_no_more_than_what_differs(tmp_path: Path) -> None:
    path = write(tmp_path, model={"size": "vit_b", "profile": "paper", "crop": 64})
    assert read_recipe(path, ["--model.window", "4"]).model == VIT_B.in_profile("paper").model_copy(
        update={"crop": 64, "window": 4}
    )
    with pytest.raises(InputError, match="model.profile: Extra inputs are not permitted"):
        read_recipe(write(tmp_path, model={"size": "vit_b", "profile": "papr"}))


def test_a_profile_of_augmentation_by_name_can_be_changed(tmp_path: Path) -> None:
    path = write(tmp_path, augmentation="released")
    assert read_recipe(path).augmentation == AUGMENTATIONS["released"]
    changed = read_recipe(path, ["--augmentation.turn", "0.125"]).augmentation
    assert changed == AUGMENTATIONS["released"].model_copy(update={"turn": 0.125})
    with pytest.raises(InputError, match="augmentation"):
        read_recipe(write(tmp_path, augmentation="guess"))


def test_channels_of_model_and_preprocessing_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model.channels is 2, and preprocessing is for 1"):
        read_recipe(write(tmp_path, model={**LEAST["model"], "channels": 2}))


def test_a_preset_changes_what_the_machine_wants_and_nothing_that_is_learnt(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert preset_names() == ["auto", "gpu24", "gpu80", "laptop"]
    plain = read_recipe(path)
    for name in MACHINES:
        preset = read_preset(name)
        assert set(preset) <= {"precision", "recompute", "workers"}
        assert read_recipe(path, presets=[preset]) == plain.model_copy(update=preset)
    assert read_recipe(path, ["--workers", "3"], presets=[read_preset("laptop")]).workers == 3
    own = tmp_path / "own.yaml"
    own.write_text("batch: 7\nmodel: {crop: 32}")
    changed = read_recipe(path, presets=[read_preset("gpu24"), read_preset(str(own))])
    assert (changed.batch, changed.precision, changed.model.crop, changed.model.width) == (7, "bf16-mixed", 32, 16)
    with pytest.raises(FileError, match="the preset tablet; expected auto, gpu24, gpu80, laptop, or a YAML file"):
        read_preset("tablet")


@pytest.mark.parametrize("profile", ["released", "paper"])
@pytest.mark.parametrize("name", ["kits", "lits", "pancreas", "colon"])
def test_automatic_mode_lies_over_the_recipes_of_the_paper_s_data_sets(name: str, profile: str) -> None:
    """Table 2: no prompt encoder, crop 256; everything else, and the machine's keys, as without it."""
    (path,) = [path for path in RECIPES if path.stem == f"{name}-{profile}"]
    with_clicks = read_recipe(path, presets=[read_preset("gpu24")])
    recipe = read_recipe(path, presets=[read_preset("auto"), read_preset("gpu24")])
    model = with_clicks.model.model_copy(update={"crop": 256, "stride": 8})
    assert recipe == with_clicks.model_copy(update={"prompts": "none", "model": model})
    assert recipe.automatic and not with_clicks.automatic


# Names and signs on the command line


def test_a_size_on_the_command_line_brings_its_own_numbers(tmp_path: Path) -> None:
    """If a recipe spells out the size tiny, nothing of that is left; its other keys are kept."""
    tiny = write(tmp_path, model=TINY.model_dump(mode="json"))
    for options in (["--model.size", "vit_b"], ["--model.size=vit_b"], ["--model", "vit_b"]):
        assert read_recipe(tiny, options).model == VIT_B
    (kits,) = [path for path in RECIPES if path.stem == "kits-paper"]
    wider = VIT_L.in_profile("paper").model_copy(update={"crop": 256, "stride": 8})
    assert read_recipe(kits, ["--model.size", "vit_l"]).model == wider
    assert read_recipe(kits, ["--model.size=vit_l", "--model.crop=64"]).model.crop == 64
    assert read_recipe(kits, ["--model.profile", "released"]).model == VIT_B.model_copy(
        update={"crop": 256, "stride": 8}
    )
    assert read_recipe(write(tmp_path), ["--model.size", "tiny"]).model == TINY  # from a size of the recipe's own


def test_a_recipe_without_a_model_has_the_one_that_it_starts_from(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    network = stub_network()
    save_model(network, start)
    fields = {key: value for key, value in LEAST.items() if key != "model"}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**fields, "start_from": str(start)}))
    assert read_recipe(path).model == network.config
    assert read_recipe(path, ["--model.crop=64"]).model == network.config.model_copy(update={"crop": 64})
    assert read_recipe(path, ["--model.profile=released"]).model == network.config.in_profile("released")
    preset = {"model": {"crop": 64}}
    assert read_recipe(path, presets=[preset]).model == network.config.model_copy(update={"crop": 64})
    path.write_text(yaml.safe_dump(fields))
    assert read_recipe(path, ["--start-from", str(start)]).model == network.config
    with pytest.raises(FileError, match="absent.safetensors"):
        read_recipe(path, ["--start_from=absent.safetensors"])


def test_names_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, augmentation={"flip": 0.25})
    assert read_recipe(path, ["--augmentation", "paper"]).augmentation == AUGMENTATIONS["paper"]
    changed = read_recipe(path, ["--augmentation.flip=0", "--augmentation=released", "--steps", "7"])
    assert changed.augmentation == AUGMENTATIONS["released"].model_copy(update={"flip": 0})
    assert changed.steps == 7
    for options, words in (
        (["--model", "large"], "--model large; expected one of tiny, small, vit_b, vit_l, vit_h; name one of them"),
        (["--model.size=vit_x"], "--model.size vit_x; expected one of tiny"),
        (["--model"], "--model; expected one of tiny"),
        (["--augmentation", "much"], "--augmentation much; expected one of released, paper"),
    ):
        with pytest.raises(InputError, match=words):
            read_recipe(path, options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "-3"], "seed: Input should be greater than or equal to 0"),
        (["--seed", "4294967296"], "seed: Input should be less than 4294967296"),
        (["--weight_decay", "-1"], "weight_decay: Input should be greater than or equal to 0"),
        (["--betas", "1,0.9"], "betas.0: Input should be less than 1"),
        (["--augmentation.zoom", "0,1"], "augmentation.zoom.*: Input should be greater than 0"),
        (["--augmentation.margin_mm", "5,1"], "augmentation.margin_mm: 5 to 1 is no range"),
        (["--model.crop", "0"], "model.crop: Input should be greater than or equal to 1"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused(tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_recipe(write(tmp_path), options)


# Memory


@pytest.mark.slow
def test_every_recipe_fits_every_machine_that_the_documentation_promises() -> None:
    """The estimate, plus its error, for each network of the recipes, against the memory of each preset.

    docs/training.md: a laptop is too small for crops of 256 that are fused at their own resolution; the U-Net of a
    comparison cannot compute again.
    """
    found: dict[tuple[object, ...], Footprint] = {}
    tight, seen = [], set()
    for path, automatic, (name, room) in itertools.product(RECIPES, (False, True), MACHINES.items()):
        presets = [*([read_preset("auto")] if automatic else []), read_preset(name)]
        recipe = read_recipe(path, presets=presets, defaults=STATISTICS).model_copy(update={"start_from": None})
        large = recipe.model.crop == 256 and recipe.model.fusion == "crop"
        if (automatic and recipe.tune != "adapters") or (large and name == "laptop") or recipe.system != "voxsam":
            continue
        key = (recipe.model, recipe.precision, recipe.prompts, recipe.corrections, recipe.tune)
        if key not in found:
            with _Unfilled(most=1 << 40):  # random numbers would take longer than the estimate
                network = make_network(recipe)
            found[key] = Footprint.of(network, recipe)
        need = found[key].step(recipe) * (1 + ERROR) + PROGRAM
        seen.add((recipe.model.crop, name))
        if need > room:
            tight.append(f"{path.stem} with {name}{' and auto' * automatic}: {need / 1e9:.1f} GB")
    assert not tight
    assert seen == {*itertools.product((32, 48, 64, 128, 256), MACHINES)}
