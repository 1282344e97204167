"""``report.html`` (self-contained), ``report.md``, ``report.json`` and ``environment.json``."""

from __future__ import annotations

import html
import json
from pathlib import Path

from benchmarks import calibration, runner
from benchmarks.repeatability import doubts, noise_floors
from benchmarks.report.plots import draw
from benchmarks.report.tables import Table, headlines_of, tables
from benchmarks.runner import Results

TEXT = ("remarks", "what")
"""Columns that hold sentences, and may wrap."""
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1440px;margin:2rem auto;padding:0 1rem;color:#1c2733}
table{border-collapse:collapse;font-size:13px;margin:.6rem 0;display:block;overflow-x:auto}
th,td{border-bottom:1px solid #dde3ea;padding:.3rem .6rem;text-align:left;white-space:nowrap}
td.text{white-space:normal;min-width:18rem}
th{background:#f3f6f9}tr.struck td{text-decoration:line-through;color:#8a939c}
.warning{background:#fff4d6;border-left:4px solid #e0a800;padding:.5rem 1rem}svg{max-width:100%;height:auto}
pre{background:#f3f6f9;padding:1rem;overflow-x:auto;font-size:12px}.plots{display:flex;flex-wrap:wrap;gap:1rem}
.plots>div{flex:1 1 520px}
"""


def write(results: Results, folder: Path) -> Path:
    """Everything into ``folder``; returns the path of ``report.html``."""
    folder.mkdir(parents=True, exist_ok=True)
    runner.write(results, folder)
    found = tables(results)
    (folder / "environment.json").write_text(json.dumps(results.environment, indent=2), encoding="utf-8")
    (folder / "report.md").write_text(_markdown(results, found), encoding="utf-8")
    return write_html(results, folder)


def write_html(results: Results, folder: Path) -> Path:
    """``report.html`` alone, from a report's data; returns its path."""
    path = folder / "report.html"
    path.write_text(_html(results, tables(results)), encoding="utf-8")
    return path


def _facts(results: Results) -> list[str]:
    where, software = results.environment["machine"], results.environment["software"]
    git = results.environment["git"]
    commit = (git["commit"][:12] or "unknown") + (" with local changes" if git["dirty"] else "")
    return [
        f"{results.environment['utc']}, commit {commit}, seed {results.seed}, {results.suite.runs} run(s)"
        + (f", run {results.id[:12]}, configuration {results.config_hash[:12]}" if results.id else ""),
        (
            f"{where['processor']}, {where['cores_usable']} cores, {where['memory_bytes'] / 2**30:.0f} GiB, "
            f"Linux {where['kernel']}, Python {software['python']}; GPU: {', '.join(where['gpu']) or 'none'}"
        ),
        f"load generator: {results.environment['network']['load_generator']}; TLS off, keep-alive on",
        f"command: {results.environment['command']}",
        *([calibration.sentence(results.calibration)] if results.calibration else []),
        *(
            f"A/A, {floor.workload} {floor.protocol}: twice the same in turns, ratio {floor.ratio}; "
            f"differences below {floor.size:.1%} mean nothing"
            for floor in noise_floors(results.measurements)
        ),
    ]


def _warnings(results: Results) -> list[str]:
    reasons = [*results.noise, *doubts(headlines_of(results), noise_floors(results.measurements))]
    found = [f"Not for headlines: {reason}." for reason in reasons]
    if results.calibration is not None and results.calibration.verdict == "INVALID":
        found.append(f"The generator's calibration is INVALID: {'; '.join(results.calibration.reasons)}.")
    invalid = sum(not item.valid for item in results.measurements)
    if invalid:
        found.append(f"{invalid} of {len(results.measurements)} measurements are INVALID and appear in no plot.")
    found.extend(f"Skipped: {reason}" for reason in results.skipped)
    return found


def _markdown(results: Results, found: list[Table]) -> str:
    parts = [f"# {results.suite.title}", "\n".join(f"- {fact}" for fact in _facts(results))]
    parts += [f"> {warning}" for warning in _warnings(results)]
    for table in found:
        lines = [f"## {table.title}", ""]
        lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
        for row in table.rows:
            cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row.cells]
            lines.append("| " + " | ".join(f"~~{cell}~~" if row.struck and cell else cell for cell in cells) + " |")
        parts += ["\n".join(lines), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def _html(results: Results, found: list[Table]) -> str:
    title = html.escape(results.suite.title)
    parts = [f"<h1>{title}</h1><ul>", *(f"<li>{html.escape(fact)}</li>" for fact in _facts(results)), "</ul>"]
    warnings = "<br>".join(html.escape(warning) for warning in _warnings(results))
    parts += [f'<p class="warning">{warnings}</p>'] if warnings else []
    parts.append('<div class="plots">')
    parts += [f"<div>{svg}</div>" for svg in draw(results).values()]
    parts.append("</div>")
    parts += [_table(table) for table in found]
    environment = html.escape(json.dumps(results.environment, indent=2))
    parts.append(f"<h2>Environment</h2><pre>{environment}</pre>")
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr{' class=struck' if row.struck else ''}>"
        + "".join(
            f"<td{' class=text' if column in TEXT else ''}>{html.escape(cell)}</td>"
            for column, cell in zip(table.columns, row.cells, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return f"<h2>{html.escape(table.title)}</h2><table><tr>{head}</tr>{rows}</table>{note}"
