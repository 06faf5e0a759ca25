#!/bin/sh
# Sets up everything and passes the tests: once with the installed QEMU, and what starts virtual machines once more
# with the QEMU of Debian's backports.
set -eu

cd "$(dirname "$0")/.."
scripts/setup.sh test
# shellcheck source=scripts/fixture.sh
. scripts/fixture.sh
cargo test --workspace --locked
newer=$(scripts/backports-qemu.sh target/backports-qemu)
if [ -n "$newer" ]; then
    echo "once more with $("$newer" --version | head -n 1)"
    # The whole workspace and not a package, so that nothing is built twice.
    export REVEILLE_TEST_QEMU="$newer"
    cargo test --workspace --locked --test qemu --test qemu_leaks --test image --test tap
    # The rest is the same with every QEMU: where versions lie and what is said of them, what is foreseen, how many instances
    # there are, who has room, what a daemon that was killed between two steps of its own finds.
    cargo test --workspace --locked --test e2e -- --skip faults:: --skip stored:: --skip snapshots:: --skip refusals:: \
        --skip forecast:: --skip crowd:: --skip health:: --skip warm_up:: --skip steps:: --skip registry:: \
        --skip services:: --skip budget::
fi
