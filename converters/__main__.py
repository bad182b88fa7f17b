"""The converter's and the inspector's command line; the daemon's child, and `hearth convert`.

Prints JSON lines on standard output: progress, then `{"done": true, ...}` or
`{"error": ..., "kind": ...}`. The exit code says the kind. SIGTERM, SIGINT and
the end of its CPU time take everything back.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from converters.artifact import TARGETS
from converters.confinement import Limits, confine, die_with_parent
from converters.errors import ConversionError, MalformedFile, NoSpace, Unsupported
from converters.imports.folder import ModelFiles, find_files
from converters.memory import keep_freed_memory
from converters.parallel import RunInOrder, worker_count, workers
from converters.progress import Progress, write_line
from converters.staging import prepare

log = logging.getLogger("hearth.converters")

EXIT_CODES = {"internal": 1, "malformed": 2, "unsupported": 3, "space": 4, "cancelled": 143}


# Slices keep a conversion near 100 MB; the rest is for the texts of large vocabularies.
DATA_BYTES = 4 << 30
# One-bit types become eight-bit codes with fp32 scales.
LARGEST_GROWTH = 16
LEAST_FILE_BYTES = 1 << 30
# A hundredth of what one core does, a twentieth when it quantises.
LEAST_BYTES_PER_SECOND = 1 << 20
LEAST_CPU_SECONDS = 120
LEAST_SHARED_BYTES = 32 << 20
# Each has about 60 MB of its own. Beyond so many a conversion waits for the disk.
MOST_WRITERS, MOST_QUANTISERS = 4, 32


class _Cancelled(BaseException):
    """Raised by the signal handler wherever the conversion is; passes every `except Exception`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, _cancel)
    try:
        options.run(options)
    except _Cancelled as cancelled:
        return _failed("cancelled", str(cancelled))
    except BrokenPipeError:
        return _failed("cancelled", "nobody listens any more")
    except ConversionError as error:
        return _failed(_kind(error), str(error))
    except Exception as error:  # the daemon needs a line, whatever it is
        log.exception("the conversion failed")
        return _failed("internal", f"{type(error).__name__}: {error}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m converters")
    commands = parser.add_subparsers(required=True)
    inspect = _command(commands.add_parser("inspect"), _inspect)
    inspect.add_argument("--digest", required=True)
    convert = _command(commands.add_parser("convert"), _convert)
    convert.add_argument("--source", required=True)
    convert.add_argument("--target", required=True, choices=TARGETS)
    convert.add_argument("--precise", action="store_true")
    vision = _command(commands.add_parser("vision"), _vision)
    vision.add_argument("--source", required=True)
    vision.add_argument("--target", required=True, choices=TARGETS)
    merge = _command(commands.add_parser("merge"), _merge)
    merge.add_argument(
        "--part", action="append", default=[], type=pathlib.Path, help="another part of the model"
    )
    adapt = _adapter_command(_command(commands.add_parser("adapt"), _adapt))
    adapt.add_argument("--source", required=True)
    adapt.add_argument("--base-source", required=True)
    adapt.add_argument("--base-folder", required=True, type=pathlib.Path)
    adapt.add_argument("--precise", action="store_true")
    _adapter_command(_command(commands.add_parser("match"), _match, has_output=False))
    quantise = _command(commands.add_parser("quantise"), _quantise)
    quantise.add_argument("--type", required=True, type=str.upper, metavar="FILE_TYPE")
    importing = _watched(commands.add_parser("import"), _import)
    importing.add_argument("--input", type=pathlib.Path, help="a folder of safetensors")
    importing.add_argument("--file", nargs=2, action="append", metavar=("NAME", "PATH"))
    importing.add_argument("--name", default="", help="what the model calls itself")
    importing.add_argument(
        "--optimum", type=pathlib.Path, metavar="DIR", help="its environment: export to ONNX"
    )
    adapter = _watched(commands.add_parser("import-adapter"), _import_adapter)
    adapter.add_argument("--file", nargs=2, action="append", metavar=("NAME", "PATH"))
    adapter.add_argument("--base", required=True, type=pathlib.Path, help="the base model's GGUF")
    return parser


