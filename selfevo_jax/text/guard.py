"""Keeping a model's control tokens out of the hands of the text it reads.

A chat template writes `<|im_end|>` to end a turn; a message that contains the same nine characters
must stay text. The tokenizer therefore never knows its control tokens by their printed form.
Each one is renamed, inside this process, to a *surface*: private-use characters around a random
number. Text that nobody sealed cannot hold a surface, so it can only ever be encoded as text;
markup that we trust is *sealed*, which replaces printed forms by surfaces, and is then encoded.

A template is trusted and the messages that it prints are not, so rendering goes:
    disarm every message -> render -> seal what the template wrote -> take the breakers out
`disarm` puts a random breaker inside every printed form in a message, and at an edge that could
complete one together with the template's own characters.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping


class Guard:
    """Renames between printed control tokens and surfaces that no text can guess."""

    def __init__(self, controls: Mapping[str, int]) -> None:
        """controls: printed form -> id of every token that only a template may write."""
        nonce = secrets.token_hex(8)
        self.controls = dict(controls)
        self.surfaces = {text: f"\U000f0000{nonce}.{i}\U000f0001" for text, i in controls.items()}
        self.surface_pattern = re.compile(f"\U000f0000{nonce}\\.[0-9]+\U000f0001")
        self._printed = {surface: text for text, surface in self.surfaces.items()}
        # The breaker is ASCII letters so that `tojson`, `trim` and the like leave it whole.
        self._breaker = "".join(secrets.choice("bcdfghjklmnpqrstvwxz") for _ in range(24))
        forms = "|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True))
        self._form = re.compile(forms) if forms else None
        self._form_start = re.compile(f"(?=(?:{forms}))(.)", re.DOTALL) if forms else None
        self._heads = {text[:n] for text in controls for n in range(1, len(text))}
        self._tails = {text[n:] for text in controls for n in range(1, len(text))}
        self._longest = max(map(len, controls), default=1)

    def seal(self, text: str) -> str:
        """Trusted text: printed control tokens become surfaces."""
        if self._form is None:
            return text
        return self._form.sub(lambda match: self.surfaces[match.group()], text)

    def unseal(self, text: str) -> str:
        """Surfaces back to the printed form, for people to read."""
        return self.surface_pattern.sub(lambda match: self._printed[match.group()], text)

    def disarm(self, text: str) -> str:
        """Untrusted text, made safe to hand to a template whose output will be sealed."""
        if self._form is None or self._form_start is None:
            return text
        if self._form.search(text):
            text = self._form_start.sub(lambda match: match.group() + self._breaker, text)
        # Edges are looked at without outer whitespace, because many templates trim it.
        body = text.strip()
        if not body:
            return text
        left = len(text) - len(text.lstrip())
        right = left + len(body)
        inside = len(body) < self._longest and any(body in form for form in self.controls)
        if inside or self._touches((body[:n] for n in self._lengths(body)), self._tails):
            body = self._breaker + body
        if self._touches((body[-n:] for n in self._lengths(body)), self._heads):
            body = body + self._breaker
        return text[:left] + body + text[right:]

    def seal_rendered(self, text: str) -> str:
        """Seal a template's output and take the breakers out of the messages in it."""
        return self.seal(text).replace(self._breaker, "")

    def _lengths(self, text: str) -> range:
        return range(1, min(self._longest, len(text) + 1))

    @staticmethod
    def _touches(edges: Iterable[str], parts: set[str]) -> bool:
        return any(edge in parts for edge in edges)
