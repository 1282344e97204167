"""``python -m benchmarks.peers``: install peers, tune them, and compare them with Tidegate under the same load.

python -m benchmarks.peers install fastapi litserve bentoml mlserver ray
python -m benchmarks.peers tune                     (how each peer does each task best here: about 14 minutes)
python -m benchmarks.peers run                      (the comparison: about 25 minutes)
python -m benchmarks.peers run --servers tidegate,triton,fastapi,litserve --tasks embeddings --seconds 10
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import environment
from benchmarks.peers import summary, tuning
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.compare import Comparison, Load
from benchmarks.peers.install import HOME, InstallError, install, interpreter, versions
from benchmarks.peers.summary import OWN, PeerResult
from benchmarks.peers.tuning import Tuned, Tuning
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
    try:
        known = tuning.read(arguments.tuning)
    except tuning.TuningError as error:
        _say(f"error: {error}")
        return 2
    return _tune(arguments, known) if arguments.command == "tune" else _run(arguments, known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("install", help="make environments for peers")
    add.add_argument("peers", nargs="+", choices=list(PEERS))
    add.add_argument("--latest", action="store_true", help="the newest versions, which become the locked ones")
    tune = commands.add_parser("tune", help="find how each peer does each task best on these cores")
    run = commands.add_parser("run", help="compare servers")
    names, every = (lambda text: [name for name in text.split(",") if name]), [*OWN, *PEERS]
    for command, servers, users, seconds, warmup, settle, rounds in (
        (tune, list(PEERS), "16", 2.0, 1.5, 0.0, 1),
        (run, every, "8,16,32,64", 2.5, 4.0, 0.5, 3),
    ):
        command.add_argument("--servers", type=names, default=servers, help=f"default: {','.join(servers)}")
        command.add_argument("--tasks", type=names, default=list(TASKS), help=f"default: {','.join(TASKS)}")
        command.add_argument("--users", default=users, help=f"numbers of users, default {users}")
        command.add_argument("--seconds", type=float, default=seconds, help=f"of each measurement, default {seconds:g}")
        command.add_argument(
            "--warmup", type=float, default=warmup, help=f"seconds after each start, default {warmup:g}"
        )
        command.add_argument(
            "--settle", type=float, default=settle, help=f"seconds before each measurement, default {settle:g}"
        )
        command.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}; intervals need three")
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
            _say(f"  {install(peer, arguments.home, latest=arguments.latest)}")
        except InstallError as error:
            _say(f"error: {error}")
            failed = 1
    return failed


def _comparison(arguments: argparse.Namespace, task: str, known: Tuning) -> Comparison:
    users = tuple(int(number) for number in arguments.users.split(","))
    slo = Slo(arguments.slo_ms or SLO_MS[task])
    load = Load(users, arguments.seconds, arguments.warmup, arguments.settle, slo, arguments.seed)
    return Comparison(
        task, arguments.model_repository, load, lambda name: interpreter(name, arguments.home), known.ways(task), _say
    )


def _tune(arguments: argparse.Namespace, known: Tuning) -> int:
    """Write ``tuning.json``: for each peer and task the way that does best, beside what was known of others."""
    captured = environment.capture()
    silent = []
    for server in arguments.servers:
        for task in arguments.tasks:
            way, goodput = uvloop.run(_comparison(arguments, task, known).tune(server, arguments.rounds))
            if not any(goodput.values()):
                silent.append(f"{server}, {task}")
                continue
            known.tuned.setdefault(server, {})[task] = Tuned(
                way, goodput, captured["command"], captured["utc"], captured["git"]["commit"], os.cpu_count() or 1
            )
            tuning.write(known, arguments.tuning)  # so that a search that is broken off has not been for nothing
            print(f"{server}, {task}: {way}")
    for name in silent:
        _say(f"error: {name}: answered in no way; it keeps the one that was known, or its default")
    return 1 if silent else 0


def _run(arguments: argparse.Namespace, known: Tuning) -> int:
    captured = environment.capture()
    samples = arguments.out / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    samples.mkdir(parents=True)
    results: list[PeerResult] = []
    skipped: list[str] = []
    for task in arguments.tasks:
        comparison = _comparison(arguments, task, known)
        comparison.samples = samples
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
        "load": {
            "users": arguments.users, "seconds": arguments.seconds, "warmup": arguments.warmup,
            "settle": arguments.settle, "rounds": arguments.rounds,
        },
        "tuning": {"commands": known.commands(), "untuned": _untuned(known, peers, arguments.tasks)},
        "versions": {name: versions(interpreter(name, arguments.home)) for name in peers},
        "skipped": skipped,
        "ratios": as_dict(summary.ratios(results)),
        "results": as_dict(results),
        "cores": os.cpu_count(),
    }  # fmt: skip
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1))
    lines = _page(report, results)
    (arguments.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if results else 1


def _untuned(known: Tuning, peers: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """Peers that were started with their default way."""
    return [f"{peer}, {task}" for peer in peers for task in tasks if peer not in known.ways(task)]


def _page(report: dict[str, Any], results: Sequence[PeerResult]) -> list[str]:
    where, load, git = report["environment"]["machine"], report["load"], report["environment"]["git"]
    lines = [
        "# The same model files, the same load",
        "",
        (
            f"- {report['environment']['utc']}, {where['processor']}, {report['cores']} cores; the load runs on them "
            f"too; commit {git['commit'][:12] or 'unknown'}{' with local changes' if git['dirty'] else ''}"
        ),
        (
            f"- {load['rounds']} rounds, in each of which every server is started anew, in shuffled order, and warmed "
            f"up for {load['warmup']:g} s; {load['seconds']:g} s at each of {load['users']} users (closed loop), "
            f"after {load['settle']:g} s with as many"
        ),
        "- before each load every server answered all golden inputs as ONNX Runtime does in this process",
        "- keys, limits and metering are on in Tidegate, whose usage records were counted; the others have none",
        *(f"- tuned by: {command}" for command in report["tuning"]["commands"]),
        f"- command: {report['environment']['command']}",
    ]
    lines += [f"- {name}: {', '.join(found)}; {PEERS[name].guide}" for name, found in report["versions"].items()]
    lines += ["", *summary.table(results), "", *(f"- {line}" for line in summary.verdicts(results)), ""]
    lines += [f"> Not for headlines: {reason}." for reason in report["noise"]]
    lines += [f"> Not tuned: {name}." for name in report["tuning"]["untuned"]]
    lines += [f"> Skipped: {reason}" for reason in report["skipped"]]
    return lines


if __name__ == "__main__":
    sys.exit(main())
