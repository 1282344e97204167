"""The ceiling and the peers do the same work on the same files; a tiny model stands in for the real ones."""

from __future__ import annotations

import base64
import email
import email.policy
import gzip
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from benchmarks.ceiling import BATCHES
from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.catalogue import PEERS, SHARED
from benchmarks.peers.compare import Comparison, Load
from benchmarks.peers.install import lock
from benchmarks.peers.server import PeerError, PeerServer
from benchmarks.peers.summary import table
from benchmarks.peers.workloads import Direct, V2Text, for_peer
from benchmarks.suite import Slo
from benchmarks.tasks import CeilingError, ceiling
from benchmarks.workloads import WORKLOADS, WrongAnswer
from gateway.catalog import Catalog, ImagePreprocessing
from gateway.settings import Settings
from gateway.tasks import create_task
from gateway.tasks.image import model_pixels, open_picture
from gateway.triton.tensors import to_numpy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model named imagenet whose three logits are a picture's mean red, green and blue."""
    folder = tmp_path_factory.mktemp("repository") / "imagenet"
    (folder / "1").mkdir(parents=True)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["means", "scale"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "means",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 24, 24, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [50.0])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "1" / "model.onnx")
    recipe = {
        "name": "imagenet", "task": "image-classification", "labels": ["red", "green", "blue"],
        "preprocessing": {"kind": "image", "resize_shorter_side": 32, "crop": [24, 24]},
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(recipe))
    return folder.parent


