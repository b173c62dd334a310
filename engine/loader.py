"""Fills a model's tensors from safetensors files, tensor by tensor, or with random numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from baton.engine.models.weights import Source, Weights
from baton.engine.staging import Staging
from baton.protos.errors import ModelLoadError

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Buffers that old transformers releases saved; they follow from the configuration.
HARMLESS_SUFFIXES: Final = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
# Beyond it the disk or the host's memory is the limit.
LOADER_THREADS: Final = 8
FLOAT_DTYPES: Final = ("F64", "F32", "F16", "BF16")
RANDOM_STD: Final = 0.02
# A digest reads whole files up to this size, and evenly spread samples of larger ones.
DIGEST_WHOLE_BYTES: Final = 64 << 20
DIGEST_SAMPLES: Final = 256
DIGEST_SAMPLE_BYTES: Final = 64 << 10


class _TensorFile(Protocol):
    """What `safe_open` yields."""

    def keys(self) -> Iterable[str]: ...
    def get_slice(self, name: str) -> Any: ...
    def get_tensor(self, name: str) -> Tensor: ...


def load_weights(weights: Weights, model_dir: str) -> None:
    """Fills every tensor of `weights` from the folder, with no second copy of it on the device.

    On CUDA several threads read files and send tensors at a time, else one after the other.

    Raises ModelLoadError for pickled or absent weights, an unreadable file, a missing tensor, a
    wrong shape or dtype (naming tensor, expected and found), and a tensor that nothing would use.
    """
    found = _found(weights, model_dir)
    _check_complete(found, weights, model_dir)
    on_gpu = weights.platform.is_cuda
    threads = LOADER_THREADS if on_gpu else 1
    with ThreadPoolExecutor(threads, thread_name_prefix="weights") as pool:
        shares = [
            pool.submit(_load_share, weights, path, names[first::threads])
            for path, names in found.wanted.items()
            for first in range(threads)
        ]
        for share in shares:
            share.result()
    for path, name in found.tied:
        _check_tied(path, name, weights)


def _found(weights: Weights, model_dir: str) -> _Found:
    found = _Found()
    for path in weight_files(model_dir):
        with _opened(path) as file:
            wanted = found.wanted.setdefault(path, [])
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name in weights.slots:
                    wanted.append(name)
                elif name in weights.aliases:
                    found.tied.append((path, name))
                elif not name.endswith(HARMLESS_SUFFIXES):
                    found.unused.append(name)
    return found


def _check_complete(found: _Found, weights: Weights, model_dir: str) -> None:
    there = {name for names in found.wanted.values() for name in names}
    missing = sorted(set(weights.slots) - there)
    if missing:
        raise ModelLoadError(f"{model_dir}: missing tensors: {_listed(missing)}", param=missing[0])
    if found.unused:
        unused = sorted(found.unused)
        raise ModelLoadError(
            f"{model_dir}: tensors that this architecture does not use: {_listed(unused)}",
            param=unused[0],
        )


def _load_share(weights: Weights, path: Path, names: list[str]) -> None:
    """Through a handle of its own: those of safetensors belong to the thread that opened them."""
    staging = Staging(weights.platform.device) if weights.platform.is_cuda and names else None
    with _opened(path) as file:
        for name in names:
            _copy(file, name, weights, path, staging)
    if staging is not None:
        staging.finish()


def fill_random(weights: Weights, seed: int = 0) -> None:
    """Fills the tensors on their device: normal(0, 0.02), norms with ones, biases with zeros.

    The same seed on the same kind of device gives the same numbers, so two workers with as many
    ranks agree.
    """
    own = seed + weights.group.shards.rank
    generator = torch.Generator(device=weights.platform.device).manual_seed(own)
    for name, slot in weights.slots.items():
        if name.endswith("norm.weight"):
            slot.fill_(1.0)
        elif name.endswith(".bias"):
            slot.zero_()
        else:
            slot.normal_(0.0, RANDOM_STD, generator=generator)


def weight_files(model_dir: str) -> list[Path]:
    """The folder's safetensors files: those of the index, or the single one. ModelLoadError."""
    folder = Path(model_dir)
    index = folder / INDEX_NAME
    if index.exists():
        return [_shard(folder, name) for name in sorted(set(_weight_map(index).values()))]
    if (folder / SINGLE_NAME).exists():
        return [folder / SINGLE_NAME]
    pickled = [p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLE_SUFFIXES]
    if pickled:
        raise ModelLoadError(
            f"{model_dir}: {_listed(pickled)}: pickled weights can run code and are refused; "
            "convert them to safetensors",
            param=pickled[0],
        )
    raise ModelLoadError(f"{model_dir}: neither {SINGLE_NAME} nor {INDEX_NAME}", param="model_dir")


