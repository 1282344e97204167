"""The checker itself: it must be able to fail."""

from __future__ import annotations

import httpx
import pytest

from tests.live.hostile.invariants import GOOD, Invariants, assert_error_body

pytestmark = pytest.mark.live


def test_a_clean_refusal_passes(invariants: Invariants) -> None:
    with invariants.case() as case:
        case.refused(httpx.post(f"{invariants.gateway.url}/v2/models/identity/infer", json=GOOD), 401, "oip")
        case.refused(httpx.post(f"{invariants.gateway.url}/v1/embeddings"), 401, "openai")
        case.refused(httpx.get(f"{invariants.gateway.url}/nothing"), 404, "plain")
        case.refused(httpx.get(f"{invariants.gateway.url}/admin/keys"), 401, "admin")


def test_what_is_not_stated_is_found(invariants: Invariants, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.live.hostile.invariants.SETTLE_S", 0.2)
    with pytest.raises(AssertionError, match="usage records"), invariants.case():
        invariants.check_alive()  # an inference that was not stated
    with pytest.raises(AssertionError, match="in an error"), invariants.case() as case:
        case.see(httpx.Response(400, text=f"cannot open {invariants.gateway.private[0]}/x"))
    with pytest.raises(AssertionError, match="in an answer"), invariants.case() as case:
        case.see(httpx.Response(200, text=f"your key {invariants.gateway.key}"))
    with pytest.raises(AssertionError, match="memory grew"), invariants.case(growth_mib=-1000):
        pass
    with pytest.raises(AssertionError, match="audit records"), invariants.case(audited=3):
        pass
    with pytest.raises(AssertionError, match="X-Request-Id"):
        assert_error_body(httpx.Response(400, json={"error": "no id"}), "oip")
    with pytest.raises(AssertionError, match="error object"):
        assert_error_body(httpx.Response(400, headers={"x-request-id": "a"}, json={"error": "text"}), "openai")
