#!/usr/bin/env bash
# Makes or renews a virtual environment with this checkout in it, at the versions in constraints/.
# Run as: constraints/install.sh VENV [EXTRA,EXTRA...]     (the Makefile does)
# Does nothing when the environment already holds these extras for the same setup.py, constraints
# and Python. Extras that an earlier call put in are kept. PYTHON=... chooses the interpreter.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
venv=$1
wanted=${2:-}
stamp=$venv/.selfevo_installed # first line: the key; second line: the extras

say() { printf '== %s\n' "$*"; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Keeps an environment that works, unless PYTHON asks for another version.
make_venv() {
    local current python
    current=$(version_of "$venv/bin/python") || current=""
    if [ -z "${PYTHON:-}" ]; then
        case "$current" in 3.11 | 3.12 | 3.13) return ;; esac
    fi
    python=$("$here/find_python.sh")
    if [ -n "$current" ] && [ "$current" = "$(version_of "$python")" ]; then return; fi
    say "making $venv with $python"
    "$python" -m venv --clear "$venv"
}

# What the environment's contents depend on, as one hash.
key() {
    cat "$root/setup.py" "$root/pyproject.toml" "$1" | "$venv/bin/python" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read() + (sys.version + sys.argv[1]).encode()).hexdigest())' \
        "$root"
}

# The union of two comma lists, sorted.
union() { printf '%s,%s' "$1" "$2" | tr ',' '\n' | sort -u | grep . | paste -sd, - || true; }

make_venv
version=$(version_of "$venv/bin/python")
versions_file=$here/py${version/./}.txt
new_key=$(key "$versions_file")
old_key="" had=""
[ ! -f "$stamp" ] || { read -r old_key; read -r had; } <"$stamp" || true
extras=$(union "$had" "$wanted")
if [ "$new_key" = "$old_key" ] && [ "$extras" = "$had" ]; then exit 0; fi

rm -f "$stamp"
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip --upgrade
say "installing selfevo_jax${extras:+[$extras]} for Python $version into $venv"
started=$SECONDS
# Not compiled now: most modules of these packages are never imported; Python compiles the others.
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-compile --constraint "$versions_file")
# The few packages that come as source are built with this environment's setuptools: an environment
# for each of them would take a third of the whole time.
if ! { "${pip[@]}" --quiet setuptools &&
    "${pip[@]}" --no-build-isolation --editable "$root${extras:+[$extras]}"; }; then
    echo "pip could not install the packages; its reason is above. Without a network, point" \
        "PIP_INDEX_URL or PIP_FIND_LINKS at a mirror; then run the same command again." >&2
    exit 1
fi
printf '%s\n%s\n' "$new_key" "$extras" >"$stamp"
say "installed in $((SECONDS - started)) s"
