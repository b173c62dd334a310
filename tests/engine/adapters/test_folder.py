"""PEFT folders: what is read of them, and what is refused by name."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.adapters.peft_folder import ALL_LINEAR, random_tensors, save_adapter
from torch import Tensor

from baton.engine.adapters.folder import check_adapter, describe_adapter, read_adapter
from baton.engine.model_info import read_model_spec
from baton.protos.errors import AdapterError

SPEC = read_model_spec("models/baton-tiny")
EVERYTHING = (*ALL_LINEAR, "embed_tokens", "lm_head")
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_a_whole_adapter_is_described_by_its_content(tmp_path: Path) -> None:
    tensors = random_tensors(SPEC, EVERYTHING)
    folder = save_adapter(tmp_path / "a", tensors, targets=EVERYTHING)
    ref = describe_adapter("poet", str(folder), SPEC, 16)
    assert (ref.name, ref.path, ref.rank) == ("poet", str(folder), 4)
    assert len(ref.adapter_id) == 32
    same = save_adapter(tmp_path / "b", tensors, targets=EVERYTHING)
    assert read_adapter(str(same)).adapter_id == ref.adapter_id
    other = save_adapter(tmp_path / "c", tensors, targets=EVERYTHING, lora_alpha=9)
    assert read_adapter(str(other)).adapter_id != ref.adapter_id
    assert len(read_adapter(str(folder)).modules) == 7 * SPEC.num_layers + 2
    assert read_adapter(str(folder)).files[0] == (folder / "adapter_config.json").resolve()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_are_read_in_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: t.to(dtype) for name, t in random_tensors(SPEC, ["q_proj"]).items()}
    folder = read_adapter(str(save_adapter(tmp_path, tensors, targets=["q_proj"])))
    module = folder.modules[0]
    assert module.name == "model.layers.0.self_attn.q_proj"
    assert torch.equal(torch.from_numpy(module.a.floats()), tensors[Q0].float())


def test_patterns_and_rslora_set_rank_and_scaling(tmp_path: Path) -> None:
    ranks = {"k_proj": 2, "down_proj": 8}
    tensors = random_tensors(SPEC, rank=4, ranks=ranks)
    patterns = {"rank_pattern": {"k_proj": 2, r"mlp\.down_proj": 8}, "alpha_pattern": {"k_proj": 3}}
    for rs_lora in (False, True):
        saved = save_adapter(tmp_path, tensors, lora_alpha=16, use_rslora=rs_lora, **patterns)
        folder = read_adapter(str(saved))
        check_adapter(folder, SPEC, 16)
        assert folder.rank == 8
        found = {m.name.rpartition(".")[2]: (m.rank, m.scaling) for m in folder.modules}
        root = math.sqrt if rs_lora else float
        assert found["q_proj"] == (4, 16 / root(4))
        assert found["k_proj"] == (2, 3 / root(2))
        assert found["down_proj"] == (8, 16 / root(8))


REFUSED_CONFIGS: list[tuple[dict[str, object], str]] = [
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "all"}, "bias"),
    ({"lora_bias": True}, "lora_bias"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"brand_new_option": 3}, "brand_new_option"),
    ({"peft_type": "IA3"}, "peft_type"),
    ({"r": 0}, "r is 0"),
    ({"r": "eight"}, "'eight'"),
    ({"lora_alpha": None}, "lora_alpha"),
    ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern"),
    ({"rank_pattern": {"q_proj[": 4}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern.q_proj"),
    ({"target_modules": ["q_proj", "c_attn"]}, "'c_attn'"),
    ({"target_modules": ["q_proj", "o_proj"]}, "layers.0.self_attn.o_proj.lora_A"),
]


@pytest.mark.parametrize(("config", "names"), REFUSED_CONFIGS, ids=lambda v: str(v)[:40])
def test_configurations_are_refused_by_name(
    tmp_path: Path, config: dict[str, object], names: str
) -> None:
    values: dict[str, object] = {"targets": ["q_proj"], **config}
    folder = save_adapter(tmp_path, random_tensors(SPEC, ["q_proj"]), **values)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=names.replace("(", r"\(")) as caught:
        describe_adapter("x", str(folder), SPEC, 16)
    assert caught.value.http_status == 400


def _with(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: value})


def _without_a(tensors: dict[str, Tensor]) -> None:
    del tensors[Q0]


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors[Q0][1, 5] = torch.nan


PREFIX = "base_model.model."
REFUSED_TENSORS: list[tuple[str, Callable[[dict[str, Tensor]], None], str]] = [
    ("nan", _nan, r"q_proj.lora_A.weight holds nan at \[1, 5\]"),
    ("int", _with(Q0, torch.zeros(4, 192, dtype=torch.int32)), "dtype I32"),
    ("width", _with(Q0, torch.zeros(4, 100)), r"shape \[4, 100\].* ask for \[4, 192\]"),
    ("rank", _with(Q0, torch.zeros(5, 192)), r"shape \[5, 192\].* ask for \[4, 192\]"),
    ("half", _without_a, "q_proj has no lora_A"),
    ("unknown", _with("model.x.lora_A.weight", torch.zeros(1)), "tensor model.x.lora_A"),
    ("whole", _with(PREFIX + "lm_head.weight", torch.zeros(1)), "tensor .*lm_head.weight is none"),
    ("dora", _with(PREFIX + "a.lora_magnitude_vector", torch.zeros(1)), "DoRA"),
]


@pytest.mark.parametrize(
    ("edit", "names"), [case[1:] for case in REFUSED_TENSORS], ids=[c[0] for c in REFUSED_TENSORS]
)
def test_tensors_are_refused_by_name(
    tmp_path: Path, edit: Callable[[dict[str, Tensor]], None], names: str
) -> None:
    tensors = random_tensors(SPEC, ["q_proj"])
    edit(tensors)
    folder = save_adapter(tmp_path, tensors, targets=["q_proj"])
    with pytest.raises(AdapterError, match=names) as caught:
        describe_adapter("x", str(folder), SPEC, 16)
    assert caught.value.param


def test_another_base_model_is_seen_by_its_layers(tmp_path: Path) -> None:
    tensors = {
        name.replace("layers.0.", "layers.40."): tensor
        for name, tensor in random_tensors(SPEC, ["q_proj"]).items()
    }
    folder = save_adapter(tmp_path, tensors, targets=["q_proj"])
    with pytest.raises(AdapterError, match=r"layers\.40\.self_attn\.q_proj.*another base model"):
        describe_adapter("x", str(folder), SPEC, 16)


def test_ranks_above_the_limit_are_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, random_tensors(SPEC, rank=32), rank=32)
    with pytest.raises(AdapterError, match="rank 32, but max_lora_rank is 16"):
        describe_adapter("x", str(folder), SPEC, 16)


def test_files_that_are_missing_pickled_or_damaged(tmp_path: Path) -> None:
    def refused(names: str) -> None:
        with pytest.raises(AdapterError, match=names):
            read_adapter(str(tmp_path))

    refused("adapter_config.json cannot be read: No such file")
    save_adapter(tmp_path, random_tensors(SPEC, ["q_proj"]), targets=["q_proj"])
    tensors = tmp_path / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    deep = b"[" * 100_000
    nested = len(deep).to_bytes(8, "little") + deep
    for raw in (whole[:-1], whole[:100], b"", b"\xff" * 64, whole[:8] + b"x" * 200, nested):
        tensors.write_bytes(raw)
        refused("not a whole safetensors file")
    tensors.unlink()
    refused("safetensors is missing")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04")
    refused("adapter_model.bin: pickled")
    for text in ("{", deep.decode()):
        (tmp_path / "adapter_config.json").write_text(text)
        refused("is not JSON")


def test_pipes_and_files_without_measure_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors(SPEC, ["q_proj"])
    folder = save_adapter(tmp_path, tensors, targets=["q_proj"])
    with monkeypatch.context() as patched:
        patched.setattr("baton.engine.adapters.folder.MAX_TENSORS_BYTES", 100)
        with pytest.raises(AdapterError, match=r"bytes, but at most 100 are read"):
            read_adapter(str(folder))
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is no regular file"):
        read_adapter(str(folder))
