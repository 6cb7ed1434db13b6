//! Several ranks train a recipe to the same bits as one process. Here, ranks are threads.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{only_run, recipes, root, short_form, timeless_events};
use pauc::dfdx::prelude::Cpu;
use pauc::distributed::{Alone, Communicator, Threads};
use pauc::report::events::Event;
use pauc::train::observer::Observer;
use pauc::train::resume::{Continuation, resume};
use pauc::train::run::{Outcome, RunError, RunOptions, run};
use pauc::train::trainer::{Ending, check_ranks};
use pauc::train::{Plan, RunDir, recipe::Recipe};
use pauc::traits::dataset::Place;
use pauc::traits::{Error, Result};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A training, and how it may differ without another result.
struct Training<'a> {
    recipe: &'a Path,
    set: Vec<String>,
    max_steps: Option<u64>,
    keeps_shards: bool,
}

impl<'a> Training<'a> {
    /// The short form of a recipe in four shards.
    fn of(recipe: &'a Path, more: &[&str]) -> Self {
        let mut set: Vec<String> = short_form(recipe).into_iter().filter(|arg| arg != "--set").collect();
        set.push("train.shards=4".into());
        set.extend(more.iter().map(|s| s.to_string()));
        Training { recipe, set, max_steps: None, keeps_shards: true }
    }

    fn plan(&self, ranks: Arc<dyn Communicator>) -> Plan {
        let (recipe, source) = Recipe::load(self.recipe, &self.set).unwrap_or_else(|e| panic!("{e}"));
        let plan = Plan::new(&Cpu::default(), recipe, source, &Place::at(root()));
        let mut plan = plan.unwrap_or_else(|e| panic!("{e}")).with_communicator(ranks);
        assert!(plan.keeps_shards || plan.recipe.train.micro_batch.is_some());
        plan.keeps_shards &= self.keeps_shards;
        plan
    }

    /// Trains or resumes as one rank.
    fn one_rank(
        &self,
        out: &Path,
        ranks: Arc<dyn Communicator>,
        watch: &mut dyn Observer,
    ) -> Result<Outcome, RunError> {
        let plan = self.plan(ranks);
        let options = RunOptions { out: out.into(), force: false, max_steps: self.max_steps, threads: 1 };
        let dir = RunDir::of(out, &plan.recipe.name, &plan.hash, plan.recipe.train.seed);
        let begun = dir.path().join("run.json").exists();
        // All ranks look before one of them creates it.
        plan.communicator.barrier().map_err(Error::from)?;
        match begun {
            true => resume(&Cpu::default(), &plan, dir, &Continuation::default(), &options, watch),
            false => run(&Cpu::default(), &plan, &options, watch),
        }
    }

    /// Trains or resumes on several ranks, each with a thread of its own. Returns what each rank returned.
    fn on(
        &self,
        size: usize,
        out: &Path,
        watch: impl Fn(usize) -> Box<dyn Observer> + Sync,
    ) -> Vec<Result<Outcome, String>> {
        let results = Threads::run(size, |ranks| {
            let rank = ranks.rank();
            self.one_rank(out, Arc::new(ranks), &mut *watch(rank))
        });
        results.into_iter().map(|result| result.map_err(|e| format!("{e:?}"))).collect()
    }

    /// Trains or resumes on several ranks, which end alike. Returns the run's folder.
    fn trained_on(&self, size: usize, out: &Path) -> PathBuf {
        let outcomes = self.on(size, out, |_| Box::new(Quiet));
        let outcomes: Vec<Outcome> = outcomes.into_iter().map(|outcome| outcome.unwrap()).collect();
        let expected = if self.max_steps.is_some() { Ending::Paused } else { Ending::Finished };
        assert!(outcomes.iter().all(|outcome| outcome.ending == expected));
        outcomes[0].dir.path().into()
    }

    /// Trains on one process.
    fn trained_alone(&self, out: &Path) -> PathBuf {
        let outcome = self.one_rank(out, Arc::new(Alone), &mut Quiet).unwrap();
        outcome.dir.path().into()
    }
}

struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, _: &Event) -> Result<()> {
        Ok(())
    }
}

fn checkpoint(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("checkpoints/last.safetensors")).unwrap()
}

/// Asserts that two runs have the same checkpoint and the same log, except for times.
fn assert_same(what: &str, run: &Path, expected: &Path) {
    assert!(checkpoint(run) == checkpoint(expected), "{what}: the checkpoints differ");
    assert_eq!(timeless_events(run), timeless_events(expected), "{what}");
}

#[test]
fn shipped_recipes_train_to_the_same_bits_on_any_number_of_ranks() {
    for recipe in recipes().iter().filter(|path| path.to_str().unwrap().contains("fashion-mini/")) {
        let folder = tempfile::tempdir().unwrap();
        let out = |name: &str| folder.path().join(name);
        let mut training = Training::of(recipe, &["train.epochs=2"]);
        let alone = training.trained_alone(&out("alone"));
        assert!(alone.join("report.html").exists());
        for (size, keeps_shards) in [(1, true), (2, false), (4, true)] {
            training.keeps_shards = keeps_shards;
            let what = format!("{} on {size} ranks", recipe.display());
            assert_same(&what, &training.trained_on(size, &out(&size.to_string())), &alone);
        }
    }
}

