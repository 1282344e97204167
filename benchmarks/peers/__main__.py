"""``python -m benchmarks.peers``: install peers, tune them, and compare them with Tidegate under the same load.

python -m benchmarks.peers install fastapi litserve bentoml mlserver ray
python -m benchmarks.peers tune                                    (how each peer does best on these cores)
python -m benchmarks.peers run --servers tidegate,triton,fastapi,litserve --tasks embeddings --seconds 10
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import environment
from benchmarks.bootstrap import middle
from benchmarks.peers import summary
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.compare import Comparison, Load
from benchmarks.peers.install import HOME, InstallError, install, interpreter, versions
from benchmarks.peers.summary import OWN, PeerResult
from benchmarks.peers.ways import Way
from benchmarks.peers.workloads import TASKS
from benchmarks.recording import as_dict
from benchmarks.repeatability import disturbances
from benchmarks.suite import Slo

SLO_MS = {"sentiment": 250.0, "embeddings": 500.0, "imagenet": 250.0}
RESULTS = Path("benchmarks/results/peers")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Entry point; exit code 1 if something could not be installed or nothing was measured, 2 for a wrong name."""
    arguments = _parser().parse_args()
    if arguments.command == "install":
        return _install(arguments)
    unknown = sorted({*arguments.servers} - {*PEERS, *(OWN if arguments.command == "run" else ())})
    unknown += sorted({*arguments.tasks} - {*TASKS})
    if unknown:
        _say(f"error: there is no {', '.join(unknown)}; there are: {', '.join([*OWN, *PEERS, *TASKS])}")
        return 2
    return _tune(arguments) if arguments.command == "tune" else _run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("install", help="make environments for peers")
    add.add_argument("peers", nargs="+", choices=list(PEERS))
    tune = commands.add_parser("tune", help="find how each peer spreads its work best on these cores")
    run = commands.add_parser("run", help="compare servers")
    names, every = (lambda text: [name for name in text.split(",") if name]), [*OWN, *PEERS]
    for command, servers, users, seconds, rounds in (
        (tune, list(PEERS), "16", 4.0, 1),
        (run, every, "8,16,32", 15.0, 5),
    ):
        command.add_argument("--servers", type=names, default=servers, help=f"default: {','.join(servers)}")
        command.add_argument("--tasks", type=names, default=list(TASKS), help=f"default: {','.join(TASKS)}")
        command.add_argument("--users", default=users, help=f"numbers of users, default {users}")
        command.add_argument("--seconds", type=float, default=seconds, help=f"of each measurement, default {seconds:g}")
        command.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
        command.add_argument("--slo-ms", type=float, help="p95 objective; default: 250 (embeddings 500)")
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--model-repository", type=Path, default=Path("model_repository"))
        command.add_argument("--tuning", type=Path, default=RESULTS / "tuning.json", help="what tune found")
    run.add_argument("--out", type=Path, default=RESULTS)
    for command in (add, tune, run):
        command.add_argument("--home", type=Path, default=HOME, help="folder of the environments")
    return parser


def _install(arguments: argparse.Namespace) -> int:
    failed = 0
    for peer in arguments.peers:
        _say(f"installing {PEERS[peer].title} …")
        try:
            _say(f"  {install(peer, arguments.home)}")
        except InstallError as error:
            _say(f"error: {error}")
            failed = 1
    return failed


def _comparison(arguments: argparse.Namespace, task: str, ways: dict[str, dict[str, Any]]) -> Comparison:
    users = tuple(int(number) for number in arguments.users.split(","))
    slo = Slo(arguments.slo_ms or SLO_MS[task])
    load = Load(users, arguments.seconds, arguments.seconds / 4, slo, arguments.seed)
    chosen = {server: Way(**found) for server, found in ways.items()}
    return Comparison(
        task, arguments.model_repository, load, lambda name: interpreter(name, arguments.home), chosen, _say
    )


