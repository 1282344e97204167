"""``Bursts``: a calm number of users, and every period a burst of ``--burst-factor`` times as many.

locust -f benchmarks/locustfile.py,benchmarks/shapes/bursts.py --headless --burst-users 8 --run-time 2m
"""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape, events


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _arguments(parser: Any) -> None:
    parser.add_argument("--burst-users", type=int, default=8, help="Users between bursts")
    parser.add_argument("--burst-factor", type=int, default=8, help="How many times as many in a burst")
    parser.add_argument("--burst-period", type=float, default=20.0, help="Seconds from burst to burst")
    parser.add_argument("--burst-seconds", type=float, default=120.0, help="Seconds of the whole run")


class Bursts(LoadTestShape):
    """A quarter of each period is a burst."""

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate now; None at the end."""
        options: Any = self.runner.environment.parsed_options if self.runner else None
        time = float(self.get_run_time())  # type: ignore[no-untyped-call]
        if time > options.burst_seconds:
            return None
        inside = time % options.burst_period < options.burst_period / 4
        users = options.burst_users * (options.burst_factor if inside else 1)
        return users, users
