"""The import rule of the rooms, read from the code itself, and the start-up cost of `--help`."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ("daemon", "backends", "converters")
ALLOWED = {
    "daemon": {
        "backends.types",
        "backends.frames",
        "backends.select",
        "backends.text.template_facts",
        "converters.artifact",
        "converters.inspection",
        "converters.vision_artifact",
    },
    "backends": {"converters.artifact", "converters.vision_artifact"},
    "converters": set[str](),
}
RUNTIMES = {
    "onnxruntime": "backends/onnx/",
    "mlx": "backends/mlx/",
    "mlx_lm": "backends/mlx/",
}
NEVER_IN_DAEMON = {"numpy", "jinja2", "tokenizers", "PIL", "onnx", "onnxruntime", "mlx", "mlx_lm"}


def sources(room: str) -> list[pathlib.Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported_names(path: pathlib.Path) -> set[str]:
    """Every module this file may import, `from a import b` given as both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_allowed(name: str, room: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in ALLOWED[room])


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_the_rule_allows(room: str) -> None:
    crossings = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(room)
        for name in imported_names(path)
        if name.split(".")[0] in set(ROOMS) - {room} and not is_allowed(name, room)
    ]
    assert crossings == []


@pytest.mark.parametrize("room", ROOMS)
def test_runtimes_stay_in_their_folder(room: str) -> None:
    strays = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(room)
        for name in imported_names(path)
        if not path.relative_to(ROOT)
        .as_posix()
        .startswith(RUNTIMES.get(name.split(".")[0], path.relative_to(ROOT).as_posix()))
    ]
    assert strays == []


def test_the_daemon_imports_nothing_heavy() -> None:
    strays = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources("daemon")
        for name in imported_names(path)
        if name.split(".")[0] in NEVER_IN_DAEMON
    ]
    assert strays == []


def test_dialects_do_not_import_each_other() -> None:
    """What they share lies beside them."""
    api = ROOT / "daemon" / "api"
    dialects = {folder.name for folder in api.iterdir() if (folder / "__init__.py").exists()}
    assert {"ollama", "openai", "anthropic"} <= dialects
    strays = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in api.rglob("*.py")
        if path.parent != api
        for name in imported_names(path)
        for other in dialects - {path.relative_to(api).parts[0]}
        if name.startswith(f"daemon.api.{other}")
    ]
    assert strays == []


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_level_imports(path: pathlib.Path, modules: set[str]) -> set[str]:
    """Which of `modules` this file imports when it is loaded."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
    return found & modules


def test_no_import_cycles() -> None:
    paths = {module_name(path): path for room in ROOMS for path in sources(room)}
    graph = {name: module_level_imports(path, set(paths)) for name, path in paths.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_help_loads_no_library() -> None:
    code = (
        "import sys\n"
        "from daemon.cli.arguments import build_parser\n"
        "build_parser().format_help()\n"
        "import importlib.util\n"
        "print(sorted({'httpx','msgspec','litestar','numpy','zeroconf'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