def _tune(arguments: argparse.Namespace) -> int:
    """Write ``tuning.json``: for each peer the way that does best over all tasks."""
    evidence: dict[str, dict[str, dict[str, float]]] = {}
    for server in arguments.servers:
        evidence[server] = {
            task: uvloop.run(_comparison(arguments, task, {}).tune(server, arguments.rounds))
            for task in arguments.tasks
        }
    silent = [name for name, found in evidence.items() if not any(max(ways.values()) for ways in found.values())]
    chosen = {server: best_way(server, found) for server, found in evidence.items() if server not in silent}
    captured = environment.capture()
    arguments.tuning.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(arguments.tuning.read_text())["ways"] if arguments.tuning.is_file() else {}
    report = {
        "command": captured["command"], "utc": captured["utc"], "cores": os.cpu_count(),
        "ways": {**known, **{server: as_dict(way) for server, way in chosen.items()}}, "goodput": evidence,
    }  # fmt: skip
    arguments.tuning.write_text(json.dumps(report, indent=1) + "\n")
    for server, way in chosen.items():
        print(f"{server}: {way}")
    for server in silent:
        _say(f"error: {server} answered in no way; it keeps the one that was known, or its default")
    return 1 if silent else 0


def best_way(server: str, evidence: dict[str, dict[str, float]]) -> Way:
    """One way for all tasks: the highest median of goodput relative to the task's best way."""
    ways = {str(way): way for way in PEERS[server].ways(os.cpu_count() or 1)}

    def score(name: str) -> float:
        return middle([found[name] / max(found.values()) for found in evidence.values() if max(found.values()) > 0])

    return ways[max(ways, key=score)]


def _run(arguments: argparse.Namespace) -> int:
    captured = environment.capture()
    ways = json.loads(arguments.tuning.read_text())["ways"] if arguments.tuning.is_file() else {}
    results: list[PeerResult] = []
    skipped: list[str] = []
    for task in arguments.tasks:
        comparison = _comparison(arguments, task, ways)
        found, left_out = uvloop.run(comparison.run(arguments.servers, arguments.rounds))
        results.extend(found)
        skipped.extend(left_out)
    peers = [name for name in arguments.servers if name in PEERS]
    report = {
        "environment": captured,
        "noise": [
            *environment.noise(captured, environment.capture()),
            *disturbances([item for found in results for item in found.measurements]),
        ],
        "load": {"users": arguments.users, "seconds": arguments.seconds, "rounds": arguments.rounds},
        "versions": {name: versions(interpreter(name, arguments.home)) for name in peers},
        "skipped": skipped,
        "ratios": as_dict(summary.ratios(results)),
        "results": as_dict(results),
        "cores": os.cpu_count(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1))
    lines = _page(report, results)
    (arguments.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if results else 1


def _page(report: dict[str, Any], results: Sequence[PeerResult]) -> list[str]:
    where, load = report["environment"]["machine"], report["load"]
    lines = [
        "# The same model files, the same load",
        "",
        f"- {report['environment']['utc']}, {where['processor']}, {report['cores']} cores; the load runs on them too",
        (
            f"- {load['rounds']} rounds, in each of which every server is started anew, in shuffled order; "
            f"{load['seconds']:g} s at each of {load['users']} users (closed loop)"
        ),
        "- before each load every server answered all golden inputs as ONNX Runtime does in this process",
        "- keys, limits and metering are on in Tidegate, whose usage records were counted; the others have none",
        f"- command: {report['environment']['command']}",
    ]
    lines += [f"- {name}: {', '.join(found)}; {PEERS[name].guide}" for name, found in report["versions"].items()]
    lines += ["", *summary.table(results), "", *(f"- {line}" for line in summary.verdicts(results)), ""]
    lines += [f"> Not for headlines: {reason}." for reason in report["noise"]]
    lines += [f"> Skipped: {reason}" for reason in report["skipped"]]
    return lines


if __name__ == "__main__":
    sys.exit(main())
