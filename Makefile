# Each target sets up what it needs.
.PHONY: demo test bench soak lint

demo:
	@demo/run.sh

test:
	@scripts/test.sh

bench:
	@scripts/bench.sh

soak:
	@scripts/soak.sh

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
