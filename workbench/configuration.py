"""A plugin's configuration: from YAML, ``--set KEY=VALUE`` and keyword arguments to a validated frozen dataclass."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from workbench.errors import UserError, nearest
from workbench.plugin import Option

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Field:
    """One configuration field, with its dotted key.

    Attributes
    ----------
    key : str
        ``k``, or ``train.lr`` for a nested one.
    type : type
        Without the annotation.
    option : Option
        Help, unit and range.
    default : object
        `dataclasses.MISSING` where a value must be given.
    """

    key: str
    type: Any
    option: Option
    default: Any

    @property
    def range(self) -> str:
        """The allowed range in words; empty if there is none."""
        option = self.option
        if option.ge is not None and option.le is not None:
            return f"between {option.ge:g} and {option.le:g}"
        words = [("at least", option.ge), ("above", option.gt), ("at most", option.le), ("below", option.lt)]
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)

    @property
    def type_name(self) -> str:
        """The type as a person reads it."""
        return type_name(self.type)


def type_name(kind: Any) -> str:
    """Write a type as a person reads it: ``whole number``, ``text``, ``one of a, b``, ``list of …``."""
    simple = {
        int: "whole number",
        float: "number",
        bool: "true or false",
        str: "text",
        type(None): "nothing",
        Path: "path",
    }
    if kind in simple:
        return simple[kind]
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(arg) for arg in args)
    if origin in (list, tuple, Sequence):
        return f"list of {type_name(args[0])}" if args else "list"
    return getattr(kind, "__name__", str(kind))


def fields(config: type, prefix: str = "") -> Iterator[Field]:
    """List the fields of a configuration class, nested ones by dotted key.

    Raises
    ------
    TypeError
        If a field has no `Option`: a fault of the plugin's author.
    """
    hints = hints_of(config)
    for item in dataclasses.fields(config):
        hint, key = hints[item.name], prefix + item.name
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, key + ".")  # type: ignore[arg-type]
            continue
        options = (
            [extra for extra in get_args(hint)[1:] if isinstance(extra, Option)]
            if get_origin(hint) is Annotated
            else []
        )
        if not options:
            raise TypeError(f"{config.__name__}.{item.name} must be annotated: Annotated[type, Option('what it is')]")
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        yield Field(key, get_args(hint)[0], options[0], default)


@functools.cache
def hints_of(config: type) -> dict[str, Any]:
    """Return a class's annotations, evaluated; once for each class, as a batch builds thousands of configurations."""
    return get_type_hints(config, include_extras=True)


def build(config: type, values: Mapping[str, Any]) -> Any:
    """Make a configuration from values by dotted key, validated.

    Parameters
    ----------
    config : type
        A frozen dataclass.
    values : mapping
        Dotted keys (or nested mappings) to values; text is read as the field's type.

    Raises
    ------
    UserError
        Naming the field, the value, and what would be right.
    """
    known = {field.key: field for field in fields(config)}
    given = flatten(values)
    for key in given:
        if key not in known:
            raise UserError(f"no option {key!r}; nearest: {nearest(key, known)}")
    checked = {key: check(known[key], value) for key, value in given.items()}
    missing = [key for key, field in known.items() if field.default is dataclasses.MISSING and key not in checked]
    if missing:
        raise UserError(f"option {missing[0]!r} must be given: {known[missing[0]].option.help}")
    return assemble(config, checked)


def assemble(config: type, checked: Mapping[str, Any], prefix: str = "") -> Any:
    """Fill a dataclass, nested ones included, from checked values by dotted key."""
    hints = hints_of(config)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        key, hint = prefix + item.name, hints[item.name]
        if dataclasses.is_dataclass(hint):
            if any(name.startswith(key + ".") for name in checked):
                values[item.name] = assemble(hint, checked, key + ".")  # type: ignore[arg-type]
        elif key in checked:
            values[item.name] = checked[key]
    try:
        return config(**values)
    except ValueError as error:  # a check across fields, in __post_init__
        raise UserError(str(error)) from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check(field: Field, value: Any) -> Any:
    """Read a value as the field's type and hold it against the range."""
    from pydantic import ValidationError

    try:
        result = reader(field.type, str(field.type)).validate_python(value)
    except ValidationError:
        wanted = field.type_name + (f", {field.range}" if field.range else "")
        raise UserError(f"{field.key}={value}: must be {wanted} ({field.option.help})") from None
    for number in result if isinstance(result, list | tuple) else [result]:
        if isinstance(number, int | float) and not isinstance(number, bool) and not in_range(field.option, number):
            raise UserError(f"{field.key}={value}: must be {field.range or 'finite'} ({field.option.help})")
    return result


