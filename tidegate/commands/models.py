"""``tidegate models``: list, build, show, evaluate, add, verify, remove.

What needs torch is imported where it is needed: `list`, and a start with everything built, do without.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import ValidationError

from gateway.catalog import Catalog, CatalogError, ModelCard, Recipe, Source, TaskName, read_card, verify_hash
from gateway.errors import GatewayError
from gateway.settings import Settings
from tidegate.console import (
    JsonFlag,
    complain,
    err,
    fail,
    file_error,
    load_settings,
    print_json,
    print_table,
    progress,
)
from zoo.errors import ZooError
from zoo.freshness import is_fresh

if TYPE_CHECKING:
    from zoo.build import Builder

app = typer.Typer(
    help="The models: list, build, show, evaluate, add, verify, remove.\n\nExample: `tidegate models list`",
    no_args_is_help=True,
)

Names = Annotated[list[str] | None, typer.Argument(help="Models; default: all.", show_default=False)]
Name = Annotated[str, typer.Argument(help="A model's name.")]


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List the models with what their build and evaluation left; `show` and `--json` name the scores' metrics.

    Example: `tidegate models list --json`
    """
    cards = list(_catalog(load_settings()))
    if as_json:
        print_json([_summary(card) for card in cards])
        return
    rows = [
        (
            card.name,
            card.recipe.task or "none (raw)",
            card.recipe.format + ("" if card.recipe.quantisation == "none" else ", int8"),
            _state(card),
            _parity(card),
            " / ".join(f"{item.value:.4g}" for item in card.recipe.evaluations if item.value is not None),
            f"{card.evidence.model_bytes / 1e6:.1f} MB" if card.evidence else "",
        )
        for card in cards
    ]
    print_table("Models", ("name", "task", "format", "built", "parity", "score", "size"), rows)


@app.command()
def show(name: Name, as_json: JsonFlag = False) -> None:
    """Show a model's card: its recipe and the evidence of its build.

    Example: `tidegate models show sentiment --json`
    """
    card = _card(load_settings(), name)
    shown = {**card.public(), "state": _state(card), "folder": str(card.folder)}
    if as_json:
        print_json(shown)
    else:
        print_table("Model", ("field", "value"), _fields(shown))


@app.command()
def build(
    names: Names = None,
    force: Annotated[bool, typer.Option("--force", help="Build what is up to date, too.")] = False,
) -> None:
    """Build the models that are missing or not up to date: export, validate, configure.

    Example: `tidegate models build sentiment qa --force`
    """
    built = build_missing(load_settings(), tuple(names or ()), force=force)
    err.print(f"built: {', '.join(built)}" if built else "everything is up to date", highlight=False)


def stale_models(settings: Settings, names: Sequence[str] = ()) -> list[ModelCard]:
    """Those of the models ``names`` (none: all) that are not up to date; a moment's work, without torch."""
    try:
        return [card for card in Catalog.load(settings.model_repository, tuple(names)) if not is_fresh(card)]
    except CatalogError as error:
        fail(str(error))


def build_missing(settings: Settings, names: Sequence[str] = (), *, force: bool = False) -> list[str]:
    """Build those of the models ``names`` (none: all) that are not up to date; the names of those built.

    Says in one line what went wrong, for each model that could not be built, and exits with 1.
    """
    try:
        cards = list(Catalog.load(settings.model_repository, tuple(names)))
        stale = cards if force else stale_models(settings, names)
    except CatalogError as error:
        fail(str(error))
    if not stale:
        return []
    built, failures = _build_all(_builder(settings), stale, force=force)
    for failure in failures[:-1]:
        complain(failure)
    if failures:
        fail(failures[-1])
    return built


def _build_all(builder: Builder, cards: Sequence[ModelCard], *, force: bool) -> tuple[list[str], list[str]]:
    from zoo.build import STEPS  # noqa: PLC0415 - brings torch, as the builder did

    built: list[str] = []
    failures: list[str] = []
    with progress() as bar:
        models = bar.add_task("building models", total=len(cards))
        steps = bar.add_task("", total=len(STEPS))
        for card in cards:
            bar.reset(steps, total=len(STEPS), description=card.name)

            def on_step(step: str, name: str = card.name) -> None:
                bar.update(steps, description=f"{name}: {step}", completed=STEPS.index(step))

            try:
                outcome = builder.build(card, force=force, step=on_step)
            except (ZooError, CatalogError) as error:
                failures.append(str(error))
            else:
                built += [card.name] if outcome.built else []
            bar.update(steps, completed=len(STEPS))
            bar.advance(models)
        bar.update(steps, visible=False)
    return built, failures


@app.command()
def evaluate(
    name: Name,
    data: Annotated[Path, typer.Option(help="Folder of the public data sets.", exists=True, file_okay=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples; nothing is written.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a built model's task score and write it into its recipe; below the floor: exit code 1.

    Example: `tidegate models evaluate sentiment --data ~/data`
    """
    settings = load_settings()
    card = _card(settings, name)
    with _needs_zoo("evaluating"):
        from zoo.evaluate import Evaluator, below_floor  # noqa: PLC0415 - brings torch
        from zoo.recipes import write_evaluations  # noqa: PLC0415 - brings torch
    with _one_line(), progress() as bar:
        task = bar.add_task(f"evaluating {name}", total=None)
        evaluator = Evaluator(card, settings, lambda done, total: bar.update(task, completed=done, total=total))
        found = evaluator.evaluate(data, limit=limit)
    if as_json:
        print_json([item.model_dump(mode="json") for item in found])
    else:
        rows = [(item.metric, item.value, item.floor, item.samples, item.dataset, item.split) for item in found]
        print_table(name, ("metric", "value", "floor", "samples", "data set", "split"), rows)
    if limit is not None:
        return
    complaints = below_floor(found)
    if complaints:
        fail(f"{name}: {'; '.join(complaints)}; the recipe is left as it was")
    with _one_line():
        write_evaluations(card.folder / "model.yaml", found)


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="Hub id (owner/name) or folder of a transformers checkpoint.")],
    task: Annotated[str, typer.Option("--task", "-T", help="Hugging Face's name of the task.")],
    name: Annotated[str | None, typer.Option(help="Name to serve it under; default: the last part of SOURCE.")] = None,
    labels: Annotated[str | None, typer.Option(help="Comma-separated labels, in the order of the classes.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model of that name.")] = False,
) -> None:
    """Make a recipe from a checkpoint of a hub or a folder, and build it.

    Only safetensors are loaded, and no code of the checkpoint is run.

    Example: `tidegate models add distilbert/distilbert-base-uncased-finetuned-sst-2-english --task text-classification`
    """
    settings = load_settings()
    if task not in get_args(TaskName):
        fail(f"unknown task {task!r}; there are: {', '.join(get_args(TaskName))}")
    builder = _builder(settings)
    with _needs_zoo("adding a model"):
        from zoo.adding import default_name, describe  # noqa: PLC0415 - brings torch
        from zoo.recipes import write_recipe  # noqa: PLC0415 - brings torch
    chosen = name or default_name(source)
    folder = settings.model_repository / chosen
    if folder.exists() and not force:
        fail(f"there is a model {chosen!r} already; --force replaces it, --name gives another name")
    is_folder = Path(source).is_dir()
    origin = Source(
        kind="local" if is_folder else "hub",
        name=str(Path(source).resolve()) if is_folder else source,
        revision=None if is_folder else revision,
    )
    with _one_line():
        try:
            recipe = describe(chosen, origin, task, labels=_split(labels))
        except ValidationError as error:
            problem = error.errors()[0]
            fail(f"{chosen}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}")
        _add(builder, folder, recipe, write_recipe)
    typer.echo(f"added {chosen}: {folder / 'model.yaml'}")


def _add(builder: Builder, folder: Path, recipe: Recipe, write_recipe: Any) -> None:
    """Write the recipe and build it; a model that was new and cannot be built leaves nothing."""
    path = folder / "model.yaml"
    before = path.read_bytes() if path.is_file() else None
    folder.mkdir(parents=True, exist_ok=True)
    done = False
    try:
        write_recipe(path, recipe)
        _, failures = _build_all(builder, [read_card(folder)], force=True)
        if failures:
            fail(failures[0])
        done = True
    finally:
        if not done and before is not None:
            path.write_bytes(before)
        elif not done:
            shutil.rmtree(folder)


@app.command()
def verify(names: Names = None, as_json: JsonFlag = False) -> None:
    """Check the built files against the hashes of the build that validated them.

    Example: `tidegate models verify`
    """
    results = {card.name: _hash_result(card) for card in _catalog(load_settings(), tuple(names or ()))}
    if as_json:
        print_json(results)
    else:
        print_table("Hashes", ("model", "result"), results.items())
    if any(result != "ok" for result in results.values()):
        raise typer.Exit(1)


@app.command()
def remove(
    name: Name,
    built_only: Annotated[bool, typer.Option("--built-only", help="Keep the recipe, delete what was built.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model: its recipe and everything built from it.

    Example: `tidegate models remove my-model --yes`
    """
    card = _card(load_settings(), name)
    if not yes:
        typer.confirm(f"Remove {'what was built of ' if built_only else ''}{name}?", abort=True)
    with _one_line():
        for path in card.folder.iterdir() if built_only else (card.folder,):
            if built_only and path.name == "model.yaml":
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    err.print(f"removed {name}", highlight=False)


# --- what the commands share


def _catalog(settings: Settings, names: tuple[str, ...] = ()) -> Catalog:
    try:
        return Catalog.load(settings.model_repository, names)
    except CatalogError as error:
        fail(str(error))


def _card(settings: Settings, name: str) -> ModelCard:
    card = _catalog(settings, (name,)).get(name)
    assert card is not None  # noqa: S101 - load() refuses names it does not have
    return card


def _builder(settings: Settings) -> Builder:
    with _needs_zoo("building models"):
        from zoo.build import Builder  # noqa: PLC0415 - brings torch

        return Builder(settings)


@contextlib.contextmanager
def _needs_zoo(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        fail(f"{what} needs the package {error.name or error}; `pip install 'tidegate[zoo]'` brings it")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What the zoo raises, as the command's one line."""
    try:
        yield
    except (ZooError, CatalogError, GatewayError) as error:
        fail(str(error))
    except OSError as error:
        fail(file_error(error))


def _hash_result(card: ModelCard) -> str:
    try:
        verify_hash(card)
    except CatalogError as error:
        return str(error)
    return "ok"


def _split(labels: str | None) -> tuple[str, ...]:
    return tuple(label.strip() for label in (labels or "").split(",") if label.strip())


def _state(card: ModelCard) -> str:
    """``yes``, ``no``, or ``outdated`` for a build of other sources than those of now."""
    if not card.built:
        return "no"
    return "yes" if is_fresh(card) else "outdated"


def _parity(card: ModelCard) -> str:
    evidence = card.evidence
    if evidence is None:
        return ""
    if card.recipe.parity.cosine is not None:
        return f"cos {evidence.parity_min_cosine:.3f}"
    return f"{evidence.parity_max_abs_error:.0e}"


def _fields(card: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A card as rows: ``parity.atol`` for what lies within; lists of plain values in one cell."""
    for name, value in card.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
            yield from _fields({str(number): item for number, item in enumerate(value)}, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def _summary(card: ModelCard) -> dict[str, Any]:
    evidence = card.evidence
    return {
        "name": card.name,
        "task": card.recipe.task,
        "format": card.recipe.format,
        "quantisation": card.recipe.quantisation,
        "built": _state(card),
        "parity_max_abs_error": evidence.parity_max_abs_error if evidence else None,
        "parity_min_cosine": evidence.parity_min_cosine if evidence else None,
        "golden_passed": evidence.golden_passed if evidence else None,
        "evaluations": [item.model_dump(mode="json") for item in card.recipe.evaluations],
        "bytes": evidence.model_bytes if evidence else None,
        "licence": card.recipe.licence,
    }
