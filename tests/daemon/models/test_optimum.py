"""Where the exporter's environment is, and what is said where it is not there."""

from __future__ import annotations

import pathlib

import pytest

from daemon.cli.optimum import manage
from daemon.errors import Invalid
from daemon.models.optimum import FACTS_FILE, environment
from daemon.models.shelving import import_file
from tests.daemon.models.shelf import Shelf


def test_what_is_not_installed_is_said_with_the_next_step(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Invalid, match="hearth optimum install"):
        environment(tmp_path)
    (tmp_path / "optimum").mkdir()
    (tmp_path / "optimum" / FACTS_FILE).write_text("{}")
    assert environment(tmp_path) == tmp_path / "optimum"


def test_status_and_removal(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEARTH_HOME", str(tmp_path))
    assert manage("status") == 0
    folder = tmp_path / "optimum"
    folder.mkdir()
    (folder / FACTS_FILE).write_text('{"requirements":["torch"],"bytes":1000000,"seconds":4.2}')
    assert manage("status") == 0
    assert manage("remove") == 0
    assert not folder.exists()
    assert manage("remove") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "not installed"
    assert lines[1].startswith("torch: 1.0 MB, installed in 4 s")
    assert lines[2:] == ["removed", "nothing was installed"]


def test_only_folders_are_exported(tmp_path: pathlib.Path) -> None:
    shelf = Shelf(tmp_path)
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(Invalid, match="not a folder"):
        import_file(
            shelf.store, shelf.conversions, shelf.creator, file, "m", optimum=tmp_path / "none"
        )