def _adapter_command(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--base", required=True, type=pathlib.Path, help="the base model's GGUF")
    parser.add_argument("--target", required=True, choices=TARGETS)
    return parser


def _command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    *,
    has_output: bool = True,
) -> argparse.ArgumentParser:
    parser.add_argument("--input", required=True, type=pathlib.Path)
    return _watched(parser, run, has_output=has_output)


def _watched(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    *,
    has_output: bool = True,
) -> argparse.ArgumentParser:
    if has_output:
        parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument(
        "--watch-stdin", action="store_true", help="leave when standard input ends: the parent died"
    )
    parser.set_defaults(run=run)
    return parser


def _convert(options: argparse.Namespace) -> None:
    final = options.output.absolute()
    prepare(final)
    _before_imports()
    from converters.convert import Request, convert

    request = Request(
        source=options.source, target=options.target, final=final, precise=options.precise
    )
    with options.input.open("rb") as file, _workers(options, final, MOST_WRITERS) as run:
        _confine(options, final.parent)
        artifact_bytes = convert(file, request, Progress(), run)
    write_line(done=True, artifact_bytes=artifact_bytes)


def _vision(options: argparse.Namespace) -> None:
    """The vision tower in a projector file, or in a model's own."""
    final = options.output.absolute()
    prepare(final)
    _before_imports()
    from converters.convert_vision import VisionRequest, convert_vision

    request = VisionRequest(source=options.source, target=options.target, final=final)
    with options.input.open("rb") as file, _workers(options, final, MOST_WRITERS) as run:
        _confine(options, final.parent)
        artifact_bytes = convert_vision(file, request, Progress(), run)
    write_line(done=True, artifact_bytes=artifact_bytes)


def _before_imports() -> None:
    """What follows is imported once, for all processes, and before they are confined.

    No library may start threads by then: they would not be confined.
    """
    keep_freed_memory()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def _workers(
    options: argparse.Namespace, final: pathlib.Path, most: int
) -> contextlib.AbstractContextManager[RunInOrder]:
    """None for what one process does as fast as several could start."""
    is_small = options.input.stat().st_size < LEAST_SHARED_BYTES
    count = 0 if is_small or final.exists() else worker_count(most)
    return workers(count, _limits([options.input], final.parent))


def _merge(options: argparse.Namespace) -> None:
    """The parts of a split model as one GGUF."""
    final, paths = options.output.absolute(), [options.input, *options.part]
    prepare(final)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        _confine(options, final.parent, *options.part)
        from converters.merging import merge

        merged = merge(files, final, Progress())
    write_line(done=True, digest=merged.digest, file_bytes=merged.file_bytes)


def _adapt(options: argparse.Namespace) -> None:
    """An adapter beside its base's artifact."""
    final, base_folder = options.output.absolute(), options.base_folder.absolute()
    prepare(final)
    with options.input.open("rb") as file, options.base.open("rb") as base:
        _confine(options, final.parent, options.base, base_folder)
        from converters.adapters.convert import AdapterRequest, convert_adapter

        request = AdapterRequest(
            source=options.source,
            base=options.base_source,
            base_folder=base_folder,
            target=options.target,
            final=final,
            precise=options.precise,
        )
        artifact_bytes = convert_adapter(file, base, request, Progress())
    write_line(done=True, artifact_bytes=artifact_bytes)


def _match(options: argparse.Namespace) -> None:
    """Whether an adapter could be written for a base; writes nothing."""
    with options.input.open("rb") as file, options.base.open("rb") as base:
        _confine(options, None, options.base)
        from converters.adapters.convert import match

        match(file, base, options.target)
    write_line(done=True)


def _quantise(options: argparse.Namespace) -> None:
    """A folder with the quantised GGUF in it."""
    final = options.output.absolute()
    prepare(final)
    _before_imports()
    from converters.quantise.quantise import quantise

    with options.input.open("rb") as file, _workers(options, final, MOST_QUANTISERS) as run:
        _confine(options, final.parent)
        file_bytes = quantise(file, final, options.type, Progress(), run)
    write_line(done=True, file_bytes=file_bytes)