@functools.cache
def reader(kind: Any, written: str) -> TypeAdapter[Any]:
    """Return what reads values of a type; as written, too, for ``int | str`` equals ``str | int``."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def in_range(option: Option, number: float) -> bool:
    """True if a number is within an option's range (NaN and infinity are in none)."""
    return (
        math.isfinite(number)
        and (option.ge is None or number >= option.ge)
        and (option.gt is None or number > option.gt)
        and (option.le is None or number <= option.le)
        and (option.lt is None or number < option.lt)
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Return the full configuration by dotted key, as plain values that YAML and JSON can hold."""
    values = {field.key: get_dotted(config, field.key) for field in fields(type(config))}
    return {key: plain(value) for key, value in values.items()}


def get_dotted(config: Any, key: str) -> Any:
    """Return the value at a dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def plain(value: Any) -> Any:
    """Turn tuples into lists and paths into text."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with `plain` values."""
    return {key: plain(value) for key, value in values.items()}


# --- YAML ------------------------------------------------------------------------------------------------------------
def read_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 (``1e-4`` is a number, ``no`` is text), safely; a mistake is a UserError that names the place."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def write_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML 1.2."""
    from ruamel.yaml import YAML

    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(values), text)
    return text.getvalue()


def write_value(value: Any) -> str:
    """Write a plain value on one line, as ``--set KEY=VALUE`` takes it.

    Examples
    --------
    >>> [write_value(value) for value in ("inlp", "1e-4", None, True, [1, 2])]
    ['inlp', '"1e-4"', 'null', 'true', '[1, 2]']
    """
    if isinstance(value, str):
        try:
            if parse_setting(f"key={value}")[1] == value:
                return value
        except UserError:  # quotes, brackets, a colon …
            pass
    return json.dumps(plain(value), ensure_ascii=False)  # JSON is YAML 1.2


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split ``KEY=VALUE``, the value read as a YAML scalar or list."""
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {setting!r}: write KEY=VALUE, for example --set k=32")
    if value.lstrip().startswith(("*", "&")):  # a pattern: YAML would take it for an alias or an anchor
        return key.strip(), value.strip()
    return key.strip(), read_yaml(value, f"--set {setting!r}")


FILE_KEYS = ("plugin", "store", "model", "data", "dictionary", "seed", "device", "set")
TEXT_KEYS = ("plugin", "store", "model", "data", "dictionary", "device")
PATH_KEYS = ("store", "dictionary", "data")


def read_keys(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """Read a YAML file that holds some of the known keys.

    Raises
    ------
    UserError
        If the file is missing, is not YAML, or has another key.
    """
    if not path.is_file():
        raise UserError(f"no configuration file {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    values = read_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold keys such as plugin, store and set, not a {type(values).__name__}")
    for key in values:
        if key not in known:
            raise UserError(f"{path}: no key {key!r}; nearest: {nearest(str(key), known)}")
    return values


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a configuration file, whose keys are those of `FILE_KEYS`.

    Relative paths count from the file.

    Raises
    ------
    UserError
        If the file is missing, is not YAML, has another key, or one of another form.
    """
    values = read_keys(path, FILE_KEYS)
    for key in values:
        if key in TEXT_KEYS and not isinstance(values[key], str):
            raise UserError(f"{path}: {key}: {values[key]} must be text")
    if not isinstance(values.get("set", {}), dict):
        raise UserError(f"{path}: set must hold the plugin's options, KEY: VALUE")
    for key in PATH_KEYS:
        if isinstance(values.get(key), str):
            values[key] = from_folder(values[key], path.parent)
    return values


def from_folder(place: str, folder: Path) -> str:
    """Let a path count from a folder, if there is such a thing; an address stays as it is."""
    run = place.rpartition("#")[0]  # RUN#NAME, one of a run's dictionaries
    there = any((folder / name).exists() for name in (place, run) if name)
    return str(folder / place) if there else place
