"""Plain functions as tools of a language agent, which calls them by writing `name(3, "text")`."""

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from marl.errors import ConfigError

Tool = Callable[..., Any]


class Toolbox:
    """Functions that an action may call, with literals as arguments. Nothing that an agent writes is evaluated.

    Raises ConfigError for a function without a name of its own or without a docstring: agents read the first line.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {getattr(tool, "__name__", repr(tool)): tool for tool in tools}
        for name, tool in self.tools.items():
            if not name.isidentifier() or not inspect.getdoc(tool):
                raise ConfigError(f"tool {name}: agents are shown its name and docstring; give a documented function")
        if len(self.tools) < len(tools):
            raise ConfigError(f"{len(tools)} tools share the names {', '.join(self.tools)}; rename those that clash")

    def manual(self) -> str:
        """One line for each tool: how it is called, and the first line of its docstring."""
        return "\n".join(
            f"{name}{_parameters(tool)}: {(inspect.getdoc(tool) or '').splitlines()[0]}"
            for name, tool in self.tools.items()
        )

    def call(self, text: str) -> str | None:
        """What the tool that `text` calls returns, as text; a mistake in the call is told in words.

        None where `text` is no call of a tool.
        """
        name, mark, _ = text.strip().partition("(")
        if not mark or name.strip() not in self.tools:
            return None
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                return "mistake: write one call and nothing else"
            arguments = [ast.literal_eval(argument) for argument in call.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            return str(self.tools[name.strip()](*arguments, **named))
        except Exception as error:
            return f"mistake: {error or type(error).__name__}"


def _parameters(tool: Tool) -> str:
    return f"({', '.join(inspect.signature(tool).parameters)})"
