"""The Jinja environment that chat templates run in: no way out, and no operation without a bound.

A template is part of a downloaded model. It gets no loader, no attribute with an underscore, no
mutation, a small set of filters, and every operation that could make something much larger than its
operands is checked before it runs. Time and total memory are `render_guard`'s.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context

MAX_TEXT = 16 << 20  # characters of one value; no context is that long
MAX_ITEMS = 1 << 20
_MAX_INTEGER_BITS = 4096
_MAX_INDENT = 64

# What chat templates use; those left out need native loops over patterns, or random numbers.
_FILTERS = """
    abs attr batch capitalize count d default dictsort e escape first float
    forceescape groupby int items last length list lower map max min reject
    rejectattr reverse round safe select selectattr slice sort string sum title trim
    truncate unique upper urlencode
"""
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{4})")
_FIELD_WIDTH = re.compile(r"\{[^{}]*(?:\{|\d{4})")
_WIDTH_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class TemplateLimit(jinja2.TemplateRuntimeError):
    """An operation of the template would have made something too large."""


def _check_text(characters: int) -> None:
    if characters > MAX_TEXT:
        raise TemplateLimit(f"a text of {characters} characters is too long")


def _check_length(value: object, factor: int = 1) -> None:
    if isinstance(value, (str, bytes)):
        _check_text(len(value) * factor)
    elif isinstance(value, (list, tuple)) and len(value) * factor > MAX_ITEMS:
        raise TemplateLimit(f"a list of {len(value) * factor} items is too long")


def _check_multiplication(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
            raise TemplateLimit("a number is too large")
    elif isinstance(right, int):
        _check_length(left, right)
    elif isinstance(left, int):
        _check_length(right, left)


def _check_power(left: Any, right: Any) -> None:
    both = isinstance(left, int) and isinstance(right, int)
    if both and left.bit_length() * max(right, 0) > _MAX_INTEGER_BITS:
        raise TemplateLimit("a number is too large")


def _check_sum(left: Any, right: Any) -> None:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        if isinstance(left, str):
            _check_text(len(left) + len(right))
        elif len(left) + len(right) > MAX_ITEMS:
            raise TemplateLimit(f"a list of {len(left) + len(right)} items is too long")


def _check_format(left: Any, _right: Any = None) -> None:
    """A `%` format whose width is taken from an argument or has four digits is no chat template's."""
    if isinstance(left, str) and _PERCENT_WIDTH.search(left):
        raise TemplateLimit("a format with such a width is not allowed")


def _check_fields(text: str) -> None:
    """The same for `str.format`; doubled braces are literal ones."""
    if _FIELD_WIDTH.search(text.replace("{{", "").replace("}}", "")):
        raise TemplateLimit("a format with such a width is not allowed")


_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_sum,
    "*": _check_multiplication,
    "**": _check_power,
    "%": _check_format,
}


def _join_bounded(pieces: Iterable[object]) -> str:
    texts = [str(piece) for piece in pieces]
    _check_text(sum(map(len, texts)))
    return "".join(texts)


class _BoundedGenerator(CodeGenerator):
    """`~` joins through the environment, so that doubling a text in a loop is noticed."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_bounded((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _GenerationMark(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here only its content counts."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class SandboxedTemplates(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _BoundedGenerator
    concat = staticmethod(_join_bounded)  # type: ignore[assignment]
    join_bounded = staticmethod(_join_bounded)
    intercepted_binops = frozenset(_CHECKS)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _CHECKS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._check_method(function, args)
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_fields(value.__self__)
        return wrapped

    def _check_method(self, method: Any, args: tuple[Any, ...]) -> None:
        owner = getattr(method, "__self__", None)
        if not isinstance(owner, (str, bytes)):
            return
        name = method.__name__
        if name in _WIDTH_METHODS and args and isinstance(args[0], int):
            tabs = owner.count("\t") if isinstance(owner, str) else owner.count(b"\t")
            _check_text(len(owner) + args[0] * max(tabs, 1))
        elif name == "replace" and len(args) >= 2:
            _check_replacement(owner, args[0], args[1])
        elif name == "join" and args:
            _check_join(owner, args[0])
        elif name == "translate":
            raise TemplateLimit("translate is not allowed")


def _check_replacement(text: Any, old: Any, new: Any) -> None:
    count = text.count(old)
    _check_text(len(text) + count * max(len(new) - len(old), 0))


def _check_join(separator: Any, items: Any) -> None:
    if isinstance(items, (list, tuple)):
        _check_text(sum(len(item) for item in items if isinstance(item, str)))
        _check_text(len(separator) * len(items))


def _filter_join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = list(value)
    if attribute is not None:
        items = [item[attribute] if isinstance(item, dict) else "" for item in items]
    texts = [str(item) for item in items]
    _check_join(d, texts)
    return str(d).join(texts)


def _filter_replace(value: object, old: str, new: str, count: int = -1) -> str:
    text = str(value)
    _check_replacement(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _filter_indent(
    value: str, width: int | str = 4, first: bool = False, blank: bool = False
) -> str:
    margin = width if isinstance(width, str) else " " * min(width, _MAX_INDENT)
    lines = str(value).splitlines()
    _check_text(len(value) + len(margin) * len(lines))
    shown = [margin + line if line or blank else line for line in lines]
    if lines and not first:
        shown[0] = lines[0]
    return "\n".join(shown)


def _filter_format(value: str, *args: object, **kwargs: object) -> str:
    _check_format(value)
    return str(value) % (kwargs or args)


def _filter_tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As the model hubs' templates expect it: no HTML escaping, characters as they are."""
    if isinstance(indent, int):
        indent = min(indent, _MAX_INDENT)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 256:
        raise TemplateLimit("a date format of this length is not allowed")
    return datetime.datetime.now().strftime(form)


def new_environment() -> SandboxedTemplates:
    """An environment that knows what chat templates use and nothing else."""
    environment = SandboxedTemplates(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        cache_size=0,
        extensions=["jinja2.ext.loopcontrols", _GenerationMark],
    )
    environment.filters = {name: environment.filters[name] for name in _FILTERS.split()}
    environment.filters |= {
        "join": _filter_join,
        "replace": _filter_replace,
        "indent": _filter_indent,
        "format": _filter_format,
        "tojson": _filter_tojson,
    }
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment
