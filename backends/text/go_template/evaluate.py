"""Walks a template tree over values. Steps, output and call depth are bounded; nothing is executed
but the functions of `functions`.
"""

from __future__ import annotations

from backends.text.go_template.errors import TemplateError, TemplateLimit
from backends.text.go_template.functions import FUNCTIONS, CallError
from backends.text.go_template.nodes import (
    Branch,
    Call,
    Command,
    Dot,
    Fields,
    Function,
    Literal,
    Loop,
    Node,
    Nodes,
    Operand,
    Pipeline,
    Print,
    Text,
    Tree,
    Variable,
)
from backends.text.go_template.values import Record, is_true, to_text

MAX_STEPS = 2_000_000
MAX_OUTPUT_CHARACTERS = 16 << 20
MAX_CALL_DEPTH = 100
_MISSING = object()


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def evaluate(tree: Tree, root: object) -> str:
    """The rendered text. Raises TemplateError."""
    return _Evaluator(tree).run(tree.root, root)


class _Evaluator:
    def __init__(self, tree: Tree) -> None:
        self._named = tree.named
        self._out: list[str] = []
        self._written = 0
        self._steps = 0
        self._depth = 0
        self._variables: list[tuple[str, object]] = []

    def run(self, nodes: Nodes, root: object) -> str:
        self._variables = [("$", root)]
        self._walk(nodes, root)
        return "".join(self._out)

    # ---- nodes ----

    def _walk(self, nodes: Nodes, dot: object) -> None:
        for node in nodes:
            self._step()
            self._node(node, dot)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TemplateLimit(1, f"more than {MAX_STEPS} steps")

    def _node(self, node: Node, dot: object) -> None:
        match node:
            case Text():
                self._write(node.text)
            case Print():
                value = self._pipeline(node.pipeline, dot)
                if not node.pipeline.names:
                    self._write(to_text(value))
            case Branch():
                self._branch(node, dot)
            case Call():
                self._call(node, dot)
            case Loop():
                raise _Break if node.kind == "break" else _Continue

    def _write(self, text: str) -> None:
        self._written += len(text)
        if self._written > MAX_OUTPUT_CHARACTERS:
            raise TemplateLimit(1, f"more than {MAX_OUTPUT_CHARACTERS} characters of output")
        self._out.append(text)

    def _branch(self, node: Branch, dot: object) -> None:
        mark = len(self._variables)
        if node.kind == "range":
            self._range(node, dot)
        else:
            value = self._pipeline(node.pipeline, dot)
            if is_true(value):
                self._walk(node.body, value if node.kind == "with" else dot)
            else:
                self._walk(node.otherwise, dot)
        del self._variables[mark:]

    def _range(self, node: Branch, dot: object) -> None:
        pipeline = node.pipeline
        value = self._pipeline(pipeline, dot, binds=False)
        pairs = _pairs(value, pipeline.line)
        if not pairs:
            self._walk(node.otherwise, dot)
        mark = len(self._variables)
        for key, item in pairs:
            self._step()
            self._bind_loop(pipeline, key, item)
            try:
                self._walk(node.body, item)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self._variables[mark:]

    def _bind_loop(self, pipeline: Pipeline, key: object, item: object) -> None:
        names = pipeline.names
        bound = {1: (item,), 2: (key, item)}.get(len(names), ())
        for name, value in zip(names, bound, strict=True):
            self._bind(name, value, pipeline)

    def _call(self, node: Call, dot: object) -> None:
        if node.name not in self._named:
            raise TemplateError(node.line, f'template "{node.name}" not defined')
        if self._depth >= MAX_CALL_DEPTH:
            raise TemplateLimit(node.line, "templates call each other too deeply")
        value = self._pipeline(node.pipeline, dot) if node.pipeline else None
        outer, self._variables = self._variables, [("$", value)]
        self._depth += 1
        self._walk(self._named[node.name], value)
        self._depth -= 1
        self._variables = outer

    # ---- pipelines ----

    def _pipeline(self, pipeline: Pipeline, dot: object, *, binds: bool = True) -> object:
        value: object = _MISSING
        for command in pipeline.commands:
            self._step()
            value = self._command(command, dot, value)
        if binds:
            for name in pipeline.names:
                self._bind(name, value, pipeline)
        return value

    def _bind(self, name: str, value: object, pipeline: Pipeline) -> None:
        if not pipeline.is_assignment:
            self._variables.append((name, value))
            return
        for at in range(len(self._variables) - 1, -1, -1):
            if self._variables[at][0] == name:
                self._variables[at] = (name, value)
                return
        raise TemplateError(pipeline.line, f"undefined variable: {name}")

    def _command(self, command: Command, dot: object, piped: object) -> object:
        first, *rest = command.operands
        if isinstance(first, Function):
            return self._function(first.name, rest, dot, piped, command.line)
        if rest or piped is not _MISSING:
            raise TemplateError(command.line, "can't give argument to non-function")
        return self._operand(first, dot, command.line)

    def _operand(self, operand: Operand, dot: object, line: int) -> object:
        match operand:
            case Literal():
                return operand.value
            case Dot():
                return dot
            case Variable():
                return self._variable(operand.name, line)
            case Function():
                return self._function(operand.name, [], dot, _MISSING, line)
            case Fields():
                value = self._operand(operand.base, dot, line)
                for name in operand.names:
                    value = _field(value, name, line)
                return value
            case Pipeline():
                return self._pipeline(operand, dot)

    def _variable(self, name: str, line: int) -> object:
        for known, value in reversed(self._variables):
            if known == name:
                return value
        raise TemplateError(line, f"undefined variable: {name}")

    def _function(
        self, name: str, operands: list[Operand], dot: object, piped: object, line: int
    ) -> object:
        count = len(operands) + (piped is not _MISSING)
        function = FUNCTIONS[name]
        if count < function.least or (function.most >= 0 and count > function.most):
            raise TemplateError(line, f"wrong number of args for {name}: got {count}")
        if name in ("and", "or"):
            return self._lazy(name, operands, dot, piped, line)
        arguments = [self._operand(operand, dot, line) for operand in operands]
        if piped is not _MISSING:
            arguments.append(piped)
        try:
            return function.call(*arguments)
        except CallError as error:
            raise TemplateError(line, f"error calling {name}: {error}") from error

    def _lazy(
        self, name: str, operands: list[Operand], dot: object, piped: object, line: int
    ) -> object:
        """`and` stops at the first false value, `or` at the first true one; both return it."""
        value: object = None
        for operand in operands:
            value = self._operand(operand, dot, line)
            if is_true(value) == (name == "or"):
                return value
        return value if piped is _MISSING else piped


def _field(value: object, name: str, line: int) -> object:
    if isinstance(value, Record):
        if name not in value.fields:
            raise TemplateError(line, f"can't evaluate field {name}")
        return value.fields[name]
    if isinstance(value, dict):
        return value.get(name)
    if value is None:
        return None
    raise TemplateError(line, f"can't evaluate field {name} in type {type(value).__name__}")


def _pairs(value: object, line: int) -> list[tuple[object, object]]:
    """What `range` visits: indices or sorted keys with their items."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [(key, value[key]) for key in sorted(value, key=str)]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return [(at, at) for at in range(min(value, MAX_STEPS))]
    raise TemplateError(line, f"range can't iterate over {to_text(value)[:80]}")
