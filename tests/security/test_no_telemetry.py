"""Nothing here tells another machine anything by itself, nor does what is imported."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FEW = ("rounds=1", "prompts.n=8", "sample.n=8", "evaluate.n=4")
# The hook is there before anything is imported; the last name is looked up by the script itself.
SCRIPT = """
import json, socket, sys

asked = []

def note(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        asked.append([event, repr(arguments)])

sys.addaudithook(note)
from selfevo_jax import cli

for command in json.loads(sys.argv[1]):
    assert cli.main(command) == 0, command
socket.getaddrinfo("localhost", 9)
print(json.dumps(asked))
"""


def test_a_run_and_what_follows_ask_no_other_machine(tmp_path):
    run = str(tmp_path / "run")
    commands = [
        ["run", f"--config={ROOT / 'configs/quickstart.py'}:tiny", f"--workdir={run}"],
        ["report", run],
        ["export", run, f"--out={tmp_path / 'out'}"],
        ["env"],
    ]  # fmt: skip
    commands[0] += [f"--config.{few}" for few in FEW]
    script = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    *others, own = json.loads(done.stdout.splitlines()[-1])
    assert own[0] == "socket.getaddrinfo" and "localhost" in own[1]
    assert others == []
