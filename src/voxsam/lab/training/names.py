"""The names that stand for many keys of a recipe: model sizes, and profiles of arithmetic and of augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from voxsam.errors import InputError
from voxsam.lab.data.augmentation import AUGMENTATIONS
from voxsam.network.sizes import PROFILES, SIZES

Fields = dict[str, Any]
NAMED: dict[str, Iterable[str]] = {  # the options that take such a name
    "model": SIZES,
    "model.size": SIZES,
    "model.profile": PROFILES,
    "augmentation": AUGMENTATIONS,
}


def with_names(fields: Mapping[str, Any]) -> Fields:
    """The fields of a recipe with the names of sizes and profiles replaced by what they stand for."""
    fields = dict(fields)
    model, augmentation = fields.get("model"), fields.get("augmentation")
    if isinstance(model, str):
        model = {"size": model}
    if isinstance(model, dict):
        own = dict(model)
        profile = own.pop("profile", None)
        size = SIZES.get(own.get("size", ""))
        if size is not None:
            own = {**size.model_dump(), **PROFILES.get(str(profile), {}), **own}
        fields["model"] = own if profile in (None, *PROFILES) else {**own, "profile": profile}  # refused by its name
    if isinstance(augmentation, str) and augmentation in AUGMENTATIONS:
        fields["augmentation"] = AUGMENTATIONS[augmentation].model_dump()
    return fields


def overridden(fields: Mapping[str, Any], more: Mapping[str, Any]) -> Fields:
    """`fields` with those of `more` in their place, key by key in nested ones; a name stands for its keys."""
    out = dict(fields)
    for key, value in more.items():
        before = {"size": out[key]} if key == "model" and isinstance(out.get(key), str) else out.get(key)
        out[key] = overridden(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return out


def named_options(fields: Mapping[str, Any], options: Sequence[str]) -> tuple[Fields, list[str]]:
    """The fields as the options with names change them ("--model tiny", "--model.size=vit_b"), and the other options.

    Raises InputError for a name that is not known.
    """
    fields, left = dict(fields), []
    words = iter(options)
    chosen: dict[str, str] = {}
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if key not in NAMED or value.startswith("{"):
            left.append(word)
            continue
        value = value if equals else next(words, "")
        if value not in NAMED[key]:
            given = f"--{key} {value}".rstrip()
            raise InputError(given, f"one of {', '.join(NAMED[key])}", "name one of them, or change the recipe")
        chosen[key] = value
    for key in ("augmentation", "model"):
        if key in chosen:
            fields[key] = chosen[key]
    if "model.size" in chosen:
        fields["model"] = _resized(fields.get("model"), chosen["model.size"])
    if "model.profile" in chosen:
        model = overridden({"model": fields.get("model", {})}, {"model": {"profile": chosen["model.profile"]}})["model"]
        fields["model"] = {key: value for key, value in model.items() if key not in PROFILES[chosen["model.profile"]]}
    return fields, left


def _resized(model: Any, size: str) -> Fields:
    """A model's keys for another size: of the old one only what the recipe had otherwise than that size has it."""
    keys = model if isinstance(model, dict) else {"size": model}
    old = SIZES.get(str(keys.get("size")))
    if old is None:  # a size of the recipe's own: nobody can say which of its keys are not the size
        return {"size": size, **{key: keys[key] for key in ("channels", "profile") if key in keys}}
    usual = old.model_dump(mode="json")
    kept = {key: value for key, value in keys.items() if key not in usual or value != usual[key]}
    return {**kept, "size": size}
