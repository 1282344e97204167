"""Hostile texts: as inputs (row 48), and as names that end up in headers and logs (row 52)."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live.hostile.invariants import Invariants
from tests.live.hostile.payload import INFER, Sender, infer_body, message, sender
from tests.live.hostile.wire import request, talk

pytestmark = pytest.mark.live

TEXT_CALLS: tuple[tuple[str, str, Any], ...] = (
    ("/hf/models/sentiment", "hf", lambda text: {"inputs": text}),
    ("/hf/models/sentiment", "hf", lambda text: {"inputs": ["good", text]}),
    ("/hf/models/entities", "hf", lambda text: {"inputs": text}),
    ("/hf/models/translate-en-fr", "hf", lambda text: {"inputs": text}),
    ("/hf/models/qa", "hf", lambda text: {"inputs": {"question": text, "context": "She is here."}}),
    ("/hf/models/qa", "hf", lambda text: {"inputs": {"question": "Where?", "context": text}}),
    ("/hf/models/embeddings/pipeline/sentence-similarity", "hf",
     lambda text: {"inputs": {"source_sentence": text, "sentences": ["a"]}}),
    ("/hf/models/embeddings/pipeline/zero-shot-classification", "hf",
     lambda text: {"inputs": "a", "parameters": {"candidate_labels": ["a", text]}}),
    ("/v1/embeddings", "openai", lambda text: {"model": "embeddings", "input": text}),
    ("/tei/embeddings/embed", "tei", lambda text: {"inputs": text}),
    ("/tei/sentiment/predict", "tei", lambda text: {"inputs": text}),
    ("/tei/embeddings/rerank", "tei", lambda text: {"query": "a", "texts": [text]}),
    ("/tei/embeddings/similarity", "tei", lambda text: {"inputs": {"source_sentence": "a", "sentences": [text]}}),
    ("/tei/embeddings/tokenize", "tei", lambda text: {"inputs": text}),
)  # fmt: skip


@pytest.fixture(scope="module")
def send(invariants: Invariants) -> Iterator[Sender]:
    with sender(invariants.gateway) as opened:
        yield opened


class TestInputs:
    @pytest.mark.parametrize(
        "text", ["a\x00b", "\x00", "x" * 1_000_000, "a " * 500_000, "\u0301" * 1_000_000],
        ids=["NUL", "only NUL", "1 MB token", "500,000 tokens", "1,000,000 marks"],
    )  # fmt: skip
    def test_refused(self, invariants: Invariants, send: Sender, text: str, subtests: pytest.Subtests) -> None:
        with invariants.case(growth_mib=64) as case:
            for path, dialect, body in TEXT_CALLS:
                with subtests.test(path=path):
                    case.refused(send.post(path, body(text)), 422, dialect)

    def test_not_utf8(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for path, dialect, body in TEXT_CALLS:
                for broken in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
                    with subtests.test(path=path, broken=broken):
                        raw = json.dumps(body("TEXT")).encode().replace(b"TEXT", broken)
                        case.refused(send.post(path, raw), 400, dialect)

    def test_a_hundred_thousand_tokens(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """Within the limit of characters: cut where the dialect says so, refused where it does not."""
        text = "a " * 99_999
        refused = (
            ("/hf/models/translate-en-fr", {"inputs": text}, "hf"),
            ("/hf/models/qa", {"inputs": {"question": "Where?", "context": text}}, "hf"),
            ("/v1/embeddings", {"model": "embeddings", "input": text}, "openai"),
            ("/tei/embeddings/embed", {"inputs": text}, "tei"),
            ("/tei/sentiment/predict", {"inputs": text}, "tei"),
        )
        cut = (
            ("/hf/models/sentiment", {"inputs": text}),
            ("/tei/embeddings/embed", {"inputs": text, "truncate": True}),
        )
        with invariants.case(usage={"completed": len(cut)}, growth_mib=96) as case:
            for path, body, dialect in refused:
                with subtests.test(path=path):
                    case.refused(send.post(path, body), 422, dialect)
            for path, body in cut:
                answer = case.see(send.post(path, body))
                assert answer.status_code == 200, answer.text

    def test_strange_and_good(self, invariants: Invariants, send: Sender) -> None:
        """Nothing wrong with these: they are answered."""
        texts = (
            "\u202eevil\u202c", "\ufeffbom", "👩‍👩‍👧‍👦" * 50, "Z\u0351\u0369\u036d" * 100, "' OR 1=1--",
            "<script>1</script>",
            "{{7*7}}", "${jndi:ldap://x}", "%s%n%x", "a\r\nb\tc", "\x1b[31mred", "\U0010ffff", "x" * 10_000,
            "[CLS] [SEP]",
        )  # fmt: skip
        with invariants.case(usage={"completed": len(texts)}, growth_mib=64) as case:
            for text in texts:
                answer = case.see(send.post("/hf/models/sentiment", {"inputs": text}))
                assert answer.status_code == 200, (text, answer.text)

    def test_nothing_to_read(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for path, dialect, body in TEXT_CALLS:
                for nothing in (None, 1, True, {}, [[]], {"a": "b"}):
                    with subtests.test(path=path, nothing=nothing):
                        case.refused(send.post(path, body(nothing)), {400, 422}, dialect)

    def test_token_ids(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """Ids instead of texts: in the vocabulary, and not too many."""
        lists: tuple[Any, ...] = ([-1], [2**31], [2**63], [2**64], [10**30], [1.5], [True], [None], [[]], [[-1]],
                                  [1, "a"], [[1], "a"], [1] * 100_000, [[1]] * 257)  # fmt: skip
        calls = (
            ("/v1/embeddings", "openai", lambda ids: {"model": "embeddings", "input": ids}),
            ("/tei/embeddings/embed", "tei", lambda ids: {"inputs": ids}),
        )
        with invariants.case() as case:
            for path, dialect, body in calls:
                for ids in lists:
                    with subtests.test(path=path, ids=str(ids)[:40]):
                        case.refused(send.post(path, body(ids)), {400, 422}, dialect)
            for ids in ([-1], [2**31], [10**30], ["a"], [None], [1.5], [True], [[-1]]):
                with subtests.test(path="decode", ids=ids):
                    case.refused(send.post("/tei/embeddings/decode", {"ids": ids}), 422, "tei")

    def test_options(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """Options of a task: unknown ones, and values out of range."""
        similar = "/hf/models/embeddings/pipeline/zero-shot-classification"
        hf: tuple[tuple[str, dict[str, Any]], ...] = (
            ("/hf/models/sentiment", {"top_k": 0}), ("/hf/models/sentiment", {"top_k": -1}),
            ("/hf/models/sentiment", {"top_k": "1"}), ("/hf/models/sentiment", {"function_to_apply": "exec"}),
            ("/hf/models/sentiment", {"__class__": "x"}), ("/hf/models/entities", {"aggregation_strategy": "x"}),
            ("/hf/models/entities", {"stride": -1}), ("/hf/models/entities", {"stride": 10**9}),
            (similar, {"candidate_labels": []}), (similar, {"candidate_labels": ["a"] * 300}),
            (similar, {"candidate_labels": ["a"], "hypothesis_template": "no place"}),
            (similar, {"candidate_labels": ["a"], "hypothesis_template": "{0.__class__}"}),
            (similar, {"candidate_labels": ["a"], "hypothesis_template": "{" * 10_000}),
        )  # fmt: skip
        with invariants.case() as case:
            for path, options in hf:
                with subtests.test(path=path, options=str(options)[:60]):
                    case.refused(send.post(path, {"inputs": "a b c", "parameters": options}), {400, 422}, "hf")
            for options in ({"doc_stride": -1}, {"doc_stride": 10**9}, {"max_answer_len": 0}, {"max_seq_len": 1},
                            {"max_question_len": 0}, {"top_k": 0}):  # fmt: skip
                with subtests.test(options=options):
                    body = {"inputs": {"question": "a", "context": "b"}, "parameters": options}
                    case.refused(send.post("/hf/models/qa", body), {400, 422}, "hf")
            for size in (0, -1, 10**6, "8", 1.5, True):
                with subtests.test(dimensions=size):
                    body = {"model": "embeddings", "input": "a", "dimensions": size}
                    case.refused(send.post("/v1/embeddings", body), 422, "openai")
                    case.refused(send.post("/tei/embeddings/embed", {"inputs": "a", "dimensions": size}), 422, "tei")


NASTY = (
    "a\r\nX-Injected: 1", "a\nb", "\x1b[31mred\x1b[0m", '"}\n{"level": "error", "event": "forged"}', "a\x00b",
    "%0d%0aX-Injected:%201", "\u2028", "\u202e", "../../etc/passwd", "<script>", "A" * 256, "\x7f", "\x85",
)  # fmt: skip


class TestNames:
    """Nothing of a caller's text reaches a log or a header in a form that could be taken for something else; the
    check of the log is the case's own.
    """

    def test_models(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for name in NASTY:
                quoted = urllib.parse.quote(name, safe="")
                calls = (
                    ("POST", f"/v2/models/{quoted}/infer", "oip", infer_body()),
                    ("GET", f"/v2/models/{quoted}", "oip", None),
                    ("POST", f"/hf/models/{quoted}", "hf", {"inputs": "a"}),
                    ("POST", f"/hf/models/sentiment/pipeline/{quoted}", "hf", {"inputs": "a"}),
                    ("GET", f"/v1/models/{quoted}", "openai", None),
                    ("POST", "/v1/embeddings", "openai", {"model": name, "input": "a"}),
                    ("POST", f"/tei/{quoted}/embed", "tei", {"inputs": "a"}),
                )
                for method, path, dialect, body in calls:
                    with subtests.test(path=path[:60]):
                        answer = case.refused(send.http.request(method, path, json=body), {400, 404}, dialect)
                        assert "x-injected" not in answer.headers
                grpc_message = message()
                grpc_message.model_name = name
                error = send.infer(grpc_message)
                assert error.code().name in {"NOT_FOUND", "INVALID_ARGUMENT"}

    def test_names_within_a_request(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for name in NASTY:
                with subtests.test(name=name):
                    body = infer_body(outputs=[{"name": name}])
                    case.refused(send.post(INFER, body), 422, "oip")
                    answer = send.post("/hf/models/sentiment", {"inputs": "a", "parameters": {name: 1}})
                    shown = case.refused(answer, 400, "hf").headers["x-error-message"]
                    assert shown.isascii()
                    assert shown.isprintable()

    def test_request_ids(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """One that cannot stand in a header and a log line as it is, or is too long, is replaced."""
        with invariants.case() as case:
            for wanted in ("a b", "\x1b[31m", '"', "a" * 129, "é".encode().decode("latin-1"), "a;b", "<a>", "", "a,b"):
                with subtests.test(wanted=wanted):
                    answer = send.http.get("/v2/models/nothing", headers=[(b"x-request-id", wanted.encode("latin-1"))])
                    given = case.refused(answer, {400, 404}, "oip").headers["x-request-id"]
                    assert given != wanted
                    assert len(given) == 36
            for good in ("a", "a" * 128, "A-b_c.d~e:f+g/h=i@j"):
                answer = send.http.get("/v2/models/nothing", headers={"x-request-id": good})
                assert case.refused(answer, 404, "oip").headers["x-request-id"] == good

    def test_headers(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """User agents and their like are nobody's business; control characters in them are no HTTP."""
        with invariants.case() as case:
            for name in ("user-agent", "referer", "x-forwarded-for", "traceparent", "tracestate", "accept-language"):
                for value in ("\x1b[31m", '"}{"level":"error"}', "${jndi:ldap://127.0.0.1/}", "é", "a" * 8_000):
                    with subtests.test(name=name, value=value[:20]):
                        head = {name: value, **invariants.gateway.headers}
                        for answer in talk(invariants.gateway.url, request("GET", "/v2/models/nothing", head)):
                            case.refused(answer, {400, 404, 431}, "oip")

    def test_labels_of_keys(self, stack: Any, invariants: Invariants) -> None:
        """An operator's own texts: refused, or shown escaped."""
        operator = json.loads(
            stack.tidegate("keys", "create", "--project", "operations", "--organisation", "tidegate", "--scope",
                           "keys:admin", "--json")
        )["key"]  # fmt: skip
        with (
            invariants.case() as case,
            httpx.Client(base_url=stack.gateway_url, headers={"authorization": f"Bearer {operator}"}) as client,
        ):
            for label in NASTY:
                answer = case.see(client.post("/admin/keys", json={"project": "operations", "label": label}))
                assert answer.status_code in {201, 200, 422}, answer.text
                if answer.status_code != 422:
                    assert answer.json().get("label", label) == label
                answer = case.see(client.post("/admin/projects", json={"name": label, "organisation": "tidegate"}))
                assert answer.status_code == 422, answer.text
