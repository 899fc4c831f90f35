"""Checks of values from outside, as JSON gives them, against a form; the first that differs is named.

    form = fields({"name": text(200), "sizes": list_of(whole(1, 4096), most=8)}, others=plain)
    check(parse_json(content), form)           # SchemaError: sizes[3]: found 1e+30, wanted a whole number of 1 to 4096

A form is a function that takes a value and the place where it stands. Whatever passes is finite, and as deep, as long
and of the types that its form says. The standard library is all that this needs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

MOST_DEEP = 32  # levels of lists and objects, of what no form describes further
MOST_TEXT = 20_000  # characters of such a text
MOST_NUMBER = 1e300  # of such a number, either sign

Form = Callable[[Any, str], None]


class SchemaError(ValueError):
    """Error where a value does not have its form: the place, what was found, what was wanted."""


def parse_json(content: bytes | str) -> Any:
    """Value of a JSON text, whatever it is: no NaN, no Infinity, no number too long to be one.

    Raises:
        SchemaError: not JSON, not UTF-8, or nested more deeply than can be read.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise SchemaError("not JSON that can be read (nested too deeply)") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise SchemaError(f"not JSON ({error})") from error


def check(value: Any, form: Form, where: str = "") -> None:
    """Raise SchemaError unless a value has this form."""
    form(value, where)


def whole(least: int, most: int) -> Form:
    """Form of a whole number in this range."""

    def form(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            _refuse(where, value, f"a whole number of {least} to {most}")

    return form


def number(least: float = -MOST_NUMBER, most: float = MOST_NUMBER) -> Form:
    """Form of a number in this range."""

    def form(value: Any, where: str) -> None:
        if type(value) not in (int, float) or not least <= value <= most:  # NaN is in no range
            _refuse(where, value, "a finite number" if most == MOST_NUMBER else f"a number of {least:g} to {most:g}")

    return form


def text(most: int = MOST_TEXT, pattern: str = "", wanted: str = "") -> Form:
    """Form of a text of at most so many characters, which match the pattern as a whole."""
    compiled = re.compile(pattern, re.DOTALL)

    def form(value: Any, where: str) -> None:
        if type(value) is not str or len(value) > most or (pattern and not compiled.fullmatch(value)):
            _refuse(where, value, wanted or f"a text of at most {most} characters")

    return form


def flag(value: Any, where: str) -> None:
    """Form of true or false."""
    if type(value) is not bool:
        _refuse(where, value, "true or false")


def one_of(*values: Any) -> Form:
    """Form of one of these values."""

    def form(value: Any, where: str) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            _refuse(where, value, f"one of {', '.join(map(repr, values))}")

    return form


def maybe(form: Form) -> Form:
    """Form of null, or of a value of this form."""
    return lambda value, where: None if value is None else form(value, where)


def either(*forms: Form) -> Form:
    """Form of a value that has one of these forms; the last says what is wanted."""

    def form(value: Any, where: str) -> None:
        for one in forms[:-1]:
            try:
                return one(value, where)
            except SchemaError:
                continue
        return forms[-1](value, where)

    return form


def list_of(item: Form, *, least: int = 0, most: int = 10_000) -> Form:
    """Form of a list of such items."""

    def form(value: Any, where: str) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            _refuse(where, value, f"a list of {least} to {most}")
        for index, one in enumerate(value):
            item(one, f"{where}[{index}]")

    return form


def map_of(item: Form, *, key: Form | None = None, most: int = 10_000) -> Form:
    """Form of an object whose values are such items; its keys are texts of any content unless `key` says more."""

    def form(value: Any, where: str) -> None:
        _require_object(value, where, most)
        for name, one in value.items():
            if key is not None:
                key(name, f"{where}, key")
            item(one, _inside(where, name))

    return form


def fields(
    required: Mapping[str, Form], optional: Mapping[str, Form] | None = None, others: Form | None = None
) -> Form:
    """Form of an object with these fields; one that is in neither must have the form `others`, and none is unknown."""
    known = {**required, **(optional or {})}

    def form(value: Any, where: str) -> None:
        _require_object(value, where, 10_000)
        missing = [name for name in required if name not in value]
        if missing:
            raise SchemaError(f"{where or 'it'}: lacks {', '.join(missing)}")
        for name, one in value.items():
            inner = known.get(name, others)
            if inner is None:
                raise SchemaError(f"{_inside(where, name)}: unknown; known here: {', '.join(known)}")
            inner(one, _inside(where, name))

    return form


def plain(value: Any, where: str, deep: int = 0) -> None:
    """Form of any value that JSON can hold: finite, and within the limits at the top of this file."""
    if value is None or type(value) is bool:
        return
    if type(value) is str:
        text()(value, where)
    elif type(value) in (int, float):
        number()(value, where)
    elif deep == MOST_DEEP or type(value) not in (list, dict):
        _refuse(where, value, f"values of JSON, at most {MOST_DEEP} levels deep")
    elif type(value) is list:
        list_of(lambda one, at: plain(one, at, deep + 1), most=1_000_000)(value, where)
    else:
        map_of(lambda one, at: plain(one, at, deep + 1), most=1_000_000)(value, where)


def _require_object(value: Any, where: str, most: int) -> None:
    if type(value) is not dict or len(value) > most or not all(type(name) is str for name in value):
        _refuse(where, value, f"an object of at most {most} fields")


def _inside(where: str, name: str) -> str:
    return f"{where}.{_brief(name)}" if where else _brief(name)


def _brief(name: str) -> str:
    return name if len(name) < 80 and name.isprintable() else _shortened(repr(name))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _refuse(where: str, value: Any, wanted: str) -> NoReturn:
    raise SchemaError(f"{where or 'it'}: found {_shown(value)}, wanted {wanted}")


def _shown(value: Any) -> str:
    if type(value) in (list, dict):  # which may be nested as deeply as printing cannot follow
        return f"{'a list' if type(value) is list else 'an object'} of {len(value)}"
    if type(value) is int and abs(value) > 10**30:  # printing one of thousands of digits takes long, or is refused
        return f"a whole number of about 10^{int(math.log10(abs(value)))}"
    return _shortened(repr(value))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}, wanted finite numbers")
