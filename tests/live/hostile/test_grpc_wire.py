"""Hostile messages over gRPC: what is no protobuf, compressed beyond measure, framed wrongly, or called wrongly."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import hpack
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.live.hostile import h2
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import Invariants
from tests.live.hostile.memory import peak
from tests.live.hostile.payload import message
from tests.live.hostile.second import Second

pytestmark = pytest.mark.live

SERVICE = "/inference.GRPCInferenceService"
INFER = f"{SERVICE}/ModelInfer"
CODES = {code.value[0]: code for code in grpc.StatusCode}
S = grpc.StatusCode


@pytest.fixture
def channel(invariants: Invariants) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(invariants.gateway.grpc_address) as opened:
        yield opened


def framed(payload: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """One gRPC message: its flag, its length (or another), itself."""
    return bytes([flag]) + struct.pack(">I", len(payload) if length is None else length) + payload


def call(address: str, data: bytes, *pairs: tuple[str, str], path: str = INFER) -> tuple[int, dict[str, str]]:
    """Send ``data`` as the whole of one call by hand: the HTTP status, and the headers and trailers that came."""
    with h2.connect(address) as connection:
        sent = h2.frame(h2.HEADERS, 1, h2.headers(path, *pairs), h2.END_HEADERS)
        for at in range(0, len(data), 16_384):
            sent += h2.frame(h2.DATA, 1, data[at : at + 16_384])
        connection.sendall(sent[:49_152])
        _send_rest(connection, sent[49_152:] + h2.frame(h2.DATA, 1, b"", h2.END_STREAM))
        blocks = h2.read_answer(connection, 1, 3.0)
    decoder, found = hpack.Decoder(), {}
    for block in blocks:
        found |= {str(name): str(value) for name, value in decoder.decode(block)}
    return int(found.get(":status", "0")), found


def _send_rest(connection: Any, data: bytes) -> None:
    """Beyond the first window, as the server opens it; what it does not want any more is not sent."""
    connection.settimeout(3.0)
    try:
        connection.sendall(data)
    except OSError:
        return


def status_of(answer: tuple[int, dict[str, str]]) -> grpc.StatusCode:
    """The call's gRPC status."""
    return CODES[int(answer[1]["grpc-status"])]


NOT_PROTOBUF = {
    "noise": b"\xff" * 64, "a tag of field 0": b"\x00\x01", "a length past the end": b"\x0a\xff\xff\xff\xff\x0f",
    "an endless number": b"\x08" + b"\x80" * 40, "cut": message().SerializeToString()[:-3],
    "not UTF-8": b"\x0a\x02\xc3\x28", "a wrong wire type": b"\x0d\x01", "groups": b"\x0b" * 10_000,
    "deep": b"\x2a\x02\x22\x00" * 3 + b"\x0b" * 200 + b"\x0c" * 200,
}  # fmt: skip


