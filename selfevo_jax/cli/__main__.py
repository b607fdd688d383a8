"""`python -m selfevo_jax.cli`: the same as the `selfevo` script."""

import sys

from selfevo_jax.cli import main

sys.exit(main())
