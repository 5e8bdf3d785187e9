"""The part of Go's text/template that people write behind ``--format``.

A template is parsed once into nodes, functions from a scope to output; rendering calls them. There are fields
(``.State.Status``), methods of rows (``.Label "x"``), pipes, variables, parentheses, literals, if, with, range,
and the functions of template_functions.py. What is not here (define, template, block, break, continue, complex
numbers) is refused by name. Values are those of JSON documents.
"""

from __future__ import annotations

from mamushka.errors import Invalid
from mamushka.interfaces.docker.template_functions import FUNCTIONS, spelled, truth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Scope = dict[str, Any]  # "" is the dot, "$" and "$name" are variables
    Value = Callable[[Scope], Any]
    Node = Callable[[Scope, Callable[[str], None]], None]

# Templates are typed on a command line; nesting is bounded so that no template ends in RecursionError.
LENGTH_MAX = 1 << 16
DEPTH_MAX = 40
_SPACE = " \t\r\n"
_MISSING = object()
_BLOCKS = ("if", "range", "with")
_REFUSED = ("define", "template", "block", "break", "continue")


class Template:
    """A parsed template."""

    def __init__(self, source: str) -> None:
        if len(source) > LENGTH_MAX:
            raise Invalid(f"the template has {len(source)} characters, more than {LENGTH_MAX}")
        self._nodes = _Parser(source).template()

    def render(self, dot: object) -> str:
        """The text for one value. Invalid where the template asks for what the value does not have."""
        parts: list[str] = []
        _emit(self._nodes, {"": dot, "$": dot}, parts.append)
        return "".join(parts)


def _emit(nodes: Iterable[Node], scope: Scope, put: Callable[[str], None]) -> None:
    for node in nodes:
        node(scope, put)


def _pieces(source: str) -> Iterable[tuple[bool, str]]:
    """(is an action, its text) in order; ``{{-`` and ``-}}`` eat the white space beside them."""
    trim, rest = False, source
    while rest:
        text, opened, rest = rest.partition("{{")
        left = opened and rest[:1] == "-" and rest[1:2] in tuple(_SPACE)
        if trim:
            text = text.lstrip(_SPACE)
        yield False, text.rstrip(_SPACE) if left else text
        if not opened:
            return
        action, rest = _action(rest[1:] if left else rest)
        trim = action.endswith("-") and action[-2:-1] in tuple(_SPACE)
        action = action[:-1] if trim else action
        if not (action.strip().startswith("/*") and action.strip().endswith("*/")):
            yield True, action


def _action(rest: str) -> tuple[str, str]:
    """Split after the action's end, which is not one inside a string."""
    quote, index = "", 0
    while index < len(rest):
        char = rest[index]
        if quote:
            if char == "\\" and quote == '"':
                index += 1
            elif char == quote:
                quote = ""
        elif char in '"`':
            quote = char
        elif rest.startswith("}}", index):
            return rest[:index], rest[index + 2 :]
        index += 1
    raise Invalid("the template has {{ without }}")


def _words(action: str) -> list[str]:
    """The tokens of one action; a field that belongs to the token before keeps its dot as "\\0.name"."""
    words: list[str] = []
    index = 0
    while index < len(action):
        char = action[index]
        end = index + 1
        if char in _SPACE:
            index = end
            continue
        if char in '"`':
            while action[end : end + 1] != char:
                if end >= len(action):
                    raise Invalid("the template has a string without an end")
                end += 2 if char == '"' and action[end : end + 1] == "\\" else 1
            end += 1
        elif action.startswith(":=", index):
            end += 1
        elif char not in "()|,=":
            while end < len(action) and action[end] not in _SPACE + '()|,=.:"`':
                end += 1
            if char.isdigit() or char == "-":
                while end < len(action) and action[end] not in _SPACE + '()|,="`':
                    end += 1
        glued = char == "." and index > 0 and action[index - 1] not in _SPACE + "(|,="
        words.append(("\0" if glued else "") + action[index:end])
        index = end
    return words


