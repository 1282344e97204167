"""What the users of one Locust process share: workloads, the key, and what was counted, summed by the master."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import gevent
from locust.dispatch import UsersDispatcher
from locust.runners import WorkerRunner

from benchmarks.recording import Latency, Outcome, as_dict, write_hgrm
from benchmarks.users.tally import TALLIES, Tally
from benchmarks.workloads import WORKLOADS, Workload

SLACK_S = 1.0
"""Users go on for so long after the window, so that nothing within it ends early."""
_log = logging.getLogger(__name__)


class Session:
    """Lives on the Locust environment, one per process.

    Requests that begin within the measured window count: all of them, or with ``--warmup-seconds`` and
    ``--window-seconds`` those of that stretch after this process began.
    """

    def __init__(self, environment: Any) -> None:
        options: Namespace = environment.parsed_options or Namespace()
        self.environment = environment
        self._seed = int(getattr(options, "seed", 1))
        self._out = getattr(options, "hdr_out", None)
        self._warmup_s = float(getattr(options, "warmup_seconds", 0.0))
        self._window_s = float(getattr(options, "window_seconds", 0.0)) or math.inf
        self._workloads: dict[str, tuple[Workload, Iterator[int]]] = {}
        self._start = time.monotonic() + self._warmup_s
        self._used_s: float | None = None
        self.tallies: dict[str, Tally] = {}
        self._unsent: dict[str, Tally] = {}
        self.cpu_s: dict[str, float] = {}
        """Processor seconds within the window, by process."""

    @property
    def key(self) -> str | None:
        """The API key; on a worker the master's, which comes with the first users."""
        return getattr(self.environment.parsed_options, "tidegate_key", None) or None

    @property
    def grpc(self) -> str:
        """The gateway's gRPC address; empty for none."""
        return getattr(self.environment.parsed_options, "tidegate_grpc", "").removeprefix("grpc://")

    def workload(self, name: str) -> tuple[Workload, Iterator[int]]:
        """The workload called ``name`` and its running number, shared by this process's users."""
        if name not in self._workloads:
            worker = max(0, getattr(self.environment.runner, "worker_index", 0))
            self._workloads[name] = (WORKLOADS[name](self._seed + 1000 * worker), itertools.count())
        return self._workloads[name]

    def begin(self, name: str) -> float:
        """A request is about to be sent; returns the moment (monotonic clock)."""
        now = time.monotonic()
        if self._inside(now):
            self._count(name, "totals", "begun")
        return now

    def end(
        self, name: str, began: float, outcome: Outcome, status: int, fault: str | None, sent: int, received: int
    ) -> None:
        """What came of a request that began at ``began``; sizes are bytes."""
        now = time.monotonic()
        if 200 <= status < 300:
            self._count(name, "totals", "answered")
        if self._inside(now):
            self._spend()
            if outcome in (Outcome.OK, Outcome.WRONG):
                self._count(name, "seconds", str(int(now - self._start)))
        if self._inside(began):
            self._count(name, "totals", "finished")
            self._count(name, "totals", "bytes_out", sent)
            for tally in self._of(name):
                tally.ended(outcome, status, fault, int((now - began) * 1e6), received)

    def _inside(self, moment: float) -> bool:
        return self._start <= moment < self._start + self._window_s

    def _spend(self) -> None:
        used = time.process_time()
        if self._used_s is None:
            self._used_s = used
        self.cpu_s[str(os.getpid())] = used - self._used_s

    def _of(self, name: str) -> tuple[Tally, Tally]:
        return self.tallies.setdefault(name, Tally()), self._unsent.setdefault(name, Tally())

    def _count(self, name: str, counter: str, key: str, number: int = 1) -> None:
        for tally in self._of(name):
            tally.counters[counter][key] += number

    def to_master(self, data: dict[str, Any], **_: Any) -> None:
        """``events.report_to_master``: what was counted since the last report."""
        data["tallies"] = {name: tally.to_wire() for name, tally in self._unsent.items()}
        data["cpu_s"] = self.cpu_s
        self._unsent.clear()

    def from_worker(self, data: dict[str, Any], **_: Any) -> None:
        """``events.worker_report``: add what a worker counted."""
        for name, wire in data.get("tallies", {}).items():
            self.tallies.setdefault(name, Tally()).add(wire)
        self.cpu_s.update(data.get("cpu_s", {}))

    def summary(self) -> dict[str, Any]:
        """Latency of right answers by name; percentiles below their sample floor are null."""
        return {name: as_dict(Latency.of(tally.histograms["right"])) for name, tally in sorted(self.tallies.items())}

    def restart(self, **_: Any) -> None:
        """``events.test_start`` and ``events.reset_stats``: forget what came before, as Locust's own statistics do."""
        self._start = time.monotonic() + self._warmup_s
        self._used_s = None
        self.tallies.clear()
        self._unsent.clear()
        self.cpu_s.clear()

    def spawned(self, **_: Any) -> None:
        """``events.spawning_complete``: a run with a window ends by itself, once every process has had its own."""
        runner = self.environment.runner
        if math.isfinite(self._window_s) and not isinstance(runner, WorkerRunner):
            gevent.spawn(self._quit_at, time.monotonic() + self._warmup_s + self._window_s + SLACK_S)

    def _quit_at(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:  # gevent's own clock stands still while a process is busy
            gevent.sleep(left)
        self.environment.runner.quit()

    def report(self, **_: Any) -> None:
        """``events.quitting``: print the distributions and write everything where ``--hdr-out`` says.

        A run without a screen in which nothing was sent has failed: the exit code says so.
        """
        runner = self.environment.runner
        if runner is None or isinstance(runner, WorkerRunner):
            return
        if getattr(self.environment.parsed_options, "headless", False) and not runner.stats.total.num_requests:
            _log.error("not one request was sent")
            self.environment.process_exit_code = 1
        if any(tally.histograms["right"].get_total_count() for tally in self.tallies.values()):
            self._print()
        if self._out and self.tallies:
            self._write(Path(self._out))

    def _print(self) -> None:
        print("\nLatency of right answers, ms (HdrHistogram, 3 digits; - = too few samples)")
        columns = ("p50", "p90", "p95", "p99", "p99.9", "max")
        print(f"{'':24}{'answers':>9}" + "".join(f"{name:>10}" for name in columns))
        for name, value in self.summary().items():
            found = [value["percentiles"][wanted] for wanted in columns[:-1]]
            cells = [*found, value["max"]]
            print(f"{name:24}{value['samples']:>9}" + "".join(f"{_cell(cell):>10}" for cell in cells))

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "latency.json").write_text(json.dumps(self.summary(), indent=2))
        counted = {name: tally.to_wire() for name, tally in self.tallies.items()}
        (folder / TALLIES).write_text(json.dumps({"tallies": counted, "cpu_s": self.cpu_s}))
        for name, tally in self.tallies.items():
            write_hgrm(tally.histograms["right"], folder / f"{name}.hgrm")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def add_arguments(parser: Any) -> None:
    """Locust's ``init_command_line_parser``."""
    parser.add_argument(
        "--tidegate-key", default=os.environ.get("TIDEGATE_KEY", ""), is_secret=True, help="API key (TIDEGATE_KEY)"
    )
    parser.add_argument("--tidegate-models", default="", help="Models to load, comma-separated; default: all ready")
    parser.add_argument("--tidegate-workloads", default="", help="What to send, comma-separated; default: everything")
    parser.add_argument("--tidegate-protocols", default="http,grpc", help="http, grpc or both, comma-separated")
    parser.add_argument("--tidegate-grpc", default="", help="Address of gRPC, host:port; without it no gRPC users")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the inputs")
    parser.add_argument("--hdr-out", default="", include_in_web_ui=False, help="Folder for HdrHistograms and counts")
    for name, text in (("warmup", "Do not count the first seconds"), ("window", "Count so many, then end; 0: all")):
        parser.add_argument(f"--{name}-seconds", type=float, default=0.0, include_in_web_ui=False, help=text)