def _inspect(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    with options.input.open("rb") as file:
        _confine(options, options.output)
        from converters.inspector import inspect

        inspect(file, options.digest, options.output)
    write_line(done=True)


def _import(options: argparse.Namespace) -> None:
    final = options.output.absolute()
    paths = {name: pathlib.Path(path) for name, path in options.file or ()}
    if options.input:
        paths |= find_files(options.input)
    prepare(final)
    if options.optimum:
        _import_graph(options, paths, final)
        return
    with contextlib.ExitStack() as stack:
        files = ModelFiles(paths, stack)
        _confine_to(options, list(paths.values()), final.parent)
        from converters.imports.import_model import import_model

        made = import_model(files, options.name, final, Progress())
    write_line(done=True, digest=made.digest, file_bytes=made.file_bytes, notes=made.notes)


def _import_adapter(options: argparse.Namespace) -> None:
    """PEFT's two files, for one base."""
    from converters.gguf import read_header
    from converters.imports.folder import ModelFiles

    final = options.output.absolute()
    paths = {name: pathlib.Path(path) for name, path in options.file or ()}
    prepare(final)
    with contextlib.ExitStack() as stack:
        files = ModelFiles(paths, stack)
        base = stack.enter_context(options.base.open("rb"))
        _confine_to(options, [*paths.values(), options.base], final.parent)
        from converters.imports.peft import import_adapter

        file_bytes = import_adapter(files, read_header(base), final, Progress())
    write_line(done=True, file_bytes=file_bytes)


def _import_graph(
    options: argparse.Namespace, paths: dict[str, pathlib.Path], final: pathlib.Path
) -> None:
    """The export is a process of its own, confined by itself; this one is after it has ended."""
    if not options.input:
        raise Unsupported("optimum exports folders of this machine only, not uploaded files")
    if options.watch_stdin:
        threading.Thread(target=_watch_parent, daemon=True).start()
        options.watch_stdin = False
    from converters.imports.optimum import export, import_graph

    progress = Progress()
    graph, exported = export(options.optimum, options.input.resolve(), final, progress)
    with contextlib.ExitStack() as stack:
        files = ModelFiles(paths, stack)
        _confine_to(options, list(paths.values()), final.parent)
        made = import_graph(files, graph, exported, options.name, final, progress)
    write_line(done=True, digest=made.digest, file_bytes=made.file_bytes, notes=made.notes)


def _confine(
    options: argparse.Namespace, output: pathlib.Path | None, *others: pathlib.Path
) -> None:
    _confine_to(options, [options.input, *others], output)


def _confine_to(
    options: argparse.Namespace, sources: Sequence[pathlib.Path], output: pathlib.Path | None
) -> None:
    """From here on only these are within reach."""
    confine(**_limits(sources, output))
    if options.watch_stdin:
        threading.Thread(target=_watch_parent, daemon=True).start()


def _limits(sources: Sequence[pathlib.Path], output: pathlib.Path | None) -> Limits:
    """The sizes are far beyond what a model needs."""
    read = [source.resolve() for source in sources]
    size = sum(source.stat().st_size for source in read)
    return Limits(
        read=read,
        write=[output.resolve()] if output else [],
        data_bytes=DATA_BYTES,
        file_bytes=LEAST_FILE_BYTES + LARGEST_GROWTH * size,
        cpu_seconds=LEAST_CPU_SECONDS + size // LEAST_BYTES_PER_SECOND,
    )


def _cancel(number: int, frame: FrameType | None) -> None:
    raise _Cancelled(f"ended by {signal.Signals(number).name}")


def _watch_parent() -> None:
    """Where the kernel does not end us with our parent, the end of the pipe from it does."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    signal.raise_signal(signal.SIGTERM)


def _kind(error: ConversionError) -> str:
    match error:
        case MalformedFile():
            return "malformed"
        case Unsupported():
            return "unsupported"
        case NoSpace():
            return "space"
        case _:
            return "internal"


def _failed(kind: str, message: str) -> int:
    with contextlib.suppress(BrokenPipeError):
        write_line(error=message, kind=kind)
    return EXIT_CODES[kind]


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
