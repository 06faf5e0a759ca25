#!/bin/sh
# Builds Reveille and the demo image and prints the tables of the benchmarks.
set -eu

cd "$(dirname "$0")/.."
scripts/setup.sh demo
cargo build --release --locked --quiet --bin reveille
state=target/bench
scripts/demo-image.sh target/release/reveille "$state" target/demo-packages
printf '[daemon]\nstate_dir = "."\n' >"$state/reveille.toml"
exec target/release/reveille bench wake --config "$state/reveille.toml" "$@"
