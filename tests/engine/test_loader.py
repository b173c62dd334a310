"""What the loader accepts, and how it names what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engine.driving import edit_json, new_driver, save_model

from baton.engine.device import resolve_platform
from baton.engine.loader import fill_random, load_weights, model_digest
from baton.engine.model_info import SUPPORTED, read_model_spec
from baton.engine.models.registry import LAYERS, build_model
from baton.engine.models.weights import Weights
from baton.protos.errors import ConfigError, ModelLoadError

Tensors = dict[str, torch.Tensor]
SINGLE = "model.safetensors"


def allocated(folder: Path) -> Weights:
    weights = Weights(resolve_platform("cpu", "auto"))
    build_model(weights, read_model_spec(str(folder)), 64)
    return weights


def loaded(folder: Path) -> Weights:
    weights = allocated(folder)
    load_weights(weights, str(folder))
    return weights


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, "Qwen2")
    return tmp_path


def test_every_supported_architecture_has_a_model() -> None:
    assert set(LAYERS) == set(SUPPORTED)


def test_reads_every_tensor_of_a_single_file(folder: Path) -> None:
    weights = loaded(folder)
    stored = load_file(folder / SINGLE)
    assert set(weights.slots) == set(stored)
    for name, slot in weights.slots.items():
        torch.testing.assert_close(slot, stored[name], atol=0, rtol=0)


def test_reads_shards_through_the_index(tmp_path: Path) -> None:
    model = save_model(tmp_path / "whole", "Qwen3", head_dim=16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = loaded(tmp_path / "whole"), loaded(tmp_path / "shards")
    for name, slot in whole.slots.items():
        assert torch.equal(slot, shards.slots[name]), name


def test_bfloat16_weights_load_into_float32(folder: Path) -> None:
    stored = load_file(folder / SINGLE)
    save_file({k: v.to(torch.bfloat16) for k, v in stored.items()}, folder / SINGLE)
    name = "model.norm.weight"
    expected = stored[name].to(torch.bfloat16).float()
    assert torch.equal(loaded(folder).slots[name], expected)


K_WEIGHT = "model.layers.1.self_attn.k_proj.weight"
REFUSED: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lambda t: t.pop(K_WEIGHT), f"missing tensors: {K_WEIGHT}"),
    "missing bias": (lambda t: t.pop("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias"),
    "shape": (
        lambda t: t.update({K_WEIGHT: torch.zeros(16, 64)}),
        rf"{K_WEIGHT} should have shape \(32, 64\), found \(16, 64\)",
    ),
    "extra": (
        lambda t: t.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(96, 64)}),
        "does not use: model.layers.3.mlp.up_proj.weight",
    ),
    "dtype": (
        lambda t: t.update({K_WEIGHT: torch.zeros(32, 64, dtype=torch.int8)}),
        f"{K_WEIGHT} has dtype I8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_tensors_by_name(case: str, folder: Path) -> None:
    change, message = REFUSED[case]
    rewrite(folder, change)
    with pytest.raises(ModelLoadError, match=message):
        loaded(folder)


def test_old_rotary_buffers_are_harmless(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda t: t.update({name: torch.zeros(8)}))
    loaded(folder)


def test_a_stored_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    save_model(tmp_path, "Qwen3", tie_word_embeddings=True)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 0}))
    loaded(tmp_path)
    rewrite(tmp_path, lambda t: t["lm_head.weight"].add_(1.0))
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight differs"):
        loaded(tmp_path)


@pytest.mark.parametrize("kept_bytes", [4, 40, -100])
def test_refuses_a_truncated_file(kept_bytes: int, folder: Path) -> None:
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[:kept_bytes])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read"):
        loaded(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_refuses_pickled_weights(name: str, folder: Path) -> None:
    (folder / SINGLE).rename(folder / name)
    with pytest.raises(ModelLoadError, match=f"{name}.*pickled"):
        loaded(folder)


def test_refuses_a_folder_without_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(ModelLoadError, match="neither"):
        loaded(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "gone.safetensors"}, "gone.safetensors, which is missing"),
        ({"a": "../other.safetensors"}, "must be the name of"),
        ({"a": "weights.bin"}, "must be the name of"),
        ({}, "weight_map is missing"),
        ([], "weight_map is missing"),
    ],
)
def test_refuses_a_bad_index(weight_map: object, message: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelLoadError, match=message):
        loaded(folder)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_refuses_a_config_that_is_no_object(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_model_spec(str(folder))


def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read"):
        read_model_spec(str(tmp_path / "nowhere"))


def test_random_weights_need_no_files_and_repeat(folder: Path) -> None:
    (folder / SINGLE).unlink()
    first, second = allocated(folder), allocated(folder)
    fill_random(first)
    fill_random(second)
    for name, slot in first.slots.items():
        assert torch.equal(slot, second.slots[name]), name
        assert slot.isfinite().all()
    driver = new_driver(folder, random_weights=True)
    driver.add([5, 6, 7])
    assert len(driver.generate(4)["r"]) == 4


def test_digest_follows_configuration_and_weights(folder: Path) -> None:
    before = model_digest(str(folder))
    assert before == model_digest(str(folder))
    rewrite(folder, lambda t: t[K_WEIGHT].view(-1)[0].add_(1e-3))
    after = model_digest(str(folder))
    edit_json(folder / "config.json", rope_theta=5.0)
    assert (
        len(
            {
                before,
                after,
                model_digest(str(folder)),
                model_digest(str(folder), random_weights="0"),
            }
        )
        == 4
    )


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu", "auto", "device is 'tpu'"),
        ("cuda:x", "auto", "device is 'cuda:x'"),
        ("cpu", "int8", "dtype is 'int8'"),
    ],
)
def test_refuses_a_platform_by_name(device: str, dtype: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_platform(device, dtype)


def test_refuses_a_context_beyond_the_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len is 1000"):
        new_driver(folder, max_model_len=1000)


def test_refuses_a_pool_without_a_block(folder: Path) -> None:
    with pytest.raises(ConfigError, match="raise kv_cache_bytes"):
        new_driver(folder, num_blocks=None, kv_cache_bytes=100)
