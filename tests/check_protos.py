"""Fails when the generated protobuf code is not what the .proto files say (run by `make check`)."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        protos = sorted(str(path) for path in (ROOT / "src/baton/protos").glob("*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "src"), *outputs]
        subprocess.run(command + protos, check=True)
        fresh = sorted(Path(scratch).glob("baton/protos/*"))
        stale = [
            path.name
            for path in fresh
            if path.read_bytes() != (ROOT / "protos" / path.name).read_bytes()
        ]
    if stale or not fresh:
        print(f"out of date: {', '.join(stale) or 'everything'}; run `make protos` and commit")
        return 1
    print(f"{len(fresh)} generated files are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
