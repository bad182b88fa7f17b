"""Prefixes on disk: found, shared as the scopes say, bounded, private, and ignored when damaged."""

from __future__ import annotations

import os
import pathlib
import random

import pytest

from backends.engine import prefix_format
from backends.engine.prefix_files import DamagedPrefix, Found, PrefixFiles
from backends.engine.prefix_format import BLOCK_POSITIONS, PrefixForm
from backends.engine.prefix_index import Prefix

POSITION_BYTES = 8
FORM = PrefixForm(position_bytes=POSITION_BYTES)
# With what cannot be cut: two pieces of it and a bit, in the tests below.
WHOLE = PrefixForm(position_bytes=POSITION_BYTES, whole_bytes=250)
SLOW = 1e6  # seconds that computing took: reading is always worth it


def opened(
    root: pathlib.Path, quota: int = 10**6, model: str = "m", exact_step: int = 1
) -> PrefixFiles:
    return PrefixFiles(
        root,
        root / model / "fingerprint" / "prefixes",
        quota_bytes=quota,
        knows=lambda form: form in (FORM, WHOLE),
        exact_step=exact_step,
    )


def content(ids: tuple[int, ...]) -> bytes:
    return b"".join(value.to_bytes(POSITION_BYTES, "little") for value in ids)


def whole() -> bytes:
    return random.Random(0).randbytes(WHOLE.whole_bytes)


def ids_of(seed: int, count: int = 200) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(1000) for _ in range(count))


def put(
    files: PrefixFiles,
    prefix: Prefix,
    seconds: float = SLOW,
    exact: int = 0,
    form: PrefixForm = FORM,
) -> str:
    writer = files.begin(prefix, exact, seconds, form)
    assert writer is not None
    data = content(tuple(prefix.ids))
    step = BLOCK_POSITIONS * POSITION_BYTES
    for at in range(0, len(data), step):
        writer.add(data[at : at + step])
    for at in range(0, form.whole_bytes, prefix_format.PIECE_BYTES):
        assert writer.written_whole == at
        writer.add(whole()[at : at + prefix_format.PIECE_BYTES])
    assert writer.is_complete
    writer.finish()
    files.add(writer)
    return writer.name


def find(files: PrefixFiles, prefix: Prefix, *, exact: bool = False, held: int = 0) -> Found | None:
    return files.best(prefix, most=len(prefix.ids), held=held, exact=exact)