class _Parser:
    def __init__(self, source: str) -> None:
        self._pieces = iter(_pieces(source))
        self._depth = 0

    def template(self) -> list[Node]:
        nodes, end = self._body()
        if end:
            raise Invalid(f"the template has {{{{{' '.join(end)}}}}} without a beginning")
        return nodes

    def _body(self) -> tuple[list[Node], list[str]]:
        """Nodes up to an end or else, whose words are answered too."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise Invalid(f"the template is nested deeper than {DEPTH_MAX} levels")
        nodes: list[Node] = []
        for is_action, text in self._pieces:
            if not is_action:
                if text:
                    nodes.append(_text(text))
                continue
            words = _words(text)
            if not words:
                raise Invalid("the template has an empty {{}}")
            if words[0] in ("end", "else"):
                self._depth -= 1
                return nodes, words
            nodes.append(self._action(words))
        self._depth -= 1
        return nodes, []

    def _action(self, words: list[str]) -> Node:
        if words[0] in _BLOCKS:
            return self._block(words)
        if words[0] in _REFUSED:
            raise Invalid(f"the template uses {words[0]!r}, which is not supported here")
        if len(words) > 2 and words[0][0] == "$" and words[1] in (":=", "="):
            return _assign(words[0], _expression(words[2:]))
        return _print(_expression(words))

    def _block(self, words: list[str]) -> Node:
        kind, rest = words[0], words[1:]
        names: list[str] = []
        if ":=" in rest:
            at = rest.index(":=")
            names, rest = [word for word in rest[:at] if word != ","], rest[at + 1 :]
        subject = _expression(rest)
        body, end = self._body()
        otherwise: list[Node] = []
        if end[:1] == ["else"]:
            if len(end) > 1:  # {{else if …}} shares the end of what it continues
                otherwise = [self._block(end[1:])]
                end = ["end"]
            else:
                otherwise, end = self._body()
        if end != ["end"]:
            raise Invalid(f"the template has {{{{{kind}}}}} without {{{{end}}}}")
        if kind == "range":
            return _range(subject, names, body, otherwise)
        return _conditional(subject, names, body, otherwise, rebind=kind == "with")


def _text(text: str) -> Node:
    return lambda _scope, put: put(text)


def _print(expression: Value) -> Node:
    return lambda scope, put: put(spelled(expression(scope)))


def _assign(name: str, expression: Value) -> Node:
    def assign(scope: Scope, _put: Callable[[str], None]) -> None:
        scope[name] = expression(scope)

    return assign


def _conditional(subject: Value, names: list[str], body: list[Node], otherwise: list[Node], *, rebind: bool) -> Node:
    def conditional(scope: Scope, put: Callable[[str], None]) -> None:
        found = subject(scope)
        if not truth(found):
            _emit(otherwise, scope, put)
            return
        inner = {**scope, **({"": found} if rebind else {}), **dict.fromkeys(names[:1], found)}
        _emit(body, inner if rebind or names else scope, put)

    return conditional


def _range(subject: Value, names: list[str], body: list[Node], otherwise: list[Node]) -> Node:
    def over(scope: Scope, put: Callable[[str], None]) -> None:
        pairs = _pairs(subject(scope))
        if not pairs:
            _emit(otherwise, scope, put)
        for key, item in pairs:
            bound = zip(names, (item,) if len(names) == 1 else (key, item), strict=False)
            _emit(body, {**scope, "": item, **dict(bound)}, put)

    return over


def _pairs(subject: object) -> list[tuple[Any, Any]]:
    """Maps in the order of their keys, as Go does."""
    if subject is None:
        return []
    if hasattr(subject, "keys"):
        return sorted(subject.items())  # type: ignore[attr-defined]
    if isinstance(subject, list | tuple):
        return list(enumerate(subject))
    raise Invalid(f"the template cannot range over {spelled(subject)!r}")


def _expression(words: list[str], depth: int = 0) -> Value:
    """A pipeline: the value of each command is the last argument of the next."""
    if depth > DEPTH_MAX:
        raise Invalid(f"the template has parentheses deeper than {DEPTH_MAX} levels")
    commands: list[list[tuple[str, Value]]] = [[]]
    index = 0
    while index < len(words):
        word = words[index]
        if word == "|":
            commands.append([])
        elif word == "(":
            end = _closing(words, index)
            commands[-1].append(("", _expression(words[index + 1 : end], depth + 1)))
            index = end
        elif word[0] == "\0":
            if not commands[-1]:
                raise Invalid(f"the template cannot read {word[1:]!r}")
            name, value = commands[-1].pop()
            commands[-1].append((name, _field(value, word[2:])))
        else:
            commands[-1].append((word if word in FUNCTIONS else "", _operand(word)))
        index += 1
    result: Value | None = None
    for command in commands:
        result = _command(command, result)
    assert result is not None
    return result


def _closing(words: list[str], start: int) -> int:
    depth = 0
    for index in range(start, len(words)):
        depth += {"(": 1, ")": -1}.get(words[index], 0)
        if not depth:
            return index
    raise Invalid("the template has ( without )")


def _command(command: list[tuple[str, Value]], piped: Value | None) -> Value:
    """A function with its arguments, a row's method with its own, or a single value."""
    if not command:
        raise Invalid("the template has an empty command")
    name, first = command[0]
    arguments = [value for _, value in command[1:]] + ([piped] if piped else [])
    if name:
        return lambda scope: _call(name, FUNCTIONS[name], [argument(scope) for argument in arguments])

    def value(scope: Scope) -> Any:
        found = first(scope)
        if callable(found):
            return _call("the method", found, [argument(scope) for argument in arguments])
        if arguments:
            raise Invalid(f"the template gives arguments to {spelled(found)!r}, which is not a function")
        return found

    return value


