"""``/admin/audit``: the operator's, as the audit is of all tenants."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from gateway.access.audit import Audit
from gateway.access.key import instant
from gateway.admin.caller import Caller, operator_only
from gateway.admin.schemas import show_record


def create_audit_router(audit: Audit) -> APIRouter:
    """Return the routes below ``/audit``."""
    router = APIRouter(prefix="/audit", tags=["audit"])

    @router.get("", summary="List audit records, newest first")
    async def list_records(
        principal: Caller,
        before: Annotated[
            int, Query(ge=0, le=2**63 - 1, description="Older than this sequence number; 0: the newest.")
        ] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        operator_only(principal)
        found = await audit.records(after=before, limit=limit, newest_first=True)
        return {"records": [show_record(record) for record in found]}

    @router.get("/verify", summary="Verify the chain: `finding` is the first bad record, `silences` who fell silent")
    async def verify(principal: Caller) -> dict[str, Any]:
        operator_only(principal)
        found = await audit.verify()
        finding = (
            None if found.finding is None else {"sequence": found.finding.sequence, "reason": found.finding.reason}
        )
        return {
            "whole": found.whole,
            "records": found.records,
            "checkpoints": found.checkpoints,
            "anchored": found.anchored,
            "finding": finding,
            "silences": [
                {"gateway": silence.gateway, "sequence": silence.sequence, "since": instant(silence.since / 1e6)}
                for silence in found.silences
            ],
        }

    return router
