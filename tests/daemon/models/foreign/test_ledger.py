"""Digests that were worked out once, on disk for the next start and for the daemon beside."""

from __future__ import annotations

import pathlib

from daemon.models.foreign.ledger import Ledger
from daemon.models.foreign.scan import Identity

ONE, OTHER = Identity(1, 2, 3, 4), Identity(1, 2, 3, 5)


def test_two_daemons_of_one_home_lose_nothing(tmp_path: pathlib.Path) -> None:
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    first.remember(ONE, "a" * 64, tmp_path / "x")
    second.remember(OTHER, "b" * 64, tmp_path / "y")
    later = Ledger(tmp_path)
    assert (later.digest_of(ONE), later.digest_of(OTHER)) == ("a" * 64, "b" * 64)
    assert later.digest_of(Identity(9, 2, 3, 4)) == ""


def test_a_damaged_file_is_an_empty_one(tmp_path: pathlib.Path) -> None:
    for text in ("{", '{"version": 99, "files": []}', '{"version": 1, "files": [{"identity": 1}]}'):
        (tmp_path / "foreign.json").write_text(text)
        ledger = Ledger(tmp_path)
        assert ledger.digest_of(ONE) == ""
    ledger.remember(ONE, "a" * 64, tmp_path)
    assert Ledger(tmp_path).digest_of(ONE) == "a" * 64