class TestMessages:
    @pytest.mark.parametrize("garbage", NOT_PROTOBUF.values(), ids=NOT_PROTOBUF.keys())
    def test_what_is_no_protobuf(self, invariants: Invariants, channel: grpc.Channel, garbage: bytes) -> None:
        """The caller's mistake, with a request id, and nothing of a stack in the log."""
        send = channel.unary_unary(INFER)
        stream = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
        metadata = tuple(invariants.gateway.headers.items())
        with invariants.case() as case:
            with pytest.raises(grpc.RpcError) as caught:
                send(garbage, metadata=metadata, timeout=20)
            case.grpc_refused(caught.value, S.INVALID_ARGUMENT)
            replies = stream(iter([garbage]), metadata=metadata, timeout=20)
            try:
                assert [bool(pb.ModelStreamInferResponse.FromString(reply).error_message) for reply in replies] == [
                    True
                ]
            except grpc.RpcError as error:
                case.grpc_refused(error, S.INVALID_ARGUMENT)

    def test_without_a_key_nobody_looks_at_it(self, invariants: Invariants, channel: grpc.Channel) -> None:
        with invariants.case() as case:
            for sent in (*NOT_PROTOBUF.values(), b"", message().SerializeToString()):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(INFER)(sent, timeout=20)
                case.grpc_refused(caught.value, S.UNAUTHENTICATED)

    @pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "RepositoryModelLoad"])
    @pytest.mark.parametrize(
        ("key", "times"), [((), 50), ((("authorization", "Bearer tg_live_wrong"),), 2)], ids=["no key", "a wrong key"]
    )
    def test_without_a_key_nobody_waits_for_it(
        self, invariants: Invariants, method: str, key: tuple[tuple[str, str], ...], times: int
    ) -> None:
        """Refused when the headers are there: the message may never come, and nothing of it is kept."""
        with invariants.case(growth_mib=8), h2.connect(invariants.gateway.grpc_address) as connection:
            for stream in range(1, 2 * times, 2):
                block = h2.headers(f"{SERVICE}/{method}", *key)
                connection.sendall(h2.frame(h2.HEADERS, stream, block, h2.END_HEADERS))
                begun = framed(bytes(40_000), length=30 * 2**20)
                for at in range(0, len(begun), 16_384):
                    connection.sendall(h2.frame(h2.DATA, stream, begun[at : at + 16_384]))
                decoder, found = hpack.Decoder(), {}
                for answer in h2.read_answer(connection, stream, 10.0):
                    found |= {str(name): str(value) for name, value in decoder.decode(answer)}
                assert CODES[int(found["grpc-status"])] == S.UNAUTHENTICATED
                assert found["x-request-id"]

    def test_empty_messages(self, invariants: Invariants, channel: grpc.Channel) -> None:
        metadata = tuple(invariants.gateway.headers.items())
        with invariants.case() as case:
            for method in ("ModelInfer", "ModelMetadata", "ModelConfig"):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(f"{SERVICE}/{method}")(b"", metadata=metadata, timeout=20)
                case.grpc_refused(caught.value, {S.NOT_FOUND, S.INVALID_ARGUMENT})

    def test_unknown_fields_are_passed_over(self, invariants: Invariants, channel: grpc.Channel) -> None:
        sent = message().SerializeToString() + b"\xfa\x3f\x03abc"  # field 1023
        with invariants.case(usage={"completed": 1}):
            reply = channel.unary_unary(INFER)(sent, metadata=tuple(invariants.gateway.headers.items()), timeout=20)
            assert pb.ModelInferResponse.FromString(reply).raw_output_contents[0] == bytes(256)


