import importlib
import json
from pathlib import Path

import pytest
import torch

from baton.kernels import launch_config
from baton.kernels.launch_config import LaunchConfig, next_power_of_2, tuned_config
from baton.kernels.paged_attention.launch import ExtendConfig, fitting_extend


def test_next_power_of_2() -> None:
    assert [next_power_of_2(n) for n in (0, 1, 2, 3, 16, 17)] == [1, 1, 2, 4, 16, 32]


def test_default_off_the_gpu() -> None:
    default = LaunchConfig(num_warps=8)
    assert tuned_config("swiglu", "swiglu", default, torch.device("cpu")) is default


@pytest.fixture
def tuned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tuned file for a device that this machine is made to have."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(launch_config, "__file__", str(tmp_path / "launch_config.py"))
    tuned_config.cache_clear()
    path = tmp_path / "op" / "configs" / "NVIDIA_H100_80GB_HBM3.json"
    path.parent.mkdir(parents=True)
    return path


def test_file_replaces_the_fields_it_names(tuned_file: Path) -> None:
    tuned_file.write_text(json.dumps({"kernel": {"num_warps": 8}}))
    device = torch.device("cuda", 0)
    tuned = tuned_config("op", "kernel", LaunchConfig(num_stages=5), device)
    assert tuned == LaunchConfig(num_warps=8, num_stages=5)
    assert tuned_config("op", "other", LaunchConfig(), device) == LaunchConfig()


def test_unknown_field_is_an_error(tuned_file: Path) -> None:
    tuned_file.write_text(json.dumps({"kernel": {"num_wraps": 8}}))
    with pytest.raises(ValueError, match="num_wraps"):
        tuned_config("op", "kernel", LaunchConfig(), torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "stages", "keys"),
    [
        (torch.bfloat16, 128, 2, 128),
        (torch.bfloat16, 64, 3, 128),
        (torch.float32, 128, 2, 64),
        (torch.float32, 256, 2, 16),
    ],
)
def test_tiles_fit_shared_memory(dtype: torch.dtype, head_dim: int, stages: int, keys: int) -> None:
    tuned = ExtendConfig(block_m=128, block_n=128, num_stages=3)
    found = fitting_extend(tuned, head_dim, dtype, 227 * 1024)
    assert (found.num_stages, found.block_n, found.block_m) == (stages, keys, 128)


def test_gpu_tests_name_tests_that_are_there() -> None:
    """What is not collected without a GPU is imported here, so that a name cannot go stale."""
    assert importlib.import_module("tests.gpu.test_operators_gpu").__all__
