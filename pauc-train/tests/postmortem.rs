//! A run that ends with NaN or infinity is told with the tensor, the term, the samples and the cause that are
//! right, for causes that the tests plant.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::plan;

use dfdx::prelude::*;
use pauc_models::weights::TensorFile;
use pauc_report::events::Event;
use pauc_report::postmortem::{CauseKind, Postmortem, StepRecord, TensorKind};
use pauc_testing::{assert_within, tolerance};
use pauc_train::observer::Observer;
use pauc_train::run_dir::RunDir;
use pauc_train::trainer::Trainer;
use pauc_traits::backend::{Backend, Scalar, Value};
use pauc_traits::encoder::{Images, Layer};
use pauc_traits::param::Role;
use pauc_traits::term::Facts;
use pauc_traits::{
    Batch, BuildOptions, Compute, Encoder, EncoderConfig, ImageShape, Needs, Param, Pass, Regularizer,
    Result, Taped, TermInfo, component, ops,
};
use std::path::Path;

const RECIPE: &str = r#"Recipe(
    name: "postmortem",
    data: Shapes(count: 96, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: MlpEncoder(dims: [24, 16]),
    projector: Mlp(dims: [16, 8]),
    objective: [(term: InfoNce(temperature: 0.2))],
    optimizer: Sgd(lr: 0.06, weight_decay: 0.0),
    schedule: Constant,
    train: (epochs: 12, batch: 24),
)"#;

component! {
    /// A term that breaks at a step.
    pub struct Breaks: Regularizer {
        /// The step, counted from 1.
        pub at: u64 = 1,
        /// Whether only the gradient breaks.
        pub in_gradient: bool = false,
    }
}

impl TermInfo for Breaks {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], ..Needs::default() }
    }

    fn chance_level(&self, _: &Facts) -> Option<f64> {
        None
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for Breaks {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let zero = ops::total(batch.x(0)?) * E::of(0.0);
        Ok(match (batch.clock().step + 1 == self.at, self.in_gradient) {
            (false, _) => zero,
            // The derivative of a root at 0 is infinite, times 0.
            (true, true) => zero.sqrt(),
            (true, false) => zero / E::of(0.0),
        })
    }
}

component! {
    /// Stretches the range of an image to 0..1, without a care for images of one color; then a linear layer.
    pub struct Careless: Encoder {}
}

struct CarelessNetwork<D: Compute> {
    device: D,
    weight: Param<D>,
}

impl<D: Compute> EncoderConfig<D> for Careless {
    fn build(&self, device: &D, input: ImageShape, _: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        let values: Vec<f32> = (0..input.len() * 16).map(|i| (i as f32 * 0.7).sin() / 20.0).collect();
        let weight = Param::new(device, "weight", &[input.len(), 16], Role::Weight, &values)?;
        Ok(Box::new(CarelessNetwork { device: device.clone(), weight }))
    }
}

impl<D: Compute> Encoder<D> for CarelessNetwork<D> {
    fn feature_dim(&self) -> usize {
        16
    }

    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>> {
        let (size, shape) = (self.weight.shape[0], *images.shape());
        let mut pixels = ops::to_host(&images)?;
        for image in pixels.chunks_exact_mut(size) {
            let (low, high) = image.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            image.iter_mut().for_each(|v| *v = (*v - low) / (high - low));
        }
        let pixels = ops::constant(&self.device, pixels, (shape.0, size));
        let out = pixels.retaped::<OwnedTape<f32, D>>().matmul(self.weight.traced(&self.device, (size, 16))?);
        Ok(if pass == Pass::Train { out } else { out.split_tape().0.retaped() })
    }

    fn parameters(&self) -> Vec<Param<D>> {
        vec![self.weight.clone()]
    }

    fn statistics(&self) -> Vec<Param<D>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<D>>> {
        let weight = self.weight.deep_clone(&self.device)?;
        Ok(Box::new(CarelessNetwork { device: self.device.clone(), weight }))
    }

    fn layers(&self) -> Vec<Layer> {
        Vec::new()
    }
}

#[derive(Default)]
struct Log(Vec<Event>);

impl Observer for Log {
    fn event(&mut self, event: &Event) -> Result<()> {
        self.0.push(event.clone());
        Ok(())
    }
}

/// A run that failed.
struct Failed {
    folder: tempfile::TempDir,
    error: String,
    postmortem: Postmortem,
}

impl Failed {
    fn causes(&self) -> Vec<CauseKind> {
        self.postmortem.causes.iter().map(|c| c.kind).collect()
    }

