"""A jinja environment for templates that nobody has vouched for: sandboxed and bounded.

Bounded by counting, not by a clock, so that a template is refused alike on every machine:
    MAX_OUTPUT  characters written, counted while the template writes
    MAX_STEPS   loop turns and macro calls together, silent loops too
    MAX_VALUE   characters or items of any one value built by ~ + * % join replace or padding
    MAX_BUILT   characters and items that go into and out of calls, filters and subscripts, in all
    range()     100,000 items (jinja's own bound)
Not counted: comparing and searching large values (`in`, `==`), whose cost the other bounds cap.
Only the filters that chat templates use are there.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 4_000_000
MAX_STEPS = 200_000
MAX_VALUE = 4_000_000
MAX_BUILT = 100_000_000
MAX_WIDTH = 10_000

FILTERS = (
    "abs capitalize count d default dictsort e escape first float indent int items join last "
    "length list lower map max min reject rejectattr replace reverse round safe select "
    "selectattr sort string sum title trim unique upper"
).split()
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "indent")
BANNED_METHODS = ("translate", "maketrans", "to_bytes")


class TemplateRefusal(Exception):
    """The template called raise_exception."""


class TemplateTooLong(Exception):
    """The template wrote, looped or built more than it may."""


class _CountSteps(jinja2.ext.Extension):
    """Rewrites a parsed template so that its loops and what it builds are counted.

    jinja itself gives no way to see a loop turn, a `~`, a slice, or text that is written into a
    `{% set %}` block instead of the output.
    """

    def bound(self, tree: nodes.Template) -> nodes.Template:
        for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            step = self.call_method("step", [nodes.Const(size)], lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        for node in list(tree.find_all((nodes.Concat, nodes.Output))):
            node.nodes = [self._counted(item) for item in node.nodes]
        for node in list(tree.find_all(nodes.Getitem)):
            if isinstance(node.arg, nodes.Slice):
                node.node = self._counted(node.node)
        return tree

    def _counted(self, node: nodes.Expr) -> nodes.Expr:
        if isinstance(node, nodes.TemplateData):
            return node
        return self.call_method("operand", [node], lineno=node.lineno)

    def step(self, size: int) -> None:
        self.environment.count_step(size)

    def operand(self, value: Any) -> Any:
        self.environment.count_built(value)
        return value


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for trainers; here it only prints its body."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """See the module text. `run` renders one template to a string."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        extensions = [jinja2.ext.loopcontrols, _CountSteps, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self._lock = threading.Lock()
        self._steps = self._built = 0
        own = {"tojson": _tojson}
        self.filters = {name: self.filters[name] for name in FILTERS} | own
        self.filters = {name: self._counted(name, call) for name, call in self.filters.items()}
        self.globals = {
            "range": self.globals["range"],
            "namespace": _Namespace,
            "dict": _make_dict,
            "raise_exception": _refuse,
        }

    def run(self, template: jinja2.Template, **variables: Any) -> str:
        """The whole output. Raises TemplateTooLong, TemplateRefusal or what the template raises."""
        parts: list[str] = []
        size = 0
        with self._lock:
            self._steps = self._built = 0
            for part in template.generate(**variables):
                size += len(part)
                if size > MAX_OUTPUT:
                    raise TemplateTooLong(f"it writes more than {MAX_OUTPUT:,} characters")
                parts.append(part)
        return "".join(parts)

    def count_step(self, size: int) -> None:
        """One turn of a loop or macro whose body holds `size` literal characters."""
        self._steps += 1
        self._built += size
        if self._steps > MAX_STEPS:
            raise TemplateTooLong(f"it loops more than {MAX_STEPS:,} times")
        self._check_built()

    def count_built(self, *values: Any) -> None:
        """Add the sizes of these values to what was built; refuse a value that is too large."""
        for value in values:
            size = len(value) if isinstance(value, str | bytes | list | tuple | dict | range) else 1
            _check_size(size)
            self._built += size
        self._check_built()

    def _check_built(self) -> None:
        if self._built > MAX_BUILT:
            raise TemplateTooLong(f"it builds more than {MAX_BUILT:,} characters")

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        _check_call(getattr(__obj, "__name__", ""), [owner, *args, *kwargs.values()])
        __self.count_built(owner, *args)
        result = super().call(__context, __obj, *args, **kwargs)
        __self.count_built(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_binop(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        self.count_built(result)
        return result

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        # jinja's own prints as nothing when it is only printed; an attempt is reason to stop.
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not for templates")

    def getitem(self, obj: Any, argument: Any) -> Any:
        result = super().getitem(obj, argument)
        self.count_built(result)
        return result

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        # `wraps` keeps jinja's own mark of filters that want the context as first argument.
        @functools.wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            values = [value for value in args if not isinstance(value, _CONTEXTS)]
            _check_call(name, [*values, *kwargs.values()])
            self.count_built(*values)
            result = call(*args, **kwargs)
            self.count_built(result)
            return result

        return counted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return self.extensions[_CountSteps.identifier].bound(tree)


_CONTEXTS = (jinja2.Environment, jinja2.runtime.Context, nodes.EvalContext)


class _Namespace(jinja2.utils.Namespace):
    """jinja's namespace without underscore names, which lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name of the template's
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace may not hold the name {name!r}")


def _check_size(size: int) -> None:
    if size > MAX_VALUE:
        raise TemplateTooLong(f"it builds a value of more than {MAX_VALUE:,} characters")


def _check_binop(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result could be too large, before it is computed."""
    if isinstance(left, int) and isinstance(right, int):
        if operator == "**" and (abs(left) > MAX_WIDTH or abs(right) > 64):
            raise TemplateTooLong("it raises a number to a power that is too large")
        _check_size(left.bit_length() + right.bit_length())
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(times, int) and hasattr(many, "__len__"):
                _check_size(len(many) * max(times, 0))
    elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _check_size(len(left) + len(right))
    elif operator == "%" and isinstance(left, str | bytes):
        _check_padding([left, right])


def _check_call(name: str, values: Sequence[Any]) -> None:
    """The same for a method or filter; values are the object, then the arguments."""
    if name in BANNED_METHODS:
        raise SecurityError(f"the method {name} is not for templates")
    if name in PADDING:
        _check_padding(values)
    if name in ("replace", "do_replace") and len(values) >= 3:
        text, old, new = (value if isinstance(value, str) else str(value) for value in values[:3])
        _check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    if name == "join" and len(values) >= 2:
        first, second = values[:2]
        # As a method the separator comes first, as a filter the items do.
        items, separator = (second, first) if isinstance(first, str) else (first, second)
        if isinstance(items, list | tuple):
            _check_size(sum(len(str(item)) + len(str(separator)) for item in items))


def _check_padding(values: Sequence[Any]) -> None:
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, int) and part > MAX_WIDTH for part in parts):
            raise TemplateTooLong(f"it pads a text to more than {MAX_WIDTH:,} characters")
        if isinstance(value, str) and re.search(r"[{%][^}a-zA-Z]*[0-9]{5}", value):
            raise TemplateTooLong(f"it formats a text to more than {MAX_WIDTH:,} characters")


def _refuse(message: str) -> None:
    raise TemplateRefusal(message)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes < and > for HTML; a prompt is not HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
