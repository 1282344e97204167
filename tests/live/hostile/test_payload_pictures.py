"""Hostile pictures and addresses of pictures: rows 49 and 51."""

from __future__ import annotations

import base64
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live.hostile import pictures
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import Case, Invariants
from tests.live.hostile.payload import Sender, sender
from tests.live.hostile.second import second_gateway

pytestmark = pytest.mark.live

MODELS = ("imagenet", "digits")
TYPES = ("image/png", "image/jpeg", "application/octet-stream", "")


@pytest.fixture(scope="module")
def send(invariants: Invariants) -> Iterator[Sender]:
    with sender(invariants.gateway) as opened:
        yield opened


def refused(case: Case, send: Sender, data: bytes, status: int | set[int], types: tuple[str, ...] = TYPES) -> None:
    """As the body and as base64, at every model that takes pictures."""
    for model in MODELS:
        path = f"/hf/models/{model}"
        for media_type in types:
            headers = {"content-type": media_type} if media_type else {}
            case.refused(send.http.post(path, content=data, headers=headers), status, "hf")
        text = base64.b64encode(data).decode()
        for inputs in (text, f"data:image/png;base64,{text}", [text]):
            case.refused(send.post(path, {"inputs": inputs}), status, "hf")


class TestPictures:
    def test_other_formats(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for name, data in pictures.DISGUISED.items():
                with subtests.test(name=name):
                    refused(case, send, data, 415)

    @pytest.mark.parametrize(
        ("make", "status"),
        [
            (lambda: pictures.huge_png(50_000), 413), (lambda: pictures.huge_png(2**31 - 1), {413, 422}),
            (lambda: pictures.huge_png(2**32 - 1), {413, 422}), (lambda: pictures.huge_png(0), 422),
            (pictures.huge_jpeg, 413), (pictures.huge_webp, {413, 422}),
            (lambda: pictures.apng(10_000), 422), (lambda: pictures.webp(101), 422),
            (pictures.inflating_text_png, 422),
        ],
        ids=["png 50,000", "png 2^31-1", "png 2^32-1", "png 0", "jpeg 65,500", "webp 16,384", "10,000 frames",
             "101 frames of webp", "text of 256 MiB"],
    )  # fmt: skip
    def test_too_much(
        self, invariants: Invariants, send: Sender, make: Callable[[], bytes], status: int | set[int]
    ) -> None:
        """Refused from the header: fast, and without the memory that the picture would take."""
        data = make()
        with invariants.case(growth_mib=32) as case:
            begin = time.monotonic()
            refused(case, send, data, status, ("image/png",))
            assert time.monotonic() - begin < 20

    def test_damage(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """Truncated anywhere, or nothing but the first bytes of a format."""
        with invariants.case() as case:
            for kind in ("JPEG", "PNG", "WEBP"):
                good = pictures.plain(kind)
                for part in (0.1, 0.5, 0.8):
                    with subtests.test(kind=kind, part=part):
                        refused(case, send, good[: int(len(good) * part)], {415, 422}, ("image/png",))
                with subtests.test(kind=kind, part="middle wiped out"):
                    third = len(good) // 3
                    answer = send.http.post("/hf/models/imagenet", content=good[:third] + bytes(third))
                    case.refused(answer, 422, "hf")
            for start in (
                b"\xff\xd8\xff",
                b"\x89PNG\r\n\x1a\n",
                b"RIFF\xff\xff\xff\xffWEBP",
                b"\xff\xd8\xff\xe1\xff\xff",
            ):
                with subtests.test(start=start):
                    refused(case, send, start, 422, ("image/png",))
                    refused(case, send, start + bytes(1000), 422, ("image/png",))

    def test_an_inflating_png(self, invariants: Invariants, send: Sender) -> None:
        """64 MiB behind a header of 64 × 64: what the header does not speak of is never inflated."""
        with invariants.case(usage={"completed": 1}, growth_mib=32) as case:
            answer = send.http.post("/hf/models/imagenet", content=pictures.inflating_png(64))
            assert case.see(answer).status_code == 200, answer.text

    def test_many_chunks(self, invariants: Invariants, send: Sender) -> None:
        with invariants.case() as case:
            case.refused(send.http.post("/hf/models/imagenet", content=pictures.many_chunks_png()), 422, "hf")

    def test_a_jpeg_of_a_thousand_scans(self, invariants: Invariants, send: Sender) -> None:
        """50 KB that take every pixel a thousand times; at 6000 x 6000 that is a quarter of a minute a picture."""
        with invariants.case(usage={"completed": 1}, growth_mib=64) as case:
            before = invariants.metrics()["process_cpu_seconds_total"]
            refused(case, send, pictures.many_scans_jpeg(6_000, 1_000), 422, ("image/jpeg",))
            assert invariants.metrics()["process_cpu_seconds_total"] - before < 2.0
            answer = send.http.post("/hf/models/imagenet", content=pictures.many_scans_jpeg(64, 20))
            assert case.see(answer).status_code == 200, answer.text

    def test_a_motion_photo(self, invariants: Invariants, send: Sender) -> None:
        """What stands behind the end of a picture is no part of it."""
        with invariants.case(usage={"completed": 1}) as case:
            answer = send.http.post("/hf/models/imagenet", content=pictures.motion_photo())
            assert case.see(answer).status_code == 200, answer.text

    @pytest.mark.slow
    def test_the_largest_pictures(self, invariants: Invariants, send: Sender) -> None:
        """Legal, and two thousand times as large as their files; nothing of them is left."""
        data = pictures.largest_png()
        with invariants.case(usage={"completed": 6}, growth_mib=96) as case, ThreadPoolExecutor(6) as threads:
            headers = {"content-type": "image/png"}
            answers = [
                threads.submit(send.http.post, "/hf/models/imagenet", content=data, headers=headers) for _ in range(6)
            ]
            for answer in answers:
                assert case.see(answer.result()).status_code == 200, answer.result().text

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_an_exif_bomb(self, invariants: Invariants, send: Sender, kind: str) -> None:
        """The picture itself is good: its EXIF says nothing that can be used."""
        with invariants.case(usage={"completed": 1}) as case:
            answer = send.http.post("/hf/models/imagenet", content=pictures.exif_bomb(kind))
            assert case.see(answer).status_code == 200, answer.text

    def test_too_many(self, invariants: Invariants, send: Sender) -> None:
        """Many pictures in one call count together."""
        text = base64.b64encode(pictures.plain("PNG", (4, 4))).decode()
        big = base64.b64encode(pictures.huge_png(7_000)).decode()
        with invariants.case() as case:
            case.refused(send.post("/hf/models/imagenet", {"inputs": [text] * 257}), 422, "hf")
            case.refused(send.post("/hf/models/imagenet", {"inputs": [big] * 5}), 413, "hf")
            case.refused(send.post("/hf/models/imagenet", {"inputs": []}), 422, "hf")
            for inputs in (None, 1, {}, [None], [[text]], "", "not base64!", "A", text + "=", text[:-1] + "\u00e9"):
                case.refused(send.post("/hf/models/imagenet", {"inputs": inputs}), {415, 422}, "hf")


class Listener:
    """A port that nobody should connect to."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.connections = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


def addresses(port: int) -> list[str]:
    here = f"127.0.0.1:{port}"
    return [
        f"http://{here}/cat.png", f"https://{here}/", f"HTTP://{here}", f"http://localhost:{port}/", f"//{here}/a",
        f"http://{struct.unpack('>I', bytes((127, 0, 0, 1)))[0]}:{port}/", f"http://0x7f.1:{port}/", f"ftp://{here}/a",
        f"http://a@{here}/", f"http://[::ffff:127.0.0.1]:{port}/", f"http:\\\\{here}\\", f" http://{here}/",
        f"\thttp://{here}/", f"gopher://{here}/_x", f"dict://{here}/x", f"smb://{here}/x", f"\\\\{here}\\share",
        f"data:image/png,http://{here}/", f"data:text/html;base64,http://{here}/", f"url(http://{here}/)",
        "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "file:///etc/passwd",
        "file://localhost/etc/passwd", "/etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "jar:file:///a!/b",
    ]  # fmt: skip


def test_addresses_are_never_asked(
    invariants: Invariants, send: Sender, listener: Listener, subtests: pytest.Subtests
) -> None:
    """Row 51: no dialect fetches anything. A listener that the addresses name sees no connection."""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5):
        pass  # it would be seen
    deadline = time.monotonic() + 10
    while listener.connections != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with invariants.case() as case:
        for address in addresses(listener.port):
            with subtests.test(address=address):
                for model in MODELS:
                    path = f"/hf/models/{model}"
                    case.refused(send.post(path, {"inputs": address}), 422, "hf")
                    case.refused(send.post(path, {"inputs": [address]}), 422, "hf")
                    for inputs in ({"url": address}, {"image_url": {"url": address}}):
                        case.refused(send.post(path, {"inputs": inputs}), 422, "hf")
                    answer = send.http.post(path, content=address.encode(), headers={"content-type": "image/png"})
                    case.refused(answer, 415, "hf")
    assert listener.connections == 1


WATCH = """
import os, socket, sys
_file = os.open(os.environ["EGRESS_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def _hook(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request",
                 "http.client.connect", "ftplib.connect", "subprocess.Popen", "os.system", "os.posix_spawn"}:
        os.write(_file, f"{event} {arguments!r}\\n".encode())
sys.addaudithook(_hook)
socket.getaddrinfo("127.0.0.1", 9)  # seen
"""


def test_51_nothing_is_looked_up_connected_to_or_run(
    fake: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poll: Callable[..., None]
) -> None:
    """The gateway's own interpreter writes down every name it resolves, every connection and every program: no
    address in a request adds a line. Names that a listener of ours could never see are seen here.
    """
    log = tmp_path / "egress"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("EGRESS_LOG", str(log))
    everywhere = [*addresses(9), "http://127.0.0.1.nip.io/", "http://rebinding.invalid/a.png", "http://[::1]:80/"]
    with (
        second_gateway(tmp_path / "data", fake.address, models="identity,imagenet", ready=False) as second,
        sender(second.gateway) as send,
    ):
        poll(lambda: send.http.get("/v2/models/identity/ready").status_code == 200, 30, "the gateway")
        before = log.read_text()
        assert "socket.getaddrinfo" in before
        for address in everywhere:
            for inputs in (address, [address], {"url": address}):
                assert send.post("/hf/models/imagenet", {"inputs": inputs}).status_code == 422
            assert send.http.post("/hf/models/imagenet", content=address.encode()).status_code in {400, 415}
        assert log.read_text() == before


def test_addresses_in_texts_are_texts(invariants: Invariants, send: Sender, listener: Listener) -> None:
    address = f"http://127.0.0.1:{listener.port}/"
    calls = (
        ("/hf/models/sentiment", {"inputs": address}),
        ("/v1/embeddings", {"model": "embeddings", "input": address}),
        ("/tei/embeddings/embed", {"inputs": address}),
        ("/hf/models/qa", {"inputs": {"question": address, "context": address}}),
    )
    with invariants.case(usage={"completed": len(calls)}) as case:
        for path, body in calls:
            answer = case.see(send.post(path, body))
            assert answer.status_code == 200, answer.text
    assert listener.connections == 0
