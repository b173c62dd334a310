from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from baton.cluster.commands.config import as_document
from baton.cluster.commands.serve import overrides
from baton.cluster.config import (
    BatonConfig,
    PoolConfig,
    load_config,
    resolve,
    shipped_model,
    with_gpus,
)
from baton.cluster.schema import MAX_CONFIG_BYTES, Document, parse_document
from baton.kvtransfer.tiers.config import TierConfig
from baton.protos.errors import ConfigError
from baton.protos.types import Role

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def read(text: str, model: str) -> BatonConfig:
    document = parse_document(text, "baton.yaml")
    return resolve(document.override(("model",), model, "MODEL_DIR"))


def refusal(text: str, model: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, model)
    return caught.value


def test_defaults_are_one_worker_of_each_kind(model: str) -> None:
    config = read("", model)
    assert config.prefill.max_workers == config.decode.max_workers == config.gateway_replicas == 1
    assert config.prefill.role is Role.PREFILL
    assert config.decode.role is Role.DECODE
    assert config.model_name == "some-model"
    assert config.gateway.model_names == ("some-model",)
    assert config.decode.engine.model_dir == model


def test_a_pool_overrides_the_common_engine_section(model: str) -> None:
    text = """
engine:
  block_size: 32
  max_running: 8
decode:
  engine:
    max_running: 16
"""
    config = read(text, model)
    assert config.prefill.engine.max_running == 8
    assert config.decode.engine.max_running == 16
    assert config.prefill.engine.block_size == config.decode.engine.block_size == 32


def test_options_win_over_the_file(model: str, tmp_path: Path) -> None:
    path = tmp_path / "baton.yaml"
    path.write_text(f"model: {model}\nprefill:\n  min_replicas: 2\ngateway: {{http_port: 9000}}\n")
    config = load_config(path, {"gateway.http_port": (9001, "--port")})
    assert config.gateway.http_port == 9001
    assert config.prefill.min_replicas == 2


def test_tiers_below_the_pool_by_file_and_by_option(model: str) -> None:
    text = "engine: {kv_tiers: {cpu_gib: 2, disk_path: /d, disk_gib: 3.5}}\n"
    text += "decode: {engine: {kv_tiers: {cpu_gib: 1}}}\n"
    config = read(text, model)
    assert config.prefill.engine.kv_tiers == TierConfig(cpu_gib=2, disk_path="/d", disk_gib=3.5)
    assert config.decode.engine.kv_tiers == TierConfig(cpu_gib=1)
    options = {"kv_cpu_gib": 4.0, "kv_disk_path": None, "kv_disk_gib": None}
    config = load_config(None, overrides({"model_dir": model, **options}, no_grpc=False))
    assert config.decode.engine.kv_tiers == TierConfig(cpu_gib=4)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("engine: {kv_tiers: {cpu_gib: -1}}", "engine.kv_tiers.cpu_gib"),
        ("engine: {kv_tiers: {disk_path: /d, disk_gib: 1}}", "engine.kv_tiers.cpu_gib"),
        ("decode: {engine: {kv_tiers: {cpu_gib: 1, disk_gib: 1}}}", "kv_tiers.disk_path"),
        ("engine: {prefix_cache: false, kv_tiers: {cpu_gib: 1}}", "engine.kv_tiers.cpu_gib"),
        ("engine: {kv_tiers: {ram_gib: 1}}", "engine.kv_tiers.ram_gib"),
    ],
)
def test_tiers_that_cannot_be_are_refused_by_name(model: str, text: str, field: str) -> None:
    error = refusal(text, model)
    assert str(error.param).endswith(field)
    assert field.rpartition(".")[2] in error.message


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("{}", (8000, 8001)),
        ("{http_port: 9000}", (9000, 9001)),
        ("{http_port: 0}", (0, 0)),
        ("{http_port: 9000, grpc_port: 5}", (9000, 5)),
        ("{http_port: 9000, grpc_port: null}", (9000, None)),
    ],
)
def test_grpc_is_beside_http(model: str, text: str, ports: tuple[int, int | None]) -> None:
    gateway = read(f"gateway: {text}", model).gateway
    assert (gateway.http_port, gateway.grpc_port) == ports


