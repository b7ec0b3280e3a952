"""Messages of a conversation, and their form as the text of an observation.

An environment whose specification sets `conversation` speaks in messages: each agent's observation is a JSON list of
the messages since that agent's last action, such as `[{"role": "user", "content": "Guess."}]`. It never holds the
agent's own words, which the agent keeps.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from marl.errors import EnvironmentContractError

Role = Literal["system", "user", "assistant", "tool"]
"""Speaker of a message. An environment writes as system, user or tool."""


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: Role
    content: str


def to_messages(value: Any) -> tuple[Message, ...]:
    """Return messages from a text, which is one user message, or from messages or `{"role", "content"}` mappings.

    Raises EnvironmentContractError for anything else, for an unknown role, for the role assistant and for no message.
    """
    if isinstance(value, str):
        return (Message("user", value),)
    if isinstance(value, Message | Mapping) or not isinstance(value, Iterable):
        value = [value]
    messages = tuple(_message(each) for each in value)
    if not messages:
        raise EnvironmentContractError("a prompt has no message; give one user message or more")
    return messages


def _message(value: Any) -> Message:
    if isinstance(value, Mapping) and set(value) == {"role", "content"}:
        value = Message(**value)
    if not isinstance(value, Message) or not isinstance(value.content, str) or value.role not in get_args(Role):
        raise EnvironmentContractError(
            f"message={value!r:.200}; give a mapping of role (system, user or tool) and content, both texts"
        )
    if value.role == "assistant":
        raise EnvironmentContractError(
            f"message={value!r:.200} has the role 'assistant', but the agent keeps its own words; leave it out"
        )
    return value


def messages_text(messages: Iterable[Message]) -> str:
    """Return messages as a JSON list, the observation of a conversation."""
    return json.dumps([asdict(message) for message in messages], ensure_ascii=False)


def parse_messages(text: str) -> tuple[Message, ...]:
    """Return the messages of `messages_text`. Raises EnvironmentContractError for any other text."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EnvironmentContractError(
            f"observation={text!r:.200} of a conversation is not JSON ({error}); write it with marl.messages"
        ) from error
    if not isinstance(value, list):
        raise EnvironmentContractError(f"observation={text!r:.200} of a conversation is not a list of messages")
    return to_messages(value)


def plain_text(messages: Iterable[Message]) -> str:
    """Return messages for people: user messages as they are, others behind their role."""
    return "\n".join(
        message.content if message.role == "user" else f"{message.role}: {message.content}" for message in messages
    )
