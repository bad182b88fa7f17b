"""`hearth show`: the answer of /api/show as indented sections."""

from __future__ import annotations

from typing import Any

from daemon.cli.terminal import human_bytes

_INDENT = "  "


def print_model(answer: dict[str, Any], *, verbose: bool = False) -> None:
    info = answer["model_info"]
    _print_pairs("Model", _model_rows(answer["details"], info))
    _print_lines("Capabilities", answer.get("capabilities", []))
    _print_pairs("Projector", _projector_rows(answer))
    _print_pairs("Converted", _conversion_rows(answer.get("hearth", {})))
    _print_lines("Parameters", answer.get("parameters", "").splitlines())
    _print_lines("System", answer.get("system", "").splitlines()[:2])
    _print_lines("License", answer.get("license", "").strip().splitlines()[:2])
    if verbose:
        _print_pairs("Metadata", [(key, _value_text(value)) for key, value in info.items()])
        _print_pairs("Tensors", [_tensor_row(tensor) for tensor in answer.get("tensors", [])])


def _model_rows(details: dict[str, Any], info: dict[str, Any]) -> list[tuple[str, str]]:
    architecture = info.get("general.architecture", details.get("family", ""))
    rows = [("architecture", str(architecture)), ("parameters", details["parameter_size"])]
    for label in ("context length", "embedding length"):
        if value := info.get(f"{architecture}.{label.replace(' ', '_')}"):
            rows.append((label, str(value)))
    return [*rows, ("quantization", details["quantization_level"])]


def _projector_rows(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Of a model with eyes, in a projector or in its own file."""
    eyes = answer.get("hearth", {}).get("vision")
    if not eyes:
        return []
    rows = [("type", eyes["projector"])] if eyes["projector"] else []
    info = answer.get("projector_info", {})
    for label, key in (("image size", "image_size"), ("embedding length", "embedding_length")):
        if value := info.get(f"clip.vision.{key}"):
            rows.append((label, str(value)))
    for target, tower in eyes.get("artifacts", {}).items():
        rows.append((target, human_bytes(tower["file_bytes"])))
    if refusal := eyes.get("refusal"):
        rows.append(("not used", refusal))
    if unused := eyes.get("unused_projectors"):
        rows.append(("not used", f"{unused} more projectors: the first is used"))
    return rows


def _conversion_rows(hearth: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, artifact in hearth.get("artifacts", {}).items():
        counts = ", ".join(f"{n} {kind}" for kind, n in artifact["exactness"].items() if n)
        rows.append((name, f"{human_bytes(artifact['file_bytes'])}; tensors: {counts}"))
    return rows


def _value_text(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _tensor_row(tensor: dict[str, Any]) -> tuple[str, str]:
    return tensor["name"], f"{tensor['type']} {tensor['shape']}"


def _print_pairs(title: str, rows: list[tuple[str, str]]) -> None:
    width = max((len(key) for key, _ in rows), default=0)
    _print_lines(title, [f"{key.ljust(width)}    {value}" for key, value in rows])


def _print_lines(title: str, lines: list[str]) -> None:
    if lines:
        print(f"{_INDENT}{title}")
        for line in lines:
            print(f"{_INDENT * 2}{line}")
        print()
