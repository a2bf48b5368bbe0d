"""The base of all records: frozen and strict, with one-line errors."""

import reprlib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """An error in a settings file; the message is one line that names the file and the key."""


class Section(BaseModel):
    """A frozen record that rejects unknown keys; the docstring under a field becomes its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def ascending(pair: tuple[float, float]) -> tuple[float, float]:
    """Validates a range. Raises `ValueError` where the first value is larger than the second."""
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} does not ascend: put the smaller value first")
    return pair


Scale = Literal[2, 4]
Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[tuple[float, float], AfterValidator(ascending)]

S = TypeVar("S", bound=Section)

SHOWN_ERRORS = 5  # of one file


def parse(record: type[S], values: Any, where: str) -> S:
    """Builds a record from plain values. Raises `ConfigError`, which names `where`, each wrong key and the remedy."""
    try:
        return record.model_validate(values)
    except ValidationError as error:
        shown = [_describe(e) for e in error.errors()[:SHOWN_ERRORS]]
        more = error.error_count() - len(shown)
        raise ConfigError(f"{where}: {'; '.join(shown)}" + (f"; and {more} more" if more else "")) from None


def _describe(error: Any) -> str:
    path = short(".".join(str(part) for part in error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key `{path}`: correct its spelling or remove it"
    if error["type"] == "missing":
        return f"key `{path}` is missing: add it"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"`{path}` = {_shown(error['input'])}: {message}" if path and not isinstance(error["input"], dict) else message
    )


def short(text: str, most: int = 120) -> str:
    """Text from a file on one line, cut to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _shown(value: Any) -> str:
    """A value from a file, shortened: aliases make a small file's value large, and a number can have any length."""
    try:
        return short(reprlib.repr(value))
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "a number of thousands of digits"
