#!/bin/sh
# Builds Reveille and the demo image and runs the demo in the foreground. Its state is under target/demo.
# demo/tap.sh has it run elsewhere, by the variables below.
set -eu

cd "$(dirname "$0")/.."
scripts/setup.sh demo
cargo build --release --locked --quiet --bin reveille
reveille=target/release/reveille
state=${REVEILLE_DEMO_STATE:-target/demo}
config=${REVEILLE_DEMO_CONFIG:-demo/reveille.toml}
# What the daemon and its clients are started with, if anything.
within=${REVEILLE_DEMO_IN:-}
scripts/demo-image.sh "$reveille" "$state" target/demo-packages

# The first start of a service is a cold boot. Taken here once, so that what sleeps is a snapshot.
if [ ! -e "$state/prepared" ]; then
    echo "booting the demo's services once, so that they have a snapshot to wake from"
    mkfifo "$state/lines.$$"
    $within "$reveille" serve --config "$config" >"$state/lines.$$" &
    daemon=$!
    trap 'kill $daemon 2>/dev/null; wait $daemon 2>/dev/null; rm -f "$state/lines.$$"' EXIT
    trap 'exit 1' HUP INT TERM
    while read -r line; do
        case $line in "reveille is ready"*) ready=1 && break ;; esac
    done <"$state/lines.$$"
    [ -n "${ready:-}" ] || exit 1
    for service in hello echo; do
        $within "$reveille" wake $service
        $within "$reveille" hibernate $service
    done
    kill $daemon
    wait $daemon
    rm -f "$state/lines.$$"
    trap - EXIT HUP INT TERM
    : >"$state/prepared"
fi
exec $within "$reveille" serve --config "$config"
