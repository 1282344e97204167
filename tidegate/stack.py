"""Everything that ``tidegate up`` runs: Triton, the gateway and the dashboard, in that order, and back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from embedded.errors import EmbeddedTritonError
from embedded.guard import SHM
from embedded.launcher import STUB_SHARED_BYTES, EmbeddedTriton
from embedded.layout import check_folder, find_wheel, server_environment
from gateway.catalog import Catalog, CatalogError, verify_hash
from gateway.settings import Settings
from gateway.tls import TlsError, certificate_names, open_tls
from tidegate.console import file_error
from tidegate.processes import ChildProcess, free_port, listening

GATEWAY_START_S = 60.0
DASHBOARD_START_S = 60.0
MINIMUM_FREE_BYTES = 256 * 2**20
MAXIMUM_LOG_BYTES = 64 * 2**20
"""Of each process, and as much again of what came before."""
LOCK = "up.lock"
_POLL_S = 0.1
_LOGS_EVERY_S = 5.0


class StackError(Exception):
    """It cannot be started, or a part of it has died; one line for the operator."""


class DiskUsage(Protocol):
    """What :func:`shutil.disk_usage` tells of a file system."""

    @property
    def free(self) -> int:
        """Bytes that are free."""


class Stack:
    """The processes of one ``tidegate up``. ``start`` raises :class:`StackError` with nothing left running."""

    def __init__(
        self,
        settings: Settings,
        *,
        dashboard: bool = True,
        keep_models_checked: bool = True,
        say: Callable[[str], None] = lambda _line: None,
        disk_usage: Callable[[Path], DiskUsage] = shutil.disk_usage,
    ) -> None:
        """Set up, without starting anything. ``say`` is told in one line what happens to Triton while it runs."""
        self.settings = settings
        self.gateway_url = ""
        self.grpc_address = ""
        self.metrics_url = ""
        self.dashboard_url: str | None = None
        self.models: tuple[str, ...] = ()
        self.triton: EmbeddedTriton | None = None
        self._with_dashboard = dashboard
        self._verify = keep_models_checked
        self._say = say
        self._disk_usage = disk_usage
        self._lock: IO[str] | None = None
        self._gateway: ChildProcess | None = None
        self._dashboard: ChildProcess | None = None

    def check(self) -> None:
        """Find what would stop the start before anything is started, built or waited for; raise :class:`StackError`.

        From here on the data folder is this stack's own, until :meth:`stop`.
        """
        with _one_line():
            catalog = Catalog.load(self.settings.model_repository, self.settings.model_names)
            server_environment(find_wheel(), {})  # a Python that Triton cannot embed is said now, not after a build
            check_folder(self.settings.model_repository.resolve())
            check_folder(self.settings.data_dir.resolve())
            self._check_tls()
            self.settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_data_dir()
            self._check_ports()
            instances = sum(card.recipe.instances.count for card in catalog)
            self._check_space(self.settings.data_dir, MINIMUM_FREE_BYTES)
            self._check_space(self.settings.model_repository, MINIMUM_FREE_BYTES)
            self._check_space(SHM, instances * STUB_SHARED_BYTES)

    def _check_space(self, folder: Path, needed: int) -> None:
        free = self._disk_usage(folder).free
        if free < needed:
            raise StackError(
                f"no disk space: {free // 2**20} MiB free in {folder.resolve()}, {needed // 2**20} MiB are needed"
            )

    def _take_data_dir(self) -> None:
        """Two stacks on one folder would replace each other's backends, and keep two books in one journal."""
        self._lock = (self.settings.data_dir / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(
                f"another tidegate up runs on {self.settings.data_dir}: stop it, or choose another folder "
                "with --data-dir"
            ) from error

    def _check_ports(self) -> None:
        settings = self.settings
        wanted = [
            (settings.host, settings.port, "the gateway's HTTP", "--port"),
            (settings.host, settings.grpc_port, "the gateway's gRPC", "--grpc-port"),
            (settings.admin_host, settings.admin_port, "the metrics", "TIDEGATE_ADMIN_PORT"),
            ("127.0.0.1", settings.triton_http_port, "Triton's HTTP", "TIDEGATE_TRITON_HTTP_PORT"),
            ("127.0.0.1", settings.triton_grpc_port, "Triton's gRPC", "TIDEGATE_TRITON_GRPC_PORT"),
            ("127.0.0.1", settings.triton_metrics_port, "Triton's metrics", "TIDEGATE_TRITON_METRICS_PORT"),
        ]
        if self._with_dashboard:
            wanted.append((settings.host, settings.dashboard_port, "the dashboard's", "--dashboard-port"))
        options: dict[int, str] = {}
        with contextlib.ExitStack() as held:  # all at once, so that two that want the same one are found
            for host, port, what, option in wanted:
                try:
                    held.enter_context(listening(host, port))
                except OSError as error:
                    raise StackError(_no_port(error, host, port, what, option, options.get(port))) from error
                options.setdefault(port, option)

    def _check_tls(self) -> None:
        open_tls(self.settings)
        if self._with_dashboard and self.settings.tls_client_ca and self.settings.tls_client_auth == "required":
            raise StackError("the dashboard has no client certificate: --no-dashboard, or --tls-client-auth optional")

    def start(self, demo_key_file: Path, on_model: Callable[[str, int, int], None] | None = None) -> None:
        """Start everything and return when all of it answers."""
        try:
            with _one_line():
                self._start_triton(on_model)
                self._start_gateway()
                if self._with_dashboard:
                    self._start_dashboard(demo_key_file)
        except BaseException:
            self.stop()
            raise

    def _start_triton(self, on_model: Callable[[str, int, int], None] | None) -> None:
        settings = self.settings
        catalog = Catalog.load(settings.model_repository, settings.model_names)
        built = [card for card in catalog if card.built]
        if settings.model_names and len(built) < len(catalog):
            unbuilt = ", ".join(card.name for card in catalog if not card.built)
            raise StackError(f"not built: {unbuilt} (tidegate models build)")
        if not built:
            raise StackError(f"no model in {settings.model_repository} is built (tidegate models build)")
        if self._verify:
            for card in built:
                verify_hash(card)
        self.models = tuple(card.name for card in built)
        self.triton = EmbeddedTriton(
            settings.model_repository,
            settings.data_dir / "triton",
            self.models,
            settings.triton_http_port,
            settings.triton_grpc_port,
            settings.triton_metrics_port,
        )
        self.triton.start()
        self.triton.wait_ready(on_model=on_model)
        log = self.triton.log_file
        self.triton.watch(
            on_death=lambda how: self._say(f"Triton has ended ({how}) and is restarted (log: {log}.1)"),
            on_restart=lambda: self._say("Triton serves again"),
            on_error=lambda error: self._say(f"Triton could not be restarted: {error}"),
        )

    def _start_gateway(self) -> None:
        if self.triton is None:
            raise StackError("Triton is not running")
        settings = self.settings
        ready_file = settings.data_dir / "gateway.json"
        ready_file.unlink(missing_ok=True)
        arguments = [
            "tidegate", "serve", "--host", settings.host, "--port", str(settings.port),
            "--grpc-port", str(settings.grpc_port), "--admin-port", str(settings.admin_port),
            "--triton", f"{self.triton.grpc_url}/{self.triton.http_port}", "--data-dir", str(settings.data_dir),
            "--model-repository", str(settings.model_repository), "--ready-file", str(ready_file),
        ]  # fmt: skip
        if settings.models:
            arguments += ["--models", settings.models]
        if settings.tls_cert and settings.tls_key:
            arguments += ["--tls-cert", str(settings.tls_cert), "--tls-key", str(settings.tls_key)]
        if settings.tls_client_ca:
            arguments += ["--tls-client-ca", str(settings.tls_client_ca), "--tls-client-auth", settings.tls_client_auth]
        self._gateway = ChildProcess("gateway", arguments, settings.data_dir / "logs" / "gateway.log", {})
        _wait(ready_file.exists, self._gateway, GATEWAY_START_S)
        addresses = json.loads(ready_file.read_text())
        self.gateway_url = self._url(_reachable(addresses["http"]))
        self.grpc_address = _reachable(addresses["grpc"])
        admin = f"http://{_reachable(addresses['admin'])}"  # never TLS: it needs no certificate to be asked
        self.metrics_url = f"{admin}/metrics"
        _wait(lambda: _answers(f"{admin}/healthz/ready"), self._gateway, GATEWAY_START_S)

    def _url(self, address: str) -> str:
        """The gateway's base URL; with TLS under a name that the certificate is for."""
        certificate = self.settings.tls_cert
        if certificate is None:
            return f"http://{address}"
        host, _, port = address.rpartition(":")
        names = certificate_names(certificate)
        known = [name for name in (host, "localhost", "127.0.0.1") if name in names]
        other = [name for name in names if not name.startswith("*")]
        return f"https://{next(iter([*known, *other]), host)}:{port}"

    def _start_dashboard(self, demo_key_file: Path) -> None:
        settings = self.settings
        port = settings.dashboard_port or free_port(settings.host)
        environment = {"TIDEGATE_DASHBOARD_GATEWAY_URL": self.gateway_url}
        if settings.tls_cert is not None:
            environment["TIDEGATE_DASHBOARD_CA_FILE"] = str(settings.tls_cert.resolve())
        if settings.host in {"127.0.0.1", "::1", "localhost"}:
            environment["TIDEGATE_DASHBOARD_KEY_FILE"] = str(demo_key_file.resolve())
        script = importlib.util.find_spec("dashboard.app")
        if script is None or script.origin is None:
            raise StackError("the dashboard is not installed (pip install 'tidegate[dashboard]', or --no-dashboard)")
        arguments = [
            "streamlit", "run", script.origin, "--server.address", settings.host, "--server.port", str(port),
            "--server.headless", "true", "--browser.gatherUsageStats", "false", "--server.fileWatcherType", "none",
        ]  # fmt: skip
        self._dashboard = ChildProcess(
            "dashboard", arguments, settings.data_dir / "logs" / "dashboard.log", environment
        )
        url = f"http://{_reachable(_address(settings.host, port))}"
        _wait(lambda: _answers(f"{url}/_stcore/health"), self._dashboard, DASHBOARD_START_S)
        self.dashboard_url = url

    def watch(self) -> None:
        """Return never; raise :class:`StackError` when the gateway or the dashboard has ended.

        Triton is restarted by its own watcher; the gateway answers 503 meanwhile.
        """
        look_at_logs = time.monotonic()
        while True:
            for child in (self._gateway, self._dashboard):
                if child is not None and not child.running:
                    raise StackError(f"the {child.name} has ended: {child.last_line()} (log: {child.log_file})")
                if child is not None and time.monotonic() >= look_at_logs:
                    with contextlib.suppress(OSError):  # a full disk: nothing is served either, and it is said there
                        child.limit_log(MAXIMUM_LOG_BYTES)
            if time.monotonic() >= look_at_logs:
                look_at_logs = time.monotonic() + _LOGS_EVERY_S
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End everything: dashboard, gateway (which drains), Triton. Idempotent."""
        if self._dashboard is not None:
            self._dashboard.stop(5.0)
        if self._gateway is not None:
            self._gateway.stop(self.settings.shutdown_delay_s + self.settings.drain_s + 15.0)
        if self.triton is not None:
            self.triton.stop(self.settings.triton_stop_s)
        if self._lock is not None:
            self._lock.close()


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What the recipes, the certificates, Triton or the disk are at odds with, as a :class:`StackError`."""
    try:
        yield
    except (CatalogError, EmbeddedTritonError, TlsError) as error:
        raise StackError(str(error)) from error
    except OSError as error:
        raise StackError(file_error(error)) from error


def _no_port(error: OSError, host: str, port: int, what: str, option: str, other: str | None) -> str:
    """Why a listener cannot be had, and what to do; ``other``: the option that has named this port before."""
    if error.errno == errno.EADDRINUSE and other is not None:
        return f"port {port} is named twice, by {other} and {option}: choose another for {what} with {option}"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: choose another for {what} with {option}"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights: choose another for {what} with {option}"
    return f"{host} cannot be listened on: {error.strerror} ({what}, port {port})"


def _wait(condition: Callable[[], bool], child: ChildProcess, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not child.running:
            raise StackError(f"the {child.name} did not start: {child.last_line()} (log: {child.log_file})")
        if time.monotonic() > deadline:
            raise StackError(f"the {child.name} was not ready within {timeout_s:g} s (log: {child.log_file})")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:  # noqa: S310 - an http URL of ours
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(address: str) -> str:
    """``address`` as a client on this machine writes it."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in {"0.0.0.0", "[::]"} else address
