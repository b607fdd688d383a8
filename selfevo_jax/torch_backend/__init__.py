"""PyTorch behind the same protocols: a trainer and a generator on transformers and peft.

Importing this package without its libraries raises one `UserError` with the command that mends
it; nothing outside needs them.
"""

import importlib.util

from selfevo_jax.errors import UserError

for _package in ("torch", "transformers", "peft"):
    if importlib.util.find_spec(_package) is None:
        raise UserError(
            f"backend=torch needs the package {_package}, which is not installed: "
            "pip install 'selfevo_jax[torch]', or use backend=jax"
        )
