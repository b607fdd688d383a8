#!/usr/bin/env bash
# Installs Python, where it is missing, and the package with its TPU extra on every worker; mounts
# TPU_NFS, where it is set, so that all workers see one workdir.
# Needs the code to be there (copy.sh). May be repeated; what is installed is left alone.
# Run as: tpu_scripts/setup.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine

install='cd ~/selfevo && { constraints/find_python.sh >/dev/null ||
    { sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv; }; } &&
    constraints/install.sh .venv tpu,gcs'
retry_on_workers all "$install"

if [ -n "${TPU_NFS:-}" ]; then
    retry_on_workers all "mountpoint -q /mnt/selfevo || {
    sudo apt-get install -y -qq nfs-common && sudo mkdir -p /mnt/selfevo &&
    sudo mount -t nfs -o actimeo=1,lookupcache=none $(printf '%q' "$TPU_NFS") /mnt/selfevo && sudo chmod 1777 /mnt/selfevo; }"
fi
