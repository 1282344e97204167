"""Options of a task call: declared as msgspec structs, so that types and ranges are checked in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from gateway.errors import Invalid


class UnknownOptions(Invalid):
    """Options that the task or its model does not have; Hugging Face's wording, which its clients read."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        listed = ", ".join(repr(name[:64]) for name in self.names[:16])
        super().__init__(
            f"The following `model_kwargs` are not used by the model: [{listed}]",
            param=self.names[0][:64] if self.names else None,
        )


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every task's options. A field's default is what the task does without it."""


OptionsType = TypeVar("OptionsType", bound=Options)


def parse_options(kind: type[OptionsType], options: Mapping[str, Any]) -> OptionsType:
    """``options`` as ``kind``; a null is an option not given.

    Raises :class:`UnknownOptions` for names that ``kind`` lacks and ``Invalid`` for a wrong value.
    """
    return parse_fields(kind, options) if options else kind()


StructType = TypeVar("StructType", bound=msgspec.Struct)


def parse_fields(kind: type[StructType], fields: Mapping[str, Any]) -> StructType:
    """``fields`` as the struct ``kind``; raises like :func:`parse_options`."""
    unknown = fields.keys() - set(kind.__struct_fields__)
    if unknown:
        raise UnknownOptions(unknown)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").partition("[")[0].partition(".")[0]
        raise Invalid(f"{name or 'the request'}: {reason[:1].lower()}{reason[1:]}", param=name or None) from error