def model_digest(model_dir: str, *, random_weights: str | None = None) -> str:
    """A hex digest of configuration and weights: equal digests mean equal KV.

    Files over 64 MiB are sampled (their header and 256 places), which tells fine-tunes apart
    without reading terabytes. `random_weights` names weights that come from no file.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update((Path(model_dir) / "config.json").read_bytes())
    if random_weights is not None:
        digest.update(f"random {random_weights}".encode())
        return digest.hexdigest()
    for path in weight_files(model_dir):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= DIGEST_WHOLE_BYTES:
                digest.update(file.read())
                continue
            for sample in range(DIGEST_SAMPLES):
                file.seek((size - DIGEST_SAMPLE_BYTES) * sample // (DIGEST_SAMPLES - 1))
                digest.update(file.read(DIGEST_SAMPLE_BYTES))
    return digest.hexdigest()


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{index} is not a safetensors index: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index}: weight_map is missing", param="weight_map")
    return weight_map


def _shard(folder: Path, name: str) -> Path:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise ModelLoadError(
            f"{folder / INDEX_NAME}: {name!r} must be the name of a .safetensors file beside it",
            param="weight_map",
        )
    if not (folder / name).exists():
        raise ModelLoadError(f"{folder / INDEX_NAME} names {name}, which is missing", param=name)
    return folder / name


@dataclass(slots=True)
class _Found:
    """Names of a folder's tensors: used, by file; not used; copies of a tied one, compared last."""

    wanted: dict[Path, list[str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    tied: list[tuple[Path, str]] = field(default_factory=list)


@contextmanager
def _opened(path: Path) -> Iterator[_TensorFile]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}", param=path.name) from error


def _copy(
    file: _TensorFile, name: str, weights: Weights, path: Path, staging: Staging | None
) -> None:
    info, source = file.get_slice(name), weights.sources[name]
    found = tuple(info.get_shape())
    if found != source.shape:
        raise ModelLoadError(
            f"{path}: tensor {name} should have shape {source.shape}, found {found}",
            param=name,
        )
    if info.get_dtype() not in FLOAT_DTYPES:
        raise ModelLoadError(
            f"{path}: tensor {name} has dtype {info.get_dtype()}, "
            f"but must be one of {', '.join(FLOAT_DTYPES)}",
            param=name,
        )
    if staging is None:
        weights.slots[name].copy_(_read(file, name, source))
    else:
        staging.copy(weights.slots[name], _read(file, name, source))


def _read(file: _TensorFile, name: str, source: Source) -> Tensor:
    """Only this rank's part of the tensor leaves the file."""
    if source.whole:
        return file.get_tensor(name)
    part: Tensor = file.get_slice(name)[source.index]
    return part


def _check_tied(path: Path, name: str, weights: Weights) -> None:
    """A tied tensor that is stored anyway must be the copy that tying claims it is."""
    target = weights.aliases[name]
    with _opened(path) as file:
        stored = _read(file, name, weights.sources[target]).to(weights.slots[target])
    if not torch.equal(stored, weights.slots[target]):
        raise ModelLoadError(
            f"{path}: tensor {name} differs from {target}, though config.json ties them "
            "(tie_word_embeddings); set it to false or drop the tensor",
            param=name,
        )


def _listed(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
