"""Every page, run by Streamlit's AppTest: filled in, asked, refused."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
import streamlit as st
from PIL import Image
from streamlit import config
from streamlit.testing.v1 import AppTest

from tests.dashboard.conftest import OpenPage
from tests.dashboard.contract_server import INFER_ONLY, KEY, ContractGateway

TASK_PAGES = [
    "image_classification", "text_classification", "entities", "question_answering", "translation", "similarity",
    "zero_shot",
]  # fmt: skip
ALL_PAGES = ["start", "models", "usage", *TASK_PAGES]


def html(app: AppTest) -> list[str]:
    """The page's pieces of HTML, whatever the version of Streamlit calls them."""
    return [str(element.proto.body) for element in app.get("html")]


def visible(app: AppTest) -> str:
    """All that the page shows, as one text."""
    kinds = ("markdown", "caption", "info", "warning", "error", "success", "code", "title", "subheader", "metric")
    parts = [str(element.value) for kind in kinds for element in [*getattr(app, kind), *getattr(app.sidebar, kind)]]
    return "\n".join([*parts, *html(app)])


def ask(app: AppTest, page: str) -> AppTest:
    app.button(key=f"{page}.run").click().run()
    assert not app.exception
    return app


def rows_of(chart: object) -> list[dict[str, object]]:
    """The rows of a chart's data sets."""
    rows: list[dict[str, object]] = []
    for data in chart.proto.datasets:  # type: ignore[attr-defined]
        rows += pa.ipc.open_stream(data.data.data).read_all().to_pylist()
    return rows


@pytest.mark.parametrize("page", ALL_PAGES)
def test_page_without_a_key_asks_for_one(open_page: OpenPage, gateway: ContractGateway, page: str) -> None:
    app = open_page(page, key=None)
    assert "key" in visible(app).lower()
    assert not [button for button in app.button if button.key and button.key.endswith(".run")]
    assert gateway.requests == []


@pytest.mark.parametrize("page", TASK_PAGES)
def test_task_page_answers_with_split_cost_and_lines(open_page: OpenPage, page: str) -> None:
    app = ask(open_page(page), page)
    metrics = {metric.label: metric.value for metric in app.metric}
    assert metrics["Cost"] == "1.23 µ$"
    assert metrics["Compute"] == "9.4 ms"
    assert metrics["Pixels" if page == "image_classification" else "Tokens"] in {"135,300", "17"}
    stages = {row["stage"] for chart in app.get("vega_lite_chart") for row in rows_of(chart) if "stage" in row}
    assert {"auth", "admit", "preprocess", "infer", "postprocess", "record", "network"} <= stages
    curl, python = (block.value for block in app.code)
    assert curl.startswith("curl ")
    assert "$TIDEGATE_KEY" in curl
    assert "InferenceClient" in python
    assert KEY not in visible(app)


@pytest.mark.parametrize("page", ["models", "usage", *TASK_PAGES])
@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((401, "A valid API key is required.", {}), "does not accept this key"),
        ((429, "Rate limit reached.", {"Retry-After": "7"}), "Try again in 7 s"),
        ((503, "Not ready.", {"Retry-After": "3"}), "Try again in 3 s"),
    ],
)
def test_refusals_are_said_plainly(
    open_page: OpenPage, gateway: ContractGateway, page: str, refusal: tuple[int, str, dict[str, str]], says: str
) -> None:
    gateway.refuse = refusal
    app = open_page(page)
    shown = visible(app).replace("\\", "")
    assert says in shown
    assert "Traceback" not in shown
    assert KEY not in shown


@pytest.mark.parametrize("page", ALL_PAGES)
def test_a_page_begins_with_its_title(open_page: OpenPage, page: str) -> None:
    app = open_page(page)
    assert app.main[0].type == "title"
    assert len(app.title) == 1


