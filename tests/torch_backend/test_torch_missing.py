"""Without torch nothing but this backend fails, and that with the command that mends it."""

import os
import subprocess
import sys
from pathlib import Path

BLOCKED = """
import sys
class Without:  # a finder that knows no torch
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
from selfevo_jax import cli
config, workdir = sys.argv[1:]
for backend in ("jax", "torch"):
    print(cli.main(["run", f"--config={config}", f"--workdir={workdir}", "--dry-run",
                    f"--config.backend={backend}"]), backend)
"""
CONFIG = f"{Path(__file__).parents[2] / 'configs' / 'quickstart.py'}:tiny"


def test_without_torch_the_other_backend_plans_and_one_message_names_the_command(tmp_path):
    command = [sys.executable, "-c", BLOCKED, CONFIG, str(tmp_path / "run")]
    environment = {**os.environ, "SELFEVO_CACHE": str(tmp_path), "COLUMNS": "300"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends = [line for line in done.stdout.splitlines() if line.endswith((" jax", " torch"))]
    assert ends == ["0 jax", "2 torch"]
    assert (
        "backend=torch needs the package torch, which is not installed: "
        "pip install 'selfevo_jax[torch]', or use backend=jax"
    ) in done.stderr
