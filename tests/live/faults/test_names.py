"""A name server that never answers: servers with names beside one with an address.

The gateway runs where the files that names are looked up in are the test's own (a mount namespace).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.faults.conftest import Fleet
from tests.live.faults.ledger import ClientLedger, eventually
from tests.live.faults.servers import GatewayProcess

pytestmark = pytest.mark.live

NAME = "triton-a.tidegate.test"
Poll = Callable[..., None]


class Names:
    """The gateway's ``/etc/hosts`` and ``/etc/resolv.conf``; what the first does not hold is asked of a mute server."""

    def __init__(self, folder: Path, unshare: str) -> None:
        self._hosts, resolver = folder / "hosts", folder / "resolv.conf"
        address = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"  # the protocol gives the port; this is ours
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((address, 53))
        except OSError:
            self._socket.close()
            raise
        resolver.write_text(f"nameserver {address}\noptions timeout:5 attempts:2\n")
        self.know("")
        mounts = f"mount --bind {shlex.quote(str(self._hosts))} /etc/hosts"
        mounts += f" && mount --bind {shlex.quote(str(resolver))} /etc/resolv.conf"
        self.inside = (unshare, "--map-root-user", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")

    def know(self, name: str) -> None:
        """``name`` is 127.0.0.1 from now on, and nothing else has a name but localhost."""
        self._hosts.write_text(f"127.0.0.1 localhost {name}\n")

    def close(self) -> None:
        """Take questions no more."""
        self._socket.close()


@pytest.fixture
def names(tmp_path: Path, require_program: Callable[[str], str]) -> Iterator[Names]:
    made = Names(tmp_path, require_program("unshare"))
    subprocess.run([*made.inside, "true"], check=True, capture_output=True, timeout=30)
    yield made
    made.close()


def by_name(fleet: Fleet, index: int) -> str:
    """Where the Triton of that road is, with a name for its host."""
    return fleet.roads[index].address.replace("127.0.0.1", NAME)


async def test_a_name_that_is_looked_up_for_ever_is_a_server_that_is_not_there(
    fleet: Fleet, names: Names, tmp_path: Path, poll: Poll
) -> None:
    """Beside a good server nobody notices, at the start or later; it comes when its name does."""
    targets = f"{by_name(fleet, 0)},{fleet.roads[1].address}"
    gateway = GatewayProcess(
        tmp_path, fleet.repository, targets, poll, names.inside, triton_connect_timeout_s="1",
        triton_health_interval_s="0.25",
    )  # fmt: skip
    mine = dataclasses.replace(fleet, gateway=gateway)
    await asyncio.to_thread(gateway.bootstrap().start)
    try:
        await eventually(lambda: mine.ready_servers() == 1)
        books = ClientLedger(mine)
        await books.load(4, lambda: books.count(200) >= 100)
        books.check(poll, {200})
        assert max(entry.elapsed_s for entry in books.entries) < 2.0
        names.know(NAME)
        await eventually(mine.whole, 60)
        known, executed = ClientLedger(mine), fleet.tritons[0].executed().total()
        await known.load(4, lambda: fleet.tritons[0].executed().total() > executed + 20)
        known.check(poll, {200})
        names.know("")  # lookups hang from now on, and connections have to be made anew
        later, executed = ClientLedger(mine), fleet.tritons[0].executed().total()
        for rounds in range(1, 4):
            fleet.roads[0].reset()
            await later.load(4, lambda rounds=rounds: later.count(200) >= 50 * rounds)  # type: ignore[misc]
        later.check(poll, {200, 502})
        assert later.count(502) <= 3 * 4
        assert max(entry.elapsed_s for entry in later.entries) < 2.0
        assert fleet.tritons[0].executed().total() > executed
        async with later.client() as client:
            assert (await client.get("/healthz/ready")).status_code == 200
    finally:
        code = await asyncio.to_thread(gateway.stop)
    assert code == 0


async def test_where_no_name_is_found_the_answer_is_503(fleet: Fleet, names: Names, tmp_path: Path, poll: Poll) -> None:
    """The gateway lives, says that it is not ready, refuses at once, and ends when it is told to."""
    gateway = GatewayProcess(
        tmp_path, fleet.repository, by_name(fleet, 0), poll, names.inside, triton_connect_timeout_s="1"
    )
    await asyncio.to_thread(gateway.bootstrap().start)
    try:
        books = ClientLedger(dataclasses.replace(fleet, gateway=gateway))
        async with books.client() as client:
            assert (await client.get("/healthz/live")).status_code == 200
            assert (await client.get("/healthz/ready")).status_code == 503
            for _ in range(5):
                entry = await books.ask(client)
                assert entry.status == 503
                assert entry.elapsed_s < 2.0
                assert NAME.encode() not in entry.body
    finally:
        code = await asyncio.to_thread(gateway.stop)
    assert code == 0