@pytest.mark.parametrize("page", ALL_PAGES)
def test_no_gateway_is_said_plainly(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setenv("TIDEGATE_DASHBOARD_GATEWAY_URL", "http://127.0.0.1:9")
    st.cache_resource.clear()
    app = open_page(page)
    assert "cannot be reached" in visible(app)


def test_a_refusal_after_the_page_has_opened_takes_the_old_answer_away(
    open_page: OpenPage, gateway: ContractGateway
) -> None:
    app = ask(open_page("translation"), "translation")
    gateway.refuse = (429, "slow", {"Retry-After": "4"})
    ask(app, "translation")
    assert "Try again in 4 s" in visible(app).replace("\\", "")
    assert not app.metric


# --- the key


def test_a_key_is_taken_used_and_forgotten(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("models", key=None)
    field = app.sidebar.text_input[0]
    assert field.proto.type == field.proto.PASSWORD
    field.set_value(f"  {KEY}\n")
    app.sidebar.button[0].click().run()
    assert gateway.asked("/v1/models")[0].headers["authorization"] == f"Bearer {KEY}"
    assert "tg_live_ab12cd34_…" in visible(app)
    assert KEY not in visible(app)
    assert app.query_params == {}
    app.sidebar.button(key="forget_key").click().run()
    assert "credential" not in app.session_state
    assert "Enter an API key" in visible(app)


def test_forgetting_the_key_takes_its_answers_away(open_page: OpenPage) -> None:
    app = ask(open_page("text_classification"), "text_classification")
    assert app.metric
    app.sidebar.button(key="forget_key").click().run()
    assert not app.metric


def test_an_empty_key_is_not_taken(open_page: OpenPage) -> None:
    app = open_page("models", key=None)
    app.sidebar.button[0].click().run()
    assert "Enter a key first." in visible(app)


def test_the_demo_key_waits_for_a_click(
    open_page: OpenPage, gateway: ContractGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_file = tmp_path / "demo.key"
    key_file.write_text(KEY + "\n")
    monkeypatch.setenv("TIDEGATE_DASHBOARD_KEY_FILE", str(key_file))
    st.cache_resource.clear()
    address = config.get_option("server.address")
    try:
        config.set_option("server.address", "0.0.0.0")
        assert not [button for button in open_page("models", key=None).button if button.key == "use_demo_key"]
        config.set_option("server.address", "127.0.0.1")
        app = open_page("models", key=None)
        assert gateway.requests == []
        app.button(key="use_demo_key").click().run()
    finally:
        config.set_option("server.address", address)
    assert app.session_state["credential"] == KEY
    assert KEY not in visible(app)


def test_a_bad_setting_is_shown_instead_of_a_page(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_DASHBOARD_TIMEOUT_S", "soon")
    st.cache_resource.clear()
    assert "TIDEGATE_DASHBOARD_TIMEOUT_S" in visible(open_page())


# --- page by page


def test_start_shows_health_and_models(open_page: OpenPage) -> None:
    shown = visible(open_page("start"))
    assert "ready" in shown
    assert "9 of 10 ready" in shown


def test_image_page_has_digits_and_photos(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("image_classification")
    app.selectbox(key="image_classification.model").set_value("digits").run()
    app.pills(key="image_classification.digit").set_value("3").run()
    ask(app, "image_classification")
    samples = Path(__file__).parents[2] / "dashboard" / "samples"
    assert gateway.asked("/hf/models/digits")[0].body == (samples / "digit-3.png").read_bytes()
    app.selectbox(key="image_classification.model").set_value("imagenet").run()
    app.pills(key="image_classification.photo").set_value("Coffee").run()
    ask(app, "image_classification")
    asked = gateway.asked("/hf/models/imagenet")[0]
    assert asked.body == (samples / "coffee.jpg").read_bytes()
    assert asked.headers["content-type"] == "image/jpeg"
    assert "tabby" in visible(app)


PICTURES = [("Upload", "my pic.jpg"), ("Camera", "camera.jpg")]
if not hasattr(AppTest, "camera_input"):  # a Streamlit whose AppTest has no camera cannot be asked
    PICTURES = PICTURES[:1]


@pytest.mark.parametrize(("way", "name"), PICTURES)
def test_image_page_sends_what_the_visitor_brings(
    open_page: OpenPage, gateway: ContractGateway, way: str, name: str
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), "teal").save(buffer, "JPEG")
    app = open_page("image_classification")
    app.segmented_control(key="image_classification.way").set_value(way).run()
    widget = app.file_uploader[0] if way == "Upload" else app.camera_input[0]
    widget.upload(name, buffer.getvalue(), "image/jpeg").run()
    ask(app, "image_classification")
    assert gateway.asked("/hf/models/imagenet")[0].body == buffer.getvalue()
    assert name in app.code[0].value


def test_the_first_answers_of_a_model_have_no_estimate_yet(open_page: OpenPage, gateway: ContractGateway) -> None:
    gateway.without_statistics = True
    app = ask(open_page("translation"), "translation")
    metrics = {metric.label: metric.value for metric in app.metric}
    assert (metrics["Compute"], metrics["Cost"]) == ("–", "–")
    assert metrics["Tokens"] == "17"


def test_image_page_refuses_what_is_no_picture(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("image_classification")
    app.segmented_control(key="image_classification.way").set_value("Upload").run()
    app.file_uploader[0].upload("cat.jpg", b"GIF89a....", "image/jpeg").run()
    assert "is not a JPEG, PNG or WebP" in visible(app).replace("\\", "")
    assert app.button(key="image_classification.run").disabled
    assert {request.path for request in gateway.requests} == {"/v1/models"}


def test_examples_follow_the_language_of_the_model(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("text_classification")
    app.selectbox(key="text_classification.model").set_value("topics-zh").run()
    app.pills(key="text_classification.zh.example").set_value("酒店").run()
    assert app.text_area[0].value.startswith("房间很干净")
    ask(app, "text_classification")
    assert gateway.asked("/hf/models/topics-zh")[0].json()["inputs"].startswith("房间很干净")
    assert "书籍" in visible(app)


def test_entities_are_marked_in_the_text(open_page: OpenPage) -> None:
    app = ask(open_page("entities"), "entities")
    marked = next(block for block in html(app) if "<mark" in block)
    assert marked.count("<mark") == 4
    assert "Marie Curie" in marked
    assert "PER" in marked


def test_a_text_without_names_is_said_to_have_none(open_page: OpenPage) -> None:
    app = open_page("entities")
    app.text_area[0].set_value("nobody <script>alert(1)</script>").run()
    ask(app, "entities")
    assert "No names found" in visible(app)
    assert "<script>" not in "".join(html(app))


def test_the_answer_is_marked_in_its_context(open_page: OpenPage) -> None:
    app = ask(open_page("question_answering"), "question_answering")
    marked = next(block for block in html(app) if "<mark" in block)
    assert ">May 27, 1937<" in marked
    assert "0.81" in marked


def test_translation_follows_the_direction(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("translation")
    assert app.selectbox(key="translation.model").value == "translate-zh-en"
    assert "Chinese → English" in visible(app)
    assert "is not ready" in visible(app).replace("\\", "")
    ask(app, "translation")
    assert "in the other language" in visible(app)
    app.selectbox(key="translation.model").set_value("translate-en-fr").run()
    assert "English → French" in visible(app)


def test_markup_in_a_translation_stays_text(open_page: OpenPage) -> None:
    app = open_page("translation")
    app.text_area[0].set_value("![x](http://example.com/x.png)<img src=x>").run()
    ask(app, "translation")
    assert "<img" not in "".join(html(app))
    assert not [block for block in app.markdown if "example.com" in block.value]


def test_similarity_compares_every_pair(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("similarity")
    app.text_area[0].set_value("one\n\n two \nthree").run()
    ask(app, "similarity")
    assert gateway.asked("/hf/models/embeddings/pipeline/feature-extraction")[0].json()["inputs"] == [
        "one",
        "two",
        "three",
    ]
    cells = [row for chart in app.get("vega_lite_chart") for row in rows_of(chart) if "cosine" in row]
    assert len(cells) == 9
    assert {round(cell["cosine"], 3) for cell in cells if cell["row"] == cell["column"]} == {1.0}  # type: ignore[call-overload]
    assert "Closest" in visible(app)


def test_zero_shot_sends_labels_once_each(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("zero_shot")
    app.text_input(key="zero_shot.labels.0").set_value("sea, land ,, sea").run()
    ask(app, "zero_shot")
    sent = gateway.asked("/hf/models/embeddings/pipeline/zero-shot-classification")[0].json()
    assert sent["parameters"] == {"candidate_labels": ["sea", "land"], "multi_label": False}


def test_models_page_shows_cards_with_evidence(open_page: OpenPage) -> None:
    app = open_page("models")
    table = app.dataframe[0].value
    assert list(table["model"])[:2] == ["digits", "imagenet"]
    assert not table.set_index("model").loc["translate-zh-en", "ready"]
    app.selectbox(key="models.card").set_value("sentiment").run()
    shown = visible(app)
    assert "accuracy 0.881 (floor 0.875)" in shown
    assert "1.2e-06 in 9 cases" in shown
    assert "UTC, in" in shown
    assert "Apache-2.0" in shown
    app.selectbox(key="models.card").set_value("identity").run()
    assert "no build evidence" in visible(app)


def test_usage_page_shows_totals_charts_and_records(open_page: OpenPage, gateway: ContractGateway) -> None:
    app = open_page("usage")
    metrics = {metric.label: metric.value for metric in app.metric}
    assert metrics["Requests"] == "25"
    assert metrics["Tokens"] == "680"
    assert {request.query["group_by"] for request in gateway.asked("/admin/usage")} == {"model", "day"}
    assert len(app.get("vega_lite_chart")) == 2
    by_model, latest = (table.value for table in app.dataframe)
    assert list(by_model["cost_usd"]) == pytest.approx([100.0, 200.0]), "below a cent: in millionths of a dollar"
    assert latest["received_at"].dt.tz is not None
    assert list(latest["cost_usd"]) == pytest.approx([1.2])


def test_usage_page_explains_a_key_without_the_right(open_page: OpenPage) -> None:
    shown = visible(open_page("usage", key=INFER_ONLY))
    assert "usage:read" in shown
    assert "tidegate keys create" in shown
