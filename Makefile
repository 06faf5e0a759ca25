# Each target sets up what it needs.
.PHONY: demo test test-drivers bench soak lint

# `make demo NET=tap`, as root: through tap devices, in a network namespace of its own.
demo:
	@demo/$(if $(filter tap,$(NET)),tap,run).sh

test:
	@scripts/test.sh

# With the QEMU of Debian's backports.
test-drivers:
	@scripts/test.sh drivers

bench:
	@scripts/bench.sh

soak:
	@scripts/soak.sh

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	@# As users have it, without what only tests ask of libraries.
	cargo check --workspace --locked
