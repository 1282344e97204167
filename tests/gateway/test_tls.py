"""TLS on both listeners of a running gateway: real certificates, the clients of the field, reload, mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import requests
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.serving import _config, _Server
from gateway.settings import Settings
from gateway.tls import HANDSHAKES, Connection, Tls, TlsError, certificate_names, open_tls
from gateway.transport import refuse_plainly
from tests.gateway.certificates import Authority, Pair

HANDSHAKE_S = 0.8
MAX_CONNECTIONS = 8
PLAIN_REQUEST = b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Serving:
    """A gateway with a certificate; no Triton is needed for what is tested here."""

    folder: Path
    authority: Authority
    process: subprocess.Popen[bytes]
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.crt")

    @property
    def url(self) -> str:
        return f"https://{self.addresses['http']}"

    def address(self, listener: str) -> tuple[str, int]:
        host, _, port = self.addresses[listener].rpartition(":")
        return host, int(port)

    def trust(self, client: Pair | None = None) -> ssl.SSLContext:
        """What a client that trusts the authority, and may show a certificate, connects with."""
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(*client.write(self.folder, "client"))
        return context

    def get(self, client: Pair | None = None) -> int:
        return httpx.get(f"{self.url}/healthz/live", verify=self.trust(client)).status_code

    def is_live(self, client: Pair | None = None, timeout_s: float = 10.0) -> bool:
        """Ask over a new gRPC connection."""
        with self.channel(client) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return bool(stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s).live)

    def channel(self, client: Pair | None = None) -> grpc.Channel:
        shown = (client.key, client.certificate) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.certificate, *shown)
        return grpc.secure_channel(self.addresses["grpc"], credentials, options=[("grpc.use_local_subchannel_pool", 1)])

    def served(self, listener: str) -> int:
        """Serial number of the certificate that a new connection is shown."""
        host, port = self.address(listener)
        context = self.trust()
        context.set_alpn_protocols(["h2"] if listener == "grpc" else ["http/1.1"])
        with (
            socket.create_connection((host, port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=host) as s,
        ):
            return serial_of(s)

    def metric(self, name: str) -> float:
        text = httpx.get(f"http://{self.addresses['admin']}/metrics").text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        assert found, text
        return float(found[1])

    def log(self) -> str:
        return (self.folder / "log").read_text()


def serial_of(connection: ssl.SSLSocket | ssl.SSLObject) -> int:
    certificate = connection.getpeercert()
    assert certificate
    return int(str(certificate["serialNumber"]), 16)


@contextlib.contextmanager
def serving(
    folder: Path, authority: Authority, poll: Callable[..., None], *arguments: str, **settings: str
) -> Iterator[Serving]:
    (folder / "ca.crt").write_bytes(authority.certificate)
    certificate, key = authority.issue().write(folder, "server")
    ready = folder / "ready.json"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    variables |= {
        "TIDEGATE_DATA_DIR": str(folder / "data"), "TIDEGATE_PORT": "0", "TIDEGATE_GRPC_PORT": "0",
        "TIDEGATE_ADMIN_PORT": "0", "TIDEGATE_TRITON_URLS": "127.0.0.1:1", "TIDEGATE_DRAIN_S": "1",
        "TIDEGATE_TLS_HANDSHAKE_TIMEOUT_S": str(HANDSHAKE_S), "TIDEGATE_TLS_RELOAD_S": "0.05",
        "TIDEGATE_MAX_CONNECTIONS": str(MAX_CONNECTIONS),
    }  # fmt: skip
    variables |= {f"TIDEGATE_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "tidegate", "serve", "--ready-file", str(ready)]
    command += ["--tls-cert", str(certificate), "--tls-key", str(key), *arguments]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        poll(lambda: ready.exists() or process.poll() is not None, 60, "the gateway's start")
        assert process.poll() is None, (folder / "log").read_text()
        yield Serving(folder, authority, process, json.loads(ready.read_text()))
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    """An authority that nobody trusts."""
    return Authority("Stranger")


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, poll: Callable[..., None]
) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("tls"), authority, poll) as running:
        yield running


@pytest.fixture(scope="module")
def strict(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, poll: Callable[..., None]
) -> Iterator[Serving]:
    """Clients must show a certificate of the authority; files are looked at on SIGHUP only."""
    folder = tmp_path_factory.mktemp("mtls")
    with serving(folder, authority, poll, "--tls-client-ca", str(folder / "ca.crt"), TLS_RELOAD_S="3600") as running:
        yield running


# --- who gets in


def test_clients_of_the_field_connect(gateway: Serving) -> None:
    assert gateway.get() == 200
    assert requests.get(f"{gateway.url}/healthz/live", verify=gateway.ca, timeout=10).json() == {"live": True}
    with httpclient.InferenceServerClient(
        gateway.addresses["http"], ssl=True, ssl_options={"ca_certs": gateway.ca}
    ) as client:
        assert client.is_server_live()
    with grpcclient.InferenceServerClient(gateway.addresses["grpc"], ssl=True, root_certificates=gateway.ca) as client:
        assert client.is_server_live()


def test_a_client_that_does_not_trust_the_authority_does_not_connect(gateway: Serving) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{gateway.url}/healthz/live")


@pytest.mark.parametrize("listener", ["http", "grpc"])
@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
def test_versions_from_1_2_on_are_spoken(
    gateway: Serving, listener: str, version: ssl.TLSVersion, accepted: bool
) -> None:
    context = gateway.trust()
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is the server that refuses old versions
    old = version < ssl.TLSVersion.TLSv1_2
    with pytest.warns(DeprecationWarning, match="TLSv1_1") if old else contextlib.nullcontext():
        context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    host, port = gateway.address(listener)
    with socket.create_connection((host, port), timeout=10) as raw:
        if not accepted:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(raw, server_hostname=host)
            return
        with context.wrap_socket(raw, server_hostname=host) as connection:
            assert connection.version() == version.name.replace("_", ".")


@pytest.mark.parametrize("listener", ["http", "grpc"])
def test_plain_text_on_the_tls_port_gets_nothing_but_the_end(gateway: Serving, listener: str) -> None:
    with socket.create_connection(gateway.address(listener), timeout=10) as client:
        client.sendall(PLAIN_REQUEST)
        assert b"HTTP/1.1" not in rest(client)


@pytest.mark.parametrize("listener", ["http", "grpc"])
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["nothing", "half a hello"])
def test_a_handshake_that_does_not_come_is_ended(gateway: Serving, listener: str, said: bytes) -> None:
    with socket.create_connection(gateway.address(listener), timeout=HANDSHAKE_S + 15) as client:
        begin = time.monotonic()
        client.sendall(said)
        rest(client)  # a time-out of this socket fails the test
        assert time.monotonic() - begin > HANDSHAKE_S * 0.5  # it was waited for


def test_a_flood_of_handshakes_is_bounded_and_over_when_it_is_over(gateway: Serving, poll: Callable[..., None]) -> None:
    flood = [socket.create_connection(gateway.address("http"), timeout=10) for _ in range(MAX_CONNECTIONS + HANDSHAKES)]
    try:
        poll(lambda: gateway.metric("tidegate_tls_handshakes") == len(flood), 10, "all of them in their handshake")
        begin = time.monotonic()
        with socket.create_connection(gateway.address("http"), timeout=10) as one_more:
            assert rest(one_more) == b""
        assert time.monotonic() - begin < HANDSHAKE_S  # at once, not by the time-out
    finally:
        for client in flood:
            client.close()
    poll(lambda: gateway.metric("tidegate_tls_handshakes") == 0, 15, "the end of all of them")
    assert gateway.get() == 200


def test_a_lost_connection_lets_go_of_its_buffers_at_once(tmp_path: Path, authority: Authority) -> None:
    """Not when the garbage collector gets to it, which is rarely."""
    certificate, key = authority.issue().write(tmp_path, "server")
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    tls = Tls(Settings(tls_cert=certificate, tls_key=key))
    alive: weakref.WeakSet[ssl.SSLObject] = weakref.WeakSet()
    held: list[int] = []

    class Watched(Connection):
        def do_handshake(self) -> None:
            alive.add(self)
            super().do_handshake()

    tls.context.newest.sslobject_class = Watched

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def ask(address: str) -> None:
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        for _ in range(20):
            assert httpx.get(f"https://{address}/", verify=trusting, timeout=30).status_code == 200

    async def serve() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()  # who asks before the server listens waits
            server = _Server(_config(app, Settings(), refuse_plainly), tls.context)
            running = asyncio.create_task(server.serve([listener]))
            try:
                await asyncio.to_thread(ask, f"127.0.0.1:{listener.getsockname()[1]}")
                while server.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                held.append(len(alive))
            finally:  # uvloop warns of a listener that is left open; warnings are errors here, and its close would hang
                server.should_exit = True
                await running

    gc.collect()
    gc.disable()
    try:
        uvloop.run(serve())
    finally:
        gc.enable()
    assert held[0] < 5


def rest(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while block := client.recv(65536):
            received += block
    return received


# --- reload


def test_a_new_certificate_is_for_new_connections_and_open_ones_live_on(
    gateway: Serving, authority: Authority, poll: Callable[..., None]
) -> None:
    before = gateway.served("http")
    assert gateway.served("grpc") == before
    with httpx.Client(verify=gateway.trust()) as http, gateway.channel() as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live
        with http.stream("GET", f"{gateway.url}/healthz/live") as first:
            opened = first.extensions["network_stream"].get_extra_info("client_addr")
            first.read()
        fresh = authority.issue()
        fresh.write(gateway.folder, "server")
        poll(lambda: gateway.served("http") == fresh.serial, 15, "the new certificate")
        assert gateway.served("grpc") == fresh.serial
        with http.stream("GET", f"{gateway.url}/healthz/live") as second:
            assert second.read() == b'{"live":true}'
            stream = second.extensions["network_stream"]
            assert stream.get_extra_info("client_addr") == opened
            assert serial_of(stream.get_extra_info("ssl_object")) == before
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live
    assert gateway.is_live()
    assert gateway.metric("tidegate_tls_stale") == 0


def bad_garbage(authority: Authority) -> Pair:
    return Pair(b"not a certificate", b"not a key")


def bad_mismatch(authority: Authority) -> Pair:
    return Pair(authority.issue().certificate, authority.issue().key)


def bad_expired(authority: Authority) -> Pair:
    return authority.issue(begins=-3, ends=-1)


def bad_future(authority: Authority) -> Pair:
    return authority.issue(begins=1, ends=3)


def bad_encrypted(authority: Authority) -> Pair:
    return authority.issue(password=b"secret")


def bad_empty(authority: Authority) -> Pair:
    return Pair(b"", b"")


BAD: dict[str, tuple[Callable[[Authority], Pair], str]] = {
    "garbage": (bad_garbage, "no certificate in PEM form"),
    "mismatch": (bad_mismatch, "key values mismatch"),
    "expired": (bad_expired, "expired on"),
    "not yet valid": (bad_future, "is not valid before"),
    "encrypted": (bad_encrypted, "the key is encrypted"),
    "empty": (bad_empty, "no certificate in PEM form"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_used_change_nothing(
    gateway: Serving, authority: Authority, poll: Callable[..., None], name: str
) -> None:
    make, reason = BAD[name]
    before, refused = gateway.served("http"), gateway.metric('tidegate_tls_reloads_total{outcome="refused"}')
    make(authority).write(gateway.folder, "server")
    poll(lambda: gateway.metric("tidegate_tls_stale") == 1, 15, "the alarm")
    poll(lambda: reason in gateway.log(), 15, "the reason in the log")
    assert gateway.metric('tidegate_tls_reloads_total{outcome="refused"}') > refused
    assert gateway.served("http") == gateway.served("grpc") == before
    mended = authority.issue()
    mended.write(gateway.folder, "server")
    poll(lambda: gateway.metric("tidegate_tls_stale") == 0, 15, "the end of the alarm")
    assert gateway.served("http") == gateway.served("grpc") == mended.serial


def test_files_that_are_gone_change_nothing(gateway: Serving, authority: Authority, poll: Callable[..., None]) -> None:
    before = gateway.served("http")
    (gateway.folder / "server.crt").unlink()
    poll(lambda: gateway.metric("tidegate_tls_stale") == 1, 15, "the alarm")
    assert gateway.served("http") == before
    authority.issue().write(gateway.folder, "server")
    poll(lambda: gateway.metric("tidegate_tls_stale") == 0, 15, "the end of the alarm")


def test_the_expiry_is_exported(gateway: Serving, authority: Authority, poll: Callable[..., None]) -> None:
    authority.issue(ends=0.5).write(gateway.folder, "server")
    poll(lambda: gateway.metric("tidegate_tls_certificate_expiry_seconds") < 43_201, 15, "the new expiry")
    assert gateway.metric("tidegate_tls_certificate_expiry_seconds") == pytest.approx(43_200, abs=120)
    authority.issue().write(gateway.folder, "server")
    poll(lambda: gateway.metric("tidegate_tls_certificate_expiry_seconds") > 43_201, 15, "the new expiry")


# --- client certificates


def test_a_client_certificate_is_accepted(strict: Serving, authority: Authority) -> None:
    client = authority.issue(client=True)
    assert strict.get(client) == 200
    assert strict.is_live(client)


def test_without_a_certificate_nobody_connects(strict: Serving) -> None:
    assert_refused(strict, None)


def test_a_strangers_certificate_is_refused(strict: Serving, stranger: Authority) -> None:
    assert_refused(strict, stranger.issue(client=True))


def test_an_expired_client_certificate_is_refused(strict: Serving, authority: Authority) -> None:
    assert_refused(strict, authority.issue(begins=-3, ends=-1, client=True))


def test_a_server_certificate_is_no_client_certificate(strict: Serving, authority: Authority) -> None:
    with pytest.raises(httpx.TransportError):
        strict.get(authority.issue())


def assert_refused(strict: Serving, client: Pair | None) -> None:
    with pytest.raises(httpx.TransportError):
        strict.get(client)
    with pytest.raises(grpc.RpcError) as caught:
        strict.is_live(client, timeout_s=2.0)
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_probes_and_prometheus_need_no_certificate(strict: Serving) -> None:
    admin = f"http://{strict.addresses['admin']}"
    assert httpx.get(f"{admin}/healthz/live").status_code == 200
    ready = httpx.get(f"{admin}/healthz/ready")
    assert (ready.status_code, ready.text) == (503, "missing: models\n")
    assert httpx.get(f"{admin}/metrics").status_code == 200
    assert httpx.get(f"{admin}/v2").status_code == 404


def test_sighup_takes_new_files_over(
    strict: Serving, authority: Authority, stranger: Authority, poll: Callable[..., None]
) -> None:
    """Of the authority of clients too."""
    client, other = authority.issue(client=True), stranger.issue(client=True)
    ca = strict.folder / "ca.crt"
    (strict.folder / "both.partial").write_bytes(authority.certificate + stranger.certificate)
    (strict.folder / "both.partial").rename(ca)
    with pytest.raises(httpx.TransportError):
        strict.get(other)
    strict.process.send_signal(signal.SIGHUP)
    poll(lambda: strict.metric('tidegate_tls_reloads_total{outcome="taken"}') == 1, 15, "the reload")
    assert strict.get(other) == 200
    assert strict.get(client) == 200
    assert strict.is_live(other)


def test_optional_lets_clients_without_one_in(
    tmp_path: Path, authority: Authority, stranger: Authority, poll: Callable[..., None]
) -> None:
    arguments = ("--tls-client-ca", str(tmp_path / "ca.crt"), "--tls-client-auth", "optional")
    with serving(tmp_path, authority, poll, *arguments) as running:
        assert running.get() == 200
        assert running.get(authority.issue(client=True)) == 200
        with pytest.raises(httpx.TransportError):
            running.get(stranger.issue(client=True))
        assert running.is_live()


# --- at the start


@pytest.mark.parametrize("name", BAD)
def test_a_gateway_does_not_start_with_files_that_cannot_be_used(
    tmp_path: Path, authority: Authority, name: str
) -> None:
    make, reason = BAD[name]
    certificate, key = make(authority).write(tmp_path, "server")
    with pytest.raises(TlsError, match=reason) as caught:
        open_tls(Settings(tls_cert=certificate, tls_key=key))
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_together_are_told(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue().write(tmp_path, "server")
    assert open_tls(Settings()) is None
    for settings, reason in (
        (Settings(tls_cert=certificate), "belong together"),
        (Settings(tls_key=key), "belong together"),
        (Settings(tls_client_ca=certificate), "needs"),
        (Settings(tls_cert=tmp_path / "none", tls_key=key), "cannot be read: No such file"),
        (Settings(tls_cert=certificate, tls_key=key, tls_client_ca=key), "no certificates of authorities"),
    ):
        with pytest.raises(TlsError, match=reason):
            open_tls(settings)


def test_the_command_says_it_in_one_line(tmp_path: Path, authority: Authority) -> None:
    certificate, _ = authority.issue().write(tmp_path, "server")
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", "serve", "--tls-cert", str(certificate), "--data-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "TIDEGATE_TLS_CERT and TIDEGATE_TLS_KEY belong together" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_an_expired_certificate_goes_on_and_says_so(tmp_path: Path, authority: Authority) -> None:
    """It cannot be mended by refusing; clients refuse it, and the alarm rang weeks ago."""
    certificate, key = authority.issue(ends=1).write(tmp_path, "server")
    now = time.time()
    clock: list[float] = [now]
    tls = Tls(Settings(tls_cert=certificate, tls_key=key), clock=lambda: clock[0])
    assert tls.expiry_s == pytest.approx(86_400, abs=60)
    clock[0] = now + 2 * 86_400
    assert tls.expiry_s == pytest.approx(-86_400, abs=60)
    assert not tls.reload()
    assert tls.stale


def test_names_of_a_certificate(tmp_path: Path, authority: Authority) -> None:
    certificate, _ = authority.issue().write(tmp_path, "server")
    assert certificate_names(certificate) == ["localhost", "127.0.0.1"]


def test_a_file_without_names_or_certificate(tmp_path: Path) -> None:
    (tmp_path / "none.crt").write_text("")
    with pytest.raises(TlsError):
        certificate_names(tmp_path / "none.crt")
