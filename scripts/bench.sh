#!/bin/sh
# Builds Reveille and prints the tables of the benchmarks: wakes against cold boots, what versions take in an object
# store, first requests with warm-up profiles and without, DNS against Knot DNS; as root also the wakes of a machine with
# PostgreSQL and a disk.
#
#   scripts/bench.sh forecast|policy DIR [OPTIONS]             forecasts and policies on a directory of data
#   scripts/bench.sh [wake|postgres|warm-up|store|dns [OPTIONS]]       default: all
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

warm_up() {
    image
    scripts/warm-up-image.sh target/release/reveille "$state" target/demo-packages
    if [ "$(id -u)" = 0 ]; then
        scripts/postgres-image.sh target/release/reveille "$state" target/demo-packages
    fi
    target/release/reveille bench warm-up --config "$state/reveille.toml" "$@"
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
    warm_up
    store
    dns
    ;;
wake | postgres | store | dns | forecast | policy) "$what" "$@" ;;
warm-up) warm_up "$@" ;;
*)
    echo "bench.sh: there is no benchmark '$what'; wake, postgres, warm-up, store, dns, forecast and policy are what there is" >&2
    exit 2
    ;;
esac