/// All networks and stages that a step may have besides those of the shipped recipes.
#[test]
fn every_kind_of_step_gives_the_same_bits() {
    let recipe = root().join("recipes/fashion-mini/pauc.ron");
    let forms: [&[&str]; 9] = [
        // The figures of the end then embed the images themselves.
        &["probes=[]", "train.epochs=2", "train.keep=(last: 1)"],
        &["train.accumulate=2", "train.micro_batch=3", "train.epochs=2"],
        &["train.clip_gradient=0.5", "optimizer=Lars(lr: 0.1)", "encoder=MlpEncoder(dims: [16])"],
        &[
            "encoder=VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, patch: 7, drop_path: 0.5)",
            "views=[(count: 2, ops: [MultiCrop(size: 28, crop: Global)]), (count: 1, ops: [MultiCrop(size: 14, crop: Local)])]",
            "objective=[(term: SwappedAssignment(prototypes: 8, local_views: 1))]",
        ],
        &[
            "views=[(count: 2, ops: [MultiCrop(size: 28, crop: Global)]), (count: 1, ops: [MultiCrop(size: 14, crop: Local)])]",
            "objective=[(term: SelfDistillation(prototypes: 8))]",
            "encoder=ResNet18(stem: Small, width: 4)",
        ],
        &[
            "train.term_gradients=true",
            "baselines=[RandomInit, RawPixels]",
            "train.stop_early=(metric: \"rankme/features\", patience: 1)",
        ],
        // Batch statistics of all shards.
        &["train.batch_norm=Synced", "train.accumulate=2", "train.epochs=2"],
        &[
            "train.batch_norm=Synced",
            "views=[(count: 2, ops: [MultiCrop(size: 28, crop: Global)]), (count: 1, ops: [MultiCrop(size: 14, crop: Local)])]",
            "objective=[(term: SelfDistillation(prototypes: 8))]",
            "encoder=ResNet18(stem: Small, width: 4)",
            "projector=Mlp(dims: [16, 8], batch_norm: true)",
        ],
        &[
            "train.batch_norm=Synced",
            "encoder=VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, patch: 7, drop_path: 0.5)",
            "projector=Mlp(dims: [16, 8], batch_norm: true, last_batch_norm: true)",
            "predictor=Mlp(dims: [16, 8], batch_norm: true)",
            "objective=[(term: CosinePrediction())]",
            "clusterer=None",
            "momentum_encoder=None",
            "queue=None",
        ],
    ];
    for more in forms {
        let folder = tempfile::tempdir().unwrap();
        let out = |name: &str| folder.path().join(name);
        let training = Training::of(&recipe, more);
        let alone = training.trained_alone(&out("alone"));
        for size in [2, 4] {
            let what = format!("{more:?} on {size} ranks");
            assert_same(&what, &training.trained_on(size, &out(&size.to_string())), &alone);
        }
    }
}

#[test]
fn a_run_is_resumed_on_another_number_of_ranks() {
    let recipe = root().join("recipes/fashion-mini/pauc.ron");
    for more in [&[][..], &["train.batch_norm=Synced"]] {
        let folder = tempfile::tempdir().unwrap();
        let alone = Training::of(&recipe, more).trained_alone(&folder.path().join("alone"));
        let out = folder.path().join("interrupted");
        for (size, max_steps) in [(4, Some(3)), (1, Some(7)), (2, Some(12)), (4, None)] {
            let run = Training { max_steps, ..Training::of(&recipe, more) }.trained_on(size, &out);
            assert!(max_steps.is_none() || checkpoint(&run) != checkpoint(&alone));
        }
        let run = Training::of(&recipe, more).plan(Arc::new(Alone));
        let run = RunDir::of(&out, &run.recipe.name, &run.hash, 0);
        assert_same("resumed", run.path(), &alone);
    }
}

/// Asks its rank to stop from some look at it on: there is one for each step, and two between epochs.
struct StopsAt {
    look: u64,
    looks: Cell<u64>,
}

impl Observer for StopsAt {
    fn event(&mut self, _: &Event) -> Result<()> {
        Ok(())
    }
    fn should_stop(&self) -> bool {
        self.looks.set(self.looks.get() + 1);
        self.looks.get() >= self.look
    }
}

#[test]
fn a_request_to_one_rank_stops_all_after_the_same_step() {
    let recipe = root().join("recipes/fashion-mini/pauc.ron");
    let folder = tempfile::tempdir().unwrap();
    let alone = Training::of(&recipe, &[]).trained_alone(&folder.path().join("alone"));
    for (asked, look) in [(0, 5), (3, 11)] {
        let out = folder.path().join(format!("asked{asked}"));
        let training = Training::of(&recipe, &[]);
        let watch = |rank| -> Box<dyn Observer> {
            match rank == asked {
                true => Box::new(StopsAt { look, looks: Cell::new(0) }),
                false => Box::new(Quiet),
            }
        };
        let outcomes = training.on(4, &out, watch);
        assert!(outcomes.into_iter().all(|outcome| outcome.unwrap().ending == Ending::Interrupted));
        assert_same("resumed", &training.trained_on(2, &out), &alone);
    }
}

