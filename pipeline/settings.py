"""Reading YAML the way people mean it, and merging the layers of a configuration.

PyYAML follows YAML 1.1, where `1e-5` is text and `no` is False; learning rates and language codes make both a trap.
This loader knows numbers as YAML 1.2 does and only `true` and `false` as booleans.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline import credentials
from pipeline.errors import ConfigError

_REPLACED = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp")}


class _Loader(yaml.SafeLoader):
    """A SafeLoader with other ideas of what is a number, a boolean and a date, and no name twice in one mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' stands here twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value written in `text`; a ConfigError names `where`, line and column."""
    refuse_secrets(text, where)
    try:
        value = yaml.load(text, Loader=_Loader)
        _check_keys(value, where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"{place}: this is not YAML: {getattr(error, 'problem', error)}") from None
    except (ValueError, RecursionError) as error:  # a date that no calendar has, a thousand brackets
        raise ConfigError(f"{where}: this is not YAML that can be meant: {error}") from None
    return value


def refuse_secrets(text: str, where: str) -> None:
    """ConfigError when the text holds what is, or looks like, a token or a password."""
    if credentials.holds(text):
        raise ConfigError(
            f"{where}: a setting holds an access token or a password",
            hint="settings are copied into manifests and reports; put it into the environment, e.g. HF_TOKEN",
        )


def _check_keys(value: Any, where: str) -> None:
    """ConfigError unless every key, however deep, is text."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the name {key!r} is not text", hint="write it in quotes")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_keys(part, where)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__}, a mapping is needed")
    return value


def merged(below: Any, above: Any) -> Any:
    """`above` over `below`: mappings merge key by key, everything else (lists too) is replaced."""
    if above == {} and below is not None:
        return below
    if isinstance(below, dict) and isinstance(above, dict):
        return {key: merged(below.get(key), above[key]) if key in above else below[key] for key in {**below, **above}}
    return above


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """`["seed=7", "stages.r1_zero.max_steps=20"]` as a nested mapping; values are YAML, and may hold spaces."""
    text, result = " ".join(words).strip(), dict[str, Any]()
    refuse_secrets(text, "ARGS")
    for word in re.split(r"\s+(?=[\w.-]+=)", text) if text else ():
        name, sign, value = word.partition("=")
        if not sign or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            hint = 'without spaces around the sign, e.g. ARGS="seed=7 grpo.max_steps=20"'
            raise ConfigError(f"ARGS: '{word}' is not of the form NAME=VALUE", hint=hint)
        layer: Any = parse_yaml(value, f"ARGS, {name}")
        for key in reversed(name.split(".")):
            layer = {key: layer}
        result = merged(result, layer)
    return result


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest known word, if one is near, and all there are (some, where there are many)."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    listed = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
    return (f"did you mean '{close[0]}'? " if close else "") + f"there is: {listed or 'none'}"
