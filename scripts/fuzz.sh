#!/bin/sh
# Builds the fuzz targets with coverage counters, by the stable compiler, and runs each for some CPU time, however busy
# the host is. What it finds is left in target/fuzz-runs/TARGET and ends the script; so does an input that takes 10 s or 1 GiB.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]       default: 60 seconds each of all targets
set -eu

cd "$(dirname "$0")/.."
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- question fast framing transfer update zonefile dnstap depot

command -v c++ >/dev/null || {
    echo "fuzz.sh: libFuzzer is compiled with c++, which is missing; scripts/setup.sh test installs it" >&2
    exit 1
}
# The counters are a pass of LLVM, which every compiler has. With a target named, build scripts and macros are built
# without them. Not --locked: what a crate has gained is added to the lock file of the targets.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --quiet --manifest-path fuzz/Cargo.toml --target "$host" --target-dir target/fuzz

# CPU seconds of all that has been run so far, after `times >target/fuzz-runs/times`: in a subshell it would tell of none.
spent() {
    sed -n '2s/[ms]/ /gp' target/fuzz-runs/times | awk '{ printf "%d", $1 * 60 + $2 + $3 * 60 + $4 }'
}

for target in "$@"; do
    run=target/fuzz-runs/$target
    mkdir -p "$run/corpus"
    seeds=fuzz/seeds/$target
    # The fast way reads what the general one does.
    [ "$target" != fast ] || seeds=fuzz/seeds/question
    # Zone files as others write them are good seeds too.
    [ "$target" != zonefile ] || seeds="$seeds crates/reveille-dns/tests/conform/zones"
    echo "$target: $seconds s"
    times >target/fuzz-runs/times
    began=$(spent)
    left=$seconds
    rounds=0
    # A busy host gives less CPU time than time passes; one that gives next to none is not waited for.
    while [ "$left" -gt 0 ] && [ $rounds -lt 20 ]; do
        # shellcheck disable=SC2086
        "target/fuzz/$host/release/$target" "$run/corpus" $seeds -artifact_prefix="$run/" -dict="${seeds%% *}.dict" \
            -max_total_time="$left" -timeout=10 -rss_limit_mb=1024 -max_len=4096 -print_final_stats=1 2>"$run/log" || {
            tail -n 40 "$run/log" >&2
            echo "fuzz.sh: $target found something; the input is in $run, the log in $run/log" >&2
            exit 1
        }
        times >target/fuzz-runs/times
        left=$((seconds - $(spent) + began))
        rounds=$((rounds + 1))
        sed -n 's/^stat::number_of_executed_units: */  inputs run: /p; s/^stat::new_units_added: */  of them new: /p' \
            "$run/log"
    done
    echo "  $((seconds - left)) s of CPU"
done
