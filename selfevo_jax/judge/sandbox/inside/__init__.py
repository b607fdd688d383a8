"""What runs inside a cage: standard library only, started by path with `python -I -S`.

These modules import nothing of `selfevo_jax` and each other as `inside.name`: the process that runs
them finds this folder and the standard library, no other package, and nothing that it holds in
memory may be worth reading. `selfevo_jax.judge.sandbox.cage` starts them; nobody imports them.
"""
