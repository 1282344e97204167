"""What all pages share: the sidebar with the key, the head of a page, the panel beside an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import charts, examples, session
from dashboard.client import Answer, GatewayFailure, Metering, Model
from dashboard.highlight import headline, literal, marked
from dashboard.snippets import KEY_VARIABLE, Snippet

T = TypeVar("T")
P = ParamSpec("P")

_ENTRY = "key_entry"
_NOTICE = "key_notice"
_ESTIMATE = (
    "Estimated from the compute time of recent requests; the ledger settles what was measured. "
    "The first requests of a model have nothing to be estimated from yet."
)


@dataclass(slots=True, frozen=True)
class Shown(Generic[T]):
    """An answer kept for the session, with what it answers and how to ask for it elsewhere."""

    answer: Answer[T]
    model: str
    asked: str
    """What was asked, as the page shows it beside the answer."""
    snippet: Snippet


# --- sidebar


def sidebar() -> None:
    """The key: entered, replaced or forgotten; never shown."""
    with st.sidebar:
        st.markdown("##### API key")
        if session.key():
            st.markdown(f":material/key: Using `{session.key_label()}`")
            st.button("Forget the key", on_click=session.forget_key, key="forget_key", width="stretch")
        else:
            _key_form()
        st.caption("The key stays in this browser session. It is sent to the gateway and nowhere else.")


def _key_form() -> None:
    with st.form("key_form", border=False, enter_to_submit=True):
        st.text_input(
            "API key", key=_ENTRY, type="password", placeholder="tg_live_…", label_visibility="collapsed",
            autocomplete="off", max_chars=512,
        )  # fmt: skip
        st.form_submit_button("Use this key", on_click=_take_entered_key, type="primary", width="stretch")
    if session.demo_key_available():
        st.button("Use the demo key", on_click=_take_demo_key, key="use_demo_key", width="stretch")
    if notice := st.session_state.pop(_NOTICE, None):
        st.warning(notice)


def _take_entered_key() -> None:
    session.use_key(str(st.session_state.get(_ENTRY) or ""))
    st.session_state[_ENTRY] = ""
    if not session.key():
        st.session_state[_NOTICE] = "Enter a key first."


def _take_demo_key() -> None:
    try:
        session.use_demo_key()
    except GatewayFailure as failure:
        st.session_state[_NOTICE] = str(failure)


# --- page


def head(title: str, caption: str) -> None:
    """Title and one sentence."""
    st.title(title, anchor=False)
    st.caption(caption)


def columns() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Input and answer side by side; one above the other where the window is narrow."""
    left, right = st.columns([5, 6], gap="large")
    return left, right


@contextmanager
def failures() -> Iterator[None]:
    """Show a :class:`GatewayFailure` of the block as one line."""
    try:
        yield
    except GatewayFailure as failure:
        show_failure(failure)


def show_failure(failure: GatewayFailure) -> None:
    """One line, in the colour of whose turn it is, with the request id for support."""
    text = literal(str(failure)) + (f"  \nRequest `{failure.request_id}`" if failure.request_id else "")
    if failure.kind in {"key", "forbidden", "budget", "busy", "input"}:
        st.warning(text, icon=":material/info:")
    else:
        st.error(text, icon=":material/cloud_off:")


def choose_model(task: str, *, name: str) -> Model | None:
    """The model to ask, of those that serve ``task``; None (and a line that says why) if there is none."""
    if not session.key():
        st.info("Enter an API key in the sidebar to try this.", icon=":material/key:")
        return None
    try:
        serving = session.models(task)
    except GatewayFailure as failure:
        show_failure(failure)
        return None
    if not serving:
        st.info("None of the models that this key may use serves this task.", icon=":material/inbox:")
        return None
    by_name = {model.name: model for model in sorted(serving, key=_preference)}
    chosen = st.selectbox(
        "Model", list(by_name), format_func=lambda item: f"{item} · {by_name[item].title}", key=f"{name}.model"
    )
    model = by_name[chosen or next(iter(by_name))]
    if not model.ready:
        st.warning(literal(f"{model.name} is not ready; it may not answer yet."), icon=":material/schedule:")
    return model


def _preference(model: Model) -> tuple[bool, int, str]:
    """Place in the list: what most visitors try first, then by name."""
    first = model.name in examples.FIRST_CHOICES
    return (not first, examples.FIRST_CHOICES.index(model.name) if first else 0, model.name)


def example(name: str, choices: Mapping[str, T]) -> tuple[T, str]:
    """The example that is chosen, at first the first, and an ending for the keys of the widgets that it fills.

    Another example means another widget, with that example as its default: each keeps what the visitor
    made of it, and no text is pushed into a field that the browser may not have drawn yet.
    """
    names = list(choices)
    chosen = st.pills("Examples", names, default=names[0], required=True, key=f"{name}.example") or names[0]
    return choices[chosen], str(names.index(chosen))


def ask(name: str, run: Callable[P, Shown[T]], *arguments: P.args, **options: P.kwargs) -> None:
    """Run one request with a spinner and keep its answer under the page's ``name``."""
    st.session_state.pop(f"{name}.answer", None)
    with failures(), st.spinner("Asking the gateway…"):
        st.session_state[f"{name}.answer"] = run(*arguments, **options)


def kept(name: str, hint: str) -> Any:
    """Return the page's last :class:`Shown`; None, and ``hint`` in its place, if there is none."""
    shown = st.session_state.get(f"{name}.answer")
    if shown is None:
        st.container(border=True).caption(hint)
    return shown


def plain(text: str) -> None:
    """``text`` as it is, in the page's own type: no markup in it has any effect."""
    st.html(marked(text, ()))


def big(text: str) -> None:
    """``text`` as it is, in large type."""
    st.html(headline(text))


# --- beside an answer


def metering(shown: Shown[T]) -> None:
    """What the request took and cost, and the lines that do the same."""
    _numbers(shown.answer.metering)
    st.altair_chart(charts.latency_split(shown.answer.metering), alt="Where the milliseconds went, stage by stage")
    _snippet(shown.snippet)


def _numbers(measured: Metering) -> None:
    boxes = st.columns(4, gap="small")
    boxes[0].metric("Time", milliseconds(measured.elapsed_ms), help="From sending the request to the last byte.")
    # A model's first requests have no statistics to be estimated from: that is unknown, not free.
    known = bool(measured.compute_ms)
    boxes[1].metric("Compute", milliseconds(measured.compute_ms) if known else "–", help=_ESTIMATE)
    if measured.pixels:
        boxes[2].metric("Pixels", f"{measured.pixels:,}")
    else:
        boxes[2].metric("Tokens", f"{measured.tokens:,}")
    cost = dollars(measured.cost_usd) if known else "–"
    boxes[3].metric("Cost", cost, help=f"{_ESTIMATE} USD for this request, in usage record {measured.usage_id}.")


def _snippet(snippet: Snippet) -> None:
    curl, python = st.tabs(["curl", "Python"])
    curl.code(snippet.curl, language="bash", wrap_lines=True)
    python.code(snippet.python, language="python", wrap_lines=True)
    st.caption(f"Put your key into `{KEY_VARIABLE}` first: `export {KEY_VARIABLE}=tg_live_…`. {snippet.note}")


def milliseconds(value: float | None) -> str:
    """``12.3 ms``; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def dollars(value: float | None) -> str:
    """Cost of one request in the unit that shows its digits: ``$0.0123`` or, below a cent, ``12.3 µ$``."""
    if value is None:
        return "–"
    return f"${value:,.4f}" if value >= 0.01 or value == 0 else f"{value * 1e6:,.2f} µ$"
