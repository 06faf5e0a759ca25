#!/usr/bin/env bash
# Sets up everything and passes the tests: with the installed QEMU, and what wakes and kills virtual machines once more with
# the QEMU of Debian's backports.
#
#   scripts/test.sh            all of that
#   scripts/test.sh drivers    what drives QEMU and tap devices, with the QEMU of Debian's backports (the rest of what there is
#                              with that one: scripts/soak.sh)
#
# Two streams side by side, since each leaves processors idle for some of its time. What the second one says comes after the
# first one, and lies in target/test-beside.log.
set -euo pipefail

cd "$(dirname "$0")/.."
what=${1:-all}
case $what in
all | drivers) ;;
*)
    echo "test.sh: there is no '$what'; say nothing, or drivers" >&2
    exit 2
    ;;
esac
scripts/setup.sh test
# What is fetched is fetched while the compiler works.
mkdir -p target
scripts/setup.sh stores &
stores=$!
scripts/backports-qemu.sh target/backports-qemu >target/backports-qemu.path &
backports=$!
# shellcheck source=scripts/fixture.sh
. scripts/fixture.sh
wait "$stores"
wait "$backports"
newer=$(cat target/backports-qemu.path)

# The whole workspace and not a package, here and below, so that nothing is built twice.
if [ "$what" = drivers ]; then
    [ -n "$newer" ] || exit 0
    "$newer" --version | head -n 1
    REVEILLE_TEST_QEMU=$newer cargo test --workspace --locked --test tap --test qemu --test qemu_leaks
    exit
fi

# All but whole daemons with virtual machines.
beside() {
    cargo test --workspace --locked --lib --bins --test '[!e]*'
    cargo test --workspace --locked --doc
}

# Whole daemons wait for most of their time: more of them at once than processors, with guests as many as e2e/place.rs lets.
guests() {
    local threads=$(($(nproc) * 2))
    cargo test --workspace --locked --test e2e -- --test-threads "$threads"
    [ -n "$newer" ] || return 0
    echo "once more with $("$newer" --version | head -n 1)"
    REVEILLE_TEST_QEMU=$newer cargo test --workspace --locked --test e2e -- --test-threads "$threads" \
        wake:: cycles:: crash:: loss:: armed:: guest:: tap::clients_elsewhere rows::rows_outlive
}

log=target/test-beside.log
# With a process group of its own, so that all of it ends when this does.
set -m
(beside) >"$log" 2>&1 &
second=$!
set +m
trap 'kill -- "-$second" 2>/dev/null || true' EXIT
# Not as a condition, in which a failed command would not end it.
set +e
(
    set -e
    guests
)
first=$?
tail -n +1 -f --pid="$second" "$log"
wait "$second"
exit $((first | $?))
