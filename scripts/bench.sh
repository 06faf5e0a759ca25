#!/bin/sh
# Builds Reveille and prints the tables of the benchmarks: wakes against cold boots, DNS against Knot DNS.
#
#   scripts/bench.sh [wake|dns [OPTIONS]]       default: both
set -eu

cd "$(dirname "$0")/.."
what=${1:-all}
[ $# -eq 0 ] || shift

wake() {
    state=target/bench
    scripts/demo-image.sh target/release/reveille "$state" target/demo-packages
    printf '[daemon]\nstate_dir = "."\n' >"$state/reveille.toml"
    target/release/reveille bench wake --config "$state/reveille.toml" "$@"
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
    dns
    ;;
wake | dns) "$what" "$@" ;;
*)
    echo "bench.sh: there is no benchmark '$what'; wake and dns are what there is" >&2
    exit 2
    ;;
esac
