"""What the wheel carries: the three rooms, the service files, the bundled model; and nothing else."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_only_our_rooms(names: list[str]) -> None:
    roots = {name.split("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {
        "daemon",
        "backends",
        "converters",
    }
    assert [name for name in names if "__pycache__" in name or "/tests/" in name] == []


@pytest.mark.parametrize(
    "name",
    [
        "daemon/bundled/ember.gguf",
        "daemon/service/systemd/hearth.service",
        "daemon/service/systemd/hearth.sysusers",
        "daemon/service/launchd/org.hearth.daemon.plist",
        "daemon/app.py",
        "backends/onnx/engine.py",
        "converters/gguf.py",
    ],
)
def test_what_must_be_there(names: list[str], name: str) -> None:
    assert name in names


def test_pins_and_project_name_no_address() -> None:
    for name in ("constraints.txt", "pyproject.toml"):
        assert "index-url" not in (ROOT / name).read_text()
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_every_dependency_is_pinned_and_justified() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    pinned = {line.split("==")[0] for line in pins.splitlines() if "==" in line}
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    for line in section.splitlines():
        if not line.strip().startswith('"'):
            continue
        requirement, _, reason = line.strip().partition("#")
        name = requirement.strip().strip('",').split(";")[0]
        name = name.split("[")[0].split(">")[0].split("=")[0].strip()
        assert name in pinned or name == "optimum-onnx", f"{name} has no pin"
        assert reason.strip() or "hearth" in name, f"{name} has no reason"
