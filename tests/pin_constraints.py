"""Writes constraints.txt: versions and hashes for every platform, no addresses. Run by `make constraints`."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
UV = pathlib.Path(sys.executable).with_name("uv")
FLAGS = "--universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet"
HEADER = """\
# Pinned versions and hashes of what `make` installs, for every platform. Made by `make constraints`.
# The extra `cuda12` needs an older onnxruntime-gpu than the one here and is installed without it.
"""


def compiled(*arguments: str, stdin: str = "") -> dict[str, str]:
    """Resolved entries by requirement line, each with its hash lines."""
    command = [str(UV), "pip", "compile", *FLAGS.split(), *arguments]
    text = subprocess.run(
        command, cwd=ROOT, input=stdin, text=True, stdout=subprocess.PIPE, check=True
    ).stdout
    entries = re.split(r"\n(?=\S)", text.strip())
    return {entry.split(" \\")[0]: entry for entry in entries}


def main() -> None:
    pins = compiled(
        "--extra", "cpu", "--extra", "mlx", "--extra", "dev", "--extra", "fuzz", "pyproject.toml"
    )
    names = {line.split("==")[0] for line in pins}
    extra = compiled("--extra", "cuda", "pyproject.toml") | compiled("-", stdin="uv\neditables\n")
    pins |= {line: entry for line, entry in extra.items() if line.split("==")[0] not in names}
    body = "\n".join(pins[line] for line in sorted(pins)) + "\n"
    if "://" in body:
        raise SystemExit("an address got into the pins")
    (ROOT / "constraints.txt").write_text(HEADER + body)


if __name__ == "__main__":
    main()
