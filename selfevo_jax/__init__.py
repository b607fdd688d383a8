"""selfevo_jax trains language models on what they themselves produce."""

__version__ = "0.1.0"