@pytest.mark.parametrize(
    ("text", "line", "param", "hint"),
    [
        ("prefil:\n  min_replicas: 1\n", 1, "prefil", "did you mean prefill?"),
        ("prefill:\n  engin: {}\n", 2, "prefill.engin", "did you mean engine?"),
        ("decode:\n  engine:\n    blocksize: 16\n", 3, "decode.engine.blocksize", "block_size"),
        ("\n\ngateway:\n  portt: 1\n", 4, "gateway.portt", "http_port"),
        ("router: {polcy: cost}\n", 1, "router.polcy", "did you mean policy?"),
        ("zzz: 1\n", 1, "zzz", "known keys:"),
    ],
)
def test_unknown_keys_are_refused_by_name(
    model: str, text: str, line: int, param: str, hint: str
) -> None:
    error = refusal(text, model)
    assert error.param == param
    assert f"baton.yaml line {line}: {param} is not a known key" in error.message
    assert hint in error.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decode:\n  min_replicas: '2'\n", 'line 2: decode.min_replicas is "2"'),
        ("decode:\n  min_replicas: true\n", "line 2: decode.min_replicas is true"),
        ("decode:\n  min_replicas: 1.5\n", "decode.min_replicas is 1.5"),
        ("decode: 3\n", "line 1: decode must be a mapping"),
        ("engine: [1]\n", "line 1: engine must be a mapping"),
        ("gateway:\n  api_keys: secret\n", "gateway.api_keys is"),
        ("gateway:\n  host: 2026-01-01\n", "which is not a plain number"),
        ("fleet:\n  poll_s: .nan\n", "fleet.poll_s is nan"),
    ],
)
def test_wrong_types_name_line_field_and_value(model: str, text: str, said: str) -> None:
    assert said in refusal(text, model).message


@pytest.mark.parametrize(
    ("text", "param", "said"),
    [
        ("decode: {min_replicas: 0}", "decode.min_replicas", "at least 1"),
        ("decode: {min_replicas: 3, max_replicas: 2}", "decode.max_replicas", "at least 3"),
        ("engine: {max_running: 0}", "engine.max_running", "at least 1"),
        ("directory: {lease_s: 1.5}", "directory.lease_s", "twice heartbeat_s"),
        ("gateway: {http_port: 70000, grpc_port: 1}", "gateway.http_port", "65535"),
        ("gateway: {http_port: 81, grpc_port: 81}", "gateway.grpc_port", "as is http_port"),
        ("router: {policy: best}", "router.policy", "cost"),
        ("ray: {object_store_bytes: 10}", "ray.object_store_bytes", "at least"),
        ("gateway_replicas: 0", "gateway_replicas", "at least 1"),
        ("name: a/b", "name", "letters"),
        ("prefill: {worker: {connector: nccl}}", "prefill.worker.connector", "one connector"),
    ],
)
def test_values_out_of_range_say_what_would_work(
    model: str, text: str, param: str, said: str
) -> None:
    error = refusal(text, model)
    assert error.param == param
    assert said in error.message
    assert error.message.startswith("baton.yaml line 1: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decode:\n  worker:\n    port: 80\n", "workers bind a free port"),
        ("engine: {model_dir: /x}", "it follows from `model`"),
        ("engine: {role: both}", "it follows from the pool"),
        ("gateway: {model_dir: /x}", "it follows from `model`"),
    ],
)
def test_what_baton_sets_itself_cannot_be_set(model: str, text: str, said: str) -> None:
    assert said in refusal(text, model).message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\nb: 2\n", "baton.yaml line 2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "line 2"),
        ("- 1\n", "a configuration is a mapping"),
        ("name: x\nname: y\n", "line 2: name is given twice"),
        ("name: &a [*a]\n", "16 levels"),
        ("model: !!python/object:os.system x\n", "line 1"),
    ],
)
def test_bad_yaml_names_the_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"baton.yaml") as caught:
        resolve(parse_document(text, "baton.yaml"))
    assert said in caught.value.message


def test_aliases_cannot_explode() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match="values"):
        parse_document("\n".join(levels), "baton.yaml")


def test_an_option_is_blamed_by_its_name(model: str) -> None:
    with pytest.raises(ConfigError, match=r"^--decode-replicas: .*at least 1"):
        load_config(
            None,
            {
                "model": (model, "MODEL_DIR"),
                "decode.min_replicas": (0, "--decode-replicas"),
            },
        )


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "none", "does not exist"), (tmp_path, "no config.json")):
        with pytest.raises(ConfigError, match=said) as caught:
            load_config(None, {"model": (str(folder), "MODEL_DIR")})
        assert caught.value.message.startswith("MODEL_DIR: ")
    with pytest.raises(ConfigError, match="baton serve MODEL_DIR"):
        shipped_model("no-such-model")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.yaml", {})
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="at most"):
        load_config(big, {})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(binary, {})


def test_show_is_input_again_and_hides_secrets(model: str) -> None:
    config = read("gateway: {api_keys: [hunter2]}\nprefill: {min_replicas: 2}\n", model)
    shown = as_document(config)
    assert "hunter2" not in yaml.safe_dump(shown)
    shown["gateway"]["api_keys"] = ["hunter2"]
    again = resolve(Document(values=shown))
    # Incarnations are new for every configuration, and replaced for every replica.
    assert _stable(again) == _stable(config)


