"""`selfevo completion`: what makes a shell complete the commands, their options and files."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb

FILES = ("DIR", "FILE", "SOURCE", "WHAT")  # how the name of a value begins that may be a file's
# A bash cuts `--key=value` at the `=`; shtab's function knows `--key value` alone.
JOINED = """
_selfevo() {
  local words=() last=$COMP_CWORD n
  for n in "${!COMP_WORDS[@]}"; do
    if [[ ${COMP_WORDS[n]} != "=" ]]; then words+=("${COMP_WORDS[n]}")
    elif (( n == COMP_CWORD )); then words+=("")
    elif (( n < COMP_CWORD )); then (( last -= 1 )); fi
  done
  COMP_WORDS=("${words[@]}") COMP_CWORD=$last
  _shtab_selfevo "$@"
}
complete -o bashdefault -F _selfevo selfevo
"""
STARTED = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "completion",
        act,
        "Print what makes your shell complete commands and options.",
        'eval "$(selfevo completion bash)"',
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that reads it")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    import shtab

    from selfevo_jax.cli import parser

    whole = parser()
    _prepare(whole)
    script = shtab.complete(whole, arguments.shell, preamble={"zsh": STARTED})
    print(script + JOINED if arguments.shell == "bash" else _for_zsh(script))
    return 0


def _prepare(parser: argparse.ArgumentParser) -> None:
    """Gives every command its one line, and says which values are files."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                inner = action.choices[listed.dest]
                inner.description = listed.help
                _prepare(inner)
            continue
        name = str(action.metavar or action.dest)
        if action.type is Path or name.startswith(FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        action.metavar = name.replace(":", "\\:")  # which shtab gives to zsh as it is


def _for_zsh(script: str) -> str:
    """The script with `--key=value` as well, and files for each of several arguments."""
    script = re.sub(r'^(  "\*?--[\w.-]+)(\[.*\]:)', r"\1=\2", script, flags=re.MULTILINE)
    return re.sub(r'^  "\(\*\):', '  "*:', script, flags=re.MULTILINE)