class TestFraming:
    """What a client library would never send; each on a connection of its own."""

    def check(self, invariants: Invariants, data: bytes, wanted: set[grpc.StatusCode], *pairs: tuple[str, str]) -> None:
        with invariants.case():
            status, found = call(invariants.gateway.grpc_address, data, *invariants.gateway.headers.items(), *pairs)
            assert status in {0, 200}, found  # 0: the stream was reset
            if status:
                assert CODES[int(found["grpc-status"])] in wanted, found

    def test_a_coding_that_nobody_knows(self, invariants: Invariants) -> None:
        """UNIMPLEMENTED, and which codings there are (grpc.io, compression)."""
        body = framed(zlib.compress(message().SerializeToString()), flag=1)
        for coding in ("br", "zstd", "snappy", "gzip, gzip", ""):
            self.check(invariants, body, {S.UNIMPLEMENTED, S.INTERNAL, S.INVALID_ARGUMENT}, ("grpc-encoding", coding))

    def test_compressed_without_saying_how(self, invariants: Invariants) -> None:
        body = framed(zlib.compress(message().SerializeToString()), flag=1)
        self.check(invariants, body, {S.INTERNAL, S.INVALID_ARGUMENT, S.UNIMPLEMENTED})

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_broken_compression(self, invariants: Invariants, coding: str) -> None:
        packed = zlib.compress(message().SerializeToString())
        for broken in (b"\x1f\x8b", b"no" * 50, packed[:-5], packed + b"x"):
            self.check(invariants, framed(broken, flag=1), {S.INTERNAL, S.INVALID_ARGUMENT}, ("grpc-encoding", coding))

    def test_lengths_that_lie(self, invariants: Invariants) -> None:
        good = message().SerializeToString()
        wrong = {S.INTERNAL, S.INVALID_ARGUMENT, S.UNIMPLEMENTED, S.RESOURCE_EXHAUSTED, S.CANCELLED, S.UNKNOWN}
        for data in (
            framed(good, length=len(good) + 1), framed(good, length=len(good) - 1), framed(good, length=2**32 - 1),
            framed(good)[:3], b"", framed(good) + framed(good), framed(good) + b"\x00", framed(good, flag=2),
        ):  # fmt: skip
            status, found = call(invariants.gateway.grpc_address, data, *invariants.gateway.headers.items())
            assert status in {0, 200}
            longer = data.startswith(framed(good)) and len(data) > len(framed(good))  # the first one may be served
            if status:
                assert CODES[int(found["grpc-status"])] in (wrong | {S.OK} if longer else wrong), found
        invariants.check_alive()

    def test_no_such_service_or_method(self, invariants: Invariants) -> None:
        paths = (
            "/", "/x", f"{SERVICE}/", f"{SERVICE}/modelinfer", f"{SERVICE}/ModelInfer/", "/inference.GRPC/ModelInfer",
            "/grpc.health.v1.Health/Kill", f"{SERVICE}/../ModelInfer", "/admin/keys", "/v2/models/identity/infer",
        )  # fmt: skip
        with invariants.case():
            for path in paths:
                answer = call(
                    invariants.gateway.grpc_address, framed(b""), *invariants.gateway.headers.items(), path=path
                )
                assert answer[0] in {200, 404, 415}, (path, answer)
                if answer[0] == 200:
                    assert status_of(answer) == S.UNIMPLEMENTED, (path, answer)

    @pytest.mark.parametrize(
        "timeout", ["0n", "1n", "99999999H", "-1S", "1", "S", "1x", "999999999999S", "1.5S", "1 S"]
    )
    def test_deadlines(self, invariants: Invariants, timeout: str) -> None:
        """Over at once, without end, or no deadline at all."""
        before = invariants.ledger()
        pairs = (*invariants.gateway.headers.items(), ("grpc-timeout", timeout))
        status, found = call(invariants.gateway.grpc_address, framed(message().SerializeToString()), *pairs)
        assert status in {0, 200, 400}, found
        if status == 200:
            assert CODES[int(found["grpc-status"])] in {
                S.OK, S.DEADLINE_EXCEEDED, S.INVALID_ARGUMENT, S.INTERNAL, S.UNAVAILABLE,
            }, found  # fmt: skip
        invariants.check_alive()
        after = invariants.ledger()
        assert after["unknown"] == before["unknown"]
        assert after["dropped"] == before["dropped"]


def bomb(mib: int, coding: str) -> bytes:
    """``mib`` MiB of one field, compressed to a thousandth."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    size = mib * 2**20
    head = b"\x3a"  # raw_input_contents
    while size >= 128:
        head += bytes([size % 128 | 128])
        size //= 128
    parts = [packer.compress(head + bytes([size]))]
    parts += [packer.compress(bytes(2**20)) for _ in range(mib)]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_24_a_compressed_message_is_not_inflated_beyond_the_limit(
    fake: FakeTriton, second: Second, coding: str, poll: Callable[..., None]
) -> None:
    """512 MiB in half a megabyte: refused, without the memory that it would take. Limits are 64 MiB each."""
    data = framed(bomb(512, coding), flag=1)
    assert len(data) < 2**20
    before = fake.beyond_probes()
    pairs = (*second.gateway.headers.items(), ("grpc-encoding", coding))
    with second.invariants.case(growth_mib=96), peak(second.process.pid) as seen:
        status, found = call(second.gateway.grpc_address, data, *pairs)
        assert status in {0, 200}
        if status:
            assert CODES[int(found["grpc-status"])] == S.RESOURCE_EXHAUSTED, found
        assert fake.beyond_probes() == before
    assert seen.growth < 200, f"{seen.growth:.0f} MiB"
