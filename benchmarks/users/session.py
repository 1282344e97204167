"""What the users of one Locust process share: workloads, the key, and HdrHistograms merged by the master."""

from __future__ import annotations

import itertools
import json
import math
import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from hdrh.histogram import HdrHistogram

from benchmarks.recording import Latency, as_dict, new_histogram, write_hgrm
from benchmarks.workloads import WORKLOADS, Workload


def three_digits(milliseconds: float) -> float:
    """A response time with three significant digits, in place of Locust's two (documented hook)."""
    if milliseconds <= 0:
        return 0
    return round(milliseconds, 2 - math.floor(math.log10(milliseconds)))


class Session:
    """Lives on the Locust environment, one per process."""

    def __init__(self, environment: Any) -> None:
        options: Namespace = environment.parsed_options or Namespace()
        self.environment = environment
        self.key: str | None = getattr(options, "tidegate_key", None) or None
        self._seed = int(getattr(options, "seed", 1))
        self._out = getattr(options, "hdr_out", None)
        self._workloads: dict[str, tuple[Workload, Iterator[int]]] = {}
        self.histograms: dict[str, HdrHistogram] = {}
        self._unsent: dict[str, HdrHistogram] = {}

    def workload(self, name: str) -> tuple[Workload, Iterator[int]]:
        """The workload called ``name`` and its running number, shared by this process's users."""
        if name not in self._workloads:
            worker = max(0, getattr(self.environment.runner, "worker_index", 0))
            self._workloads[name] = (WORKLOADS[name](self._seed + 1000 * worker), itertools.count())
        return self._workloads[name]

    def record(self, name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
        """``events.request``: successful answers go into the histogram of their name."""
        if exception is not None:
            return
        microseconds = max(1, int(response_time * 1000))
        for histograms in (self.histograms, self._unsent):
            histograms.setdefault(name, new_histogram()).record_value(microseconds)

    def to_master(self, data: dict[str, Any], **_: Any) -> None:
        """``events.report_to_master``: what was recorded since the last report."""
        data["hdr"] = {name: histogram.encode().decode() for name, histogram in self._unsent.items()}
        self._unsent.clear()

    def from_worker(self, data: dict[str, Any], **_: Any) -> None:
        """``events.worker_report``: add a worker's histograms to the master's."""
        for name, encoded in data.get("hdr", {}).items():
            self.histograms.setdefault(name, new_histogram()).decode_and_add(encoded.encode())

    def summary(self) -> dict[str, Any]:
        """Latency by name; percentiles below their sample floor are null."""
        return {name: as_dict(Latency.of(histogram)) for name, histogram in sorted(self.histograms.items())}

    def reset(self, **_: Any) -> None:
        """``events.reset_stats``: forget the ramp-up, as Locust's own statistics do."""
        self.histograms.clear()
        self._unsent.clear()

    def report(self, **_: Any) -> None:
        """``events.quitting``: print the distributions and write them where ``--hdr-out`` says."""
        if not self.histograms or not getattr(self.environment, "runner", None):
            return
        if type(self.environment.runner).__name__ == "WorkerRunner":
            return
        print("\nLatency of right answers, ms (HdrHistogram, 3 digits; - = too few samples)")
        columns = ("p50", "p90", "p95", "p99", "p99.9", "max")
        print(f"{'':24}{'answers':>9}" + "".join(f"{name:>10}" for name in columns))
        for name, value in self.summary().items():
            found = [value["percentiles"][wanted] for wanted in columns[:-1]]
            cells = [*found, value["max"]]
            print(f"{name:24}{value['samples']:>9}" + "".join(f"{_cell(cell):>10}" for cell in cells))
        if self._out:
            folder = Path(self._out)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "latency.json").write_text(json.dumps(self.summary(), indent=2))
            for name, histogram in self.histograms.items():
                write_hgrm(histogram, folder / f"{name}.hgrm")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def add_arguments(parser: Any) -> None:
    """Locust's ``init_command_line_parser``."""
    parser.add_argument(
        "--tidegate-key", default=os.environ.get("TIDEGATE_KEY", ""), is_secret=True, help="API key (TIDEGATE_KEY)"
    )
    parser.add_argument("--tidegate-models", default="", help="Models to load, comma-separated; default: all ready")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the inputs")
    parser.add_argument("--hdr-out", default="", include_in_web_ui=False, help="Folder for HdrHistograms")


def served(host: str, key: str | None) -> set[str] | None:
    """The models that the gateway at ``host`` has ready for the key; None if it cannot be asked."""
    request = Request(f"{host.rstrip('/')}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    try:
        with urlopen(request, timeout=5) as response:  # noqa: S310 - the operator's own --host
            models = json.load(response)["data"]
    except (URLError, OSError, ValueError, KeyError):
        return None
    return {model["id"] for model in models if model.get("tidegate", {}).get("ready", True)}


def _narrow(environment: Any, session: Session) -> None:
    """Leave out users whose model is not wanted, or that the gateway does not have."""
    options = environment.parsed_options
    wanted = {name for name in getattr(options, "tidegate_models", "").split(",") if name}
    available = served(environment.host, session.key) if environment.host else None
    kept = [
        user
        for user in environment.user_classes
        if (not wanted or getattr(user, "model", "") in wanted) and (available is None or user.model in available)
    ]
    if kept:
        environment.user_classes = kept


def install(events: Any) -> None:
    """Connect a session to every Locust environment that is made."""
    events.init_command_line_parser.add_listener(add_arguments)

    @events.init.add_listener  # type: ignore[untyped-decorator,unused-ignore]
    def _on_init(environment: Any, **_: Any) -> None:
        session = Session(environment)
        environment.tidegate = session
        bus = environment.events
        bus.request.add_listener(session.record)
        bus.report_to_master.add_listener(session.to_master)
        bus.worker_report.add_listener(session.from_worker)
        bus.reset_stats.add_listener(session.reset)
        bus.quitting.add_listener(session.report)
        bus.test_start.add_listener(lambda **_: _narrow(environment, session))
