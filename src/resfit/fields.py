"""Convert frozen dataclasses to plain data (YAML, JSON) and back, with strict checks that name the wrong field."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from resfit.errors import BadField, BadInput, unreadable

T = TypeVar("T")


def from_plain(kind: type[T], data: object, where: str = "") -> T:
    """Build the dataclass `kind` from mappings, lists and scalars; raise BadInput naming the wrong field."""
    return _convert(kind, data, where)  # type: ignore[no-any-return]


def omitted_at_default(default: T) -> T:
    """Return a dataclass field that `to_plain` omits if it has its default value.

    For fields added after a release: files and digests that do not use them stay identical, byte for byte.
    """
    found: T = dataclasses.field(default=default, metadata={"omitted_at_default": True})
    return found


def to_plain(value: object, *, whole: bool = False) -> Any:
    """Convert to mappings, lists and scalars, from which `from_plain` restores an equal value.

    `whole`: include fields that are omitted at their default.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
        kept = [(f, v) for f, v in values if whole or not (f.metadata.get("omitted_at_default") and v == f.default)]
        return {f.name: to_plain(v, whole=whole) for f, v in kept}
    if isinstance(value, Mapping):
        return {key: to_plain(item, whole=whole) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, whole=whole) for item in value]
    return value


def read_yaml(path: Path) -> object:
    """Load a YAML file safely; raise BadInput, with the line of a syntax error, if it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_YAML + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path} ({error}): give a readable YAML file") from None
    return parse_yaml(text, str(path))


def json_file(path: str | Path, name: str, what: str) -> Path:
    """Return the JSON file at `path`, or `name` in the folder `path`; raise BadInput if it is missing or not .json."""
    file = Path(path)
    file = file / name if file.is_dir() else file
    if not file.exists():
        raise BadInput(f"no {what} ({file}): give a folder that holds a {name}")
    if file.suffix != ".json":
        raise BadInput(f"not a {what} ({file}): give a folder that holds a {name}")
    return file


def read_json(file: Path, what: str) -> Any:
    """Load a JSON file, described by `what` in errors; raise BadInput if it is unreadable or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(what, file, error) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"damaged {what} ({file}): {error}") from None


def from_json(kind: type[T], file: Path, what: str) -> T:
    """Load the dataclass `kind` from a JSON file, described by `what` in errors; raise BadInput if it is damaged."""
    plain = read_json(file, what)
    try:
        return from_plain(kind, plain)
    except BadInput as error:
        raise BadInput(f"damaged {what} ({file}): {error}") from None


def parse_yaml(text: str, where: str) -> object:
    """Load YAML text safely; raise BadInput if it is invalid or, with aliases expanded, far larger than any recipe."""
    if len(text) > _MOST_YAML:
        raise BadInput(f"more than {_MOST_YAML:,} characters ({where}): give a recipe or a spec")
    try:
        data: object = yaml.load(text, _Loader)
        _count_values(data, {})
    except _TooMany:
        raise BadInput(f"its aliases expand to too many values ({where}): write it without them") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise BadInput(f"not valid YAML ({where}{line}): {problem}") from None
    return data


_MOST_YAML = 2**20  # characters
_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """The safe loader, which also rejects what PyYAML silently takes for something else.

    Of duplicate keys it takes the last one; 010 is 8 to it, and 1:30 is 90.
    """

    def construct_yaml_int(self, node: Any) -> int:
        value: int = super().construct_yaml_int(node)
        digits = node.value.lstrip("+-").replace("_", "")
        if ":" in digits or (digits[0] == "0" and digits[1:].isdecimal()):
            problem = f"{node.value} would be read as {value}, write a decimal number or put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return node


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _TooMany(Exception):
    """The data has more values than any recipe."""


def _count_values(data: object, known: dict[int, int]) -> int:
    """Count the values in `data` with aliases expanded; raise _TooMany above the limit or for a recursive alias."""
    if not isinstance(data, dict | list):
        return 1
    if id(data) not in known:
        known[id(data)] = _MOST_VALUES + 1
        inner = [*data, *data.values()] if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_count_values(item, known) for item in inner)
    if known[id(data)] > _MOST_VALUES:
        raise _TooMany
    return known[id(data)]


def write_yaml(value: object) -> str:
    """Return `value` as YAML text, fields in their declared order."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, width=100)


def override(data: Mapping[str, Any], dotted: str, value: object) -> dict[str, Any]:
    """Return a copy of `data` with the field at `dotted` ("train.epochs", "spec.stages.0.blocks") replaced."""
    replaced: dict[str, Any] = _overridden(data, dotted.split("."), value, dotted)
    return replaced


def _overridden(inner: object, path: list[str], value: object, dotted: str) -> Any:
    """Return `inner` with the value at `path` replaced; `dotted` is the whole path, for errors."""
    if not path:
        return value
    head, *rest = path
    if isinstance(inner, list) and head.isdecimal() and int(head) < len(inner):
        return [_overridden(item, rest, value, dotted) if n == int(head) else item for n, item in enumerate(inner)]
    if isinstance(inner, list) and (rest or head.isdecimal()):
        allowed = f"0 to {len(inner) - 1}" if inner else "the whole list"
        raise BadInput(f"no item {head} in a list of {len(inner)} ({dotted}): give {allowed}")
    known = inner if isinstance(inner, Mapping) else {}
    return {**known, head: _overridden(known.get(head), rest, value, dotted)}


def is_within(field: str, path: str) -> bool:
    """Return whether the dotted `field` is `path` or a part of it; `*` in `path` stands for any one name."""
    own, wanted = field.split("."), path.split(".")
    return len(own) >= len(wanted) and all(want in ("*", key) for key, want in zip(own, wanted, strict=False))


def differences(old: object, new: object, where: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted path, old value, new value) of each field in which two plain values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = [*old, *(name for name in new if name not in old)]
        inner = [(f"{where}.{name}" if where else str(name), old.get(name), new.get(name)) for name in names]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = [(f"{where}.{n}", *pair) for n, pair in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [(where, old, new)]
    return [difference for path, a, b in inner for difference in differences(a, b, path)]


class Plain:
    """Base class of dataclasses that convert to plain data and back."""

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Self:
        """Build from plain data; raise BadInput with the wrong field's path, within `where`, and what is allowed."""
        return from_plain(cls, data, where)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, from which `from_dict` restores an equal value."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_yaml(self) -> str:
        """Return the plain data as YAML text."""
        return write_yaml(self)


