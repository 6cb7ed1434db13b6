# The commands of CONTRIBUTING.md. Each is a plain command that works without just.

set shell := ["bash", "-euo", "pipefail", "-c"]

cuda_packages := "-p pauc-cuda -p pauc-models -p pauc-losses -p pauc-cli"

# Lists the commands.
default:
    @just --list --unsorted

# Formatting and lints, as in CI.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# All tests, or those whose name contains a word: `just test resume`.
test *filter:
    cargo test --workspace --locked {{ filter }}

# Writes the book's pages of components anew, and checks rustdoc.
docs:
    PAUC_UPDATE_DOCS=1 cargo test -p pauc-cli --locked --test docs
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Writes the losses and metrics of short runs anew; read the difference.
snapshots:
    INSTA_UPDATE=always INSTA_FORCE_PASS=1 cargo test -p pauc-cli --locked --test reproduction
    git diff --stat tests/snapshots

# Compares reference values with what their generators make; `just golden --write terms` writes them.
golden *arguments="--check":
    test -e target/golden/bin/python || python3 -m venv target/golden
    target/golden/bin/pip install --quiet -r golden/requirements.txt
    target/golden/bin/python golden/generate.py {{ arguments }}

# A bench of a crate: `just bench kernels convolution`. benches/README.md has their arguments.
bench crate name *arguments:
    cargo bench -p pauc-{{ crate }} --bench {{ name }} -- {{ arguments }}

# A target of tests/attacks/targets under libFuzzer: `just fuzz recipe -max_total_time=3600`.
fuzz target *arguments:
    cp Cargo.lock fuzz/Cargo.lock
    PAUC_FUZZ_CORPUS="$PWD/fuzz/corpus" cargo test -p pauc-cli --locked --test attacks seeds_are_written
    cargo fuzz run --sanitizer none {{ target }} -- -rss_limit_mb=4096 -malloc_limit_mb=1024 -timeout=60 {{ arguments }}

# Interleavings of the team of threads, with more preemptions than in `just test`.
loom preemptions="2":
    LOOM_MAX_PREEMPTIONS={{ preemptions }} cargo test --release -p pauc-kernels --locked --test team

# CUDA's tests on an emulated device.
emulated *filter:
    python3 pauc-cuda/emulated/make.py target/emulator
    LD_LIBRARY_PATH="$PWD/target/emulator" RUST_TEST_THREADS=1 \
        cargo test {{ cuda_packages }} --features pauc-cli/cuda-check --locked --lib --test cuda {{ filter }}

# The same tests on a GPU, with a CUDA toolkit.
gpu *filter:
    cargo test --release {{ cuda_packages }} --features pauc-cli/cuda --locked --lib --test cuda {{ filter }}

# Licenses, sources and advisories of dependencies; needs `cargo install cargo-deny`.
deny:
    cargo deny --all-features check

# The texts of the licenses of all linked packages, for a release: target/third-party-licenses.txt.
licenses:
    PAUC_LICENSES="$PWD/target/third-party-licenses.txt" cargo test -p pauc-cli --locked --test supply texts

# The Python wheel, for Linux with glibc 2.28 or newer: target/wheels.
wheel:
    test -e target/maturin/bin/maturin || python3 -m venv target/maturin
    target/maturin/bin/pip install --quiet 'maturin>=1.16,<2' ziglang
    PATH="$PWD/target/maturin/bin:$PATH" maturin build --locked --zig --compatibility manylinux_2_28 --out target/wheels

# Tests of the Python package, with the debug binary.
python:
    cargo build --workspace --locked --bin pauc-cli
    .ci/python

# The atlas in Chromium, with the debug binary.
browser:
    cargo build --workspace --locked --bin pauc-cli
    .ci/browser

# Packs every crate as a release would.
package:
    cargo package --workspace --no-verify --allow-dirty --locked

# Everything that has to pass before a merge.
ci:
    .ci/run