def served(host: str, key: str | None) -> set[str] | None:
    """The models that the gateway at ``host`` has ready for the key; None if it cannot be asked."""
    request = Request(f"{host.rstrip('/')}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    try:
        with urlopen(request, timeout=5) as response:  # noqa: S310 - the operator's own --host
            models = json.load(response)["data"]
    except (URLError, OSError, ValueError, KeyError):
        return None
    return {model["id"] for model in models if model.get("tidegate", {}).get("ready", True)}


class NoUsersError(Exception):
    """No class of users is left; the message says why."""


def narrowed(environment: Any, session: Session, classes: Sequence[type[Any]]) -> list[type[Any]]:
    """Those of ``classes`` that the options want and whose model the gateway has. Raises :class:`NoUsersError`."""
    models, workloads, protocols = (
        {name for name in getattr(environment.parsed_options, f"tidegate_{option}", "").split(",") if name}
        for option in ("models", "workloads", "protocols")
    )
    available = served(environment.host, session.key) if environment.host else None
    kept = [
        user
        for user in classes
        if (not models or user.model in models)
        and (not workloads or user.workload in workloads)
        and user.protocol in protocols
        and (user.protocol == "http" or session.grpc)
        and (available is None or user.model in available)
    ]
    if not kept:
        known = (
            "cannot be asked for its models" if available is None else f"has {', '.join(sorted(available)) or 'none'}"
        )
        asked = ", ".join(sorted(models | workloads)) or "all"
        raise NoUsersError(f"no users are left; wanted: {asked}; the gateway {known}")
    return kept


def install(events: Any) -> None:
    """Connect a session to every Locust environment that is made."""
    events.init_command_line_parser.add_listener(add_arguments)

    @events.init.add_listener  # type: ignore[untyped-decorator,unused-ignore]
    def _on_init(environment: Any, **_: Any) -> None:
        session = Session(environment)
        environment.tidegate = session
        bus = environment.events
        bus.report_to_master.add_listener(session.to_master)
        bus.worker_report.add_listener(session.from_worker)
        bus.test_start.add_listener(session.restart)
        bus.reset_stats.add_listener(session.restart)
        bus.spawning_complete.add_listener(session.spawned)
        bus.quitting.add_listener(session.report)
        environment.dispatcher_class = _dispatcher(environment, session)


def _dispatcher(environment: Any, session: Session) -> type[UsersDispatcher]:
    """Users are narrowed where they are dealt out, at each start: the web page may have changed host, key and models.

    Workers know every class and start those that they are told to.
    """

    class Narrowed(UsersDispatcher):
        def __init__(self, worker_nodes: list[Any], user_classes: list[type[Any]]) -> None:
            try:
                super().__init__(worker_nodes, narrowed(environment, session, user_classes))
            except NoUsersError as error:
                _log.error("%s", error)
                if getattr(environment.parsed_options, "headless", False):  # nobody can choose other models
                    environment.process_exit_code = 1
                    gevent.spawn(environment.runner.quit)  # which ends this greenlet too
                raise

    return Narrowed
