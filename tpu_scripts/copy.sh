#!/usr/bin/env bash
# Copies this checkout (what git tracks or would track) and the secrets file to every worker.
# There it replaces what the previous copy brought. Everything else in ~/selfevo stays: the environment,
# runs, data. Stop a job before you copy other code below it: it may not have read all of its own yet.
# Run as: tpu_scripts/copy.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine

list=.selfevo_copied # in ~/selfevo: the names of the files that the copy brought, each ended by a zero
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

pack() {
    git -C "$repo" ls-files -z --cached --others --exclude-standard |
        (cd "$repo" && while IFS= read -r -d '' file; do
            # One that is deleted may still be in the index.
            if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
        done) >"$folder/$list" &&
        # The list comes first: where unpacking breaks off, it names all that may have got there.
        tar -czf "$folder/selfevo.tar.gz" -C "$folder" "$list" -C "$repo" --null --files-from="$folder/$list"
}

send() {
    retry gcloud compute tpus tpu-vm scp "$1" "$TPU_NAME:$2" "${where[@]}" --worker=all
}

# What a worker runs: takes away what the last copy brought and this one does not, then unpacks this one.
unpack="archive=~/.selfevo/code.tar.gz
cd ~/selfevo && tar xzOf \$archive $list >~/.selfevo/$list || exit 1
touch $list
LC_ALL=C comm -z -23 <(LC_ALL=C sort -zu $list) <(LC_ALL=C sort -zu ~/.selfevo/$list) |
while IFS= read -r -d '' file; do
    if [ -d \"\$file\" ] && [ ! -L \"\$file\" ]; then continue; fi
    rm -f -- \"\$file\" && rmdir -p -- \"\$(dirname -- \"\$file\")\" 2>/dev/null
done
tar xzf \$archive"

check_secrets
[ "$dry_run" = 1 ] || pack || die "$repo could not be packed"
retry_on_workers all 'mkdir -p ~/selfevo && mkdir -p -m 700 ~/.selfevo'
send "$folder/selfevo.tar.gz" .selfevo/code.tar.gz
retry_on_workers all "$unpack"
if [ -n "${SECRETS_FILE:-}" ]; then
    send "$SECRETS_FILE" .selfevo/secrets.env
    retry_on_workers all 'chmod 600 ~/.selfevo/secrets.env'
fi
