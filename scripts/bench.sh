#!/bin/sh
# Builds Reveille and prints the tables of the benchmarks: wakes against cold boots, what versions take in an object
# store, DNS against Knot DNS.
#
#   scripts/bench.sh [wake|store|dns [OPTIONS]]       default: all
set -eu

cd "$(dirname "$0")/.."
what=${1:-all}
[ $# -eq 0 ] || shift

image() {
    state=target/bench
    scripts/demo-image.sh target/release/reveille "$state" target/demo-packages
    printf '[daemon]\nstate_dir = "."\n' >"$state/reveille.toml"
}

wake() {
    image
    target/release/reveille bench wake --config "$state/reveille.toml" "$@"
}

store() {
    image
    target/release/reveille bench store --config "$state/reveille.toml" "$@"
}

dns() {
    target/release/reveille bench dns "$@"
}

# The tests' set-up has the DNS servers to compare with.
scripts/setup.sh test
cargo build --release --locked --quiet --bin reveille
case $what in
all)
    wake
    store
    dns
    ;;
wake | store | dns) "$what" "$@" ;;
*)
    echo "bench.sh: there is no benchmark '$what'; wake, store and dns are what there is" >&2
    exit 2
    ;;
esac
