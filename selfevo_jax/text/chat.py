"""A model's own jinja chat template, rendered where it can do no harm.

A template comes with downloaded weights, so it is untrusted code. It runs in jinja's immutable
sandbox with the same switches as transformers (trim_blocks, lstrip_blocks, loop controls, a
`tojson` that does not escape HTML, `raise_exception`), without `strftime_now`: a prompt must not
depend on the day. Its work is bounded too, see text/sandbox.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import jinja2

from selfevo_jax.errors import UserError
from selfevo_jax.text.sandbox import BoundedEnvironment, TemplateRefusal, TemplateTooLong

Message = Mapping[str, str]

# Role names are put into markup by many templates ('<|' + role + '|>'), so they are a closed set.
ROLES = ("system", "developer", "user", "assistant", "tool")


def check_messages(messages: Sequence[Message], where: str = "the conversation") -> None:
    """Raise UserError unless every message is {"role": known role, "content": str}."""
    if isinstance(messages, str | Mapping) or not messages:
        raise UserError(f"{where} is not a list of messages; give at least one role and content")
    for index, message in enumerate(messages):
        place = f"message {index + 1} of {where}"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            found = ", ".join(map(str, message)) if isinstance(message, Mapping) else repr(message)
            raise UserError(f"{place} must have the fields role and content only; it has: {found}")
        if message["role"] not in ROLES:
            raise UserError(f"{place} has the role {message['role']!r}; use one of {ROLES}")
        if not isinstance(message["content"], str):
            raise UserError(f"{place} has a content that is not a text; give one string")


class ChatTemplate:
    """`render(messages, add_generation_prompt)`, and `hash` (sha256 hex of the source)."""

    def __init__(self, source: str, specials: Mapping[str, str]) -> None:
        """source: jinja text. specials: bos_token, eos_token, ... as the template may print them.

        Raises UserError when the source is not valid jinja.
        """
        self.source = source
        self.hash = hashlib.sha256(source.encode()).hexdigest()
        self._specials = dict(specials)
        try:
            self._environment = BoundedEnvironment()
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"the model's chat template is not valid jinja: {error}") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The conversation as the model reads it, control tokens in printed form.

        Raises UserError when a message is malformed, or the template refuses the conversation,
        reaches outside its sandbox, fails, or does not end within its bounds.
        """
        check_messages(messages)
        try:
            return self._environment.run(
                self._template,
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._specials,
            )
        except TemplateRefusal as refusal:
            raise UserError(_refused(messages, str(refusal))) from refusal
        except TemplateTooLong as error:
            raise UserError(f"the model's chat template was stopped: {error}") from error
        except jinja2.exceptions.SecurityError as error:
            raise UserError(
                f"the model's chat template reaches outside its sandbox ({error}); do not use it"
            ) from error
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError,
                ValueError, RecursionError, MemoryError) as error:  # fmt: skip
            raise UserError(
                f"the model's chat template fails: {type(error).__name__}: {error}"
            ) from error


def _refused(messages: Sequence[Message], reason: str) -> str:
    roles = [message["role"] for message in messages]
    advice = "change the order or the roles of its messages"
    if "system" in roles:
        advice = "if this model knows no system role, put that text into the first user message"
    return f"the model's chat template refuses roles {roles}: {reason}; {advice}"
