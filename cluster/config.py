"""The whole configuration of a Baton cluster: one tree of frozen dataclasses, read from YAML and
options.

`docs/configuration.md` documents every field. Each package's own section is defined beside its
consumer; this module composes them, and refuses what does not fit together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.cluster.adapter_config import AdaptersConfig, check_modules, complete_adapters
from baton.cluster.ranks import (
    check_hosts,
    check_model_ranks,
    check_rank_resources,
    check_resources,
)
from baton.cluster.schema import Document, build, dotted, load_document, read_fields, unknown_key
from baton.cluster.secret_files import secret_file, tenants_file
from baton.decode_worker.config import DecodeWorkerConfig
from baton.engine.config import EngineConfig
from baton.gateway.config import GatewayConfig
from baton.gateway.dialect import check_parsers
from baton.gateway.fleet_config import FleetConfig
from baton.kvtransfer.lmcache.config import LMCacheConfig
from baton.prefill_worker.config import PrefillWorkerConfig
from baton.protos.errors import ConfigError
from baton.protos.logs import LogsConfig
from baton.protos.tracing import check_tracing
from baton.protos.types import Role
from baton.router.config import RouterConfig
from baton.router.scaling_config import ScalingConfig

DEFAULT_MODEL = "baton-tiny"
# How long requests wait for a decode pool that was scaled to zero, where nothing else is said.
WAKE_WAIT_S = 300.0
_BY_MODEL = "cannot be set here: it follows from `model`"
_BY_BATON = "cannot be set here: every worker gets its own from the cluster"
ENGINE_FIXED = {"model_dir": _BY_MODEL, "role": "cannot be set here: it follows from the pool"}
WORKER_FIXED = {
    "engine": "belongs one level up, beside `worker`",
    "worker_id": _BY_BATON,
    "incarnation": _BY_BATON,
    "rack": "cannot be set here: it is the label `baton.rack` of the worker's Ray node",
    "host": "cannot be set here: it is the cluster's `worker_host`",
    "port": "cannot be set here: workers bind a free port and publish it in the directory",
    "model_name": "cannot be set here: it is the top-level `model_name`",
    "secret": "cannot be set here: it is the top-level `secret`",
    "tracing": "cannot be set here: it is the top-level `tracing`",
    "logs": "cannot be set here: it is the top-level `logs`",
}
GATEWAY_FIXED = {"model_dir": _BY_MODEL}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryConfig:
    """Who is a member. Times are seconds. Raises ConfigError when a lease cannot survive a lost
    heartbeat.
    """

    heartbeat_s: float = 1.0
    lease_s: float = 5.0
    refresh_s: float = 1.0
    max_members: int = 4096

    def __post_init__(self) -> None:
        _positive("heartbeat_s", self.heartbeat_s)
        _positive("refresh_s", self.refresh_s)
        _at_least("max_members", self.max_members, 1)
        if self.lease_s < 2 * self.heartbeat_s:
            raise ConfigError(
                f"lease_s is {self.lease_s}, but must be at least twice heartbeat_s "
                f"({self.heartbeat_s}), so that one lost heartbeat does not end a membership",
                param="lease_s",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """One pool of workers. `max_replicas` None: as many as `min_replicas`, without autoscaling.
    `scaling` decides between the two; with `min_replicas` 0 an idle pool goes away and comes back.

    `num_cpus` is both what Ray reserves for a worker and the number of its compute threads.
    `num_gpus` None: an equal share of the GPUs that Ray has, at most one; see `with_gpus`. Both are
    for each rank of a worker with several (`engine.tensor_parallel_size`), and so are `resources`,
    custom Ray resources that keep workers to the nodes which offer them. `num_hosts`: nodes that a
    worker's ranks may be spread over, where one has not enough GPUs.
    `drain_s`: a worker that is told to leave finishes its requests for at most this long.
    """

    worker: PrefillWorkerConfig | DecodeWorkerConfig
    min_replicas: int = 1
    max_replicas: int | None = None
    num_cpus: float = 1.0
    num_gpus: float | None = None
    num_hosts: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)
    drain_s: float = 30.0
    scaling: ScalingConfig = field(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        # Without any prefill worker decode workers compute all prompts; the reverse is nothing.
        alone = self.role is not Role.PREFILL and not self.max_replicas
        _at_least("min_replicas", self.min_replicas, 1 if alone else 0)
        if self.max_replicas is not None:
            _at_least("max_replicas", self.max_replicas, self.min_replicas)
        _at_least("num_cpus", self.num_cpus, 0)
        if self.num_gpus is not None:
            _at_least("num_gpus", self.num_gpus, 0)
        _at_least("drain_s", self.drain_s, 0)
        check_resources("resources", self.resources)
        check_hosts(self.num_hosts, self.num_ranks)
        check_rank_resources(self.num_ranks, self.num_cpus, self.num_gpus)

    @property
    def num_ranks(self) -> int:
        """Ranks of each worker."""
        return self.worker.engine.tensor_parallel_size

    @property
    def max_workers(self) -> int:
        return self.min_replicas if self.max_replicas is None else self.max_replicas

    @property
    def engine(self) -> EngineConfig:
        return self.worker.engine

    @property
    def role(self) -> Role:
        return self.worker.engine.role


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """How Baton uses Ray. `address` empty: a private Ray on this machine that ends with `baton
    serve`.
    """

    address: str = ""
    object_store_bytes: int = 100 << 20
    health_check_period_s: float = 2.0
    health_check_timeout_s: float = 10.0
    start_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        _at_least("object_store_bytes", self.object_store_bytes, 80 << 20)
        _positive("health_check_period_s", self.health_check_period_s)
        _positive("health_check_timeout_s", self.health_check_timeout_s)
        _positive("start_timeout_s", self.start_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatonConfig:
    """Everything that `baton serve` needs, resolved: paths exist, pools have their own engine
    configuration.

    `worker_host` is the address that workers bind and publish; "auto" is 127.0.0.1 in a private Ray
    and the node's own address in a cluster. `secret` is what workers and gateways prove to each
    other that they know before anything else; empty stands for a random one. Gateways are kept to
    nodes which offer `gateway_resources`; those of one node take ports `gateway_port_step` apart,
    and with 0 each waits for its own.
    """

    model: str
    model_name: str
    prefill: PoolConfig
    decode: PoolConfig
    gateway: GatewayConfig
    name: str = "baton"
    gateway_replicas: int = 1
    gateway_resources: Mapping[str, float] = field(default_factory=dict)
    gateway_port_step: int = 10
    worker_host: str = "auto"
    secret: str = field(default="", repr=False)
    # OpenTelemetry traces of every request; where to and how many, by the OTEL_* variables.
    tracing: bool = False
    logs: LogsConfig = field(default_factory=LogsConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    directory: DirectoryConfig = field(default_factory=DirectoryConfig)
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    lmcache: LMCacheConfig = field(default_factory=LMCacheConfig)

    def __post_init__(self) -> None:
        if self.tracing:
            check_tracing()
        _at_least("gateway_replicas", self.gateway_replicas, 1)
        _at_least("gateway_port_step", self.gateway_port_step, 0)
        check_resources("gateway_resources", self.gateway_resources)
        if not self.name.replace("-", "").isalnum():
            raise ConfigError(
                f"name is {self.name!r}, but must be letters, digits and dashes", param="name"
            )
        if self.gateway.http_port and self.gateway.http_port == self.gateway.grpc_port:
            raise ConfigError(
                f"gateway.grpc_port is {self.gateway.grpc_port}, as is http_port; choose another",
                param="gateway.grpc_port",
            )
        prefill, decode = self.prefill.worker.connector, self.decode.worker.connector
        if prefill != decode and self.prefill.max_workers:
            raise ConfigError(
                f"prefill.worker.connector is {prefill!r} and decode.worker.connector {decode!r}: "
                "KV moves between the pools by one connector",
                param="prefill.worker.connector",
            )
        self._check_adapters()

    def _check_adapters(self) -> None:
        check_modules(self.adapters.modules, self.gateway.model_names)
        prefill, decode = self.prefill.engine.max_loras, self.decode.engine.max_loras
        if bool(prefill) != bool(decode):
            raise ConfigError(
                f"prefill.engine.max_loras is {prefill} and decode.engine.max_loras {decode}: "
                "both pools serve adapters, or none does",
                param="prefill.engine.max_loras",
            )
        if not decode and (self.adapters.modules or self.adapters.roots):
            raise ConfigError(
                "adapters are configured, but engine.max_loras is 0: say how many of them a batch "
                "may use at once",
                param="adapters",
            )

    @property
    def serves_adapters(self) -> bool:
        """Whether workers can hold adapters at all."""
        return self.decode.engine.max_loras > 0


def with_gpus(config: BatonConfig, num_gpus: float) -> BatonConfig:
    """Resolves `num_gpus` None of either pool for a cluster that has `num_gpus` GPUs altogether.

    Workers share a GPU only where there are fewer GPUs than workers; without any they run on CPU.
    Tensor-parallel ranks do not share: ConfigError where there are GPUs, but too few.
    """
    pools = (config.prefill, config.decode)
    wanted = sum(p.max_workers * p.num_ranks for p in pools if p.num_gpus is None)
    given = (p.max_workers * p.num_ranks * p.num_gpus for p in pools if p.num_gpus is not None)
    left = num_gpus - sum(given)
    share = max(0.0, min(1.0, left / wanted)) if wanted else 0.0
    # Ray takes hundredths; rounding down keeps the sum within what there is.
    share = math.floor(share * 100) / 100
    for pool in pools:
        if pool.num_gpus is None and pool.num_ranks > 1 and 0 < share < 1:
            raise ConfigError(
                f"{pool.role.value}.engine.tensor_parallel_size is {pool.num_ranks}, and all ranks "
                f"need {wanted} GPUs, but there are {left:g}: use fewer ranks or replicas",
                param=f"{pool.role.value}.engine.tensor_parallel_size",
            )

    def settled(pool: PoolConfig) -> PoolConfig:
        return pool if pool.num_gpus is not None else dataclasses.replace(pool, num_gpus=share)

    return dataclasses.replace(
        config, prefill=settled(config.prefill), decode=settled(config.decode)
    )


def load_config(path: Path | None, overrides: Mapping[str, tuple[Any, str]]) -> BatonConfig:
    """Reads a file (None: all defaults) and lays options over it.

    `overrides` maps a dotted key to (value, the option that set it). Raises ConfigError.
    """
    document = load_document(path) if path else Document(values={})
    for key, (value, option) in overrides.items():
        document = document.override(tuple(key.split(".")), value, option)
    return resolve(document)


def resolve(document: Document) -> BatonConfig:
    """Checks a document and composes the configuration. Raises ConfigError."""
    document = complete_adapters(secret_file(document))
    values = document.values
    known = [f.name for f in dataclasses.fields(BatonConfig)]
    for key in values:
        if key not in (*known, "engine"):
            raise unknown_key(document, (key,), [*known, "engine"])
    plain = {k: v for k, v in values.items() if k not in ("engine", "prefill", "decode", "gateway")}
    arguments = read_fields(BatonConfig, plain, document, ())
    model = _model_dir(arguments.get("model", ""), document)
    name = arguments.get("model_name") or model.name
    arguments |= {"model": str(model), "model_name": name}
    for pool in (Role.PREFILL, Role.DECODE):
        arguments[pool.value] = _pool(pool, model, name, document)
        try:
            check_model_ranks(arguments[pool.value].engine)
        except ConfigError as error:
            where = (pool.value, "engine", "tensor_parallel_size")
            raise document.error(where, f"{pool.value}.engine: {error.message}") from error
    if arguments["decode"].min_replicas == 0 and "wake_wait_s" not in (values.get("fleet") or {}):
        fleet = arguments.get("fleet", FleetConfig())
        arguments["fleet"] = dataclasses.replace(fleet, wake_wait_s=WAKE_WAIT_S)
    arguments["gateway"] = _gateway(model, name, document)
    return build(BatonConfig, arguments, document, ())


def _pool(role: Role, model: Path, model_name: str, document: Document) -> PoolConfig:
    path = (role.value,)
    values = document.values.get(role.value)
    if values is not None and not isinstance(values, Mapping):
        raise document.error(path, f"{dotted(path)} must be a mapping of `key: value` lines")
    section = dict(values or {})
    known = ["engine", *(f.name for f in dataclasses.fields(PoolConfig))]
    for key in section:
        if key not in known:
            raise unknown_key(document, (*path, key), known)
    engine_values, worker_values = section.pop("engine", None), section.pop("worker", None)
    common = document.values.get("engine")
    engine_fields = read_fields(EngineConfig, common, document, ("engine",), ENGINE_FIXED)
    base = {"model_dir": str(model), "role": role}
    build(EngineConfig, base | engine_fields, document, ("engine",))
    engine_fields |= read_fields(
        EngineConfig, engine_values, document, (*path, "engine"), ENGINE_FIXED
    )
    engine = build(EngineConfig, base | engine_fields, document, (*path, "engine"))
    worker_cls = PrefillWorkerConfig if role is Role.PREFILL else DecodeWorkerConfig
    worker_fields = read_fields(
        worker_cls, worker_values, document, (*path, "worker"), WORKER_FIXED
    )
    worker_fields |= {"engine": engine, "model_name": model_name}
    worker = build(worker_cls, worker_fields, document, (*path, "worker"))
    fields = read_fields(PoolConfig, section, document, path)
    return build(PoolConfig, {"worker": worker, **fields}, document, path)


def _gateway(model: Path, model_name: str, document: Document) -> GatewayConfig:
    path = ("gateway",)
    section, tenants = tenants_file(document)
    fields = read_fields(GatewayConfig, section, document, path, GATEWAY_FIXED)
    if tenants:
        fields["tenants"] = (*fields.get("tenants", ()), *tenants)
    given = {"model_dir": str(model), "served_model_names": (model_name,)}
    if "http_port" in fields and "grpc_port" not in fields:
        # Beside the HTTP port, as the defaults are, so that two clusters need two numbers only.
        given["grpc_port"] = fields["http_port"] and fields["http_port"] + 1
    # Gateways may run in another directory than this command.
    plugins = [str(Path(f).expanduser().absolute()) for f in fields.get("tool_parser_plugins", ())]
    gateway = build(
        GatewayConfig, given | fields | {"tool_parser_plugins": tuple(plugins)}, document, path
    )
    try:
        check_parsers(gateway)
    except ConfigError as error:
        where = (*path, error.param) if error.param else path
        raise document.error(where, error.message) from error
    return gateway


def _model_dir(wanted: str, document: Document) -> Path:
    if not wanted:
        return shipped_model(DEFAULT_MODEL)
    path = Path(wanted).expanduser().absolute()
    if (path / "config.json").is_file():
        return path
    what = "does not exist" if not path.exists() else "has no config.json"
    raise document.error(
        ("model",),
        f"model is {wanted!r}, which {what}; give a folder in Hugging Face layout "
        "(config.json, *.safetensors, tokenizer.json)",
    )


def shipped_model(name: str) -> Path:
    """The folder of a model that ships with Baton. Raises ConfigError that says where it was looked
    for.
    """
    package = Path(__file__).resolve().parent
    candidates = [package.parent / "models" / name, Path(__file__).parent.parent / "models" / name]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    looked = " and ".join(dict.fromkeys(str(c) for c in candidates))
    raise ConfigError(
        f"no model was given, and the shipped {name} is not in {looked}; "
        "give a model folder: baton serve MODEL_DIR",
        param="model",
    )


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ConfigError(f"{name} is {value}, but must be at least {low}", param=name)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} is {value}, but must be more than 0", param=name)