def test_the_plain_way_answers_one_and_many_alike(repository: Path) -> None:
    task = OnnxTask(repository / "imagenet")
    bodies = [WORKLOADS["imagenet"](1).unique(index).body for index in range(4)]
    rows = [task.decode(body) for body in bodies]
    assert rows[0].shape == (24, 24, 3)
    together, alone = task.infer(rows), [task.infer([row])[0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    answer = task.encode(together[0])
    assert {item["label"] for item in answer} == {"red", "green", "blue"}
    assert sum(item["score"] for item in answer) == pytest.approx(1)


def test_pictures_are_prepared_as_the_gateway_prepares_them(repository: Path) -> None:
    # Otherwise a comparison of servers would compare ways to resize a picture.
    task = OnnxTask(repository / "imagenet")
    wanted = ImagePreprocessing(resize_shorter_side=32, crop=(24, 24))
    for index in range(12):
        body = WORKLOADS["imagenet"](1).unique(index).body
        assert np.array_equal(task.decode(body), model_pixels(open_picture(body, 10**8), wanted))


TEXTS = (
    "It works.",
    "  Ünïcödé, 漢字 and emoji 🙂, with\ttabs\nand lines  ",
    "don't stop-me now: 3.14 % of (these) [brackets] & <tags>",
    "naïve café " * 30,
    "word " * 400,
)


@pytest.mark.parametrize("source", ["sentiment", "embeddings"])
def test_texts_become_the_tokens_that_the_gateway_makes_of_them(source: str) -> None:
    # Otherwise a comparison of servers would compare ways to tokenise.
    workload = WORKLOADS[source](1)
    folder = ROOT / "model_repository" / workload.model
    task, card = OnnxTask(folder), Catalog.load(folder.parent).get(workload.model)
    assert card is not None
    gateway = create_task(card, task.task, Settings())
    for text in (*TEXTS, *(json.loads(workload.unique(index).body)["inputs"] for index in range(64))):
        (request,) = gateway.plan(text, {}).requests
        feeds = task.feeds([task.decode_text(text)], bucketed=True)
        assert {tensor.name for tensor in request.inputs} == set(feeds)
        for tensor in request.inputs:
            assert np.array_equal(to_numpy(tensor), feeds[tensor.name]), (text, tensor.name)


def test_texts_of_one_batch_are_padded_to_the_longest_of_them() -> None:
    task = OnnxTask(ROOT / "model_repository" / "sentiment")
    rows = [task.decode_text("short"), task.decode_text("a somewhat longer text, of eleven words or so, yes")]
    longest = max(map(len, rows))
    assert {array.shape for array in task.feeds(rows).values()} == {(2, longest)}
    assert task.bucket(longest) > longest
    together, alone = task.infer(rows), [task.infer([row])[0] for row in rows]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("spinning", [False, True])
def test_idle_threads_of_a_session_sleep_unless_asked_not_to(spinning: bool, repository: Path) -> None:
    session = OnnxTask(repository / "imagenet").new_session(2, spinning=spinning)
    entry = session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
    assert entry == str(int(spinning))


def test_the_ceiling_program_measures_as_often_as_asked(repository: Path) -> None:
    with ceiling("imagenet", repository, 1) as program:
        assert program.way["batch"] in BATCHES
        assert program.run(0.2) > 0
        assert program.run(0.2) > 0


def test_a_ceiling_that_cannot_be_says_why(tmp_path: Path) -> None:
    with pytest.raises(CeilingError, match=r"model\.yaml"), ceiling("imagenet", tmp_path, 1):
        pass


@pytest.mark.slow
async def test_a_peer_is_started_loaded_judged_and_ended(repository: Path, tmp_path: Path) -> None:
    load = Load((2,), 1.0, 0.2, 0.1, Slo(1000.0), 1)
    here = lambda _: Path(sys.executable)  # noqa: E731 - what FastAPI's environment holds is installed here too
    comparison = Comparison("imagenet", repository, load, here, samples=tmp_path)
    results, skipped = await comparison.run(["fastapi"], rounds=1)
    assert skipped == []
    with gzip.open(tmp_path / "imagenet-fastapi-2-0.jsonl.gz") as file:
        assert len(file.readlines()) == sum(results[0].measurements[0].counts.values())
    (result,) = results
    assert result.faults == 0, result.fault
    assert result.goodput.value > 0
    assert result.rss_bytes is not None
    assert "FastAPI + ONNX Runtime" in table(results)[2]


@pytest.mark.slow
async def test_a_peer_is_tuned_stage_by_stage(repository: Path) -> None:
    load = Load((2,), 0.3, 0.1, 0.0, Slo(1000.0), 1)
    here = lambda _: Path(sys.executable)  # noqa: E731 - what FastAPI's environment holds is installed here too
    way, goodput = await Comparison("imagenet", repository, load, here).tune("fastapi")
    assert str(way) in goodput
    assert goodput[str(way)] == max(goodput.values())
    assert set(goodput) == {
        str(tried) for tried in PEERS["fastapi"].stages[0](PEERS["fastapi"].start(), os.cpu_count() or 1)
    }


def test_a_peer_that_is_not_installed_says_so(repository: Path) -> None:
    with (
        pytest.raises(PeerError, match="LitServe did not start"),
        PeerServer("litserve", Path(sys.executable), repository / "imagenet"),
    ):
        pass


@pytest.mark.parametrize("peer", list(PEERS))
def test_every_peer_gets_the_same_pictures(peer: str, repository: Path) -> None:
    source, dressed = WORKLOADS["imagenet"](1), for_peer(peer, "imagenet", 1, repository)
    picture, payload = source.unique(5).body, dressed.unique(5)
    assert payload.content_type is not None
    if PEERS[peer].v2:  # its tensors are JSON
        assert base64.b64encode(picture) in payload.body
    elif payload.content_type.startswith("multipart/form-data"):
        head = f"Content-Type: {payload.content_type}\r\n\r\n".encode()
        (part,) = email.message_from_bytes(head + payload.body, policy=email.policy.HTTP).iter_parts()
        assert part.get_content_type() == "image/jpeg"
        assert part.get_payload(decode=True) == picture
    else:
        assert payload.body == picture


@pytest.mark.parametrize("peer", list(PEERS))
def test_every_lock_names_what_the_peer_needs(peer: str) -> None:
    lines = lock(peer).read_text().splitlines()
    pinned = {name.lower() for name, _, version in (line.partition("==") for line in lines) if version}
    assert len(pinned) == len(lines) - 1, "every line but the first is a version"
    wanted = {re.split(r"[\[<>=]", text)[0].lower() for text in (*PEERS[peer].requirements, *SHARED)}
    assert wanted <= pinned


def test_mlservers_answer_is_read_from_its_tensor() -> None:
    workload = V2Text(WORKLOADS["sentiment"](1))
    payload = workload.golden(0)
    assert json.loads(payload.body)["inputs"][0]["datatype"] == "BYTES"
    right = json.dumps([[{"label": "positive", "score": 0.9}]])
    workload.check(payload, json.dumps({"outputs": [{"data": [right]}]}).encode())
    with pytest.raises(WrongAnswer):
        workload.check(payload, b'{"outputs":[]}')


def test_triton_itself_gets_tensors_and_its_raw_output_is_judged(repository: Path) -> None:
    workload = Direct(WORKLOADS["imagenet"](1), repository / "imagenet", variants=4)
    payload = workload.golden(0)
    size = int(dict(payload.headers)["Inference-Header-Content-Length"])
    assert len(payload.body) - size == 24 * 24 * 3
    logits = np.array([3, 1, 0], dtype="<f4").tobytes()
    workload.check(payload, b"{...}" + logits)
    with pytest.raises(WrongAnswer):
        workload.check(payload, b"{...}" + np.array([0, 1, 3], dtype="<f4").tobytes())