class Config(Plain):
    """Base class of dataclasses that check the types of their scalar fields, also when constructed in Python.

    Raises BadField for a value of another type. Data from a file is converted first (`from_plain`).
    """

    def __post_init__(self) -> None:
        own: Any = type(self)
        for name, kinds, choices in _plain_fields(own):
            value = getattr(self, name)
            if type(value) not in kinds and value not in choices:
                words = " or ".join(_SCALARS[kind] for kind in kinds if kind in _SCALARS)
                advice = nearest(str(value), map(str, choices)) if choices else f"give {words}"
                raise BadField(f"{_short(value)} is not allowed", name, advice)


@cache
def _plain_fields(kind: type) -> list[tuple[str, frozenset[type], tuple[Any, ...]]]:
    """Return name, allowed types and allowed literals of each scalar field of a dataclass."""
    found = []
    for name, hint in _hints(kind).items():
        either = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        choices = tuple(value for each in either if get_origin(each) is Literal for value in get_args(each))
        kinds = {each for each in either if isinstance(each, type)} | ({int} if float in either else set())
        if all(each in _SCALARS or each is NoneType or get_origin(each) is Literal for each in either):
            found.append((name, frozenset(kinds), choices))
    return found


def leaves(value: object, where: str = "") -> dict[str, Any]:
    """Return the leaf values of plain data by dotted path ("spec.stages.0.channels"); an empty container is a leaf."""
    if not isinstance(value, Mapping | list | tuple) or not value:
        return {where: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    inner = [leaves(item, f"{where}.{key}" if where else str(key)) for key, item in items]
    return {path: leaf for part in inner for path, leaf in part.items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return advice for an error message: the most similar known name, or all names if none is similar."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _convert(hint: Any, data: object, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or (origin is dict and isinstance(data, Mapping)):
        return data
    if dataclasses.is_dataclass(hint):
        return _convert_dataclass(hint, data, where)
    if origin in (Union, types.UnionType):
        return _convert_union(args, data, where)
    if origin is Literal:
        if data in args and type(data) in {type(arg) for arg in args}:
            return data
        raise BadInput(f"{data!r} is not allowed ({where}): {nearest(str(data), map(str, args))}")
    if origin is tuple:
        return _convert_tuple(args, data, where)
    return _convert_scalar(hint, data, where)


def _convert_dataclass(kind: Any, data: object, where: str) -> Any:
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise BadInput(f"{_short(data)} is not a mapping ({where or kind.__name__}): give its fields by name")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in data:
        if key not in fields:
            raise BadInput(f"unknown field ({prefix}{key}): {nearest(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise BadInput(f"missing field ({prefix}{name}): give it a value")
    values = {key: _convert(_hints(kind)[key], item, f"{prefix}{key}") for key, item in data.items()}
    try:
        return kind(**values)
    except BadField as error:
        raise error.inside(where) from None


def _convert_union(args: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    if int in choices and type(data) is int:
        return _convert_scalar(int, data, where)
    if len(choices) == 1:
        return _convert(choices[0], data, where)
    if isinstance(data, list | tuple) and (lists := [choice for choice in choices if get_origin(choice) is tuple]):
        return _convert(lists[0], data, where)
    for choice in choices:
        try:
            return _convert(choice, data, where)
        except BadInput:
            continue
    raise BadInput(f"{_short(data)} is not {' or '.join(map(_in_words, choices))} ({where}): give one")


def _in_words(choice: Any) -> str:
    if get_origin(choice) is tuple:
        return "a list"
    return " or ".join(map(str, get_args(choice))) or _SCALARS.get(choice, "a mapping")


def _convert_tuple(args: tuple[Any, ...], data: object, where: str) -> Any:
    if not isinstance(data, list | tuple):
        raise BadInput(f"{_short(data)} is not a list ({where}): give a list")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(data)
    if len(data) != len(args):
        raise BadInput(f"{len(data)} values ({where}): give {len(args)}")
    return tuple(_convert(arg, item, f"{where}.{i}") for i, (arg, item) in enumerate(zip(args, data, strict=True)))


def _convert_scalar(kind: type, data: object, where: str) -> Any:
    if type(data) is int and data.bit_length() > 63:
        raise BadInput(f"a number of {data.bit_length()} bits is too large ({where}): give a smaller one")
    if kind is float and isinstance(data, int | float | str) and not isinstance(data, bool):
        try:
            return float(data)  # YAML 1.1 parses 1e-4 as a string
        except (ValueError, OverflowError):
            pass
    elif type(data) is kind:
        return data
    raise BadInput(f"{_short(data)} is not {_SCALARS.get(kind, 'a mapping')} ({where}): give one")


_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _short(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
