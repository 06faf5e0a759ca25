# Sourced by the scripts that test: builds the guest that the tests boot and exports where it is.
state=$PWD/target/test
# As the tests build it, so that nothing is built twice.
cargo test --workspace --locked --no-run
scripts/demo-image.sh target/debug/reveille "$state" target/demo-packages
digest=$(target/debug/reveille --json image show demo --state-dir "$state" |
    sed -n 's/^ *"digest": "\([0-9a-f]*\)".*/\1/p')
REVEILLE_TEST_STATE=$state
REVEILLE_TEST_KERNEL=$state/images/$digest/kernel
REVEILLE_TEST_INITRD=$state/images/$digest/initrd
REVEILLE_TEST_CACHE=$PWD/target/demo-packages
export REVEILLE_TEST_STATE REVEILLE_TEST_KERNEL REVEILLE_TEST_INITRD REVEILLE_TEST_CACHE
