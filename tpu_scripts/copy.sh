#!/usr/bin/env bash
# Copies this checkout (what git tracks or would track) and the secrets file to every worker.
# Run as: tpu_scripts/copy.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine

archive=$(mktemp -d)/selfevo.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT

pack() {
    git -C "$repo" ls-files -z --cached --others --exclude-standard |
        (cd "$repo" && while IFS= read -r -d '' file; do
            [ ! -e "$file" ] || printf '%s\0' "$file" # deleted, but still in the index
        done | tar --null --files-from=- -czf "$archive")
}

send() {
    retry gcloud compute tpus tpu-vm scp "$1" "$TPU_NAME:$2" "${where[@]}" --worker=all
}

check_secrets() {
    [ -f "$SECRETS_FILE" ] || die "SECRETS_FILE=$SECRETS_FILE: there is no such file"
    case "$(stat -c %a "$SECRETS_FILE")" in
    ?00) ;;
    *) die "$SECRETS_FILE can be read by others: chmod 600 it" ;;
    esac
}

[ -z "${SECRETS_FILE:-}" ] || check_secrets
[ "$dry_run" = 1 ] || pack
retry_on_workers all 'mkdir -p ~/selfevo && mkdir -p -m 700 ~/.selfevo'
send "$archive" .selfevo/code.tar.gz
# A fresh folder, so that a file deleted here is gone there; the environment is kept.
retry_on_workers all 'cd ~/selfevo && find . -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + && tar xzf ~/.selfevo/code.tar.gz'
if [ -n "${SECRETS_FILE:-}" ]; then
    send "$SECRETS_FILE" .selfevo/secrets.env
    retry_on_workers all 'chmod 600 ~/.selfevo/secrets.env'
fi
