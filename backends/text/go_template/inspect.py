"""What a template tree says about its model: variables, thinking tags, the tool-call tag."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from backends.text.go_template.nodes import (
    Branch,
    Call,
    Fields,
    Node,
    Nodes,
    Operand,
    Pipeline,
    Print,
    Text,
    Tree,
    Variable,
)


def all_nodes(nodes: Nodes) -> Iterator[Node]:
    """Every node, depth first, in the order of the text."""
    for node in nodes:
        yield node
        if isinstance(node, Branch):
            yield from all_nodes(node.body)
            yield from all_nodes(node.otherwise)


def _operands(operand: Operand) -> Iterator[Operand]:
    yield operand
    if isinstance(operand, Fields):
        yield from _operands(operand.base)
    if isinstance(operand, Pipeline):
        for command in operand.commands:
            for inner in command.operands:
                yield from _operands(inner)


def pipeline_of(node: Node) -> Pipeline | None:
    return node.pipeline if isinstance(node, Print | Branch | Call) else None


def names_in(pipeline: Pipeline | None) -> set[str]:
    """Every field and variable name that the pipeline mentions, without `$`."""
    names: set[str] = set()
    for operand in _operands(pipeline) if pipeline else ():
        if isinstance(operand, Fields):
            names.update(operand.names)
        if isinstance(operand, Variable):
            names.add(operand.name.removeprefix("$"))
    return names


def variables(tree: Tree) -> frozenset[str]:
    """Lower-cased names of everything the template refers to, its named parts included."""
    names: set[str] = set()
    for nodes in (tree.root, *tree.named.values()):
        for node in all_nodes(nodes):
            names |= names_in(pipeline_of(node))
    return frozenset(name.lower() for name in names)


def cut_after_response(nodes: Nodes) -> Nodes:
    """Everything up to the first printed `.Response`: where the model continues."""
    return _cut(nodes)[0]


def _cut(nodes: Nodes) -> tuple[Nodes, bool]:
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            body, found = _cut(node.body)
            otherwise, found_else = ((), False) if found else _cut(node.otherwise)
            kept.append(replace(node, body=body, otherwise=otherwise))
            found = found or found_else
        else:
            kept.append(node)
            found = "Response" in names_in(pipeline_of(node))
        if found:
            return tuple(kept), True
    return tuple(kept), False


def thinking_tags(tree: Tree) -> tuple[str, str] | None:
    """The texts around `.Thinking` inside a range over `.Messages`: opening and closing tag."""
    for node in all_nodes(tree.root):
        if (
            isinstance(node, Branch)
            and node.kind == "range"
            and "Messages" in names_in(node.pipeline)
        ) and (tags := _around(node.body, "Thinking")):
            return tags
    return None


def _around(nodes: Nodes, name: str) -> tuple[str, str] | None:
    for node in nodes:
        if isinstance(node, Branch):
            for inner in (node.body, node.otherwise):
                if tags := _around(inner, name):
                    return tags
        if isinstance(node, Print) and name in names_in(node.pipeline):
            texts = [other.text.strip() for other in nodes if isinstance(other, Text)]
            if len(texts) >= 2 and texts[0] and texts[-1]:
                return texts[0], texts[-1]
    return None


def tool_call_tag(tree: Tree) -> str:
    """The first text after the condition on `.ToolCalls`, cut at `{`; "{" when there is none."""
    branch = _find(tree.root, lambda node: "ToolCalls" in names_in(pipeline_of(node)))
    if isinstance(branch, Branch):
        for node in all_nodes(branch.body):
            if isinstance(node, Text) and (tag := node.text.strip()):
                return tag.partition("{")[0].strip() or "{"
    return "{"


def _find(nodes: Nodes, matches: Callable[[Node], bool]) -> Node | None:
    return next((n for n in all_nodes(nodes) if isinstance(n, Branch) and matches(n)), None)
