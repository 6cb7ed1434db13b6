//! The same recipe gives the same bits: for any number of threads, and across an interruption.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{only_run, pauc, root, short_form, timeless_events};
use safetensors::SafeTensors;
use std::path::Path;

fn train(out: &Path, more: &[&str]) -> Vec<u8> {
    let recipe = root().join("recipes/quickstart.ron");
    let mut args =
        vec!["run".to_string(), recipe.display().to_string(), "--out".into(), out.display().to_string()];
    args.extend(short_form(&recipe));
    args.extend(more.iter().map(|s| s.to_string()));
    let done = pauc(args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    checkpoint(out)
}

fn checkpoint(out: &Path) -> Vec<u8> {
    std::fs::read(only_run(out).join("checkpoints/last.safetensors")).unwrap()
}

#[test]
fn threads_and_interruptions_do_not_change_a_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one = train(&at("one"), &["--threads", "1"]);
    assert!(one == train(&at("two"), &["--threads", "2"]), "two threads differ from one");
    assert!(one == train(&at("three"), &["--threads", "3"]), "three threads differ from one");

    // Stopped in the middle of an epoch, before and after the first clustering.
    for stop in ["3", "8"] {
        let out = at(&format!("stop{stop}"));
        assert!(train(&out, &["--max-steps", stop]) != one);
        let run = only_run(&out);
        let done = pauc(["resume", run.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(one == checkpoint(&out), "resuming at step {stop} changed the run");
        assert_eq!(timeless_events(&only_run(&at("one"))), timeless_events(&run));
    }
}

/// A vision transformer that drops paths at random, with crops of two sizes.
const DROPPING: &str = r#"Recipe(
    name: "dropping",
    data: Shapes(count: 96, size: 28, classes: 4, seed: 1),
    views: [
        (count: 2, ops: [MultiCrop(size: 28, crop: Global)]),
        (count: 1, ops: [MultiCrop(size: 14, crop: Local)]),
    ],
    encoder: VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, patch: 7, drop_path: 0.5),
    projector: Mlp(dims: [8]),
    objective: [(term: SwappedAssignment(prototypes: 8, local_views: 1))],
    layer_decay: 0.7,
    train: (epochs: 2, batch: 32),
)
"#;

#[test]
fn threads_and_interruptions_do_not_change_dropped_paths() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("dropping.ron");
    std::fs::write(&recipe, DROPPING).unwrap();
    let train = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let args = ["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let done = pauc(args.iter().chain(more));
        assert_eq!(done.code, 0, "{}", done.stderr);
        (only_run(&out), checkpoint(&out))
    };
    let (_, one) = train("one", &["--threads", "1"]);
    assert!(one == train("three", &["--threads", "3"]).1, "three threads differ from one");
    let (run, stopped) = train("stopped", &["--max-steps", "4"]);
    assert!(stopped != one);
    let done = pauc(["resume", run.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(one == checkpoint(&folder.path().join("stopped")), "resuming changed the run");
}

#[test]
fn another_seed_gives_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let files = [train(&a, &["--max-steps", "2"]), train(&b, &["--max-steps", "2", "--seeds", "1"])];
    assert!(only_run(&b).ends_with("seed1"));
    // The files name their seed, so compare only the weights.
    let [zero, one] = files.each_ref().map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    let weights: Vec<&str> =
        zero.names().into_iter().filter(|n| n.contains("conv") && n.ends_with(".weight")).collect();
    assert!(!weights.is_empty(), "{:?}", zero.names());
    for name in weights {
        let data = [&zero, &one].map(|file| file.tensor(name).unwrap());
        assert!(
            data[0].shape() == data[1].shape() && data[0].data() != data[1].data(),
            "{name} ignores the seed"
        );
    }
}
