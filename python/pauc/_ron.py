"""RON, the language of recipes: https://github.com/ron-rs/ron.

| RON | Python |
|---|---|
| `true`, `12`, `0.5`, `"text"`, `'c'` | `bool`, `int`, `float`, `str`, `str` |
| `Some(x)`, `None`, `()` | x, `None`, `()` |
| `[a, b]`, `(a, b)` | `list`, `tuple` |
| `{k: v}`, `(field: v)` | `dict` |
| `Word` | `str` |
| `Name(field: v)`, `Name(a, b)`, `Name()` | `Component`, whose keys are fields or positions |
"""

from __future__ import annotations

import math
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

# As deep as pauc's own parser goes.
_MAX_DEPTH = 128

_SKIP = re.compile(r"(?:\s+|//[^\n]*|#!\[[^\]]*\])+")
_NAME = re.compile(r"(?:r#)?[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(
    r"[+-]?(?:0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|inf\b|NaN\b|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?[\d_]+)?)"
)
_RAW = re.compile(r'r(#*)"')
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\", '"': '"', "'": "'"}


class RonError(ValueError):
    """The text is not RON."""


class Component(Dict[Any, Any]):
    """A named struct, such as `ResNet18(stem: Small)`: a dictionary of its fields, with a name.

    Attributes:
        name: The name before the bracket.
    """

    def __init__(self, name: str, fields: Mapping[Any, Any]) -> None:
        super().__init__(fields)
        self.name = name

    def __repr__(self) -> str:
        return dumps(self)


def loads(text: str) -> Any:
    """Parses RON.

    Raises:
        RonError: If the text is not RON; the message has line and column.
    """
    parser = _Parser(text)
    value = parser.value(0)
    parser.skip()
    if parser.at < len(text):
        raise parser.error("expected the end of the text")
    return value


