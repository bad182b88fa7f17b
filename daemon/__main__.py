"""The `hearth` command; the only place with exit codes."""

from __future__ import annotations

import sys

from daemon.cli.arguments import parse_arguments


def main(arguments: list[str] | None = None) -> int:
    """0 done; 1 failed, one sentence on stderr; 2 wrong usage; 78 bad configuration; 130 interrupted."""
    parsed = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    from daemon.cli import commands

    return commands.run(parsed)


if __name__ == "__main__":
    sys.exit(main())
