"""Limits on a stack that is measured: kept count of at every request, and never reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from urllib.request import Request, urlopen

from benchmarks.stack import Stack, StackError

NEVER: Mapping[str, float] = MappingProxyType(
    {"requests_per_second": 1e6, "concurrency": 10**6, "rows_per_minute": 10**12}
)


def impose(stack: Stack) -> None:
    """Give every key of ``stack`` those limits, by the operator's own ways. Raises :class:`StackError`."""
    environment = {**os.environ, "TIDEGATE_DATA_DIR": str(stack.data_dir)}
    command = [sys.executable, "-m", "tidegate", "keys", "bootstrap", "--json"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    if made.returncode:
        raise StackError(f"no operator's key could be made: {made.stderr.strip()}")
    url, key = f"{stack.addresses.gateway}/admin/tiers/default", json.loads(made.stdout)["key"]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = Request(url, json.dumps(dict(NEVER)).encode(), headers, method="PUT")  # noqa: S310 - loopback
    try:
        urlopen(request, timeout=30).close()  # noqa: S310 - loopback
    except OSError as error:
        raise StackError(f"no limits could be set: {error}") from error