def paths(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_what_was_written_is_read_back_by_the_next_process(tmp_path: pathlib.Path) -> None:
    ids = ids_of(1)
    put(opened(tmp_path), Prefix(ids), exact=150)
    files = opened(tmp_path)
    wanted = Prefix((*ids[:170], *ids_of(2)))
    found = find(files, wanted)
    assert found is not None and (found.shared, found.exact) == (170, 150)
    assert b"".join(files.read(found))[: 170 * POSITION_BYTES] == content(ids[:170])
    cold = find(files, wanted, exact=True)
    assert cold is not None and cold.shared == 150
    (path,) = paths(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_only_what_is_much_faster_to_read_is_read(tmp_path: pathlib.Path) -> None:
    files = opened(tmp_path)
    ids = ids_of(1)
    reading = 200 * POSITION_BYTES / 200e6
    put(files, Prefix(ids), seconds=3.9 * reading)
    assert find(files, Prefix(ids)) is None
    put(files, Prefix(ids), seconds=4.1 * reading)
    assert find(files, Prefix(ids)) is not None
    assert find(files, Prefix(ids), held=50) is None  # then it saves less, and costs the same
    assert files.best(Prefix(ids), most=200, held=0, exact=False, most_seconds=reading / 2) is None


def test_scopes_meet_only_in_the_same_system_prefix(tmp_path: pathlib.Path) -> None:
    files = opened(tmp_path)
    ids = ids_of(1)
    put(files, Prefix(ids, "alice", 100))
    assert find(files, Prefix(ids, "bob")) is None
    shared = find(files, Prefix(ids, "bob", 100))
    assert shared is not None and shared.shared == 100
    own = find(files, Prefix(ids, "alice", 100))
    assert own is not None and own.shared == 200
    assert b"alice" not in paths(tmp_path)[0].read_bytes()


def test_a_longer_one_takes_the_place_of_what_it_says_all_of(tmp_path: pathlib.Path) -> None:
    files = opened(tmp_path)
    ids = ids_of(1, 300)
    put(files, Prefix(ids[:200]))
    assert files.has(Prefix(ids[:200])) and not files.has(Prefix(ids))
    put(files, Prefix(ids))
    put(files, Prefix(ids[:250], "bob"))
    assert len(paths(tmp_path)) == 2


def test_what_cannot_be_cut_serves_whole_or_not_at_all(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_format, "PIECE_BYTES", 100)
    ids = ids_of(1, 300)
    put(opened(tmp_path), Prefix(ids[:200]), form=WHOLE, exact=200)
    files = opened(tmp_path)
    found = find(files, Prefix(ids), exact=True)
    assert found is not None and (found.shared, found.form) == (200, WHOLE)
    assert b"".join(files.read(found)) == content(ids[:200]) + whole()
    assert find(files, Prefix((*ids[:199], 5, 6))) is None
    assert files.best(Prefix(ids), most=199, held=0, exact=False) is None
    assert find(opened(tmp_path, exact_step=64), Prefix(ids), exact=True) is None
    assert files.has(Prefix(ids[:200])) and not files.has(Prefix(ids[:190]))
    put(files, Prefix(ids), form=WHOLE)  # says nothing of where the shorter one stood
    assert len(paths(tmp_path)) == 2
    shorter = find(files, Prefix((*ids[:250], 5, 6)))
    assert shorter is not None and shorter.shared == 200
    put(files, Prefix((*ids, 1)))
    assert len(paths(tmp_path)) == 1


def test_exact_numbers_are_used_in_whole_steps(tmp_path: pathlib.Path) -> None:
    files = opened(tmp_path, exact_step=64)
    put(files, Prefix(ids_of(1)), exact=150)
    found = find(files, Prefix(ids_of(1)), exact=True)
    assert found is not None and (found.shared, found.exact) == (128, 128)


def test_the_quota_holds_for_all_models_and_the_longest_unused_goes(tmp_path: pathlib.Path) -> None:
    one, two = opened(tmp_path, 4000, "one"), opened(tmp_path, 4000, "two")
    names = [put(one, Prefix(ids_of(1))), put(two, Prefix(ids_of(2)))]
    for age, path in enumerate(paths(tmp_path)):
        os.utime(path, (1000 + age, 1000 + age))
    found = find(one, Prefix(ids_of(1)))
    assert found is not None
    assert len(b"".join(one.read(found))) == 200 * POSITION_BYTES  # it is the latest used now
    names.append(put(one, Prefix(ids_of(3))))
    assert [path.name for path in paths(tmp_path)] == sorted([names[0], names[2]])
    assert one.begin(Prefix(ids_of(4, 600)), 0, SLOW, FORM) is None
    large = PrefixForm(position_bytes=POSITION_BYTES, whole_bytes=4000)
    assert one.begin(Prefix(ids_of(4)), 0, SLOW, large) is None


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_are_ignored_and_removed(
    tmp_path: pathlib.Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_format, "PIECE_BYTES", 100)
    put(opened(tmp_path), Prefix(ids_of(1)), form=(FORM, WHOLE)[seed % 2])
    (path,) = paths(tmp_path)
    data, draw = bytearray(path.read_bytes()), random.Random(seed)
    match seed % 3:
        case 0:
            data = data[: draw.randrange(len(data))]
        case 1:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case _:
            at = draw.randrange(len(data))
            data[at : at + draw.randrange(64)] = draw.randbytes(draw.randrange(64))
    is_changed = bytes(data) != path.read_bytes()
    path.write_bytes(data)
    files = opened(tmp_path)
    found = find(files, Prefix(ids_of(1)))
    if found is not None and is_changed:
        with pytest.raises(DamagedPrefix):
            list(files.read(found))
    if is_changed:
        assert paths(tmp_path) == []
        assert find(files, Prefix(ids_of(1))) is None


def test_rows_of_another_shape_and_unfinished_files_are_no_prefixes(tmp_path: pathlib.Path) -> None:
    files = opened(tmp_path)
    put(files, Prefix(ids_of(1)))
    (path,) = paths(tmp_path)
    unfinished = files.begin(Prefix(ids_of(2)), 0, SLOW, FORM)
    assert unfinished is not None
    other = PrefixFiles(tmp_path, path.parent, quota_bytes=10**6, knows=lambda form: form != FORM)
    assert len(other) == 0
    (left,) = paths(tmp_path)  # still being written, by whom we do not know
    os.utime(left, (1000, 1000))
    assert len(opened(tmp_path)) == 0
    assert paths(tmp_path) == []
    unfinished.abandon()
