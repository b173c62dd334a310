"""The package is the folders: links, wheel and sdist hold the same code."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "cluster",
    "decode_worker",
    "engine",
    "gateway",
    "handover",
    "kernels",
    "kvtransfer",
    "prefill_worker",
    "protos",
    "router",
    "simulator",
)


def sources() -> set[str]:
    """Every tracked source file of the package, as it is called inside `baton/`."""
    return {
        str(path.relative_to(ROOT))
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.suffix in {".py", ".pyi", ".proto", ".json"} and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("part", PARTS)
def test_each_folder_is_linked_and_says_what_it_owns(part: str) -> None:
    link = ROOT / "src" / "baton" / part
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / part
    text = (ROOT / part / "__init__.py").read_text()
    assert text.startswith('"""')


def test_wheel_and_sdist_hold_every_source(tmp_path: Path) -> None:
    script = (
        # setuptools replaces sys.argv.
        "import setuptools.build_meta as b, sys; out = sys.argv[1]; "
        "b.build_sdist(out); b.build_wheel(out)"
    )
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=tmp_path / "clone", check=True
    )
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    committed = {
        name
        for name in subprocess.run(
            ["git", "ls-files", *PARTS], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        if name in sources()
    }
    in_wheel = {name.removeprefix("baton/") for name in zipfile.ZipFile(wheel).namelist()}
    assert committed <= in_wheel
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert committed <= {name.removeprefix("src/baton/") for name in in_sdist}
