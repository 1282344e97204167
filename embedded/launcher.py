"""Start, watch and stop a real Triton Inference Server on this machine, listening on loopback only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType

from embedded import guard
from embedded.control import TritonControl
from embedded.errors import EmbeddedTritonError, ModelLoadError, PortInUseError, ServerDiedError, ServerNotReadyError
from embedded.layout import check_folder, find_wheel, lay_out, server_environment
from embedded.ports import LOOPBACK, PORT_PURPOSES, choose_ports
from embedded.server_log import describe_status, log_lines, telling_lines

UNUSED_APIS = "shared-memory,trace,logging"
"""Nobody needs them here, and each is a way to other processes' memory or files: closed with a key that nobody has."""
STUB_SHARED_BYTES = 4 * 2**20
"""Shared memory to have free for each instance of a model: its stub begins with 1 MiB, and takes another for every
one that the tensors of its largest batch fill."""
START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 300.0
POLL_S = 0.05
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_AFTER_S = 60.0

ModelCallback = Callable[[str, int, int], None]
"""Called with a model's name as it becomes ready, the count of models ready so far, and the count wanted."""


class EmbeddedTriton:
    """One Triton server process and what it should serve.

    The life of a server: :meth:`start` (the process answers; no model is loaded yet), :meth:`wait_ready` (loads the
    models), :meth:`ensure_running` now and then or :meth:`watch` once (restarts it when it has died), :meth:`stop`.
    As a context manager it starts on entry and stops on exit. Methods may be called from any thread.

    No process outlives the server, and the server does not outlive this process, however either ends
    (:mod:`embedded.guard`).
    """

    def __init__(
        self,
        model_repository: Path,
        work_dir: Path,
        models: Sequence[str] = (),
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        log_verbose: int = 0,
        *,
        response_cache_bytes: int = 16 * 2**20,
        load_threads: int | None = None,
        extra_arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        wheel_search: Sequence[Path] | None = None,
    ) -> None:
        """Set up, without starting anything.

        ``work_dir``: holds the log (``triton.log``, the one before as ``triton.log.1``) and the backend directory.
        ``models``: loaded by :meth:`wait_ready`. Ports: 0 picks a free one at :meth:`start`.
        ``response_cache_bytes``: size of the local response cache (models opt in); 0: none.
        ``load_threads``: models loaded at the same time; default: the number of CPUs, at most 4.
        ``extra_arguments``: appended to the command line of ``tritonserver``.
        ``environment``: variables of the server beside this process's own.
        ``wheel_search``: folders to look for the wheel in, instead of where Python imports from.
        """
        self.model_repository = Path(model_repository).resolve()
        self.work_dir = Path(work_dir).resolve()
        self.log_file = self.work_dir / "triton.log"
        self._wanted_ports = (http_port, grpc_port, metrics_port)
        self._ports = self._wanted_ports
        self._log_verbose = log_verbose
        self._cache_bytes = response_cache_bytes
        self._load_threads = load_threads or min(4, os.cpu_count() or 1)
        self._extra_arguments = tuple(extra_arguments)
        self._environment = dict(environment or {})
        self._wheel_search = wheel_search
        self._models = set(models)
        self._guard: subprocess.Popen[str] | None = None
        self._pid: int | None = None
        self._started_at = 0.0
        self._failed_starts = 0
        self._retry_at = 0.0
        self._status: int | None = None
        self._status_lock = threading.Lock()
        self._lifecycle = threading.RLock()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    # --- what callers ask

    @property
    def http_url(self) -> str:
        """``host:port`` of the HTTP listener."""
        return f"{LOOPBACK}:{self._ports[0]}"

    @property
    def http_port(self) -> int:
        """Port of the HTTP listener."""
        return self._ports[0]

    @property
    def grpc_url(self) -> str:
        """``host:port`` of the gRPC listener."""
        return f"{LOOPBACK}:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        """``host:port`` of the Prometheus listener (path ``/metrics``)."""
        return f"{LOOPBACK}:{self._ports[2]}"

    @property
    def pid(self) -> int | None:
        """Process id of ``tritonserver`` itself; ``None`` before the start and after its end."""
        return self._pid if self.poll() is None else None

    @property
    def models(self) -> frozenset[str]:
        """The models that are loaded, or will be at the next start."""
        return frozenset(self._models)

    def poll(self) -> int | None:
        """``None`` while the server runs; otherwise its exit code, or minus the signal that ended it.

        A server that was never started reads as exited with 0; one that has just died reads as running for up to a
        second, while what it left is cleaned up.
        """
        process = self._guard
        if process is None:
            return 0
        if process.poll() is None:
            return None
        with self._status_lock:
            if self._status is None:
                self._status = self._read_guard().get("status", process.returncode)
            return self._status

    # --- the life of a server

    def start(self) -> None:
        """Start the server and return when it answers; no model is loaded yet.

        Raises :class:`WheelNotFoundError`, :class:`UnsupportedPythonError`, :class:`PortInUseError`,
        :class:`ServerDiedError`, :class:`ServerNotReadyError`; then nothing is left running.
        """
        with self._lifecycle:
            if self._guard is not None and self.poll() is None:
                raise EmbeddedTritonError("this Triton is already running")
            self._stopping.clear()
            self._ports = self._wanted_ports
            self._launch()

    def wait_ready(self, timeout_s: float = LOAD_TIMEOUT_S, on_model: ModelCallback | None = None) -> None:
        """Load every wanted model, several at a time, and return when all are ready.

        ``on_model(name, ready, total)`` is called in this thread as each model becomes ready.
        Raises :class:`ModelLoadError` when all have been tried and some failed (the others serve),
        :class:`ServerDiedError`, :class:`ServerNotReadyError` when ``timeout_s`` has passed.
        """
        if self._stopping.is_set():
            raise ServerNotReadyError("Triton was stopped before it loaded its models")
        deadline = time.monotonic() + timeout_s
        control = TritonControl(self.http_url)
        wanted = sorted(self._models)
        ready = control.ready_models() & self._models if wanted else frozenset()
        for count, name in enumerate(sorted(ready), 1):
            if on_model:
                on_model(name, count, len(wanted))
        missing = [name for name in wanted if name not in ready]
        done, failures = len(ready), {}
        with _abandoned_at_exit(ThreadPoolExecutor(self._load_threads, thread_name_prefix="triton-load")) as pool:
            loads = {pool.submit(control.load, name, max(0.1, deadline - time.monotonic())): name for name in missing}
            for load in as_completed(loads):
                try:
                    load.result()
                except ModelLoadError as error:
                    failures.update(error.failures)
                    continue
                except ServerNotReadyError:
                    self._raise_if_dead(settle_s=1.0)
                    raise
                done += 1
                if on_model:
                    on_model(loads[load], done, len(wanted))
        if failures:
            raise ModelLoadError(dict(sorted(failures.items())))

    def load(self, name: str, timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Load (or reload) a model now and after every restart. Raises :class:`ModelLoadError`."""
        TritonControl(self.http_url).load(name, timeout_s)
        self._models.add(name)

    def unload(self, name: str, timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Unload a model, and do not load it at the next restart."""
        TritonControl(self.http_url).unload(name, timeout_s)
        self._models.discard(name)

    def ready_models(self) -> frozenset[str]:
        """Models that the server says are ready. Raises :class:`ServerNotReadyError`."""
        return TritonControl(self.http_url).ready_models()

    def ensure_running(self) -> bool:
        """Restart the server if it has died, on the same ports and with the models it had; true when it runs.

        Blocks while it starts and loads (seconds), so call it from a thread, or use :meth:`watch`. After a failed
        start it returns false at once until the backoff has passed (0, 1, 2, 5, 10, then 30 s). Models that were
        loaded or unloaded through Triton's own API since the last call are remembered too. After :meth:`stop` it
        does nothing. A model that no longer loads raises :class:`ModelLoadError`; the server runs without it.
        """
        with self._lifecycle:
            if self._stopping.is_set() or self._guard is None:
                return False
            if self.poll() is None:
                self._remember_models()
                return True
            if time.monotonic() < self._retry_at:
                return False
            if time.monotonic() - self._started_at > STABLE_AFTER_S:
                self._failed_starts = 0
            self._failed_starts += 1
            try:
                self._launch()
                self.wait_ready()
            except ModelLoadError:
                raise
            except EmbeddedTritonError:
                delay = BACKOFF_S[min(self._failed_starts, len(BACKOFF_S) - 1)]
                self._retry_at = time.monotonic() + delay
                raise
            return True

    def watch(
        self,
        on_restart: Callable[[], None] | None = None,
        on_error: Callable[[EmbeddedTritonError], None] | None = None,
        on_death: Callable[[str], None] | None = None,
        interval_s: float = 0.5,
    ) -> None:
        """Keep the server running from a background thread until :meth:`stop`.

        In that thread ``on_death(how)`` is called once when the server is found dead (``how``: its exit code or
        signal in words), ``on_restart()`` and ``on_error(error)`` after each restart and failed restart.
        """
        if self._watcher is not None and self._watcher.is_alive():
            return
        self._watcher = threading.Thread(
            target=self._watch, args=(on_restart, on_error, on_death, interval_s), name="triton-watch", daemon=True
        )
        self._watcher.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """End the server: SIGTERM, after ``grace_s`` SIGKILL, for its whole process group. Idempotent.

        When this returns, no process and no shared memory of it are left.
        """
        self._stopping.set()
        watcher = self._watcher
        if watcher is not None and watcher is not threading.current_thread():
            self._end_guard(grace_s)  # a restart that is under way fails at once instead of being waited for
            watcher.join()
        with self._lifecycle:
            self._watcher = None
            self._end_guard(grace_s)

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # --- inside

    def _watch(
        self,
        on_restart: Callable[[], None] | None,
        on_error: Callable[[EmbeddedTritonError], None] | None,
        on_death: Callable[[str], None] | None,
        interval_s: float,
    ) -> None:
        dead = False
        while not self._stopping.wait(interval_s):
            before = self._pid
            status = self.poll()
            if on_death and status is not None and not dead:
                on_death(describe_status(status))
            dead = status is not None
            try:
                self.ensure_running()
            except EmbeddedTritonError as error:
                if on_error and not self._stopping.is_set():
                    on_error(error)
            if on_restart and self._pid != before and self.poll() is None:
                on_restart()

    def _launch(self) -> None:
        wheel = find_wheel(self._wheel_search)
        if not self.model_repository.is_dir():
            raise EmbeddedTritonError(f"the model repository {self.model_repository} is not a folder")
        check_folder(self.model_repository)
        check_folder(self.work_dir)
        self._end_guard(0.0)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        layout = lay_out(wheel, self.work_dir / "triton")
        environment = server_environment(wheel, {**os.environ, **self._environment})
        self._ports = choose_ports(self._ports)
        if self.log_file.exists():
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        prefix = f"{guard.PREFIX}{secrets.token_hex(6)}"
        config = {
            "command": [
                str(wheel.server),
                *self._arguments(layout.backends, wheel.caches, f"{prefix}_"),
                *self._extra_arguments,
            ],
            "cwd": str(layout.working_folder),
            "log": str(self.log_file),
            "shm_prefix": prefix,
        }
        self._started_at = time.monotonic()
        self._pid = self._status = None
        self._guard = subprocess.Popen(  # noqa: S603  # this interpreter, our own script
            [sys.executable, "-I", "-S", guard.__file__, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._pid = self._read_guard().get("pid")
        if self._pid is None:
            self._end_guard(0.0)
            raise EmbeddedTritonError(f"the process that guards Triton could not start it (log: {self.log_file})")
        try:
            self._wait_live()
        except BaseException:
            self._end_guard(0.0)
            raise

    def _arguments(self, backends: Path, caches: Path, shm_prefix: str) -> list[str]:
        http, grpc, metrics = self._ports
        cpus = os.cpu_count() or 1
        arguments = {
            "model-repository": self.model_repository,
            "backend-directory": backends,
            "model-control-mode": "explicit",
            "model-load-thread-count": max(2, self._load_threads),
            "strict-readiness": "true",
            "exit-timeout-secs": 5,
            "http-address": LOOPBACK,
            "http-port": http,
            "http-thread-count": max(4, min(8, 2 * cpus)),  # a load call holds one of them until it is done
            "grpc-address": LOOPBACK,
            "grpc-port": grpc,
            "http-restricted-api": f"{UNUSED_APIS}:tidegate={secrets.token_hex(16)}",
            "grpc-restricted-protocol": f"{UNUSED_APIS}:tidegate={secrets.token_hex(16)}",
            "metrics-address": LOOPBACK,
            "metrics-port": metrics,
            "log-verbose": self._log_verbose,
            "log-format": "ISO8601",
            # the Python backend's settings hold for the backends that are written in Python too
            "backend-config": f"python,shm-region-prefix-name={shm_prefix}",
        }
        if self._cache_bytes:
            arguments |= {"cache-directory": caches, "cache-config": f"local,size={self._cache_bytes}"}
        if not Path("/dev/nvidiactl").exists():
            arguments |= {"allow-gpu-metrics": "false", "pinned-memory-pool-byte-size": 0}
        return [f"--{name}={value}" for name, value in arguments.items()]

    def _wait_live(self) -> None:
        control = TritonControl(self.http_url)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not control.is_live():
            self._raise_if_dead()
            if self._stopping.is_set():
                raise ServerNotReadyError("Triton was stopped while it started")
            if time.monotonic() > deadline:
                raise ServerNotReadyError(f"Triton did not answer within {START_TIMEOUT_S:g} s, see {self.log_file}")
            time.sleep(POLL_S)
        self._raise_if_dead()  # somebody else may have answered on that port

    def _raise_if_dead(self, settle_s: float = 0.0) -> None:
        if settle_s and self._guard is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(settle_s)
        status = self.poll()
        if status is None:
            return
        lines = log_lines(self.log_file)
        for purpose, port in zip(PORT_PURPOSES, self._ports, strict=True):
            if any(f"{LOOPBACK}:{port}" in line and "in use" in line for line in lines):
                raise PortInUseError(purpose, port)
        raise ServerDiedError(describe_status(status), self.log_file, " | ".join(telling_lines(lines)))

    def _remember_models(self) -> None:
        with contextlib.suppress(ServerNotReadyError):  # busy or just dying: what we knew stays
            for name, (ready, reason) in TritonControl(self.http_url).index().items():
                if ready:
                    self._models.add(name)
                elif reason == "unloaded":
                    self._models.discard(name)

    def _read_guard(self) -> dict[str, int]:
        process = self._guard
        if process is None or process.stdout is None:
            return {}
        try:
            line = process.stdout.readline()
            message = json.loads(line) if line else {}
        except ValueError:
            return {}
        return dict(message)

    def _end_guard(self, grace_s: float) -> None:
        process = self._guard
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(BrokenPipeError, ValueError):
                assert process.stdin is not None  # noqa: S101  # narrowed for the type checker: it was a pipe
                process.stdin.write(f"stop {grace_s}\n")
                process.stdin.flush()
            try:
                process.wait(grace_s + 10.0)
            except subprocess.TimeoutExpired:
                process.kill()  # the server and its stubs die with it
                process.wait()
        self.poll()  # reads the status before the pipe is closed
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def _abandoned_at_exit(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """Ctrl-C does not wait for models that are half loaded: their threads end with the server."""
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def serving(
    model_repository: Path,
    work_dir: Path,
    models: Sequence[str] = (),
    *,
    timeout_s: float = LOAD_TIMEOUT_S,
    extra_arguments: Sequence[str] = (),
) -> Iterator[EmbeddedTriton]:
    """A Triton on free ports with ``models`` ready, for as long as the block lasts: for checks and tests.

    It is killed at the end: Triton takes seconds to end in order, and nobody waits for an answer any more.
    """
    triton = EmbeddedTriton(model_repository, work_dir, models, 0, 0, 0, extra_arguments=extra_arguments)
    try:
        triton.start()
        triton.wait_ready(timeout_s)
        yield triton
    finally:
        triton.stop(0.0)