def test_tenants_come_from_the_file_and_from_one_of_their_own(model: str, tmp_path: Path) -> None:
    secrets = tmp_path / "tenants.yaml"
    secrets.write_text("tenants: [{name: nightly, keys: [sk-2], max_running: 4}]\n")
    text = f"""
gateway:
  tenants_file: {secrets}
  tenants:
    - {{name: search, keys: [sk-1], weight: 3}}
  admission: {{hold_s: 0.5}}
"""
    config = read(text, model)
    assert [t.name for t in config.gateway.tenants] == ["search", "nightly"]
    assert config.gateway.admission.hold_s == 0.5
    shown = yaml.safe_dump(as_document(config))
    assert "sk-" not in shown
    assert "nightly" in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "gateway:\n  tenants:\n    - name: a\n      keys: [k]\n      wieght: 2\n",
            "baton.yaml line 5: gateway.tenants[0].wieght is not a known key; did you mean weight?",
        ),
        (
            "gateway:\n  tenants:\n    - name: a\n      keys: [k]\n      weight: -1\n",
            "baton.yaml line 5: gateway.tenants[0]: weight is -1.0, but must be finite",
        ),
        ("gateway:\n  tenants:\n    - name: a\n", "needs at least one key"),
        (
            "gateway:\n  tenants: [{name: a, keys: [k]}, {name: b, keys: [k]}]\n",
            "baton.yaml line 2: gateway: a key of the tenant 'b' also belongs to a",
        ),
        ("gateway: {tenants_file: /no/such}\n", "line 1: gateway.tenants_file: cannot read /no"),
        ("gateway: {admission: {hold_s: 0}}\n", "hold_s is 0.0, but must be finite"),
    ],
)
def test_wrong_tenants_name_line_and_field(model: str, text: str, said: str) -> None:
    assert said in refusal(text, model).message


def _stable(config: BatonConfig) -> BatonConfig:
    def pool(value: PoolConfig) -> PoolConfig:
        return dataclasses.replace(
            value, worker=dataclasses.replace(value.worker, incarnation="same")
        )

    return dataclasses.replace(config, prefill=pool(config.prefill), decode=pool(config.decode))


@pytest.mark.parametrize(
    ("gpus", "text", "expected"),
    [
        (0, "", (0.0, 0.0)),
        (1, "", (0.5, 0.5)),
        (8, "", (1.0, 1.0)),
        (4, "decode: {num_gpus: 3}", (1.0, 3)),
        (2, "decode: {min_replicas: 2}", (0.66, 0.66)),
        (1, "prefill: {min_replicas: 0}", (1.0, 1.0)),
    ],
)
def test_gpus_are_shared_out(
    model: str, gpus: float, text: str, expected: tuple[float, float]
) -> None:
    config = with_gpus(read(text, model), gpus)
    assert (config.prefill.num_gpus, config.decode.num_gpus) == expected


