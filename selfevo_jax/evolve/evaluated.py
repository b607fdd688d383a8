"""Models as an evaluation sees them: one that is computed here, and one behind a server."""

from functools import cached_property
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.asking import Question
from selfevo_jax.evolve.files import file_sha256
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.records import content_id
from selfevo_jax.sample.http.client import HttpGenerator
from selfevo_jax.sample.protocol import MAX_LABELS, Generator
from selfevo_jax.text.render import prompt_text, render_next, render_prompt
from selfevo_jax.weights.peft import CONFIG, WEIGHTS


class LocalModel:
    """A model on this machine's devices, with or without an adapter."""

    scores = True

    def __init__(self, model: JaxModel, adapter: Path | None) -> None:
        self.model, self.adapter = model, adapter
        self.name = model.source

    @cached_property
    def room(self) -> int:
        """Tokens of a prompt and its reply."""
        return min(self.model.settings["max_length"], self.model.files.config.max_position)

    @cached_property
    def has_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return self.model.tokenizer.chat is not None

    def settings(self) -> dict[str, Any]:
        """See `Evaluated.settings`; the batch size is left out, since no answer depends on it."""
        return {
            "hash": content_id(self.model.hash, self.model.tokenizer.hash, self._trained()),
            "dtype": self.model.settings["dtype"],
            "max_length": self.room,
        }

    def _trained(self) -> str:
        if self.adapter is None:
            return "none"
        files = [self.adapter / name for name in (CONFIG, WEIGHTS)]
        if not all(file.is_file() for file in files):
            raise UserError(f"--adapter={self.adapter} holds no {CONFIG} and {WEIGHTS}")
        return content_id(*map(file_sha256, files))

    def generator(self) -> Generator:
        """See `Evaluated.generator`."""
        return self.model.generator(self.adapter)

    def show(self, question: Question) -> str:
        """See `Evaluated.show`."""
        return prompt_text(self.model.tokenizer, question.prompt, question.prefix)

    def count(self, question: Question) -> int:
        """See `Evaluated.count`."""
        tokenizer = self.model.tokenizer
        prompt = len(render_prompt(tokenizer, question.prompt, question.prefix))
        return prompt + max((len(tokenizer.encode(c)) for c in question.choices), default=0)

    def single(self, question: Question) -> bool:
        """See `Evaluated.single`."""
        choices = render_next(self.model.tokenizer, question.prompt, "", question.choices)
        firsts = {ids[0] for ids in choices if len(ids) == 1}
        return len(firsts) == len(choices) <= MAX_LABELS


class RemoteModel:
    """A model behind an OpenAI-style server: what it is beyond its name is the server's matter.

    Through the "chat" interface the server puts its template around everything; the
    "completions" interface takes plain text, which log-probabilities of choices need.
    """

    room = 2**31  # the server refuses what is too long
    scores = False  # few servers tell the log-probability of a given text

    def __init__(self, client: HttpGenerator) -> None:
        self.client, self.endpoint = client, client.endpoint
        self.name = self.endpoint.name
        self.has_template = self.endpoint.api == "chat"

    def settings(self) -> dict[str, Any]:
        """See `Evaluated.settings`."""
        return {"server": self.name, "api": self.endpoint.api}

    def generator(self) -> Generator:
        """See `Evaluated.generator`."""
        return self.client

    def show(self, question: Question) -> str:
        """See `Evaluated.show`: the server's template is not known here."""
        if isinstance(question.prompt, str):
            return question.prompt
        turns = [f"[{m['role']}]\n{m['content']}" for m in question.prompt]
        return "\n".join([*turns, f"[assistant]\n{question.prefix}"])

    def count(self, question: Question) -> int:
        """See `Evaluated.count`."""
        return 0

    def single(self, question: Question) -> bool:
        """See `Evaluated.single`: which tokens a server makes is not known."""
        return False