def _call(name: str, function: Callable[..., Any], arguments: list[Any]) -> Any:
    try:
        return function(*arguments)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise Invalid(f"the template's call of {name} failed: {error}") from error


def _operand(word: str) -> Value:
    if word == ".":
        return lambda scope: scope[""]
    if word[0] == ".":
        return _field(lambda scope: scope[""], word[1:])
    if word[0] == "$":
        return _variable(word)
    if word[0] in '"`' and len(word) > 1 and word[-1] == word[0]:
        return _literal(word[1:-1] if word[0] == "`" else _unescape(word[1:-1]))
    if word in _CONSTANTS:
        return _literal(_CONSTANTS[word])
    if word in FUNCTIONS:
        function = FUNCTIONS[word]
        return lambda _scope: function()
    number = _number(word)
    if number is None:
        raise Invalid(
            f"the template uses {word!r}, which is not a function here",
            hint="functions are " + ", ".join(sorted(FUNCTIONS)),
        )
    return _literal(number)


_CONSTANTS: Mapping[str, object] = {"true": True, "false": False, "nil": None}


def _literal(item: object) -> Value:
    return lambda _scope: item


def _number(word: str) -> int | float | None:
    if len(word) > 40 or not word.lstrip("-+")[:1].isdigit():
        return None
    try:
        return float(word) if "." in word or "e" in word else int(word)
    except ValueError:
        return None


def _unescape(text: str) -> str:
    """Go's escapes in a string; \\x and \\u as in JSON's neighbours."""
    result, index = [], 0
    while index < len(text):
        if text[index] != "\\":
            result.append(text[index])
            index += 1
            continue
        letter = text[index + 1 : index + 2]
        if letter in _ESCAPES and letter:
            result.append(_ESCAPES[letter])
            index += 2
        elif letter in ("x", "u") and letter:
            width = 2 if letter == "x" else 4
            digits = text[index + 2 : index + 2 + width]
            if len(digits) != width or digits.strip("0123456789abcdefABCDEF"):
                raise Invalid(f"the template has a wrong escape \\{letter}{digits}")
            result.append(chr(int(digits, 16)))
            index += 2 + width
        else:
            raise Invalid(f"the template has a wrong escape \\{letter}")
    return "".join(result)


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _variable(name: str) -> Value:
    def variable(scope: Scope) -> Any:
        if name not in scope:
            raise Invalid(f"the template's variable {name} has no value")
        return scope[name]

    return variable


def _field(value: Value, name: str) -> Value:
    if not name.isidentifier():
        raise Invalid(f"the template has a wrong field {'.' + name!r}")

    def field(scope: Scope) -> Any:
        holder = value(scope)
        return _lookup(holder() if callable(holder) else holder, name)

    return field


def _lookup(holder: Any, name: str) -> Any:
    """A key of a map; ``.ID`` also finds "Id", as Go's structs and their JSON differ so."""
    if holder is None:
        raise Invalid(f"the template reads .{name} of nothing")
    if not hasattr(holder, "keys"):
        raise Invalid(f"the template reads .{name} of {spelled(holder)!r}, which has no fields")
    found = holder.get(name, _MISSING)
    if found is not _MISSING:
        return found
    for key in holder:
        if key.lower() == name.lower():
            return holder[key]
    raise Invalid(f"there is no field .{name}", hint="the fields are " + ", ".join(f".{key}" for key in holder))