    fn first(&self) -> (TensorKind, &str) {
        let first = self.postmortem.first.as_ref().unwrap();
        (first.kind, &first.name)
    }

    fn tensors(&self) -> TensorFile {
        TensorFile::load(self.folder.path().join("postmortem.safetensors")).unwrap()
    }
}

/// Trains until the run fails. The postmortem in its folder is the one that the trainer has.
fn fail(set: &[&str]) -> Failed {
    let plan = plan(RECIPE, set);
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::at(folder.path());
    dir.create().unwrap();
    let (mut trainer, mut log) = (Trainer::new(&Cpu::default(), &plan).unwrap(), Log::default());
    let error = trainer.train(&dir, None, &mut log).unwrap_err().to_string();
    let postmortem = trainer.postmortem().unwrap().clone();
    let read = Postmortem::read(folder.path()).unwrap().unwrap();
    // NaN differs from itself, so that texts are compared.
    assert_eq!(format!("{read:?}"), format!("{postmortem:?}"));
    assert!(error.contains("postmortem.json") && error.contains(&postmortem.causes[0].title), "{error}");
    Failed { folder, error, postmortem }
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn a_huge_rate_breaks_the_features_after_one_update() {
    let failed = fail(&["optimizer.lr=1e30"]);
    let p = &failed.postmortem;
    assert_eq!((failed.first(), p.step, p.total_steps), ((TensorKind::Features, "view 0"), 2, 48));
    assert_eq!(failed.causes(), [CauseKind::LearningRate]);
    assert_eq!(p.causes[0].remedies[0].set, ["optimizer.lr=0.06"]);
    assert!(p.affected_samples > 0 && p.what == "InfoNce" && p.samples.len() == 24, "{p:?}");
    // The largest parameter is that of the file, which has the state before the failed step.
    let file = failed.tensors();
    let parameters: Vec<&str> = file.names().filter(|n| n.starts_with("parameter.")).collect();
    let largest =
        |name: &&str| file.f32(name).unwrap().iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
    let want = parameters.iter().map(largest).fold(0.0, f64::max);
    let found = p.parameters.iter().map(|part| part.largest.0).fold(0.0, f64::max);
    assert_eq!(found, want);
    assert!(p.causes[0].evidence.contains(&format!("{want:.1e}")), "{}", p.causes[0].evidence);
    for part in &p.parameters {
        let of_part = parameters.iter().filter(|n| {
            let name = n.trim_start_matches("parameter.");
            name == part.part || name.starts_with(&format!("{}.", part.part))
        });
        let want = of_part.map(|n| length(file.f32(n).unwrap()).powi(2)).sum::<f64>().sqrt();
        assert_within!(part.norm.0, want, tolerance::f64(2000, want));
    }
}

#[test]
fn a_tiny_temperature_breaks_the_term_for_finite_embeddings() {
    let failed = fail(&["objective[0].term.temperature=1e-40"]);
    let p = &failed.postmortem;
    assert_eq!((failed.first(), p.step), ((TensorKind::Term, "InfoNce"), 1));
    assert_eq!(failed.causes(), [CauseKind::Temperature]);
    assert_eq!(p.causes[0].remedies[0].set, ["objective[0].term.temperature=0.1"]);
    assert_eq!((p.terms[0].temperature, p.steps[0].terms[0].temperature), (Some(1e-40), Some(1e-40)));
    assert_eq!(p.terms[0].largest_logit.unwrap().0, f64::INFINITY);
    assert!(p.headline() == "InfoNce became NaN at step 1 of 48", "{}", p.headline());
    // Spread and lengths are those of the embeddings in the file.
    let file = failed.tensors();
    let rows: Vec<Vec<f64>> = file
        .f32("view.0.embeddings")
        .unwrap()
        .chunks(8)
        .map(|row| row.iter().map(|v| f64::from(*v)).collect())
        .collect();
    let lengths: Vec<f64> = rows.iter().map(|r| r.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / rows.len() as f64;
    let deviation = |axis: usize| {
        let unit = || rows.iter().zip(&lengths).map(move |(r, l)| r[axis] / l);
        let center = mean(&mut unit());
        mean(&mut unit().map(|v| (v - center).powi(2))).sqrt()
    };
    let spread = (0..8).map(deviation).sum::<f64>() / 8f64.sqrt();
    let last = p.steps.last().unwrap();
    // Unit rows are rounded to f32 once.
    assert_within!(last.spread.unwrap(), spread, tolerance::f32(2, 8f64.sqrt()));
    let found = last.embedding_norms.unwrap();
    assert_within!(found.mean.0, mean(&mut lengths.iter().copied()), tolerance::f64(64, found.most.0));
    assert_eq!(found.least.0, lengths.iter().copied().fold(f64::INFINITY, f64::min));
    assert_eq!(found.most.0, lengths.iter().copied().fold(0.0, f64::max));
}

#[test]
fn a_term_that_computes_nan_is_named_with_its_step() {
    let failed = fail(&["objective=[(term: InfoNce(temperature: 0.2)), (term: Breaks(at: 30))]"]);
    let p = &failed.postmortem;
    assert_eq!((failed.first(), p.step), ((TensorKind::Term, "Breaks"), 30));
    assert_eq!(failed.causes(), [CauseKind::Term]);
    assert!(failed.error.contains("the term Breaks is not finite") && failed.error.contains("step 30"));
    // The last twenty steps, and the one that failed.
    let steps: Vec<u64> = p.steps.iter().map(|s| s.step).collect();
    assert_eq!(steps, (10..=30).collect::<Vec<_>>());
    let complete = |s: &StepRecord| {
        s.spread.is_some() && s.rank.is_some() && s.gradient_norm.is_some() && s.terms.len() == 2
    };
    assert!(p.before().iter().all(complete), "{p:?}");
    let values = &p.steps[20].terms;
    assert!(values[0].value.0.is_finite() && values[1].value.0.is_nan(), "{values:?}");
}

#[test]
fn a_gradient_that_breaks_is_told_from_a_value() {
    let failed = fail(&["objective=[(term: InfoNce()), (term: Breaks(at: 3, in_gradient: true))]"]);
    let p = &failed.postmortem;
    assert_eq!((failed.first(), p.step), ((TensorKind::TermGradient, "Breaks"), 3));
    assert_eq!((failed.causes(), p.what.as_str()), (vec![CauseKind::Term], "the gradient of the network"));
    let last = p.steps.last().unwrap();
    assert!(last.loss.unwrap().0.is_finite() && !last.gradient_norm.unwrap().0.is_finite(), "{last:?}");
}

#[test]
fn a_gradient_that_grows_is_told_with_its_numbers() {
    let failed = fail(&["objective=[(term: VicReg())]", "optimizer.lr=0.02"]);
    let p = &failed.postmortem;
    assert_eq!(failed.causes(), [CauseKind::LearningRate, CauseKind::GrowingGradient], "{p:?}");
    let clip = p.causes[1].remedies.iter().find(|r| r.set[0].starts_with("train.clip_gradient=")).unwrap();
    let limit: f64 = clip.set[0].split_once('=').unwrap().1.parse().unwrap();
    // Twice the median of the first half, to two digits.
    let mut early: Vec<f64> =
        p.before()[..p.before().len() / 2].iter().map(|s| s.gradient_norm.unwrap().0).collect();
    early.sort_by(f64::total_cmp);
    assert_within!(limit, 2.0 * early[early.len() / 2], 0.06 * limit);
    // What is proposed works.
    for set in [format!("train.clip_gradient={limit}"), p.causes[0].remedies[0].set[0].clone()] {
        let plan = plan(RECIPE, &["objective=[(term: VicReg())]", "optimizer.lr=0.02", &set]);
        let mut trainer = Trainer::new(&Cpu::default(), &plan).unwrap();
        trainer.train(&RunDir::in_memory(), None, &mut Log::default()).unwrap();
    }
}

#[test]
fn recorded_gradients_are_those_of_an_undisturbed_run() {
    const STEP: u64 = 5;
    let set = ["objective=[(term: InfoNce()), (term: Breaks(at: 9))]"];
    let failed = fail(&set);
    let plan = plan(RECIPE, &set);
    let (mut trainer, mut log) = (Trainer::new(&Cpu::default(), &plan).unwrap(), Log::default());
    trainer.train(&RunDir::in_memory(), Some(STEP), &mut log).unwrap();
    let record = &failed.postmortem.steps[STEP as usize - 1];
    assert_eq!(record.step, STEP);
    let square = |p: &Param<Cpu>| p.grad().iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    let norm = trainer.parameters().iter().map(square).sum::<f64>().sqrt();
    // The kernel sums in another order.
    assert_within!(record.gradient_norm.unwrap().0, norm, tolerance::f64(12_000, norm));
    let parts: Vec<&str> = record.gradient_by_part.iter().map(|g| g.part.as_str()).collect();
    assert_eq!(parts, ["encoder.0", "encoder.2", "projector"]);
    for found in &record.gradient_by_part {
        let of_part = trainer.parameters();
        let of_part = of_part.iter().filter(|p| p.name.starts_with(&found.part));
        let want = of_part.map(square).sum::<f64>().sqrt();
        assert_within!(found.norm.0, want, tolerance::f64(12_000, want));
    }
    // The fourth step ends an epoch, whose health the log has.
    let health = log.0.iter().find_map(|e| match e {
        Event::Health(health) => Some((health.spread, health.rank)),
        _ => None,
    });
    let fourth = &failed.postmortem.steps[3];
    assert_eq!(health, Some((fourth.spread.unwrap(), fourth.rank.unwrap())));
}

/// Writes 48 images of 12×12 pixels as a NumPy array of bytes; image 17 is black.
fn images_with_a_black_one(folder: &Path) -> String {
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (48, 12, 12), }";
    let padding = " ".repeat((64 - (10 + header.len() + 1) % 64) % 64);
    let header = format!("{header}{padding}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend((0..48 * 144).map(|i| if i / 144 == 17 { 0u8 } else { (i * 37 % 251) as u8 }));
    let path = folder.join("images.npy");
    std::fs::write(&path, bytes).unwrap();
    format!("data=Npy(images: {path:?})")
}

#[test]
fn a_single_black_image_is_found_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let data = images_with_a_black_one(folder.path());
    let failed = fail(&[&data, "encoder=Careless()"]);
    let p = &failed.postmortem;
    assert_eq!((failed.first(), p.affected_samples), ((TensorKind::Features, "view 0"), 1));
    assert_eq!(failed.causes()[0], CauseKind::Data, "{p:?}");
    let [suspect] = p.suspects.as_slice() else { panic!("{:?}", p.suspects) };
    assert!(suspect.id == 17 && suspect.constant && p.samples[suspect.row as usize] == 17, "{suspect:?}");
    assert_eq!(suspect.why, "NaN or infinite: the features of view 0; views 0, 1 have a single color");
    for view in [None, Some(0), Some(1)] {
        let path = failed.folder.path().join(Postmortem::picture(0, view));
        let bytes = std::fs::read(&path).unwrap();
        let picture = pauc_data::decode::decode(&bytes, Default::default(), &path).unwrap();
        assert_eq!((picture.shape.height, picture.shape.width), (12, 12));
        assert!(picture.pixels.iter().all(|v| *v == 0), "{view:?}");
    }
}

#[test]
fn arrays_of_numbers_that_may_be_nan_are_refused_by_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    images_with_a_black_one(folder.path());
    let path = folder.path().join("images.npy");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(3).position(|w| w == b"|u1").unwrap();
    bytes[at..at + 3].copy_from_slice(b"<f4");
    bytes.extend(vec![0xff; 3 * 48 * 144]);
    std::fs::write(&path, bytes).unwrap();
    let text =
        RECIPE.replace("Shapes(count: 96, size: 12, classes: 4, seed: 1)", &format!("Npy(images: {path:?})"));
    let error = pauc_train::Plan::parse(&Cpu::default(), &text).err().unwrap().to_string();
    assert!(error.contains("images.npy") && error.contains("expected integers"), "{error}");
}

