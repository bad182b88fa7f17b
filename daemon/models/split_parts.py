"""A model in several GGUF files: which of them belong together, told by their names alone.

The names are llama.cpp's: `<stem>-00001-of-0000N.gguf`. What is in the files is checked by the
converter that merges them.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable

import msgspec

from daemon.errors import Invalid

MAX_PARTS = 999
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


class Whole(msgspec.Struct, frozen=True):
    """One model: `name` is the whole file's, `parts` say where its files are, in order."""

    name: str
    parts: tuple[str, ...]


def is_split_part(file_name: str) -> bool:
    """Whether it is named as one of several parts of a GGUF."""
    match = _PART.fullmatch(file_name)
    return match is not None and int(match[3]) > 1


def wholes(named: Iterable[tuple[str, str]]) -> list[Whole]:
    """`named` are (file name, where it is). Raises Invalid, naming a part that is not among them."""
    single: list[Whole] = []
    split: dict[tuple[str, int], dict[int, str]] = {}
    for name, place in named:
        match = _PART.fullmatch(name) if is_split_part(name) else None
        if match is None:
            single.append(Whole(name, (place,)))
        else:
            split.setdefault((match[1], int(match[3])), {})[int(match[2])] = place
    return [_whole(stem, count, found) for (stem, count), found in split.items()] + single


def _whole(stem: str, count: int, found: dict[int, str]) -> Whole:
    if count > MAX_PARTS:
        raise Invalid(f"{stem}: {count} parts, and at most {MAX_PARTS} are merged")
    for number in range(1, count + 1):
        if number not in found:
            raise Invalid(
                f"{_file_name(stem, number, count)} is missing: all {count} parts are needed"
            )
    if len(found) > count:
        raise Invalid(f"{stem}: there are parts beyond the {count} that their names speak of")
    return Whole(f"{stem}.gguf", tuple(found[number] for number in range(1, count + 1)))


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def sibling_parts(path: pathlib.Path) -> list[pathlib.Path]:
    """All parts of the model, in order, which lie beside the one given; only it where it is whole.

    Raises Invalid for a part that is not there.
    """
    match = _PART.fullmatch(path.name) if is_split_part(path.name) else None
    if match is None:
        return [path]
    stem, count = match[1], int(match[3])
    beside = [
        path.with_name(_file_name(stem, n, count)) for n in range(1, min(count, MAX_PARTS) + 1)
    ]
    there = [(each.name, str(each)) for each in beside if each.is_file()]
    return [pathlib.Path(part) for whole in wholes(there) for part in whole.parts]
