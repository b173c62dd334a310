"""adapter_config.json of a PEFT folder: what it means for each module, and what is refused.

What PEFT writes for training alone is ignored; what would change the numbers and is not computed
here is refused by name, as is a key that this list does not know, unless it is off.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from baton.protos.errors import AdapterError

CONFIG_NAME: Final = "adapter_config.json"
# Where the weights of A and B start in training; these leave the base's weights as they are.
INITS: Final = (None, True, False, "gaussian", "eva", "orthogonal")
READ: Final = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "init_lora_weights", "bias", "exclude_modules", "layers_to_transform"),
    }
)
TRAINING_ONLY: Final = frozenset(
    {
        *("task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"),
        *("lora_dropout", "layers_pattern", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "megatron_config", "megatron_core", "runtime_config", "peft_version"),
        *("qalora_group_size", "parent_library"),
    }
)
# A group that is repeated can make a match take time without bounds.
_REPEATED_GROUP: Final = re.compile(r"\)[*+?{]")
MAX_PATTERN_CHARS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """The part that matters. `targets`: plain names of target_modules; () where it is a pattern.

    whole: every layer that has a target must have its tensors.
    """

    rank: int
    alpha: float
    rs_lora: bool
    rank_pattern: tuple[tuple[str, int], ...]
    alpha_pattern: tuple[tuple[str, float], ...]
    targets: tuple[str, ...]
    whole: bool

    def rank_of(self, module: str) -> int:
        return next((r for key, r in self.rank_pattern if _matches(key, module)), self.rank)

    def scaling_of(self, module: str) -> float:
        """What B A is multiplied by: alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
        alpha = next((a for key, a in self.alpha_pattern if _matches(key, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rs_lora else rank)


def read_config(raw: bytes, where: str) -> PeftConfig:
    """Parses and checks it. Raises AdapterError that names the key, its value and what works."""
    values = _parsed(raw, where)
    if values.get("peft_type", "LORA") != "LORA":
        raise _error(where, "peft_type", values["peft_type"], "LORA")
    _refuse_unsupported(values, where)
    rank = _whole_number(values.get("r"), "r", where)
    modules = values.get("target_modules")
    targets = modules if isinstance(modules, list) else []
    if not all(isinstance(name, str) and name for name in targets):
        raise _error(where, "target_modules", modules, "a list of names")
    restricted = ("exclude_modules", "layers_to_transform")
    return PeftConfig(
        rank=rank,
        alpha=_number(values.get("lora_alpha", rank), "lora_alpha", where),
        rs_lora=_flag(values, "use_rslora", where),
        rank_pattern=tuple(
            (key, _whole_number(value, f"rank_pattern.{key}", where))
            for key, value in _pattern(values, "rank_pattern", where).items()
        ),
        alpha_pattern=tuple(
            (key, _number(value, f"alpha_pattern.{key}", where))
            for key, value in _pattern(values, "alpha_pattern", where).items()
        ),
        targets=tuple(sorted(targets)),
        whole=not any(values.get(key) not in (None, [], "") for key in restricted),
    )


def _parsed(raw: bytes, where: str) -> Mapping[str, Any]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where} is not JSON: {error}", param=CONFIG_NAME) from error
    if not isinstance(values, dict):
        raise AdapterError(f"{where} must hold a JSON object", param=CONFIG_NAME)
    return values


def _refuse_unsupported(values: Mapping[str, Any], where: str) -> None:
    if values.get("use_dora"):
        raise AdapterError(
            f"{where}: use_dora is true, but DoRA is not supported; train with use_dora=False",
            param="use_dora",
        )
    if values.get("modules_to_save"):
        raise AdapterError(
            f"{where}: modules_to_save is {values['modules_to_save']!r}, but whole modules cannot"
            " differ from the base model's; add them to target_modules instead",
            param="modules_to_save",
        )
    if values.get("bias", "none") != "none":
        raise _error(where, "bias", values["bias"], "none")
    init = values.get("init_lora_weights")
    if init not in INITS:
        raise _error(
            where, "init_lora_weights", init, "one that leaves the base weights alone (or convert)"
        )
    for key, value in values.items():
        if key not in READ | TRAINING_ONLY and value not in (None, False, "", [], {}):
            raise AdapterError(
                f"{where}: {key} is {value!r}, which is not supported; it must be off", param=key
            )


def _pattern(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    pattern = values.get(key) or {}
    if not isinstance(pattern, dict):
        raise _error(where, key, pattern, "a JSON object")
    for name in pattern:
        problem = None
        if len(name) > MAX_PATTERN_CHARS or _REPEATED_GROUP.search(name):
            problem = f"may have {MAX_PATTERN_CHARS} characters, and no repeated group"
        else:
            try:
                re.compile(name)
            except re.error as error:
                problem = f"is no regular expression: {error}"
        if problem is not None:
            raise AdapterError(f"{where}: {key}: {name[:80]!r} {problem}", param=key)
    return pattern


def _matches(key: str, module: str) -> bool:
    """As PEFT does: the pattern ends the module's name, after a dot or as a whole."""
    return re.match(rf"(.*\.)?({key})$", module) is not None


def _whole_number(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _error(where, key, value, "a whole number from 1 on")
    return value


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _error(where, key, value, "a finite number")
    return float(value)


def _flag(values: Mapping[str, Any], key: str, where: str) -> bool:
    value = values.get(key) or False
    if not isinstance(value, bool):
        raise _error(where, key, value, "true or false")
    return value


def _error(where: str, key: str, value: object, works: str) -> AdapterError:
    return AdapterError(f"{where}: {key} is {value!r}, but must be {works}", param=key)
