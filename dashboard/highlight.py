"""Text with marked spans, as HTML in which everything that came from outside is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#14a394", "#3b82f6", "#f59e0b", "#8b5cf6", "#ec4899", "#84cc16", "#ef4444", "#06b6d4")


@dataclass(slots=True, frozen=True)
class Mark:
    """A span to mark: ``start`` and ``end`` count characters, ``label`` may be empty."""

    start: int
    end: int
    label: str
    colour: str


def colours_by_label(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label, the same for the same set of labels."""
    return {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(sorted(set(labels)))}


def marked(text: str, marks: Sequence[Mark]) -> str:
    """HTML of ``text`` with its ``marks``; marks that overlap an earlier one or lie outside are left out."""
    pieces: list[str] = []
    position = 0
    for mark in sorted(marks, key=lambda mark: (mark.start, -mark.end)):
        if mark.start < position or not mark.start < mark.end <= len(text):
            continue
        pieces += [html.escape(text[position : mark.start]), _mark(text[mark.start : mark.end], mark)]
        position = mark.end
    pieces.append(html.escape(text[position:]))
    return f'<div style="line-height:2.1;white-space:pre-wrap;overflow-wrap:anywhere">{"".join(pieces)}</div>'


def headline(text: str) -> str:
    """HTML of ``text`` in large type."""
    style = "font-size:1.5em;font-weight:650;line-height:1.35;overflow-wrap:anywhere"
    return f'<div style="{style}">{html.escape(text)}</div>'


def facts(items: Mapping[str, str]) -> str:
    """HTML of names and values, one pair a row."""
    name_style = "padding:.3em 1.2em .3em 0;opacity:.65;vertical-align:top;white-space:nowrap"
    value_style = "padding:.3em 0;overflow-wrap:anywhere"
    rows = "".join(
        f'<tr><td style="{name_style}">{html.escape(name)}</td><td style="{value_style}">{html.escape(value)}</td></tr>'
        for name, value in items.items()
    )
    return f'<table style="border-collapse:collapse;font-size:.95em">{rows}</table>'


def literal(text: str) -> str:
    """``text`` for a place that reads Markdown, in which nothing of it is read as Markdown."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$:])", r"\\\1", text)


def _mark(text: str, mark: Mark) -> str:
    label = (
        f'<span style="font-size:.68em;font-weight:700;letter-spacing:.04em;margin-left:.45em;color:{mark.colour}">'
        f"{html.escape(mark.label)}</span>"
        if mark.label
        else ""
    )
    return (
        f'<mark style="background:{mark.colour}2e;color:inherit;border-bottom:2px solid {mark.colour};'
        f'border-radius:.35em;padding:.12em .35em">{html.escape(text)}{label}</mark>'
    )
