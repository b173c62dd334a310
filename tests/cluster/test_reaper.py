from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.cluster.reaper import Reaper, processes_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def straggler(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that logs into the directory and does not want to end."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["sleep", "600"], stdout=log)
    yield process
    process.kill()
    process.wait()


def test_finishing_ends_stragglers(directory: Path, straggler: subprocess.Popen[bytes]) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    reaper = Reaper(directory)
    assert processes_of(str(directory)) == {straggler.pid}
    # The owner's own open file is no reason to end it.
    with (directory / "own").open("w"):
        reaper.finish(keep_directory=False)
    assert straggler.wait(1) == -signal.SIGKILL
    assert not directory.exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_logs_can_be_kept(directory: Path) -> None:
    reaper = Reaper(directory)
    (directory / "baton.log").write_text("why")
    reaper.finish(keep_directory=True)
    assert (directory / "baton.log").read_text() == "why"


def test_an_owner_that_is_killed(directory: Path, straggler: subprocess.Popen[bytes]) -> None:
    code = (
        "import sys, time; from pathlib import Path; from baton.cluster.reaper import Reaper; "
        "r = Reaper(Path(sys.argv[1])); print('up', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert straggler.wait(15) == -signal.SIGKILL
    end_s = time.monotonic() + 15
    while directory.exists() and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not directory.exists()
