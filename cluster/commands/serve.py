"""`baton serve`: from a model folder to a URL, and back to nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from baton.cluster.config import BatonConfig
    from baton.cluster.directory import Listing
    from baton.cluster.launcher import Launcher
    from baton.cluster.terminal import Terminal

# The configuration key that each option sets.
KEYS = {
    "model_dir": "model",
    "model_name": "model_name",
    "host": "gateway.host",
    "port": "gateway.http_port",
    "grpc_port": "gateway.grpc_port",
    "api_key": "gateway.api_keys",
    "gateway_replicas": "gateway_replicas",
    "prefill_replicas": "prefill.min_replicas",
    "prefill_max_replicas": "prefill.max_replicas",
    "decode_replicas": "decode.min_replicas",
    "decode_max_replicas": "decode.max_replicas",
    "device": "engine.device",
    "dtype": "engine.dtype",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "prefill_tensor_parallel_size": "prefill.engine.tensor_parallel_size",
    "decode_tensor_parallel_size": "decode.engine.tensor_parallel_size",
    "max_model_len": "engine.max_model_len",
    "kv_cache_bytes": "engine.kv_cache_bytes",
    "kv_cpu_gib": "engine.kv_tiers.cpu_gib",
    "kv_disk_path": "engine.kv_tiers.disk_path",
    "kv_disk_gib": "engine.kv_tiers.disk_gib",
    "kv_lmcache": "engine.kv_tiers.lmcache",
    "lora_modules": "adapters.modules",
    "lora_roots": "adapters.roots",
    "max_loras": "engine.max_loras",
    "max_cpu_loras": "engine.max_cpu_loras",
    "max_lora_rank": "engine.max_lora_rank",
    "policy": "router.policy",
    "tool_call_parser": "gateway.tool_call_parser",
    "reasoning_parser": "gateway.reasoning_parser",
    "tool_parser_plugin": "gateway.tool_parser_plugins",
    "ray_address": "ray.address",
    "lmcache_address": "lmcache.address",
}


@click.command()
@click.argument("model_dir", required=False)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML configuration (docs/configuration.md). Options given here win over it.",
)
@click.option("--model-name", help="Name that clients use. Default: the folder's name.")
@click.option("--host", help="Address to listen on. Default 127.0.0.1; 0.0.0.0 for all.")
@click.option("--port", type=int, help="HTTP port. Default 8000; 0 takes a free one.")
@click.option("--grpc-port", type=int, help="gRPC port. Default: --port + 1; 0 takes a free one.")
@click.option("--no-grpc", is_flag=True, help="Serve HTTP only.")
@click.option(
    "--api-key",
    multiple=True,
    envvar="BATON_API_KEY",
    help="Key that clients must send as a bearer token; may be repeated. Default: none needed. "
    "Better given as BATON_API_KEY: other users of a machine can read command lines.",
)
@click.option("--prefill-replicas", type=int, help="Prefill workers. Default 1; 0: no remote ones.")
@click.option("--prefill-max-replicas", type=int, help="Scale the prefill pool up to this many.")
@click.option("--decode-replicas", type=int, help="Decode workers. Default 1.")
@click.option("--decode-max-replicas", type=int, help="Scale the decode pool up to this many.")
@click.option("--gateway-replicas", type=int, help="Gateways. Default 1. See docs/cli.md on ports.")
@click.option("--device", help="auto, cpu, cuda or cuda:N. Default auto: GPUs where there are any.")
@click.option("--dtype", help="auto, float32, bfloat16 or float16. Default auto.")
@click.option(
    "--tensor-parallel-size",
    type=int,
    help="Ranks of every worker, each on a GPU of its own (docs/tensor_parallel.md). Default 1.",
)
@click.option("--prefill-tensor-parallel-size", type=int, help="The same, of prefill workers.")
@click.option("--decode-tensor-parallel-size", type=int, help="The same, of decode workers.")
@click.option(
    "--max-model-len", type=int, help="Tokens of prompt and output. Default: the model's."
)
@click.option("--kv-cache-bytes", type=int, help="KV pool of each worker on CPU, in bytes.")
@click.option(
    "--kv-cpu-gib",
    type=float,
    help="Host memory of each worker for KV that its pool evicts, in GiB (docs/kv_tiers.md).",
)
@click.option("--kv-disk-path", help="Folder for such KV; needs --kv-cpu-gib too.")
@click.option(
    "--kv-lmcache",
    help="LMCache server for KV that all workers share, or auto; needs --kv-cpu-gib too.",
)
@click.option("--kv-disk-gib", type=float, help="What each worker may keep there, in GiB.")
@click.option(
    "--lora-modules",
    multiple=True,
    metavar="NAME=PATH",
    help="Adapter to start with (docs/adapters.md); may be repeated. Or JSON: "
    '{"name": ..., "path": ...}.',
)
@click.option(
    "--lora-roots",
    multiple=True,
    metavar="FOLDER",
    help="Adapters below this folder may be loaded while serving; may be repeated. Default: none.",
)
@click.option(
    "--max-loras",
    type=int,
    help="Adapters that one batch may use. Default 8 with any of the above, else 0: none.",
)
@click.option("--max-cpu-loras", type=int, help="Adapters that a worker keeps in memory.")
@click.option("--max-lora-rank", type=int, help="The highest rank of an adapter.")
@click.option("--policy", help="cost, always_remote, always_local or round_robin. Default cost.")
@click.option(
    "--tool-call-parser",
    help="How the model writes tool calls (docs/tools.md). Default auto: by its chat template and "
    "type. none: calls are left in the text, and requests with tools refused.",
)
@click.option(
    "--reasoning-parser", help="How the model writes its thoughts. auto, none or a name, as above."
)
@click.option(
    "--tool-parser-plugin",
    multiple=True,
    help="Python file with formats of your own (docs/tools.md); may be repeated.",
)
@click.option(
    "--ray-address",
    help="Join this Ray cluster (such as auto, or host:6379). Default: a private Ray, which is "
    "started here and ends with this command; never somebody else's.",
)
@click.option(
    "--lmcache-address",
    help="LMCache server on every machine with workers (docs/kvtransfer.md). Default: where workers"
    " need one, it is started here.",
)
def command(config_file: Path | None, no_grpc: bool, **options: Any) -> None:
    """Serve MODEL_DIR, a folder in Hugging Face layout; without it, the small model that ships.

    Starts one prefill worker, one decode worker and one gateway unless told otherwise, waits until
    they answer, and prints a URL to use. Ctrl-C (or SIGTERM) lets running requests finish and stops
    everything that was started; a second Ctrl-C stops at once.
    """
    from baton.cluster.config import load_config

    config = load_config(config_file, overrides(options, no_grpc))
    run(config)


def overrides(options: Mapping[str, Any], no_grpc: bool) -> dict[str, tuple[Any, str]]:
    """The options that were given, as configuration keys with their values and the options'
    names.
    """
    given: dict[str, tuple[Any, str]] = {}
    for name, value in options.items():
        if value is None or value == ():
            continue
        plain = list(value) if isinstance(value, tuple) else value
        label = "MODEL_DIR" if name == "model_dir" else f"--{name.replace('_', '-')}"
        given[KEYS[name]] = (plain, label)
    if no_grpc:
        given["gateway.grpc_port"] = (None, "--no-grpc")
    return given


def run(config: BatonConfig) -> None:
    """Serves until a signal comes. Raises BatonError when it cannot start."""
    from baton.cluster.launcher import Launcher, check_machine
    from baton.cluster.local_ray import make_state_dir
    from baton.cluster.reaper import Reaper
    from baton.cluster.terminal import Terminal

    check_machine(config)
    state_dir = make_state_dir()
    reaper = Reaper(state_dir)
    keep_logs = True
    try:
        with Terminal(state_dir / "baton.log") as terminal, StopSignals() as stop:
            launcher = Launcher(config, state_dir, terminal.say)
            try:
                _serve(launcher, terminal, stop)
            except (KeyboardInterrupt, SystemExit):
                # The second is what Ray makes of a SIGTERM while it starts.
                keep_logs = False
            finally:
                _stop(launcher, terminal, stop)
    finally:
        reaper.finish(keep_logs)
        if keep_logs:
            click.echo(f"Logs are kept in {state_dir}.")


def _serve(launcher: Launcher, terminal: Terminal, stop: StopSignals) -> None:
    terminal.say(f"Logs go to {terminal.log_path}.")
    launcher.start_ray()
    # Ray has just put its own SIGTERM handler in place of ours.
    stop.install()
    launcher.deploy()
    listing = launcher.wait_ready()
    terminal.say(welcome(launcher.config, listing))
    stop.wait()


def _stop(launcher: Launcher, terminal: Terminal, stop: StopSignals) -> None:
    stop.stopping()
    if not launcher.started:
        return
    terminal.say("Stopping: running requests may finish. Ctrl-C again stops at once.")
    launcher.stop()
    terminal.say("Stopped.")


class StopSignals:
    """Ctrl-C and SIGTERM: the first stops in order, the second ends everything at once."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._stopping = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._former = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Puts the handlers in place, again if need be."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def stopping(self) -> None:
        """From here on a signal ends the process at once."""
        self._stopping = True

    def wait(self) -> None:
        """Sleeps until a signal raises KeyboardInterrupt."""
        self._event.wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            # The reaper ends what is left.
            os._exit(128 + number)
        self._stopping = True
        raise KeyboardInterrupt


def welcome(config: BatonConfig, listing: Listing) -> str:
    """What is printed when the cluster is ready: where it is and how to try it."""
    url = listing.gateways[0].http_url
    key = "$BATON_API_KEY" if config.gateway.api_keys else ""
    header = f' -H "Authorization: Bearer {key}"' if key else ""
    body = f'{{"model": "{config.model_name}", "messages": [{{"role": "user", "content": "Hi!"}}]}}'
    python_key = 'os.environ["BATON_API_KEY"]' if key else '"none"'
    lines = [
        "",
        f"Baton serves {config.model_name} at {url}",
        *(f"  also at {g.http_url}" for g in listing.gateways[1:]),
        *(f"  gRPC at {g.grpc_address}" for g in listing.gateways if g.grpc_address),
        "",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'",
        "",
        f"  python -c '{'import os; ' if key else ''}from openai import OpenAI; "
        f'print(OpenAI(base_url="{url}/v1", api_key={python_key}).chat.completions.create('
        f'model="{config.model_name}", messages=[{{"role": "user", "content": "Hi!"}}])'
        ".choices[0].message.content)'",
        "",
        f"  baton chat --url {url}      baton status --url {url}",
        "",
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)
