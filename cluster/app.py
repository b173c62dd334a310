"""The Ray Serve application: deployments `prefill` and `decode`, and `gateway`, which depends on
both.

Serve places, heals, upgrades and scales the replicas. Its own HTTP proxy is not used.
"""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from typing import Any

import ray
from ray import serve
from ray.experimental import internal_kv
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from baton.cluster.actors import Factories, GatewayReplica, WorkerReplica
from baton.cluster.config import BatonConfig, PoolConfig, resolve, with_gpus
from baton.cluster.lmcache import with_lmcache
from baton.cluster.scaling_board import PoolScaling, deployed_scaling
from baton.cluster.schema import Document

# A replica that cannot be constructed is tried this often; a wrong configuration does not heal.
CONSTRUCTOR_TRIES = 3
# What a destructor may need beyond draining: closing the engine, the connector and the server.
CLOSING_S = 10.0
SCALING_POLICY = "baton.cluster.scaling:PoolPolicy"
# How often replicas report to their policy, and how long Serve keeps what they reported.
REPORT_S = 1.0
LOOK_BACK_S = 10.0


def build(args: dict[str, Any]) -> serve.Application:
    """Serve's application builder for a RayService or `serve run`: `args` is what a YAML file would
    say.

    Raises ConfigError.
    """
    config = resolve(Document(values=args))
    return build_app(with_gpus(config, ray.cluster_resources().get("GPU", 0.0)))


def kept_secret(name: str) -> str:
    """A random one for as long as this Ray cluster lives: gateways of an application that is
    deployed anew go on with the workers that are not replaced yet.
    """
    key, fresh = f"{name}:secret".encode(), secrets.token_hex(32).encode()
    internal_kv._internal_kv_put(key, fresh, overwrite=False, namespace="baton")
    kept: bytes = internal_kv._internal_kv_get(key, namespace="baton")
    return kept.decode()


def build_app(config: BatonConfig, factories: Factories | None = None) -> serve.Application:
    """Binds the application; deploying it is the caller's. Ray must be connected."""
    factories = factories or Factories()
    config = with_lmcache(config)
    if not config.secret:
        config = dataclasses.replace(config, secret=kept_secret(config.name))
    pools = [
        _worker_deployment(pool, config).bind(config, pool, factories)
        for pool in (config.prefill, config.decode)
        if pool.max_workers > 0
    ]
    return _gateway_deployment(config).bind(config, factories, *pools)


def _worker_deployment(pool: PoolConfig, config: BatonConfig) -> serve.Deployment:
    options: dict[str, Any] = {
        **placement(pool),
        "graceful_shutdown_timeout_s": pool.drain_s + CLOSING_S,
        **_common(config),
        **_replicas(pool, config),
    }
    return serve.deployment(WorkerReplica).options(name=pool.role.value, **options)


def placement(pool: PoolConfig) -> dict[str, Any]:
    """What Ray is to reserve for a worker: the replica is rank 0, each rank has a bundle."""
    custom = dict(pool.resources)
    actor = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus or 0, "resources": custom}
    options: dict[str, Any] = {"ray_actor_options": actor}
    if pool.num_gpus or pool.num_ranks > 1:
        wanted = {"GPU": pool.num_gpus or 0, "CPU": pool.num_cpus, **custom}
        bundle = {name: amount for name, amount in wanted.items() if amount}
        options["placement_group_bundles"] = [bundle] * pool.num_ranks
        options["placement_group_strategy"] = "STRICT_PACK" if pool.num_hosts == 1 else "PACK"
    return options


def _gateway_deployment(config: BatonConfig) -> serve.Deployment:
    return serve.deployment(GatewayReplica).options(
        name="gateway",
        num_replicas=config.gateway_replicas,
        ray_actor_options={"num_cpus": 1, "resources": dict(config.gateway_resources)},
        graceful_shutdown_timeout_s=config.gateway.drain_grace_s + CLOSING_S,
        **_common(config),
    )


def _common(config: BatonConfig) -> dict[str, Any]:
    return {
        "health_check_period_s": config.ray.health_check_period_s,
        "health_check_timeout_s": config.ray.health_check_timeout_s,
        # Serve would sleep this long before the destructor, waiting for requests that it never has.
        "graceful_shutdown_wait_loop_s": 0.05,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
    }


def _replicas(pool: PoolConfig, config: BatonConfig) -> dict[str, Any]:
    """Serve does what the policy says, at once; bounds and delays are the policy's, because they
    can be changed while it runs.
    """
    policy = AutoscalingPolicy(
        policy_function=SCALING_POLICY,
        policy_kwargs={
            "application": config.name,
            "role": pool.role.value,
            "base": deployed_scaling(config).base,
            "pool": PoolScaling.of(pool).to_json(),
            "directory": dataclasses.asdict(config.directory),
            "logs": dataclasses.asdict(config.logs),
        },
    )
    with warnings.catch_warnings():
        # Serve means to replace this setting by a variable of the environment, but does not yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        autoscaling = AutoscalingConfig(
            min_replicas=0,
            max_replicas=config.directory.max_members,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            metrics_interval_s=REPORT_S,
            look_back_period_s=LOOK_BACK_S,
            policy=policy,
        )
    return {"autoscaling_config": autoscaling}
