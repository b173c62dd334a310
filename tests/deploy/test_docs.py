"""The pages: what their commands are, those that need nothing else, and where their links lead.

The commands of helm and kubectl run in tests/deploy/test_commands.py, those of docker in
tests/deploy/test_docker.py, those of baton in tests/integration/test_kuberay.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.deploy.finding import CHART, ROOT

from baton.cluster.cli import baton

PAGES = sorted((ROOT / "docs" / "kubernetes").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRAMS = {"helm", "kubectl", "diff", "docker", "baton"}
COMMAND = re.compile(
    r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(baton|curl|echo|docker|helm|kubectl|lmcache|make) "
)
# Where the commands of each page run; "its parts" where a line itself is too large for a test.
RUN_IN = {
    "README.md": "tests/integration/test_kuberay.py; make is what runs these tests",
    "docs/adapters.md": "tests/integration/test_adapters_cluster.py; baton serve in its fixture",
    "docs/cli.md": "its parts: tests/cluster/test_bench.py, tests/cluster/test_bench_kv.py",
    "docs/kvtransfer.md": "its parts: tests/kvtransfer/lmcache_server.py",
    "docs/simulator.md": "below",
    "docs/tools.md": "below",
}
# A recorded trace, as docs/simulator.md describes it, and a model's shape.
TRACE = [
    {"timestamp": 500 * i, "input_length": 2000, "output_length": 20, "hash_ids": [0, 1, 9 + i, i]}
    for i in range(8)
]
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def commands(pages: Iterable[Path] = PAGES) -> list[str]:
    """Every line of a plain code block; continued lines joined."""
    found = []
    for page in pages:
        for language, text in FENCE.findall(page.read_text()):
            if not language:
                found += text.replace("\\\n", " ").strip().splitlines()
    return found


def files() -> dict[str, str]:
    """The YAML files that the pages show, by the name in their first line."""
    blocks = [text for page in PAGES for _, text in FENCE.findall(page.read_text())]
    named = [(re.match(r"# (\S+\.yaml)\n", text), text) for text in blocks]
    return {match[1]: text for match, text in named if match}


def of(program: str) -> list[str]:
    return [line for line in commands() if line.startswith(f"{program} ")]


def everywhere() -> list[str]:
    """Each `baton` command of any page."""
    lines = commands(sorted((ROOT / "docs").rglob("*.md")))
    return [line for line in lines if line.startswith("baton ")]


def test_every_program_is_one_that_is_checked() -> None:
    assert {line.split()[0] for line in commands()} == PROGRAMS


@pytest.mark.parametrize("line", sorted(set(everywhere())))
def test_baton(line: str) -> None:
    """Its options exist; tests/integration/test_kuberay.py runs those of the Kubernetes pages."""
    arguments = shlex.split(line)[1:]
    group = isinstance(baton.get_command(click.Context(baton), arguments[0]), click.Group)
    shown = CliRunner().invoke(baton, [*arguments[: 1 + group], "--help"])
    assert shown.exit_code == 0
    assert all(option in shown.output for option in arguments if option.startswith("--"))


def test_every_page_with_commands_has_tests_that_run_them() -> None:
    """Those of docs/kubernetes are in the other test modules, all of them."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {page for page in pages if any(map(COMMAND.match, commands([page])))}
    assert {str(page.relative_to(ROOT)) for page in found} == RUN_IN.keys()
    for text in RUN_IN.values():
        assert all((ROOT / name).is_file() for name in re.findall(r"tests/[\w/]+\.py", text))


def test_commands_that_need_no_cluster(tmp_path: Path) -> None:
    """Simulations, and parsers of what models say."""
    pytest.importorskip("matplotlib", reason="no extra `sim`")
    (tmp_path / "conversation.jsonl").write_text("\n".join(map(json.dumps, TRACE)))
    (tmp_path / "llama-70b").mkdir()
    (tmp_path / "llama-70b" / "config.json").write_text(json.dumps(SHAPE))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    pages = [ROOT / "docs" / name for name in ("simulator.md", "tools.md")]
    lines = [line for line in commands(pages) if COMMAND.match(line)]
    assert len(lines) == 4
    for line in lines:
        line = line.removeprefix("$ ").replace("/models/llama-70b", "llama-70b")
        command = ["bash", "-c", f"set -o pipefail; {line}"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout


def test_links_lead_somewhere() -> None:
    pages = [*PAGES, *(ROOT / "docs" / name for name in ("runbook.md", "profiles.md"))]
    for page in [*pages, CHART / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)
