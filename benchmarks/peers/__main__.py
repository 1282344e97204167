"""``python -m benchmarks.peers``: install peers, and compare them with Tidegate under the same load.

python -m benchmarks.peers install fastapi litserve
python -m benchmarks.peers run --servers tidegate,triton,fastapi,litserve --tasks embeddings --seconds 10
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import uvloop

from benchmarks import environment
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.compare import OWN, Load, PeerResult, compare, table
from benchmarks.peers.install import HOME, InstallError, install, interpreter
from benchmarks.peers.workloads import TASKS
from benchmarks.recording import as_dict
from benchmarks.suite import Slo

SLO_MS = {"sentiment": 250.0, "embeddings": 500.0, "imagenet": 250.0}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Entry point; exit code 1 if something could not be installed or nothing was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("install", help="make environments for peers")
    add.add_argument("peers", nargs="+", choices=list(PEERS))
    run = commands.add_parser("run", help="compare servers")
    run.add_argument("--servers", default=",".join([*OWN, *PEERS]))
    run.add_argument("--tasks", default=",".join(TASKS))
    run.add_argument("--users", default="8,16,32")
    run.add_argument("--seconds", type=float, default=15.0)
    run.add_argument("--rounds", type=int, default=5)
    run.add_argument("--slo-ms", type=float, help="p95 objective; default: 250 (embeddings 500)")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    run.add_argument("--out", type=Path, default=Path("benchmarks/results/peers"))
    for command in (add, run):
        command.add_argument("--home", type=Path, default=HOME, help="folder of the environments")
    arguments = parser.parse_args()
    return _install(arguments) if arguments.command == "install" else _run(arguments)


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


def _run(arguments: argparse.Namespace) -> int:
    servers = [name for name in arguments.servers.split(",") if name]
    unknown = sorted(set(servers) - {*PEERS, *OWN})
    if unknown:
        _say(f"error: no server {', '.join(unknown)}; there are: {', '.join([*OWN, *PEERS])}")
        return 2
    captured = environment.capture()
    users = tuple(int(number) for number in arguments.users.split(","))
    results: list[PeerResult] = []
    skipped: list[str] = []
    for task in arguments.tasks.split(","):
        slo = Slo(arguments.slo_ms or SLO_MS[task])
        load = Load(users, arguments.seconds, arguments.seconds / 4, slo, arguments.seed)
        found, left_out = uvloop.run(
            compare(
                servers,
                task,
                arguments.model_repository,
                load,
                rounds=arguments.rounds,
                python=lambda name: interpreter(name, arguments.home),
                say=_say,
            )
        )
        results.extend(found)
        skipped.extend(left_out)
    noise = environment.noise(captured)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {
        "environment": captured,
        "noise": noise,
        "skipped": skipped,
        "results": as_dict(results),
        "cores": os.cpu_count(),
    }
    (arguments.out / "report.json").write_text(json.dumps(report, indent=1))
    lines = ["# The same model files, the same load", "", *table(results), ""]
    lines += [f"> Not for headlines: {reason}." for reason in noise] + [f"> Skipped: {reason}" for reason in skipped]
    (arguments.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
