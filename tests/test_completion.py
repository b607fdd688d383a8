"""Completion in real interactive shells on a terminal of their own, set up as the docs say."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Ctrl-T hands over the line as it stands, and empties it.
SHELLS = {
    "bash": (
        ["--noprofile", "-i"], ".bashrc",
        """bind -x '"\\C-t": printf "%s\\n" "$READLINE_LINE" >>said; READLINE_LINE='""",
    ),
    "zsh": (
        ["-d", "-i"], ".zshrc",
        "say() { print -r -- $BUFFER >>said; BUFFER= }; zle -N say; bindkey '^T' say",
    ),
}  # fmt: skip


class Typist:
    """A shell, and what a person types into it."""

    def __init__(self, shell, home):
        self.said = home / "said"
        self.keys, screen = os.openpty()
        arguments, profile, hand_over = SHELLS[shell]
        (home / profile).write_text(f'eval "$(selfevo completion {shell})"\n{hand_over}\n: >said\n')
        around = {"HOME": str(home), "PATH": f"{home}:{os.defpath}", "TERM": "xterm"}
        around |= {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
        self.shell = subprocess.Popen(
            [shell, *arguments], cwd=home, env=around, start_new_session=True,
            stdin=screen, stdout=screen, stderr=screen,
        )  # fmt: skip
        os.close(screen)
        self.until(self.said.exists)

    def until(self, condition):
        """Waits, and keeps the screen empty, without which the shell would wait as well."""
        os.set_blocking(self.keys, False)
        shown, end = b"", time.monotonic() + 60
        while not condition():
            try:
                shown += os.read(self.keys, 65536)
            except BlockingIOError:
                time.sleep(0.02)
            assert time.monotonic() < end, shown.decode(errors="replace")

    def complete(self, typed):
        """The line after Tab was pressed behind what was typed."""
        before = self.said.read_text()
        os.write(self.keys, f"{typed}\t\x14".encode())
        self.until(lambda: self.said.read_text().count("\n") > before.count("\n"))
        return self.said.read_text().removeprefix(before).rstrip()

    def close(self):
        self.shell.kill()
        self.shell.wait()
        os.close(self.keys)


@pytest.fixture(scope="module", params=SHELLS)
def typist(request, tmp_path_factory):
    """In a folder with a configuration and a run."""
    if not shutil.which(request.param):
        pytest.skip(f"there is no {request.param} here (apt-get install {request.param})")
    home = tmp_path_factory.mktemp(request.param)
    command = home / "selfevo"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m selfevo_jax.cli "$@"\n')
    command.chmod(0o755)
    (home / "runs" / "quickstart").mkdir(parents=True)
    (home / "mine.py").touch()
    found = Typist(request.param, home)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("selfevo ev", "selfevo eval"),
        ("selfevo data ch", "selfevo data check"),
        ("selfevo completion zs", "selfevo completion zsh"),
        ("selfevo export --format pe", "selfevo export --format peft"),
        ("selfevo export --format=pe", "selfevo export --format=peft"),
        ("selfevo export --policy=a --format=pe", "selfevo export --policy=a --format=peft"),
        ("selfevo report runs/qu", "selfevo report runs/quickstart/"),
        ("selfevo run --config=mi", "selfevo run --config=mine.py"),
        ("selfevo run --config=mine.py --workdir=runs/qu",
         "selfevo run --config=mine.py --workdir=runs/quickstart/"),
        ("selfevo eval --model=mi", "selfevo eval --model=mine.py"),
        ("selfevo judge --model=mi", "selfevo judge --model=mine.py"),
        ("selfevo judge ru", "selfevo judge runs/"),
        ("selfevo compare runs/quickstart mi", "selfevo compare runs/quickstart mine.py"),
        ("selfevo nothing-such", "selfevo nothing-such"),
    ],
)  # fmt: skip
def test_a_shell_completes_commands_values_and_files(typist, typed, completed):
    assert typist.complete(typed) == completed


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        ("selfevo run --wor", "--workdir"),
        ("selfevo export --fo", "--format"),
        ("selfevo export runs/quickstart --ou", "--out"),
        ("selfevo data check --mo", "--model"),
        ("selfevo run --config.rounds=1 --wor", "--workdir"),
    ],
)
def test_a_shell_completes_options(typist, typed, option):
    """zsh puts the `=` as well."""
    line = typist.complete(typed).removesuffix("=")
    assert line == f"{typed.rpartition(' ')[0]} {option}"


def test_commands_are_listed_with_their_whole_first_sentence():
    command = [sys.executable, "-m", "selfevo_jax.cli", "completion", "zsh"]
    script = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = script.partition("_commands=(\n")[2].partition("  )")[0].splitlines()
    assert len(listed) == 17
    assert all(line.endswith((".'", "?'", ")'")) for line in listed), listed
