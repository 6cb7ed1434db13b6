//! The program on the page "From Rust" is `examples/library.rs`, and its model learns.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

// Like a user's program, this test's crate depends only on `pauc`, not on the internal crates.
#[allow(dead_code)] // its `main`, which prints what `train` returns
#[path = "../examples/library.rs"]
mod library;

#[test]
fn the_example_learns_without_a_recipe_file_or_a_folder() {
    let trained = library::train().unwrap();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (&trained.losses[..10], &trained.losses[trained.losses.len() - 10..]);
    assert!(mean(last) < mean(first), "the loss did not fall: {:?}", trained.losses);
    // With ten classes, guessing gives a tenth.
    assert!(trained.accuracy > 0.5, "a linear probe gives {}", trained.accuracy);
    // The squared norm of a mean of unit rows.
    assert!((0.0..=1.0).contains(&trained.centering), "{}", trained.centering);
}

#[test]
fn the_page_shows_the_example_word_for_word() {
    let read = |path: &str| std::fs::read_to_string(common::root().join(path)).unwrap();
    let page = read("docs/src/library.md");
    let blocks = page.split("```rust,ignore\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let shown = blocks.collect::<Vec<_>>().join("\n");
    let example = read("examples/library.rs");
    // The page's first lines replace the head of the file.
    let code = example.split_once("\n\n").unwrap().1;
    assert_eq!(shown, code, "docs/src/library.md does not show examples/library.rs");
}

/// Asks to stop at the `at`-th event, by the flag that the phase at work looks at.
struct StopsAt {
    at: usize,
    seen: usize,
    flag: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl StopsAt {
    fn new(at: usize) -> Self {
        StopsAt { at, seen: 0, flag: Default::default() }
    }
}

impl pauc::train::Observer for StopsAt {
    fn event(&mut self, _: &pauc::train::Event) -> pauc::traits::Result<()> {
        self.seen += 1;
        self.flag.store(self.seen >= self.at, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
    fn stop_flag(&self) -> Option<std::sync::Arc<std::sync::atomic::AtomicBool>> {
        Some(self.flag.clone())
    }
}

#[test]
fn a_phase_that_is_stopped_is_repeated_as_if_it_had_not_begun() {
    use pauc::train::resume::{Continuation, resume};
    use pauc::train::{Ending, Plan, RunOptions, run};
    let device = pauc::dfdx::prelude::Cpu::default();
    let recipe = r#"Recipe(
        name: "stopped",
        data: Shapes(count: 64, size: 16, classes: 4),
        views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
        encoder: ConvNet(channels: [4]),
        projector: Mlp(dims: [4]),
        clusterer: KMeans(k: [4], start: Epochs(1), every: Epochs(1)),
        objective: [(term: InfoNce()), (term: ProtoNce(), from: Epochs(1))],
        probes: [Knn(k: 5, every: Epochs(1)), Linear()],
        train: (epochs: 3, batch: 16),
    )"#;
    let plan = Plan::parse(&device, recipe).unwrap();
    // Everything that does not depend on the clock: the checkpoint, and what the events are.
    let of = |run: &std::path::Path| {
        let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let timeless = |line: &str| -> (String, u64, String) {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            let kind = event["event"].as_str().unwrap().to_string();
            (kind, event["step"].as_u64().unwrap_or(0), event["metrics"].to_string())
        };
        // A resumed epoch has no stages of the steps before.
        let events: Vec<_> = log.lines().map(timeless).filter(|e| e.0 != "stages").collect();
        (std::fs::read(run.join("checkpoints/last.safetensors")).unwrap(), events)
    };
    let options = |folder: &tempfile::TempDir| RunOptions {
        out: folder.path().into(),
        force: false,
        max_steps: None,
        threads: 1,
    };
    let folder = tempfile::tempdir().unwrap();
    let mut watch = StopsAt::new(usize::MAX);
    let whole = run::run(&device, &plan, &options(&folder), &mut watch).unwrap();
    let want = of(whole.dir.path());
    let (mut stopped, how) = (0, Continuation::default());
    for at in 1..=watch.seen {
        let folder = tempfile::tempdir().unwrap();
        let first = run::run(&device, &plan, &options(&folder), &mut StopsAt::new(at)).unwrap();
        stopped += usize::from(first.ending == Ending::Interrupted);
        let path = first.dir.path().to_path_buf();
        let resumed =
            resume(&device, &plan, first.dir, &how, &options(&folder), &mut StopsAt::new(usize::MAX))
                .unwrap();
        assert_eq!(resumed.ending, Ending::Finished, "event {at}");
        let got = of(&path);
        assert!(got.0 == want.0, "event {at}: the weights differ");
        assert_eq!(got.1, want.1, "event {at}");
        assert!(path.join("figures/embedding.json").exists(), "event {at}");
    }
    assert!(stopped > 5, "{stopped}");
}
