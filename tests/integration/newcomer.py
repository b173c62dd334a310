"""Somebody who follows the Kubernetes pages: kubectl and helm meet a stand-in for Kubernetes' API
whose pods are the processes of this machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner
from tests.deploy.finding import CHART
from tests.deploy.kube.actors import Actors, Shell
from tests.deploy.kube.server import Server, serving
from tests.deploy.kube.store import Object
from tests.deploy.test_docs import files

from baton.cluster.cli import baton

HERE = "http://127.0.0.1:8000"


class Newcomer:
    """`url` is the gateway's; `home` has the chart, the files that the pages show and, by
    component, the logs of pods.
    """

    def __init__(self, home: Path, url: str, server: Server) -> None:
        self.home = home
        self.url = url
        self.shell = Shell(server, home)
        self.tested: list[str] = []

    def run_test(self, pod: Object) -> bool:
        """A pod of `helm test` as a node runs it; the Service's name is the gateway's."""
        (container,) = pod["spec"]["containers"]
        env = {one["name"]: one["value"] for one in container["env"]} | {"BATON_URL": self.url}
        program, path = container["command"]
        assert (program, path) == ("python", "/test/request.py")
        command = [sys.executable, str(CHART / "files" / "request.py")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        self.tested.append(done.stdout + done.stderr)
        return done.returncode == 0

    def log(self, pod: Object) -> str:
        """What `kubectl logs` shows of a pod."""
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        return (self.home / f"{component}.log").read_text(errors="replace")

    @contextmanager
    def forwarding(self, line: str) -> Iterator[str]:
        """A `kubectl port-forward`, and the URL at its end; the port of the page may be taken."""
        local, remote = re.findall(r" (\d+):(\d+)$", line)[0]
        command = f"exec {line.replace(f' {local}:{remote}', f' :{remote}')}"
        with subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.home,
            env=self.shell.env,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                port = re.findall(r"from 127\.0\.0\.1:(\d+)", process.stdout.readline())[0]
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def run_baton(arguments: list[str], said: str | None = None) -> str:
    """A `baton` command; `said` is what is typed."""
    done = CliRunner().invoke(baton, arguments, input=said, catch_exceptions=False)
    assert done.exit_code == 0, (arguments, done.output)
    return done.output


@contextmanager
def newcomer(home: Path, url: str) -> Iterator[Newcomer]:
    """Serves the API to kubectl and helm as long as it lasts."""
    with serving() as server:
        (home / "deploy").symlink_to(CHART.parents[1])
        for name, text in files().items():
            (home / name).write_text(text)
        found = Newcomer(home, url, server)
        server.logs = found.log
        server.ports = lambda pod: int(url.rpartition(":")[2])
        server.store.react = Actors(server.store, found.run_test)
        yield found
