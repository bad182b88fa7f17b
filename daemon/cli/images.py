"""Pictures that a prompt names by their paths: found, read, and taken out of the text.

As the field's command lines do it: a path begins with `/`, `./`, `../` or `~/` and ends as pictures do.
What is no file stays text.
"""

from __future__ import annotations

import base64
import pathlib
import re
from collections.abc import Callable, Iterator

from daemon.cli.client import ClientError

# One more does not fit into a request, in base64 and with a prompt beside it.
MOST_BYTES = 47 << 20
_START = re.compile(r"""(?:(?<=[\s'"(])|^)(?:~/|\.{0,2}/)""", re.MULTILINE)
_END = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp)(?!\.?\w)", re.IGNORECASE)
_ESCAPED = re.compile(r"\\(.)")


def taken_out(prompt: str, tell: Callable[[str], object]) -> tuple[str, list[str]]:
    """The prompt without the paths of its pictures, and these as base64. Raises ClientError.

    `tell` is given a sentence about each, also about a path that names no file.
    """
    images: list[str] = []
    rest, done = "", 0
    for path, start, end in named_pictures(prompt):
        if not path.is_file():
            tell(f"{path} is no file: it stays text")
            continue
        images.append(_read(path))
        tell(f"added image '{path}'")
        rest, done = rest + prompt[done:start], end
    return (rest + prompt[done:]).strip() if images else prompt, images


def named_pictures(prompt: str) -> Iterator[tuple[pathlib.Path, int, int]]:
    """(path, where its name begins and ends, with quotes around it), whether it is there or not."""
    done = 0
    for begin in _START.finditer(prompt):
        start = begin.start()
        if start < done or (found := _picture(prompt, start)) is None:
            continue
        path, done = found
        is_quoted = prompt[max(0, start - 1) : start] in ("'", '"')
        if is_quoted and prompt[done : done + 1] == prompt[start - 1]:
            start, done = start - 1, done + 1
        yield path, start, done


def _picture(prompt: str, start: int) -> tuple[pathlib.Path, int] | None:
    """The file that is named from `start` on and where its name ends; names may have spaces in them.

    Where none exists, the shortest name; None where nothing there looks like a picture.
    """
    line_end = prompt.find("\n", start)
    stop = len(prompt) if line_end < 0 else line_end
    ends = [found.end() for found in _END.finditer(prompt, start, stop)]
    paths = [(_path(prompt[start:end]), end) for end in ends]
    for path, end in paths:
        if path.is_file():
            return path, end
    return paths[0] if paths else None


def _path(text: str) -> pathlib.Path:
    """As a terminal writes what is dropped on it: with backslashes, or with %20 for a space."""
    plain = pathlib.Path(text).expanduser()
    if plain.is_file():
        return plain
    return pathlib.Path(_ESCAPED.sub(r"\1", text).replace("%20", " ")).expanduser()


def _read(path: pathlib.Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ClientError(f"{path} is over {MOST_BYTES >> 20} MiB")
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror}") from error