/// An observer that is asked to stop at the start of one of the phases between steps, which are counted from 1.
struct StopsInPhase {
    phase: u64,
    begun: Cell<u64>,
    flag: Arc<AtomicBool>,
}

impl Observer for StopsInPhase {
    fn event(&mut self, _: &Event) -> Result<()> {
        Ok(())
    }
    fn stop_flag(&self) -> Option<Arc<AtomicBool>> {
        self.begun.set(self.begun.get() + 1);
        self.flag.fetch_or(self.begun.get() == self.phase, Ordering::Relaxed);
        Some(self.flag.clone())
    }
    fn should_stop(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// The baselines, the first clusterings and the probes are a phase each.
#[test]
fn a_request_to_one_rank_ends_a_phase_on_all() {
    let recipe = root().join("recipes/fashion-mini/pauc.ron");
    let folder = tempfile::tempdir().unwrap();
    let alone = Training::of(&recipe, &[]).trained_alone(&folder.path().join("alone"));
    // The first call is that of the loader.
    for (asked, phase) in [(1, 2), (0, 3), (3, 3), (2, 4), (0, 5), (1, 5)] {
        let out = folder.path().join(format!("{asked}-{phase}"));
        let training = Training::of(&recipe, &[]);
        let watch = |rank| -> Box<dyn Observer> {
            // The others are never asked.
            let phase = if rank == asked { phase } else { 0 };
            Box::new(StopsInPhase { phase, begun: Cell::new(0), flag: Arc::default() })
        };
        let outcomes = training.on(4, &out, watch);
        let endings = outcomes.into_iter().map(|outcome| outcome.unwrap().ending);
        assert!(endings.into_iter().all(|ending| ending == Ending::Interrupted), "phase {phase}");
        let figures = only_run(&out).join("figures");
        let drawn = std::fs::read_dir(figures).map_or(0, |files| files.count());
        assert_eq!(drawn, 0, "phase {phase}: rank 0 draws figures although a rank was asked to stop");
        assert_same(&format!("phase {phase}"), &training.trained_on(2, &out), &alone);
    }
}

/// Fails to take the first clustering.
struct FullDisk;

impl Observer for FullDisk {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Clustering(_) => Err(Error::config("no space left")),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_failure_of_the_first_rank_ends_all() {
    let recipe = root().join("recipes/fashion-mini/pauc.ron");
    let folder = tempfile::tempdir().unwrap();
    let watch = |rank| -> Box<dyn Observer> { if rank == 0 { Box::new(FullDisk) } else { Box::new(Quiet) } };
    let outcomes = Training::of(&recipe, &[]).on(2, folder.path(), watch);
    let errors: Vec<String> = outcomes.into_iter().map(Result::unwrap_err).collect();
    assert!(errors.iter().all(|error| error.contains("no space left")), "{errors:?}");
}

#[test]
fn a_divergence_is_explained_as_on_one_process() {
    let recipe = root().join("recipes/fashion-mini/simclr.ron");
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    for statistics in ["PerShard", "Synced"] {
        let out = |name: &str| out(&format!("{statistics}-{name}"));
        let of_shards = format!("train.batch_norm={statistics}");
        let training = Training::of(&recipe, &["optimizer=Sgd(lr: 1e30)", &of_shards]);
        let error = training.one_rank(&out("alone"), Arc::new(Alone), &mut Quiet).unwrap_err();
        assert!(matches!(error, RunError::Diverged { .. }), "{error}");
        for outcome in training.on(2, &out("ranks"), |_| Box::new(Quiet)) {
            let error = outcome.unwrap_err();
            assert!(error.contains("Diverged"), "{error}");
        }
        let postmortem = |name: &str| std::fs::read(only_run(&out(name)).join("postmortem.json")).unwrap();
        assert!(postmortem("ranks") == postmortem("alone"), "{statistics}: the postmortems differ");
    }
}

#[test]
fn ranks_that_do_not_divide_the_shards_are_refused() {
    for (ranks, shards, says) in [
        (3, 4, "3 ranks cannot share the 4 shards of a batch: start 1 or 2 ranks"),
        (8, 4, "start 1 or 2 or 4 ranks, or set `train.shards` to 8"),
        (3, 1, "3 ranks need a batch in shards: start 1 rank, or set `train.shards` to 4 or a larger"),
    ] {
        let error = check_ranks(ranks, shards).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let recipe = root().join("recipes/fashion-mini/simclr.ron");
    let folder = tempfile::tempdir().unwrap();
    for outcome in Training::of(&recipe, &[]).on(3, folder.path(), |_| Box::new(Quiet)) {
        let error = outcome.unwrap_err();
        assert!(error.contains("3 ranks cannot share the 4 shards"), "{error}");
    }
}
