#!/usr/bin/env bash
# Prints the path of a Python that can make virtual environments, of the first version that is found.
# Run as: constraints/find_python.sh [VERSION ...]     (default: 3.11 3.12 3.13)
# PYTHON=/path/to/python asks for that one and no other. Looks on PATH, then among pyenv's versions.
set -euo pipefail

versions=("$@")
[ "${#versions[@]}" -gt 0 ] || versions=(3.11 3.12 3.13)
without_venv=""

# Is $1 a Python of version $2 that can make an environment with pip in it?
usable() {
    local found
    found=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    [ "$found" = "$2" ] || return 1
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return 0
    without_venv="$1"
    return 1
}

candidates() {
    type -ap "python$1" python3 python || true
    if command -v pyenv >/dev/null; then
        ls -d "$(pyenv root)"/versions/"$1"*/bin/python 2>/dev/null || true
    fi
}

if [ -n "${PYTHON:-}" ]; then
    for version in "${versions[@]}"; do
        if usable "$PYTHON" "$version"; then command -v "$PYTHON" && exit 0; fi
    done
    echo "PYTHON=$PYTHON is not a Python ${versions[*]} with venv and pip:" \
        "name another one, or leave PYTHON unset to search for it." >&2
    exit 1
fi
for version in "${versions[@]}"; do
    while IFS= read -r path; do
        if usable "$path" "$version"; then echo "$path" && exit 0; fi
    done < <(candidates "$version")
done
echo "No usable Python found (wanted: ${versions[*]}, with venv and pip) on PATH or in pyenv." >&2
if [ -n "$without_venv" ]; then
    echo "$without_venv has no ensurepip: on Debian and Ubuntu, apt-get install python3-venv." >&2
else
    echo "Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3.11 ..." >&2
fi
exit 1
