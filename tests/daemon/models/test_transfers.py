"""What the daemon does not carry until it pulls."""

from __future__ import annotations

import subprocess
import sys


def test_the_http_client_is_not_loaded_at_the_start() -> None:
    code = (
        "import sys, daemon.app\n"
        "print(sorted({'aiohttp', 'cryptography', 'yarl'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
