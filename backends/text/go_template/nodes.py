"""The tree of a parsed Go template. Plain data: the parser makes it, the evaluator walks it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Literal:
    value: object


@dataclass(frozen=True, slots=True)
class Dot:
    """The current value."""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str


@dataclass(frozen=True, slots=True)
class Function:
    name: str


@dataclass(frozen=True, slots=True)
class Fields:
    """`.A.B` below `base`."""

    base: Operand
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    operands: tuple[Operand, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`names` are variables that receive the value; `is_assignment` for `=` instead of `:=`."""

    commands: tuple[Command, ...]
    names: tuple[str, ...]
    is_assignment: bool
    line: int


Operand = Literal | Dot | Variable | Function | Fields | Pipeline


@dataclass(frozen=True, slots=True)
class Print:
    pipeline: Pipeline


@dataclass(frozen=True, slots=True)
class Branch:
    """`kind` is "if", "with" or "range"."""

    kind: str
    pipeline: Pipeline
    body: Nodes
    otherwise: Nodes


@dataclass(frozen=True, slots=True)
class Call:
    """`{{ template "name" pipeline }}`."""

    name: str
    pipeline: Pipeline | None
    line: int


@dataclass(frozen=True, slots=True)
class Loop:
    """`{{ break }}` or `{{ continue }}`."""

    kind: str


Node = Text | Print | Branch | Call | Loop
Nodes = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """The main template and those that `define` and `block` named."""

    root: Nodes
    named: dict[str, Nodes] = field(default_factory=dict[str, Nodes])
