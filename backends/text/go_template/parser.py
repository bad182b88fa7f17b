"""Tokens to a tree. Refuses what Go's parser refuses, with the line; depth is bounded."""

from __future__ import annotations

from backends.text.go_template.errors import TemplateSyntaxError
from backends.text.go_template.functions import FUNCTIONS
from backends.text.go_template.lexer import Token, number_value, string_value, tokenize
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

MAX_DEPTH = 100
_CONSTANTS = {"true": True, "false": False, "nil": None}
_BRANCHES = ("if", "with", "range")
_END = Token("close", "", 0)


def parse(source: str) -> Tree:
    """Raises TemplateSyntaxError."""
    return _Parser(tokenize(source)).run()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._loops = 0
        self._named: dict[str, Nodes] = {}
        self._scopes: list[set[str]] = [{"$"}]

    def run(self) -> Tree:
        nodes, closer = self._list(())
        if closer:
            raise TemplateSyntaxError(self._line(), f"unexpected {{{{{closer}}}}}")
        return Tree(nodes, self._named)

    # ---- tokens ----

    def _line(self) -> int:
        at = min(self._at, len(self._tokens) - 1)
        return self._tokens[at].line if self._tokens else 1

    def _peek(self) -> Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _END

    def _next(self) -> Token:
        if self._at >= len(self._tokens):
            raise TemplateSyntaxError(self._line(), "unexpected EOF")
        self._at += 1
        return self._tokens[self._at - 1]

    def _skip_space(self) -> bool:
        start = self._at
        while self._peek().kind == "space":
            self._at += 1
        return self._at > start

    def _word(self) -> str:
        self._skip_space()
        return self._peek().value if self._peek().kind == "word" else ""

    def _close(self, context: str) -> None:
        self._skip_space()
        token = self._next()
        if token.kind != "close":
            raise TemplateSyntaxError(token.line, f"unexpected {token.value!r} in {context}")

    # ---- lists and actions ----

    def _list(self, closers: tuple[str, ...]) -> tuple[Nodes, str]:
        """Nodes up to one of `closers`, whose word is consumed but not the rest of its action."""
        self._deeper()
        nodes: list[Node] = []
        while self._at < len(self._tokens):
            token = self._next()
            if token.kind == "text":
                nodes.append(Text(token.value))
                continue
            word = self._word()
            if word in ("end", "else"):
                if word not in closers:
                    raise TemplateSyntaxError(token.line, f"unexpected {{{{{word}}}}}")
                self._next()
                self._depth -= 1
                return tuple(nodes), word
            nodes += self._action(word)
        if closers:
            raise TemplateSyntaxError(self._line(), "unexpected EOF")
        self._depth -= 1
        return tuple(nodes), ""

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateSyntaxError(self._line(), f"nested deeper than {MAX_DEPTH}")

    def _action(self, word: str) -> list[Node]:
        if word in _BRANCHES:
            self._next()
            return [self._branch(word)]
        if word in ("break", "continue"):
            return [self._loop(word)]
        if word == "template":
            return [self._call()]
        if word == "block":
            return [self._block()]
        if word == "define":
            self._define()
            return []
        pipeline = self._pipeline("command")
        self._close("command")
        return [Print(pipeline)]

    def _branch(self, kind: str) -> Branch:
        self._scopes.append(set())
        pipeline = self._pipeline(kind)
        self._close(kind)
        self._loops += kind == "range"
        body, closer = self._list(("else", "end"))
        self._loops -= kind == "range"
        otherwise: Nodes = ()
        if closer == "else":
            otherwise = self._otherwise(kind)
        else:
            self._close("end")
        self._scopes.pop()
        return Branch(kind, pipeline, body, otherwise)

    def _otherwise(self, kind: str) -> Nodes:
        word = self._word()
        if word in ("if", "with") and (word == kind or kind == "if"):
            # `else if` shares the end of the whole chain.
            self._next()
            return (self._branch(word),)
        self._close("else")
        nodes, _ = self._list(("end",))
        self._close("end")
        return nodes

    def _loop(self, word: str) -> Loop:
        token = self._next()
        if not self._loops:
            raise TemplateSyntaxError(token.line, f"{{{{{word}}}}} outside {{{{range}}}}")
        self._close(word)
        return Loop(word)

    def _name(self, context: str) -> str:
        self._next()
        self._skip_space()
        token = self._next()
        if token.kind not in ("string", "raw"):
            raise TemplateSyntaxError(token.line, f"unexpected {token.value!r} in {context}")
        return string_value(token)

    def _call(self) -> Call:
        line = self._line()
        name = self._name("template clause")
        self._skip_space()
        pipeline = None
        if self._peek().kind != "close":
            pipeline = self._pipeline("template clause")
        self._close("template clause")
        return Call(name, pipeline, line)

    def _block(self) -> Call:
        line = self._line()
        name = self._name("block clause")
        pipeline = self._pipeline("block clause")
        self._close("block clause")
        self._named[name] = self._own_body()
        return Call(name, pipeline, line)

    def _define(self) -> None:
        name = self._name("define clause")
        self._close("define clause")
        self._named[name] = self._own_body()

    def _own_body(self) -> Nodes:
        scopes, loops = self._scopes, self._loops
        self._scopes, self._loops = [{"$"}], 0
        nodes, _ = self._list(("end",))
        self._close("end")
        self._scopes, self._loops = scopes, loops
        return nodes

    # ---- pipelines ----

    def _pipeline(self, context: str, *, closer: str = "close") -> Pipeline:
        self._deeper()
        line = self._line()
        names, is_assignment = self._declared(context)
        commands = [self._command(context)]
        while self._skip_space() or self._peek().value == "|":
            if self._peek().value != "|":
                break
            self._next()
            commands.append(self._command(context))
        token = self._peek()
        if token.kind != closer and token.value != closer:
            raise TemplateSyntaxError(line, f"unexpected {token.value!r} in {context}")
        # Declared after its own commands: `$x := $x` refers to the outer one.
        if not is_assignment:
            self._scopes[-1].update(names)
        self._depth -= 1
        return Pipeline(tuple(commands), names, is_assignment, line)

    def _declared(self, context: str) -> tuple[tuple[str, ...], bool]:
        start = self._at
        self._skip_space()
        names: list[str] = []
        while self._peek().kind == "variable":
            names.append(self._next().value)
            self._skip_space()
            token = self._peek()
            if token.kind in ("declare", "assign"):
                self._next()
                return self._checked(names, token, context), token.kind == "assign"
            if token.value != "," or context != "range":
                break
            self._next()
            self._skip_space()
        self._at = start
        return (), False

    def _checked(self, names: list[str], token: Token, context: str) -> tuple[str, ...]:
        if len(names) > (2 if context == "range" else 1):
            raise TemplateSyntaxError(token.line, f"too many declarations in {context}")
        if token.kind == "assign":
            for name in names:
                self._must_know(name, token.line)
        return tuple(names)

    def _must_know(self, name: str, line: int) -> None:
        if not any(name in scope for scope in self._scopes):
            raise TemplateSyntaxError(line, f'undefined variable "{name}"')

    def _command(self, context: str) -> Command:
        operands: list[Operand] = []
        line = self._line()
        while True:
            spaced = self._skip_space()
            if self._peek().kind == "close" or self._peek().value in ("|", ")"):
                break
            if operands and not spaced:
                token = self._peek()
                raise TemplateSyntaxError(token.line, f"unexpected {token.value!r} in operand")
            operands.append(self._operand())
        if not operands:
            raise TemplateSyntaxError(line, f"missing value for {context}")
        return Command(tuple(operands), line)

    def _operand(self) -> Operand:
        base = self._term()
        names: list[str] = []
        while self._peek().kind == "field":
            names.append(self._next().value[1:])
        if not names:
            return base
        if isinstance(base, Fields):
            return Fields(base.base, base.names + tuple(names))
        return Fields(base, tuple(names))

    def _term(self) -> Operand:
        token = self._next()
        match token.kind:
            case "dot":
                return Dot()
            case "field":
                return Fields(Dot(), (token.value[1:],))
            case "variable":
                self._must_know(token.value, token.line)
                return Variable(token.value)
            case "string" | "raw":
                return Literal(string_value(token))
            case "char":
                return Literal(ord(string_value(token)))
            case "number":
                return Literal(number_value(token))
            case "word":
                return self._named_term(token)
            case _ if token.value == "(":
                inner = self._pipeline("parenthesized pipeline", closer=")")
                self._next()
                return inner
            case _:
                raise TemplateSyntaxError(token.line, f"unexpected {token.value!r} in operand")

    def _named_term(self, token: Token) -> Operand:
        if token.value in _CONSTANTS:
            return Literal(_CONSTANTS[token.value])
        if token.value not in FUNCTIONS:
            raise TemplateSyntaxError(token.line, f'function "{token.value}" not defined')
        return Function(token.value)
