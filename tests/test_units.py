"""The service files: they start this daemon, with folders that it uses, and systemd accepts them."""

from __future__ import annotations

import pathlib
import plistlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from importlib import import_module

import pytest

from daemon.app import ANSWER_GRACE_SECONDS
from daemon.cli.arguments import parse_arguments
from daemon.config import EXIT_CONFIG, load_config
from daemon.listening import GRACE_SECONDS
from daemon.residency.worker_process import WorkerLimits

ROOT = pathlib.Path(__file__).parent.parent
UNIT = ROOT / "systemd" / "hearth.service"
SYSUSERS = ROOT / "systemd" / "hearth.sysusers"
PLIST = ROOT / "launchd" / "org.hearth.daemon.plist"
# systemd's scale: tenths. The aim for a unit without a graphics card is 1.6.
EXPOSURE = 16

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


def read_unit(path: pathlib.Path) -> dict[str, list[str]]:
    """Every key of a unit with all its values, in order; an empty value stays one."""
    values: defaultdict[str, list[str]] = defaultdict(list)
    for line in path.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            values[key].append(value)
    return values


def words_as_environment(lines: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for line in lines for word in line.split())


def check_command(command: list[str]) -> None:
    """The command is the one that this project installs, and it understands its arguments."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    program = pathlib.PurePosixPath(command[0])
    module, function = project["scripts"][program.name].split(":")
    assert callable(getattr(import_module(module), function))
    assert program.is_absolute()
    assert parse_arguments(command[1:]).command == "serve"


def check_folders(environ: Mapping[str, str], state: str) -> None:
    config = load_config(environ, {})
    assert str(config.home) == state
    assert config.is_loopback and not config.open_lan
    for folder in (config.models, config.artifacts):
        assert folder.is_relative_to(state)


def seconds_to_stop() -> float:
    """The longest orderly end: running answers, the server, then workers that do not listen."""
    limits = WorkerLimits()
    return ANSWER_GRACE_SECONDS + GRACE_SECONDS + limits.close_seconds + limits.terminate_seconds


def test_the_unit_starts_this_daemon_in_its_own_folders():
    unit = read_unit(UNIT)
    (command,) = unit["ExecStart"]
    check_command(command.split())
    state = f"/var/lib/{unit['StateDirectory'][0]}"
    check_folders(words_as_environment(unit["Environment"]), state)
    assert unit["WorkingDirectory"] == [state]
    assert (unit["Type"], unit["NotifyAccess"]) == (["notify"], ["main"])


def test_the_unit_lets_the_daemon_end_and_gives_up_on_bad_configuration():
    unit = read_unit(UNIT)
    assert unit["KillMode"] == ["mixed"]
    assert int(unit["TimeoutStopSec"][0]) > seconds_to_stop()
    assert unit["RestartPreventExitStatus"] == [str(EXIT_CONFIG)]


def test_the_unit_leaves_what_the_daemon_needs():
    unit = read_unit(UNIT)
    assert "AF_NETLINK" in unit["RestrictAddressFamilies"][0].split()
    assert unit["ProcSubset"] == ["all"]
    assert unit["WatchdogSec"] == ["60"] and unit["NotifyAccess"] == ["main"]
    assert not {"MemoryDenyWriteExecute", "PrivateUsers", "PrivateNetwork", "MemoryMax"} & set(unit)


def test_the_unit_s_user_is_made():
    unit = read_unit(UNIT)
    (entry,) = re.findall(r"^u (\S+) - \"[^\"]+\" (\S+) \S+$", SYSUSERS.read_text(), re.MULTILINE)
    assert [entry[0]] == unit["User"] == unit["Group"]
    assert entry[1] == f"/var/lib/{unit['StateDirectory'][0]}"


@needs_systemd
def test_systemd_finds_no_fault_in_the_unit(tmp_path: pathlib.Path):
    # It looks for the program, which is not installed where the unit says.
    text = UNIT.read_text().replace("/opt/hearth/bin/hearth", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert (found.returncode, complaints(found.stderr)) == (0, [])
    copy.write_text(text.replace("TasksMax=", "TasksMaximum="))
    wrong = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert complaints(wrong.stderr) != []


def complaints(text: str) -> list[str]:
    """Only those about our unit: a machine's own units may have faults too."""
    return [line for line in text.splitlines() if UNIT.name in line]


@needs_systemd
def test_the_unit_is_not_exposed():
    found = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}",
         str(UNIT)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-300:]


def test_the_plist_starts_this_daemon_in_its_own_folders():
    plist = plistlib.loads(PLIST.read_bytes())
    assert f"{plist['Label']}.plist" == PLIST.name
    check_command(plist["ProgramArguments"])
    check_folders(plist["EnvironmentVariables"], plist["WorkingDirectory"])
    assert plist["UserName"] == plist["GroupName"] == "_hearth"
    assert plist["StandardErrorPath"].startswith("/Library/Logs/")


def test_the_plist_keeps_the_daemon_alive_and_fast():
    plist = plistlib.loads(PLIST.read_bytes())
    assert plist["KeepAlive"] == {"SuccessfulExit": False, "Crashed": True}
    assert plist["RunAtLoad"] is True
    assert plist["ProcessType"] == "Interactive"
    assert plist["ExitTimeOut"] > seconds_to_stop()
    assert plist["Umask"] == 0o027
    assert plist["SoftResourceLimits"]["NumberOfFiles"] == 65536
