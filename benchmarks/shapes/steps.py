"""``StepLoad``: users doubled every so many seconds, 1, 2, 4, … (a closed concurrency sweep).

locust -f benchmarks/locustfile.py,benchmarks/shapes/steps.py --headless --step-seconds 20 --step-last 64
"""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape, events


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _arguments(parser: Any) -> None:
    parser.add_argument("--step-seconds", type=float, default=20.0, help="Seconds of each step")
    parser.add_argument("--step-last", type=int, default=64, help="Users of the last step")


class StepLoad(LoadTestShape):
    """1, 2, 4, … users."""

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate now; None at the end."""
        options: Any = self.runner.environment.parsed_options if self.runner else None
        time = float(self.get_run_time())  # type: ignore[no-untyped-call]
        users = 2 ** int(time // options.step_seconds)
        return (users, users) if users <= options.step_last else None