#[test]
fn a_parameter_that_breaks_before_a_checkpoint_is_told_between_steps() {
    let failed = fail(&[
        "objective=[(term: VicReg(), weight: 1e6)]",
        "optimizer.lr=3e38",
        "train.checkpoint_every=Steps(1)",
    ]);
    let p = &failed.postmortem;
    assert!(
        p.between_steps && p.headline().ends_with("is not finite after step 1 of 48"),
        "{}",
        p.headline()
    );
    assert_eq!((failed.first().0, failed.causes()), (TensorKind::Parameter, vec![CauseKind::LearningRate]));
    assert!(p.samples.is_empty() && p.suspects.is_empty() && p.tensors.is_none(), "{p:?}");
    assert!(!failed.folder.path().join("checkpoints/last.safetensors").exists());
}

#[test]
fn a_feature_that_is_not_finite_in_an_evaluation_names_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let data = images_with_a_black_one(folder.path());
    let failed = fail(&[&data, "encoder=Careless()", "clusterer=KMeans(k: [4], start: Epochs(0))"]);
    let p = &failed.postmortem;
    assert_eq!(p.headline(), "a feature of the evaluation view is not finite after step 0 of 24");
    assert_eq!((p.place.as_deref(), &p.first), (Some("image 17 is the first of 48"), &None));
    assert_eq!(failed.causes(), [CauseKind::Unknown]);
    assert!(p.causes[0].evidence.contains("image 17 is the first of 48"), "{p:?}");
}
