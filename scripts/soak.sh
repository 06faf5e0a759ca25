#!/bin/sh
# The long forms of the tests that repeat and draw at random. Of DNS: 20,000 questions compared with Knot's answers, a
# flood of 2,000,000, the fuzz targets, and the corpora of packets in REVEILLE_DNS_CORPUS if that names a directory. With the installed QEMU and with the one of Debian's backports: hibernate-wake cycles under clients,
# demand that is seen coming, kills of the daemon, cold boots in a row, kills of guests that write to their disks. Of the control loop: 20,000 seeds
# of the simulation. Of the store: 5,000 random sequences. Prints their figures.
#
#   scripts/soak.sh [CYCLES [KILLS [BOOTS [FUZZ_SECONDS]]]]       default: 200 60 100 900
set -eu

cd "$(dirname "$0")/.."
scripts/setup.sh test
scripts/setup.sh stores
# shellcheck source=scripts/fixture.sh
. scripts/fixture.sh
export REVEILLE_TEST_CYCLES="${1:-200}" REVEILLE_TEST_KILLS="${2:-60}" REVEILLE_TEST_BOOTS="${3:-100}" REVEILLE_TEST_STORM=40

# The control loop over a simulated world.
cargo build --release --locked --quiet --package reveille-sim
target/release/reveille-sim run --seeds "0..${REVEILLE_SOAK_SEEDS:-20000}" --threads "$(nproc)"

for seed in 1 2 3; do
    REVEILLE_TEST_QUESTIONS=20000 REVEILLE_TEST_SEED=$seed \
        cargo test --workspace --locked --test conform -- --nocapture
done
REVEILLE_TEST_FLOOD=2000000 cargo test --workspace --locked --test flood
if [ -n "${REVEILLE_DNS_CORPUS:-}" ]; then
    cargo test --workspace --locked --test corpus -- --ignored --nocapture
fi
scripts/fuzz.sh "${4:-900}"

# Versions stored, deleted and collected side by side, with kills at any request.
REVEILLE_TEST_SEQUENCES=5000 cargo test --workspace --locked --test sequences

# A request log of a million lines, 1 % of them damaged.
REVEILLE_TEST_LOG_LINES=1000000 cargo test --workspace --locked --lib request_log
REVEILLE_TEST_LOG_LINES=1000000 cargo test --workspace --locked --test daemon request_logs

# Raw records, which the other tests are built without, as pyarrow reads them.
REVEILLE_PYARROW="$(scripts/pyarrow.sh)"
export REVEILLE_PYARROW
cargo test --workspace --locked --features parquet --test parquet
cargo test --workspace --locked --features parquet --test daemon records::

# Wakes through tap devices, at random moments: the activator alone, and below the daemon.
REVEILLE_TEST_TAP_WAKES=500 cargo test --workspace --locked --test tap -- --nocapture clients_at_random

soak() {
    echo "with $("$1" --version | head -n 1)"
    # One after the other: what is drawn at random is to hit the daemon and not a busy host. The whole workspace and
    # not a package, so that nothing is built twice.
    REVEILLE_TEST_QEMU=$1 cargo test --workspace --locked --test e2e -- --test-threads=1 \
        cycles:: crash:: boots:: budget:: wake::a_hundred
    REVEILLE_TEST_QEMU=$1 REVEILLE_TEST_OUTAGE_S=60 cargo test --workspace --locked --test e2e
    REVEILLE_TEST_QEMU=$1 cargo test --workspace --locked --test image --test tap --test qemu --test qemu_leaks
    REVEILLE_TEST_QEMU=$1 REVEILLE_TEST_ASKS=20 cargo test --workspace --locked --test e2e -- --nocapture forecast::
    REVEILLE_TEST_QEMU=$1 REVEILLE_TEST_TAP_WAKES=2000 cargo test --workspace --locked --test e2e -- --nocapture \
        tap::clients_elsewhere
    REVEILLE_TEST_QEMU=$1 REVEILLE_TEST_ROWS=200 cargo test --workspace --locked --test qemu -- --nocapture \
        a_row_that_was_acknowledged
}

soak "$(command -v qemu-system-x86_64)"
newer=$(scripts/backports-qemu.sh target/backports-qemu)
if [ -n "$newer" ]; then
    soak "$newer"
fi
