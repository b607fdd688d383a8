"""What method files begin with: prompts from files, and sections of settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.records import Prompt
from selfevo_jax.text.prompt_files import PromptFile, read_prompt

PROMPTS = Path(__file__).parent / "prompts"
Messages = Sequence[Mapping[str, str]]


def sampling(n: int = 1, temperature: float = 1.0, max_new_tokens: int = 128) -> dict[str, Any]:
    """A section of settings for `Run.ask`."""
    return {
        "n": n,  # replies to each row
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": max_new_tokens,
        "stop": (),
    }


def prompt_file(name: str) -> PromptFile:
    """The prompt `prompts/NAME.txt` beside the methods."""
    return read_prompt(PROMPTS / f"{name}.txt")


def rounds(n: int = 256) -> dict[str, Any]:
    """The settings of a method that goes in rounds, each with `n` prompts that no other has."""
    return {"rounds": 1, "prompts": {"n": n}, **accepting()}


def accepting() -> dict[str, Any]:
    """The settings of `Run.accept`."""
    return {
        "accept": {
            "questions": 0,  # validation questions that decide; 0: every new policy is accepted
            "tolerance": 0.0,  # how far the share of right answers may fall below the best one's
            "lost": 0.1,  # share of the best one's solved questions that may be lost
        }
    }


def banding() -> dict[str, Any]:
    """The settings of `Run.band`, for a method that draws several samples of a prompt."""
    return {
        "difficulty": {
            "between": (),  # (low, high): only prompts whose share of right samples lies inside
            "repeat": False,  # the same prompts in every round, without those that were solved
        }
    }


def probing() -> dict[str, Any]:
    """The settings of `Run.probed`, for a method that draws one reply to a prompt, or none."""
    samples = {"probe": sampling(n=4)}  # drawn to tell the share of right ones
    return {"difficulty": banding()["difficulty"] | samples}


def question(prompt: Prompt) -> Messages:
    """The messages of a prompt as they are."""
    return prompt.messages