TWO_RANKS = "prefill: {min_replicas: 0}\ndecode:\n  engine: {tensor_parallel_size: 2}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TWO_RANKS.replace("2}", "3}"),
            "baton.yaml line 3: decode.engine: tensor_parallel_size is 3, but baton-tiny has 8 "
            "attention heads, which it does not divide; sizes that work: 1, 2, 4, 8",
        ),
        ("engine: {tensor_parallel_size: 16}", "prefill.engine: tensor_parallel_size is 16, but"),
        (TWO_RANKS + "  num_gpus: 0.5\n", "num_gpus is 0.5, but each of 2 tensor-parallel ranks"),
        (TWO_RANKS + "  num_cpus: 0\n", "num_cpus is 0, but each of 2 tensor-parallel ranks"),
        (TWO_RANKS + "engine: {device: 'cuda:0'}\n", "decode.engine: device is 'cuda:0', but"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(text: str, said: str) -> None:
    assert said in refusal(text, str(shipped_model("baton-tiny"))).message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_rank_has_a_bundle_of_its_own() -> None:
    from baton.cluster.app import placement

    config = read(TWO_RANKS, str(shipped_model("baton-tiny")))
    with pytest.raises(ConfigError, match=r"all ranks need 2 GPUs, but there are 1"):
        with_gpus(config, 1)
    on_cpu = placement(with_gpus(config, 0).decode)
    assert on_cpu["placement_group_bundles"] == [{"CPU": 1.0}] * 2
    on_gpu = placement(with_gpus(config, 2).decode)
    assert on_gpu["placement_group_bundles"] == [{"GPU": 1.0, "CPU": 1.0}] * 2
    assert on_gpu["ray_actor_options"] == {
        "num_cpus": 1.0,
        "num_gpus": 1.0,
        "resources": {},
    }


def test_adapters_may_be_written_in_three_ways(model: str, tmp_path: Path) -> None:
    text = """
adapters:
  modules:
    - sql=/adapters/sql
    - '{"name": "json", "path": "/adapters/json", "base_model_name": "some-model"}'
    - {name: caps, path: caps}
  roots: [~/adapters]
"""
    config = read(text, model)
    assert [(m.name, m.path) for m in config.adapters.modules] == [
        ("sql", "/adapters/sql"),
        ("json", "/adapters/json"),
        ("caps", str(Path("caps").absolute())),
    ]
    assert config.adapters.roots == (str(Path("~/adapters").expanduser()),)
    assert config.serves_adapters
    assert config.prefill.engine.max_loras == config.decode.engine.max_loras == 8
    assert not read("", model).serves_adapters
    assert read("engine: {max_loras: 2}\n" + text, model).decode.engine.max_loras == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("adapters: {modules: [sql]}", "must be name=path, or JSON"),
        ("adapters: {modules: ['{\"name\": ']}", "must be name=path, or JSON"),
        ("adapters: {modules: [{name: sql}]}", "path"),
        ("adapters: {modules: [a=/a, a=/b]}", "given twice"),
        ("adapters: {modules: [some-model=/a]}", "is the base model's"),
        ("adapters: {modules: ['two words=/a']}", "without spaces"),
        (
            "adapters: {modules: [{name: a, path: /a, base_model_name: other}]}",
            "is for 'other', but 'some-model' is served",
        ),
        ("{adapters: {roots: [/a]}, engine: {max_loras: 0}}", "engine.max_loras is 0"),
        ("{decode: {engine: {max_loras: 2}}}", "both pools serve adapters"),
        ("adapters: {load_timeout_s: 0}", "more than 0"),
    ],
)
def test_adapters_that_cannot_be_are_refused(text: str, problem: str, model: str) -> None:
    assert problem in refusal(text, model).message


def test_every_key_is_documented(model: str) -> None:
    """docs/configuration.md has a row for every key that `baton config show` prints."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    shown = as_document(read("", model))
    engine, sections = shown["prefill"]["engine"], {"prefill.worker": shown["prefill"]["worker"]}
    sections |= {"decode.worker": shown["decode"]["worker"], "engine": engine, "": shown}
    sections |= {name: value for name, value in shown.items() if isinstance(value, dict)}
    missing = [
        f"{name}: {key}"
        for name, keys in sections.items()
        for key in keys
        if f"`{key}`" not in page
    ]
    assert not missing


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_and_gateways_are_kept_to_nodes_with_their_resources() -> None:
    from baton.cluster.app import placement

    text = """
gateway_resources: {baton-gateway: 1}
decode:
  num_gpus: 1
  resources: {baton-decode: 0.001}
  engine: {tensor_parallel_size: 2}
"""
    config = read(text, str(shipped_model("baton-tiny")))
    assert config.gateway_resources == {"baton-gateway": 1}
    wanted = placement(config.decode)
    assert wanted["ray_actor_options"]["resources"] == {"baton-decode": 0.001}
    assert wanted["placement_group_bundles"] == [{"GPU": 1, "CPU": 1, "baton-decode": 0.001}] * 2
    assert wanted["placement_group_strategy"] == "STRICT_PACK"
    assert placement(config.prefill)["ray_actor_options"]["resources"] == {}
    far = read(text.replace("  num_gpus: 1\n", "  num_gpus: 1\n  num_hosts: 2\n"), config.model)
    assert placement(far.decode)["placement_group_strategy"] == "PACK"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decode: {resources: {GPU: 1}}\n", "decode: resources has GPU: 1, but holds custom"),
        ("gateway_resources: {a: 0}\n", "gateway_resources has a: 0"),
        ("decode: {num_hosts: 2}\n", "decode: num_hosts is 2, but must divide"),
        ("gateway_port_step: -1\n", "gateway_port_step is -1"),
        ("secret_file: 3\n", "secret_file must be a path"),
        ("secret_file: /no/such\n", "line 1: secret_file: cannot read /no/such"),
        ("secret_file: /no/such\nsecret: x\n", "secret and secret_file exclude each other"),
    ],
)
def test_wrong_places_and_secrets(model: str, text: str, said: str) -> None:
    assert said in refusal(text, model).message


def test_the_secret_may_be_in_a_file(model: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("abc\n")
    assert read(f"secret_file: {tmp_path / 'secret'}\n", model).secret == "abc"
    (tmp_path / "empty").write_text("\n")
    assert "must hold 1 to" in refusal(f"secret_file: {tmp_path / 'empty'}\n", model).message