def dumps(value: Any) -> str:
    """Writes a value as RON. A string is written as it is, so that words and numbers can be given as text.

    >>> dumps({"p": 0.5, "kind": "Cross"})
    '(p: 0.5, kind: Cross)'
    """
    if value is None or isinstance(value, bool):
        return {None: "None", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Component):
        return value.name + _fields(value)
    if isinstance(value, Mapping):
        return _fields(value)
    if isinstance(value, (list, tuple)):
        inner = ", ".join(dumps(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return str(value)


def _fields(fields: Mapping[Any, Any]) -> str:
    return "(" + ", ".join(dumps(v) if isinstance(k, int) else f"{k}: {dumps(v)}" for k, v in fields.items()) + ")"


def flatten(value: Any) -> Dict[str, Any]:
    """Returns the plain values of a recipe by their paths, in the form of `--set`.

    >>> flatten(loads("(encoder: ConvNet(grid: 2), views: [(count: 2)], start: Epochs(6))"))
    {'encoder': 'ConvNet', 'encoder.grid': 2, 'views[0].count': 2, 'start': 'Epochs(6)'}
    """
    flat: Dict[str, Any] = {}
    _flatten("", value, flat)
    return flat


def _flatten(path: str, value: Any, into: Dict[str, Any]) -> None:
    if isinstance(value, Component) and all(isinstance(k, str) for k in value):
        into[path] = value.name
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        for i, item in enumerate(value):
            _flatten(f"{path}[{i}]", item, into)
        return
    elif not isinstance(value, dict) or isinstance(value, Component):
        is_plain = value is None or isinstance(value, (bool, int, float, str))
        into[path] = value if is_plain else dumps(value)
        return
    for key, part in value.items():
        _flatten(f"{path}.{key}" if path else str(key), part, into)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def error(self, message: str) -> RonError:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - (self.text.rfind("\n", 0, self.at) + 1) + 1
        return RonError(f"line {line}, column {column}: {message}")

    def skip(self) -> None:
        """Skips white space, comments and attributes."""
        while True:
            match = _SKIP.match(self.text, self.at)
            if match:
                self.at = match.end()
            elif self.text.startswith("/*", self.at):
                self._block_comment()
            else:
                return

    def _block_comment(self) -> None:
        depth = 0
        for token in re.compile(r"/\*|\*/").finditer(self.text, self.at):
            depth += 1 if token.group() == "/*" else -1
            if depth == 0:
                self.at = token.end()
                return
        raise self.error("the comment has no end")

    def takes(self, token: str) -> bool:
        """Skips a token if it comes next."""
        self.skip()
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise self.error(f"nested more than {_MAX_DEPTH} levels deep")
        self.skip()
        raw = _RAW.match(self.text, self.at)
        if raw:
            return self._raw_string(raw)
        number = _NUMBER.match(self.text, self.at)
        if number:
            self.at = number.end()
            return self._number(number.group())
        if self.takes('"'):
            return self._string('"')
        if self.takes("'"):
            return self._string("'")
        if self.takes("["):
            return self._items("]", depth)
        if self.takes("{"):
            return self._map(depth)
        name = _NAME.match(self.text, self.at)
        if name:
            self.at = name.end()
            return self._named(name.group(), depth)
        if self.takes("("):
            fields, items = self._bracket(depth)
            return tuple(items) if fields is None else fields
        raise self.error("expected a value")

    def _named(self, name: str, depth: int) -> Any:
        word = {"true": True, "false": False, "None": None}
        if name in word:
            return word[name]
        if not self.takes("("):
            return name
        fields, items = self._bracket(depth)
        if name == "Some" and fields is None and len(items) == 1:
            return items[0]
        return Component(name, dict(enumerate(items)) if fields is None else fields)

    def _bracket(self, depth: int) -> Tuple[Optional[Dict[str, Any]], List[Any]]:
        """Reads what follows `(`: either fields or items."""
        self.skip()
        name = _NAME.match(self.text, self.at)
        start = self.at
        if name:
            self.at = name.end()
            if self.takes(":"):
                self.at = start
                return self._named_fields(depth), []
        self.at = start
        return None, self._items(")", depth)

    def _named_fields(self, depth: int) -> Dict[str, Any]:
        fields: Dict[str, Any] = {}
        while not self.takes(")"):
            self.skip()
            name = _NAME.match(self.text, self.at)
            if not name:
                raise self.error("expected the name of a field")
            self.at = name.end()
            if not self.takes(":"):
                raise self.error("expected `:`")
            fields[name.group()] = self.value(depth + 1)
            self._comma(")")
        return fields

    def _items(self, end: str, depth: int) -> List[Any]:
        items = []
        while not self.takes(end):
            items.append(self.value(depth + 1))
            self._comma(end)
        return items

    def _map(self, depth: int) -> Dict[Any, Any]:
        entries: Dict[Any, Any] = {}
        while not self.takes("}"):
            key = self.value(depth + 1)
            if not self.takes(":"):
                raise self.error("expected `:`")
            if isinstance(key, (list, dict)):
                raise self.error("this key is not a plain value")
            entries[key] = self.value(depth + 1)
            self._comma("}")
        return entries

    def _comma(self, end: str) -> None:
        self.skip()
        if not self.takes(",") and not self.text.startswith(end, self.at):
            raise self.error(f"expected `,` or `{end}`")

    def _number(self, text: str) -> Any:
        plain = text.replace("_", "")
        try:
            return int(plain, 0)
        except ValueError:
            pass
        try:
            # Python reads neither 007 nor 1_ as `int(…, 0)`; both are numbers in RON.
            return int(plain) if plain.lstrip("+-").isdigit() else float(plain)
        except ValueError:
            raise self.error(f"`{text}` is not a number") from None

    def _raw_string(self, start: "re.Match[str]") -> str:
        closing = '"' + start.group(1)
        end = self.text.find(closing, start.end())
        if end < 0:
            raise self.error("the string has no end")
        self.at = end + len(closing)
        return self.text[start.end() : end]

    def _string(self, quote: str) -> str:
        start = self.at
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == quote:
                self.at += 1
                return _ESCAPE.sub(self._escape, self.text[start : self.at - 1])
            self.at += 2 if char == "\\" else 1
        self.at = start
        raise self.error("the string has no end")

    def _escape(self, match: "re.Match[str]") -> str:
        code = match.group(1) or match.group(2)
        if code:
            number = int(code, 16)
            if number > 0x10FFFF:
                raise self.error(f"\\u{{{code}}} is not a character")
            return chr(number)
        escaped = _ESCAPED.get(match.group(3))
        if escaped is None:
            raise self.error(f"unknown escape \\{match.group(3)}")
        return escaped
