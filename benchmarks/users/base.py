"""The user that all others are: sends a workload's requests and counts only right answers as successes."""

from __future__ import annotations

from typing import Any, ClassVar

from locust import FastHttpUser, constant, task

from benchmarks.users.session import Session
from benchmarks.workloads import WORKLOADS, WrongAnswer


class GatewayUser(FastHttpUser):
    """A user without pauses (a closed loop); ``workload`` names what it sends."""

    abstract = True
    wait_time = constant(0)
    workload: ClassVar[str] = ""
    model: ClassVar[str] = ""
    connection_timeout = 10.0
    network_timeout = 30.0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.workload:
            cls.model = getattr(WORKLOADS[cls.workload], "model", cls.workload)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        session: Session = environment.tidegate
        self._workload, self._numbers = session.workload(self.workload)
        self._authorization = {"Authorization": f"Bearer {session.key}"} if session.key else {}

    @task
    def call(self) -> None:
        """One request, its answer checked."""
        payload = self._workload.request(next(self._numbers))
        headers = {**self._authorization, **dict(payload.headers)}
        if payload.content_type:
            headers["Content-Type"] = payload.content_type
        with self.client.post(
            payload.path,
            data=payload.body,  # type: ignore[arg-type]  # bytes are what it sends
            headers=headers,
            name=self.workload,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}: {(response.text or '')[:120]}")
                return
            try:
                self._workload.check(payload, response.content)
            except WrongAnswer as error:
                response.failure(f"wrong answer: {error}")
