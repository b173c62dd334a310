"""Starts the application, waits until it answers, and stops it: what `baton serve` does, without a
terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from baton.cluster.actors import Factories
from baton.cluster.adapter_followers import describe
from baton.cluster.app import build_app
from baton.cluster.config import BatonConfig, with_gpus
from baton.cluster.directory import Listing
from baton.cluster.directory_actor import open_directory
from baton.cluster.lmcache import check_lmcache, uses_lmcache
from baton.cluster.local_ray import check_memory, connect_ray, start_private_ray
from baton.cluster.ports import check_ports
from baton.kvtransfer.lmcache.server import LMCacheServer
from baton.protos.errors import DeadlineError, UnavailableError, error_from_code
from baton.protos.types import Role

POLL_S = 0.2
CALL_TIMEOUT_S = 5.0


class Launcher:
    """One deployed application. `say` is told about progress in plain sentences.

    Calls are made in this order: `start_ray`, `deploy`, `wait_ready`, and always `stop`.
    """

    def __init__(
        self,
        config: BatonConfig,
        state_dir: Path,
        say: Callable[[str], None],
        factories: Factories | None = None,
    ) -> None:
        self.config = config
        self._state_dir = state_dir
        self._say = say
        self._factories = factories
        self._private = not config.ray.address
        self._began_s = time.monotonic()
        self._directory: Any = None
        self._told: set[str] = set()
        self._lmcache: LMCacheServer | None = None

    @property
    def started(self) -> bool:
        """Whether there is anything to stop."""
        return bool(ray.is_initialized())

    def start_ray(self) -> None:
        """Starts or joins Ray. Raises ConfigError and UnavailableError."""
        config = self.config
        if self._private:
            self._say("Starting a private Ray on this machine.")
            start_private_ray(config, self._state_dir)
        else:
            self._say(f"Joining the Ray cluster at {config.ray.address}.")
            connect_ray(config)

    def deploy(self) -> None:
        """Hands the application to Serve, and returns while it starts. Raises ConfigError."""
        config = self.config
        if config.worker_host == "auto" and self._private:
            config = dataclasses.replace(config, worker_host="127.0.0.1")
        config = with_gpus(config, ray.cluster_resources().get("GPU", 0.0))
        self.config = config = self._with_lmcache_server(config)
        self._say(
            f"Starting {_count(config.prefill.min_replicas, 'prefill worker')}, "
            f"{_count(config.decode.min_replicas, 'decode worker')} and "
            f"{_count(config.gateway_replicas, 'gateway')} for the model {config.model_name}."
        )
        self.reopen_directory()
        # What was applied to an earlier deployment ends with this one, and so do its adapters.
        forgotten = [
            self._directory.apply_scaling.remote(None),
            self._directory.begin_adapters.remote("", ()),
        ]
        ray.get(forgotten, timeout=self.config.ray.start_timeout_s)
        serve.start(proxy_location="Disabled")
        app = build_app(config, self._factories)
        target = serve.RunTarget(target=app, name=config.name, route_prefix=None)
        serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def wait_ready(self) -> Listing:
        """Returns when every replica is a member and a gateway says that it is ready.

        Raises the error with which a replica refused to start, UnavailableError when Serve gives
        up, DeadlineError after `ray.start_timeout_s`.
        """
        deadline_s = time.monotonic() + self.config.ray.start_timeout_s
        seen: dict[str, int] = {}
        while (left_s := deadline_s - time.monotonic()) > 0:
            # All of the cluster starts at once: the directory may be slow, and has until then.
            listing = self.listing(timeout_s=left_s)
            if listing.failures:
                last = listing.failures[-1]
                raise error_from_code(last.code, f"{last.replica_id}: {last.message}")
            self._tell_progress(listing, seen)
            if self._complete(listing) and all(is_ready(g.http_url) for g in listing.gateways):
                return listing
            self._check_serve()
            time.sleep(POLL_S)
        waited_s = self.config.ray.start_timeout_s
        raise DeadlineError(
            f"the cluster was not ready within ray.start_timeout_s ({waited_s:g} s)"
        )

    def listing(self, timeout_s: float = CALL_TIMEOUT_S) -> Listing:
        """Who is a member now. Raises UnavailableError."""
        try:
            answer: Listing = ray.get(self._directory.listing.remote(), timeout=timeout_s)
        except (RayError, TimeoutError) as error:
            raise UnavailableError(f"the directory does not answer: {error}") from error
        return answer

    def reopen_directory(self) -> None:
        """Finds the directory again after somebody removed it for good."""
        self._directory = open_directory(self.config.name, self.config.directory)

    def stop(self) -> None:
        """Drains and stops what was started: the application always, Ray when it is private."""
        if not self.started:
            return
        with contextlib.suppress(RayError, TimeoutError):
            # Serve's other applications in a shared cluster are not ours to stop.
            if self._private:
                serve.shutdown()
            else:
                serve.delete(self.config.name)
        if self._directory is not None:
            with contextlib.suppress(RayError):
                ray.kill(self._directory)
        ray.shutdown()
        if self._lmcache is not None:
            self._lmcache.close()

    def _with_lmcache_server(self, config: BatonConfig) -> BatonConfig:
        """Starts one where workers want one and nobody else runs it."""
        if config.lmcache.address or not uses_lmcache(config):
            return config
        self._say("Starting an LMCache server.")
        self._lmcache = LMCacheServer(config.lmcache)
        self._lmcache.start()
        lmcache = dataclasses.replace(config.lmcache, address=self._lmcache.address)
        return dataclasses.replace(config, lmcache=lmcache)

    def _complete(self, listing: Listing) -> bool:
        config, count = self.config, _by_role(listing)
        return (
            count["prefill worker"] >= config.prefill.min_replicas
            and count["decode worker"] >= config.decode.min_replicas
            and count["gateway"] >= config.gateway_replicas
        )

    def _tell_progress(self, listing: Listing, seen: dict[str, int]) -> None:
        for what, count in _by_role(listing).items():
            if count > seen.get(what, 0):
                elapsed_s = time.monotonic() - self._began_s
                self._say(f"  {_count(count, what)} up after {elapsed_s:.1f} s.")
            seen[what] = count

    def _check_serve(self) -> None:
        try:
            application = serve.status().applications.get(self.config.name)
        except RayError as error:
            raise UnavailableError(f"Serve does not answer: {error}") from error
        if application is None:
            return
        if application.status == "DEPLOY_FAILED":
            raise UnavailableError(f"Serve gave up: {_last_line(application.message)}")
        for name, deployment in application.deployments.items():
            # Such as: no node has the CPUs or GPUs that a replica asks for. That it grows from
            # nothing is no news.
            growing = deployment.status == "UPSCALING"
            if deployment.message and not growing and deployment.message not in self._told:
                self._told.add(deployment.message)
                self._say(f"  {name} waits: {_last_line(deployment.message)}")


def check_machine(config: BatonConfig) -> None:
    """What can be known before anything starts. Raises ConfigError; AdapterError for a module."""
    check_ports(config.gateway)
    check_lmcache(config)
    if not config.ray.address:
        check_memory(config)
        for module in config.adapters.modules:
            describe(config.decode.engine, module.name, module.path)


def is_ready(http_url: str) -> bool:
    """Whether the gateway there would serve a request now."""
    try:
        # Our own gateway on our own address: its certificate may name another host.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(f"{http_url}/ready", timeout=2.0, context=context) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _by_role(listing: Listing) -> dict[str, int]:
    roles = [member.role for member in listing.workers]
    return {
        "prefill worker": roles.count(Role.PREFILL),
        "decode worker": roles.count(Role.DECODE),
        "gateway": len(listing.gateways),
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
