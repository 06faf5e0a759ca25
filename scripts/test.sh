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
    REVEILLE_TEST_QEMU=$newer cargo test --locked -p reveille-vm -p reveille --tests
fi
