"""What may be typed. Standard library only, so that `hearth --help` answers at once."""

from __future__ import annotations

import argparse

_EPILOG = """\
Environment: HEARTH_HOST (where to serve, or which daemon to ask), HEARTH_HOME (state),
HEARTH_MODELS (the shelf), HEARTH_ARTIFACTS (converted models), HEARTH_BACKEND,
HEARTH_FOREIGN (folders of other programs to show: FOLDER:FOLDER, or auto),
HEARTH_KEY (the key that this command shows to a daemon of another machine).
The OLLAMA_* variables are read where no Hearth value is set.
"""


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hearth")
    except PackageNotFoundError:
        return "0.0.0"


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.exit(message=f"hearth {_version()}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hearth",
        description="Keeps language models on this machine and lends them to the network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--version", action=_ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_run(commands)
    _add_shelf(commands)
    _add_files(commands)
    return parser


_Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]  # argparse has no public name for it


def _add_serve(commands: _Commands[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser("serve", help="run the daemon")
    serve.add_argument("--host", help="address to listen on, HOST, :PORT or HOST:PORT")
    serve.add_argument("--home", help="folder for state")
    serve.add_argument("--models", help="folder of the model store")
    serve.add_argument("--artifacts", help="folder of converted models")
    serve.add_argument(
        "--backend", help="mlx, onnx, onnx-cuda or onnx-cpu instead of the automatic choice"
    )
    serve.add_argument(
        "--open",
        action="store_true",
        default=None,
        dest="open_lan",
        help="nobody needs a key: anyone who can connect may use the models",
    )
    serve.add_argument("--debug", action="store_true", default=None, help="log more")


def _add_run(commands: _Commands[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="chat with a model in the terminal")
    run.add_argument("model")
    run.add_argument("prompt", nargs="*", help="answer this and leave")
    run.add_argument("--verbose", action="store_true", help="print times after each answer")
    run.add_argument("--keepalive", help="how long the model stays loaded, such as 5m")
    run.add_argument("--nowordwrap", action="store_true", help=argparse.SUPPRESS)


def _add_shelf(commands: _Commands[argparse.ArgumentParser]) -> None:
    for name, aliases, text in (("list", ["ls"], "list models"), ("ps", [], "list loaded models")):
        listing = commands.add_parser(name, aliases=aliases, help=text)
        listing.add_argument("prefix", nargs="?", default="")
    show = commands.add_parser("show", help="what a model is and what converting did to it")
    show.add_argument("model")
    for part in ("modelfile", "template", "parameters", "license", "system"):
        show.add_argument(f"--{part}", action="store_const", const=part, dest="part")
    show.add_argument("--verbose", action="store_true", help="every metadata value and tensor")
    copy = commands.add_parser("cp", help="give a model a second name")
    copy.add_argument("source")
    copy.add_argument("destination")
    remove = commands.add_parser("rm", help="remove models")
    remove.add_argument("models", nargs="+", metavar="model")
    stop = commands.add_parser("stop", help="unload a model")
    stop.add_argument("model")
    discover = commands.add_parser("discover", help="find daemons on the network")
    discover.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS")
    discover.add_argument("--json", action="store_true", help="one JSON object a line")
    doctor = commands.add_parser("doctor", help="what this machine can run, and what is in the way")
    doctor.add_argument("--json", action="store_true", help="the same as one JSON object")
    _add_keys(commands)


def _add_keys(commands: _Commands[argparse.ArgumentParser]) -> None:
    key = commands.add_parser("key", help="keys that let other machines use this daemon")
    actions = key.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", help="who or what it is for")
    add.add_argument(
        "--manage", action="store_true", help="it may also change the shelf, and make keys"
    )
    add.add_argument(
        "--expires",
        metavar="TIME",
        help="refuse it after so long: 30d, 12h, 1h30m (default: never)",
    )
    actions.add_parser("list", help="names, scopes, and when they were used")
    remove = actions.add_parser("remove", help="refuse a key from the next request on")
    remove.add_argument("name")
    actions.add_parser("pending", help="devices that ask for a key, and their codes")
    approve = actions.add_parser("approve", help="give a key to the device that shows this code")
    approve.add_argument("code")
    approve.add_argument("--name", default="", help="what the key is called (default: the device)")
    approve.add_argument(
        "--manage", action="store_true", help="it may also change the shelf, and make keys"
    )
    refuse = actions.add_parser("refuse", help="give none to the device that shows this code")
    refuse.add_argument("code")
    pair = commands.add_parser("pair", help="ask the daemon at HEARTH_HOST for a key")
    pair.add_argument(
        "name", nargs="?", default="", help="what to call this device (default: its name)"
    )


def _add_files(commands: _Commands[argparse.ArgumentParser]) -> None:
    create = commands.add_parser("create", help="make a model from a Modelfile")
    create.add_argument("model")
    create.add_argument(
        "-f", "--file", default="Modelfile", help="the Modelfile (default: ./Modelfile)"
    )
    create.add_argument("-q", "--quantize", help="quantise the weights to this type")
    quantise = commands.add_parser("quantize", help="make a smaller copy of a model")
    quantise.add_argument("source", metavar="model")
    quantise.add_argument("type", help="q8_0, q6_K, q5_K_M, q4_K_M, q4_K_S, q4_0 …")
    quantise.add_argument("name", help="of the copy")
    importing = commands.add_parser("import", help="put a file or folder on the shelf")
    importing.add_argument("file", help="a GGUF, or a Hugging Face folder with safetensors")
    importing.add_argument("name")
    importing.add_argument(
        "--optimum",
        action="store_true",
        help="an encoder without a recipe: export it to ONNX first",
    )
    optimum = commands.add_parser("optimum", help="the exporter for encoders without a recipe")
    optimum.add_argument("action", choices=("install", "status", "remove"))
    for name, text in (
        ("pull", "fetch a model from a registry"),
        ("push", "send one to a registry"),
    ):
        transfer = commands.add_parser(name, help=text)
        transfer.add_argument("model", help="[HOST/][NAMESPACE/]MODEL[:TAG], hf.co/USER/REPO:QUANT")
        transfer.add_argument("--insecure", action="store_true", help="allow http to the registry")
    commands.add_parser("du", help="what is where on the disks, shared and twice")
    adopt = commands.add_parser(
        "adopt", help="let rm delete from a folder of models that another program made"
    )
    adopt.add_argument("path", help="the folder, or: default (the daemon's model store)")
    convert = commands.add_parser("convert", help="convert a GGUF file by hand")
    convert.add_argument("file")
    convert.add_argument(
        "--target", default="onnx", help="onnx (this machine's CPU), onnx-cpu, onnx-cuda, mlx"
    )
    convert.add_argument("--output", required=True, metavar="DIR")
    convert.add_argument(
        "--precise", action="store_true", help="no integer activations: slower, exact to fp32"
    )


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    return build_parser().parse_args(arguments)
