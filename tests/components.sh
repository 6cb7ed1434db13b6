#!/usr/bin/env bash
# Adds a component of every kind to a copy of the workspace, each by one file and one `mod` line, and tests the copy.
# If a new component needs any other change, this fails. The copy shares the target folder, so that its
# dependencies are already built.
#
# Arguments are passed on to `cargo test`: features, packages, and tests to run in addition to those of components.
# `BESIDE` names tests that run at the same time, in a process of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=never CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
cargo test --workspace --locked --quiet --no-run --test cli
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# New times (-m): a test that another copy left in the target folder looks up that copy's path, and must be compiled anew.
git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -m -C "$copy"
cp "$CARGO_TARGET_DIR/debug/pauc-cli" "$copy/pauc-cli-before"
cd "$copy"
selection=(--workspace --locked)
[ $# -eq 0 ] || selection=("$@")

# add KIND NAME FOLDER: writes the component's file to a folder, and the `mod` line that `new` prints to the file that it
# names.
modules=()
add() {
    local line list
    ./pauc-cli-before new "$1" "$2" --out "$3" | tee new.log
    read -r line list < <(sed -n 's/^add `mod \([a-z_]*;\)` to \([^;]*\);.*/\1 \2/p' new.log)
    echo "mod $line" >>"$list"
    modules+=("${line%;}")
}
add loss TrialLoss pauc-losses/src/contrastive
add regularizer TrialRegularizer pauc-losses/src/regularizers
add encoder TrialEncoder pauc-models/src/encoders_plain
add clusterer TrialClusterer pauc-cluster/src
add dataset TrialDataset pauc-data/src/datasets
add augmentation TrialAugmentation pauc-data/src/views
add probe TrialProbe pauc-probes/src
add optimizer TrialOptimizer pauc-models/src/optimizers

# The documented command that generates pages of the book. The new files compile without warnings.
PAUC_UPDATE_DOCS=1 cargo test "${selection[@]}" --lib --test docs reference_pages 2>&1 | tee build.log
if grep -A 8 '^warning' build.log; then
    echo "new components bring warnings" >&2
    exit 1
fi

# The tests in the new files, the tests of all registered components, and the recorded output.
tests=(--lib --test docs --test cli --test errors --test recipes)
if [ -n "${BESIDE:-}" ]; then
    # shellcheck disable=SC2086 # several words
    cargo test "${selection[@]}" "${tests[@]}" $BESIDE --no-run
    # shellcheck disable=SC2086
    cargo test "${selection[@]}" $BESIDE >beside.log 2>&1 &
    beside=$!
fi
cargo test "${selection[@]}" "${tests[@]}" 2>&1 | tee tests.log
if [ -n "${BESIDE:-}" ]; then
    wait "$beside" || { cat beside.log; exit 1; }
    cat beside.log
fi
for module in "${modules[@]}"; do
    grep -q "^test \(.*::\)\?$module::tests::.* ok$" tests.log || { echo "no test of $module ran" >&2; exit 1; }
done

cat >trial.ron <<'RECIPE'
Recipe(
    name: "trial",
    data: TrialDataset(count: 500),
    views: [(count: 2, ops: [TrialAugmentation()])],
    encoder: TrialEncoder(width: 16),
    projector: Mlp(dims: [16, 8]),
    clusterer: TrialClusterer(k: 20),
    objective: [(term: TrialLoss()), (term: TrialRegularizer()), (term: ProtoNce())],
    optimizer: TrialOptimizer(lr: 0.001),
    train: (epochs: 2, batch: 100),
    probes: [TrialProbe()],
)
RECIPE
pauc="$CARGO_TARGET_DIR/debug/pauc-cli"
"$pauc" check trial.ron
"$pauc" run trial.ron --out runs >outcome.txt
cat outcome.txt
# The closing table includes the accuracy of the new probe.
grep -q '^TrialProbe/accuracy .* %$' outcome.txt
