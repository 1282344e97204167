"""``python -m dashboard --host H --port P``: Streamlit's server with this dashboard; the rest is for Streamlit."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboard.settings import PORT

APP = Path(__file__).with_name("app.py")


def command(arguments: Sequence[str], default_port: str) -> list[str]:
    """The command line that replaces this process; ``arguments`` without the program's name."""
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="The dashboard, as a web server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=int(default_port), help="port to listen on")
    chosen, rest = parser.parse_known_args(arguments)
    return [
        sys.executable, "-m", "streamlit", "run", str(APP),
        "--server.address", chosen.host, "--server.port", str(chosen.port), *rest,
    ]  # fmt: skip


def main() -> None:
    """Become Streamlit: signals and the parent's death reach it directly."""
    replacement = command(sys.argv[1:], os.environ.get(PORT, "8501"))
    os.execv(replacement[0], replacement)  # noqa: S606 - our own program


if __name__ == "__main__":
    main()
