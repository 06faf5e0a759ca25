#!/bin/sh
# Builds the demo image into a state directory, unless it is there already and nothing of it has changed.
#
#   scripts/demo-image.sh REVEILLE STATE_DIR CACHE_DIR
set -eu

reveille=$1
state=$2
cache=$3
here=$(cd "$(dirname "$0")/.." && pwd)
mark=$(cat "$here"/demo/build-root.sh "$here"/demo/root/etc/inittab "$here"/demo/root/srv/demo \
    "$here"/crates/reveille-vm/src/image/stage1.sh "$here"/crates/reveille-vm/src/image/refresh | sha256sum)
if [ "$(cat "$state/demo-image.mark" 2>/dev/null)" = "$mark" ] &&
    "$reveille" image verify demo --state-dir "$state" >/dev/null 2>&1; then
    exit 0
fi
mkdir -p "$state" "$cache"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 1' HUP INT TERM
echo "building the demo image from Debian packages"
"$here/demo/build-root.sh" "$root/root" "$cache"
"$reveille" image build demo --root "$root/root" --memory-mib 128 --package-cache "$cache" --state-dir "$state"
printf '%s\n' "$mark" >"$state/demo-image.mark"
