"""Reads PEFT folders (`adapter_config.json` and safetensors) and checks them against a model.

Without torch, so that whoever keeps a list of adapters can check one before any worker loads it.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from baton.engine.adapters.peft_config import CONFIG_NAME, PeftConfig, read_config
from baton.engine.adapters.projections import EMBEDDING, KINDS, Shape, projections
from baton.engine.adapters.tensor_file import StoredTensor, read_tensors
from baton.engine.model_info import ModelSpec
from baton.protos.adapters import AdapterRef
from baton.protos.errors import AdapterError

TENSORS_NAME: Final = "adapter_model.safetensors"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ID_BYTES: Final = 16
MAX_CONFIG_BYTES: Final = 16 << 20
# More than rank 256 in float32 on all projections of a model of 70B.
MAX_TENSORS_BYTES: Final = 32 << 30
_PREFIX: Final = "base_model.model."
_PART: Final = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<kind>[AB])\.weight|embedding_(?P<embedding>[AB]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterModule:
    """The change of one module's weight: `scaling * B A`.

    a: [rank, width] (of an embedding's vocabulary: a column a token). b: [out, rank].
    """

    name: str
    rank: int
    scaling: float
    a: StoredTensor
    b: StoredTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """A folder as it was read, at one moment: later changes of its files change nothing here.

    adapter_id: of the content of both files. files: where they really are, links followed.
    """

    path: str
    adapter_id: str
    files: tuple[Path, ...]
    config: PeftConfig
    modules: tuple[AdapterModule, ...]

    @property
    def rank(self) -> int:
        """The largest of the modules'."""
        return max(module.rank for module in self.modules)


def read_adapter(path: str) -> AdapterFolder:
    """Reads it whole. Raises AdapterError for a missing or pickled file, a configuration that is
    not supported, a tensor that belongs to no module, and a module that lacks one of its two."""
    folder = Path(path)
    config_path = folder / CONFIG_NAME
    raw_config = _bytes(config_path, f"{path}: {CONFIG_NAME}", MAX_CONFIG_BYTES)
    config = read_config(raw_config, str(config_path))
    tensors_path = _tensors_path(folder)
    raw = _bytes(tensors_path, f"{path}: {TENSORS_NAME}", MAX_TENSORS_BYTES)
    digest = hashlib.blake2b(digest_size=ID_BYTES)
    digest.update(len(raw_config).to_bytes(8, "little") + raw_config)
    digest.update(raw)
    tensors = read_tensors(memoryview(raw), str(tensors_path))
    return AdapterFolder(
        path=path,
        adapter_id=digest.hexdigest(),
        files=(config_path.resolve(), tensors_path.resolve()),
        config=config,
        modules=_modules(tensors, config, path),
    )


def check_adapter(folder: AdapterFolder, spec: ModelSpec, max_rank: int) -> None:
    """Whether it fits the model: modules, shapes and ranks; values are checked when they are read.

    Raises AdapterError that names the first tensor, or target, that does not fit.
    """
    known = projections(spec)
    for module in folder.modules:
        shape = known.get(module.name)
        if shape is None:
            raise AdapterError(
                f"{folder.path}: tensor {module.a.name} is for {module.name}, which {spec.name}"
                f" does not have (it has {spec.num_layers} layers with {', '.join(KINDS)}): was"
                " the adapter trained on another base model?",
                param=module.a.name,
            )
        _check_rank(folder, module, max_rank)
        _check_shape(folder, module.a, (module.rank, shape.width), spec)
        _check_shape(folder, module.b, (shape.out, module.rank), spec)
    _check_targets(folder, known)


def describe_adapter(name: str, path: str, spec: ModelSpec, max_rank: int) -> AdapterRef:
    """Reads and checks the folder, its values too. Raises AdapterError that says what is wrong."""
    folder = read_adapter(path)
    check_adapter(folder, spec, max_rank)
    for module in folder.modules:
        module.a.floats()
        module.b.floats()
    return AdapterRef(name=name, adapter_id=folder.adapter_id, path=path, rank=folder.rank)


def _bytes(path: Path, what: str, limit: int) -> bytes:
    try:
        found = path.stat()
        # A pipe would be waited for, and a device has no end.
        if not stat.S_ISREG(found.st_mode):
            raise AdapterError(f"{what} is no regular file", param=path.name)
        if found.st_size > limit:
            raise AdapterError(
                f"{what} has {found.st_size} bytes, but at most {limit} are read", param=path.name
            )
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{what} cannot be read: {error.strerror}", param=path.name) from error


def _tensors_path(folder: Path) -> Path:
    path = folder / TENSORS_NAME
    if path.exists():
        return path
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise AdapterError(
            f"{folder}: {', '.join(pickled)}: pickled weights can run code and are refused; save"
            " them with safe_serialization=True",
            param=pickled[0],
        )
    raise AdapterError(f"{folder}: {TENSORS_NAME} is missing", param=TENSORS_NAME)


def _modules(
    tensors: Mapping[str, StoredTensor], config: PeftConfig, path: str
) -> tuple[AdapterModule, ...]:
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module, kind = _part(name, path)
        parts.setdefault(module, {})[kind] = tensor
    if not parts:
        raise AdapterError(f"{path}: {TENSORS_NAME} holds no tensors", param=TENSORS_NAME)
    for module, both in parts.items():
        for missing in {"A", "B"} - both.keys():
            raise AdapterError(
                f"{path}: {module} has no lora_{missing} tensor", param=f"{module}.lora_{missing}"
            )
    return tuple(
        AdapterModule(
            name=module,
            rank=config.rank_of(module),
            scaling=config.scaling_of(module),
            a=both["A"],
            b=both["B"],
        )
        for module, both in sorted(parts.items())
    )


def _part(name: str, path: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and whether it is A or B."""
    if name.endswith("lora_magnitude_vector") or ".lora_magnitude_vector." in name:
        raise AdapterError(f"{path}: tensor {name}: DoRA is not supported", param=name)
    matched = _PART.fullmatch(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    if matched is None:
        raise AdapterError(
            f"{path}: tensor {name} is none of {_PREFIX}<module>.lora_A.weight, lora_B.weight,"
            " lora_embedding_A and lora_embedding_B, which is all that can be served (whole"
            " modules and copies of the base's weights cannot)",
            param=name,
        )
    module, of_embedding = matched["module"], matched["embedding"]
    if (module == EMBEDDING) != (of_embedding is not None):
        raise AdapterError(
            f"{path}: tensor {name}: lora_embedding tensors are for {EMBEDDING} alone", param=name
        )
    return module, of_embedding or matched["kind"]


def _check_rank(folder: AdapterFolder, module: AdapterModule, max_rank: int) -> None:
    if module.rank > max_rank:
        raise AdapterError(
            f"{folder.path}: {module.name} has rank {module.rank}, but max_lora_rank is"
            f" {max_rank}: raise it, or train with a smaller r",
            param=module.a.name,
        )


def _check_shape(
    folder: AdapterFolder, tensor: StoredTensor, shape: tuple[int, int], spec: ModelSpec
) -> None:
    if tensor.shape != shape:
        raise AdapterError(
            f"{folder.path}: tensor {tensor.name} has shape {list(tensor.shape)}, but {spec.name}"
            f" and {CONFIG_NAME} ask for {list(shape)}",
            param=tensor.name,
        )


def _check_targets(folder: AdapterFolder, known: Mapping[str, Shape]) -> None:
    """Every name of target_modules stands for modules, and each of them has its tensors."""
    there = {module.name for module in folder.modules}
    for target in folder.config.targets:
        meant = [name for name in known if name == target or name.endswith(f".{target}")]
        if not meant:
            raise AdapterError(
                f"{folder.path}: target_modules names {target!r}, but can be {', '.join(KINDS)}",
                param="target_modules",
            )
        missing = [name for name in meant if name not in there]
        if missing and (folder.config.whole or len(missing) == len(meant)):
            raise AdapterError(
                f"{folder.path}: target_modules names {target!r}, but tensor"
                f" {_PREFIX}{missing[0]}.lora_A.weight is missing",
                param=missing[0],
            )
