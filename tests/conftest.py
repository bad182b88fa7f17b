"""Before any test: runtimes that tests import themselves must not report to their makers."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
