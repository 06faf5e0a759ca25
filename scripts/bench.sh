#!/bin/sh
# Builds Reveille and prints the tables of the benchmarks: wakes against cold boots, what versions take in an object
# store, DNS against Knot DNS; as root also the wakes of a machine with PostgreSQL and a disk.
#
#   scripts/bench.sh [wake|postgres|store|dns [OPTIONS]]       default: all
#   scripts/bench.sh forecast|policy DIR [OPTIONS]             forecasts and policies on a directory of data
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

postgres() {
    image
    if [ "$(id -u)" != 0 ]; then
        echo "bench.sh: NOT RUN: wakes of PostgreSQL; its image is prepared as root" >&2
        return
    fi
    scripts/postgres-image.sh target/release/reveille "$state" target/demo-packages
    target/release/reveille bench wake --config "$state/reveille.toml" --image postgres --memory-mib 512 --wakes 20 \
        --cold-boots 5 "$@"
}

store() {
    image
    target/release/reveille bench store --config "$state/reveille.toml" "$@"
}

dns() {
    target/release/reveille bench dns "$@"
}

forecast() {
    target/release/reveille bench forecast "$@"
}

policy() {
    target/release/reveille bench policy "$@"
}

# The tests' set-up has the DNS servers to compare with.
scripts/setup.sh test
cargo build --release --locked --quiet --bin reveille
case $what in
all)
    wake
    postgres
    store
    dns
    ;;
wake | postgres | store | dns | forecast | policy) "$what" "$@" ;;
*)
    echo "bench.sh: there is no benchmark '$what'; wake, postgres, store, dns, forecast and policy are what there is" >&2
    exit 2
    ;;
esac
