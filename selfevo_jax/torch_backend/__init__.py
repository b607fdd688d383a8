"""PyTorch behind the same protocols: a trainer and a generator on transformers and peft.

Importing this package without its libraries raises one `UserError` with the command that mends
it; nothing outside needs them.
"""

from selfevo_jax.errors import UserError

try:
    import peft
    import torch
    import transformers
except ImportError as error:
    raise UserError(
        f"backend=torch needs the package {error.name}, which is not installed: "
        "pip install 'selfevo_jax[torch]', or use backend=jax"
    ) from error

__all__ = ["peft", "torch", "transformers"]
