# At most ten aliases; what they stand for lives in .ci/ and in cargo.

# All lanes but soak, as CI runs them.
ci lane="all":
    .ci/run {{lane}}

# The demo: K-Means as cloud processes on this machine.
demo *arguments:
    cargo run --release --bin praas -- demo {{arguments}}

# The tests.
test *arguments:
    cargo test --workspace {{arguments}}

# Format, clippy, documentation.
lint:
    .ci/run lint

# Fuzz every target, for SECONDS in all.
fuzz seconds="60" *targets:
    .ci/fuzz {{seconds}} {{targets}}

# The latency table.
latency *arguments:
    cargo run --release --bin praas -- bench latency {{arguments}}

# The criterion benches.
bench *arguments:
    cargo bench -p praas-benches {{arguments}}

# Rewrite the golden files, after a deliberate change of a format.
bless:
    PRAAS_BLESS=1 cargo test --workspace golden
    git diff --stat -- tests/golden
