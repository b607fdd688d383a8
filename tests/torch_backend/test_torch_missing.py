"""Without torch nothing but this backend fails, and that with the command that mends it."""

import subprocess
import sys

BLOCKED = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import selfevo_jax.learn.trainer, selfevo_jax.evolve.launch, selfevo_jax.sample.engine
from selfevo_jax.errors import UserError
try:
    import selfevo_jax.torch_backend.trainer
except UserError as error:
    print(error)
"""


def test_without_torch_one_message_names_the_command():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        "backend=torch needs the package torch, which is not installed: "
        "pip install 'selfevo_jax[torch]', or use backend=jax"
    )
