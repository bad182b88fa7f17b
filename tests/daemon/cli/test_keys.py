"""`hearth key` as a process: through a running daemon, and in the file where none answers."""

from __future__ import annotations

import asyncio
import pathlib
import re
import sys

import pytest

from daemon.cli.keys import _is_this_machine
from daemon.lan.access import add_key, digest_of, keys_path, read_keys
from tests.daemon.api.rig import Rig, api_rig

NOBODY = "127.0.0.1:1"
KEY = re.compile(r"hk_[A-Za-z0-9_-]{43}\n")


async def hearth(
    host: str, home: pathlib.Path, *arguments: str, **environment: str
) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "daemon", *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"HEARTH_HOST": host, "HEARTH_HOME": str(home), "PATH": "/usr/bin:/bin"} | environment,
    )  # fmt: skip
    output, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, output.decode(), errors.decode()


def host_of(rig: Rig) -> str:
    return rig.base.removeprefix("http://")


async def test_without_a_daemon_the_file_is_changed(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "home"
    code, output, errors = await hearth(NOBODY, home, "key", "add", "laptop", "--manage")
    assert (code, bool(KEY.fullmatch(output))) == (0, True)
    assert "once" in errors and str(keys_path(home)) in errors
    (known,) = read_keys(home)
    assert (known.name, known.scope, known.digest) == ("laptop", "manage", digest_of(output[:-1]))
    code, output, _ = await hearth(NOBODY, home, "key", "list")
    header, row = output.splitlines()
    assert header.split() == ["NAME", "SCOPE", "CREATED", "LAST", "USED", "EXPIRES"]
    assert row.split()[:2] == ["laptop", "manage"]
    assert row.split()[-2:] == ["never", "never"]
    code, output, errors = await hearth(NOBODY, home, "key", "remove", "laptop")
    assert (code, output) == (0, "removed 'laptop'\n")
    assert "No key is left" in errors
    assert read_keys(home) == ()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("add", "laptop"), "there is a key named 'laptop' already"),
        (("add", "a b"), "name"),
        (("remove", "tv"), "no key is named 'tv'"),
        (("add", "tv", "--expires", "0s"), "a key lives at least a second"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(
    tmp_path: pathlib.Path, arguments: tuple[str, ...], why: str
) -> None:
    """The same through the daemon as in the file."""
    add_key(tmp_path, "laptop", "use")
    before = keys_path(tmp_path).read_bytes()
    async with api_rig(tmp_path) as rig:
        for host in (NOBODY, host_of(rig)):
            code, output, errors = await hearth(host, tmp_path, "key", *arguments)
            assert (code, output) == (1, "")
            *notes, said = errors.splitlines()
            assert why in said and len(notes) == (host == NOBODY)
    assert keys_path(tmp_path).read_bytes() == before


async def test_a_damaged_file_is_said(tmp_path: pathlib.Path) -> None:
    keys_path(tmp_path).write_text("{")
    async with api_rig(tmp_path) as rig:
        for host in (NOBODY, host_of(rig)):
            for arguments in (("add", "x"), ("list",), ("remove", "x")):
                code, output, errors = await hearth(host, tmp_path, "key", *arguments)
                assert (code, output) == (1, "")
                assert "keys.json in HEARTH_HOME cannot be used" in errors
    assert keys_path(tmp_path).read_text() == "{"


async def test_a_running_daemon_is_asked(tmp_path: pathlib.Path) -> None:
    """Its home, not that of the command; and the command shows the key it is given."""
    other = tmp_path / "other"
    async with api_rig(tmp_path / "home") as rig:
        code, output, _ = await hearth(host_of(rig), other, "key", "add", "tv")
        assert code == 0 and KEY.fullmatch(output)
        key = output[:-1]
        assert [known.digest for known in read_keys(tmp_path / "home")] == [digest_of(key)]
        assert not other.exists()
        headers = {"X-Real-IP": "192.168.1.9", "Authorization": f"Bearer {key}"}
        assert (await rig.client.get("/api/tags", headers=headers)).status_code == 200
        code, output, _ = await hearth(host_of(rig), other, "key", "list")
        assert output.splitlines()[1].endswith("never")
        assert re.search(r"seconds? ago +never", output)
        code, output, _ = await hearth(host_of(rig), other, "key", "remove", "tv")
        assert code == 0
        assert (await rig.client.get("/api/tags", headers=headers)).status_code == 401


def test_the_file_is_only_for_daemons_of_this_machine() -> None:
    assert _is_this_machine("127.0.0.1") and _is_this_machine("localhost")
    assert _is_this_machine("::1")
    assert not _is_this_machine("192.0.2.254")
    assert not _is_this_machine("nowhere.invalid")


async def test_another_machines_daemon_is_never_answered_by_our_file(
    tmp_path: pathlib.Path,
) -> None:
    # No such name resolves, so nobody can be reached.
    code, output, errors = await hearth("nowhere.invalid:1", tmp_path, "key", "add", "x")
    assert (code, output) == (1, "")
    assert "no daemon answers" in errors
    assert list(tmp_path.iterdir()) == []
