//! The inputs of a term: one batch of embeddings with keys, queue, labels and clusterings.

use crate::backend::{Backend, Scalar, Taped, Value};
use crate::ops::{self, Matrix};
use crate::schedule::Clock;
use crate::{Error, Result};
use dfdx::prelude::*;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// The inputs of a [`Batch`]. Tensors share their storage, so a clone is cheap.
#[derive(Clone)]
pub struct Inputs<E: Scalar, D: Backend<E>> {
    /// The raw projector outputs x of each online view, (B, D) each; the index is the view. Views that are
    /// not computed are `None`.
    pub views: Vec<Option<Matrix<E, D>>>,
    /// The raw predictor outputs of each online view, (B, D) each; empty without a predictor.
    pub predictions: Vec<Option<Matrix<E, D>>>,
    /// The raw projector outputs of the momentum branch, by view; empty without a momentum encoder.
    pub keys: Vec<Option<Matrix<E, D>>>,
    /// Past keys, unit rows, (M, D).
    pub queue: Option<Constant<E, D>>,
    /// Class labels of the B samples.
    pub labels: Option<Vec<u32>>,
    /// The current clusterings, restricted to this batch.
    pub levels: Vec<Level<E, D>>,
    /// The matrices that terms learn or remember, by name.
    pub parameters: BTreeMap<String, Matrix<E, D>>,
    /// The position in the run, for schedules.
    pub clock: Clock,
    /// The seed of the run, for terms that draw random numbers.
    pub seed: u64,
}

impl<E: Scalar, D: Backend<E>> Default for Inputs<E, D> {
    fn default() -> Self {
        Inputs {
            views: Vec::new(),
            predictions: Vec::new(),
            keys: Vec::new(),
            queue: None,
            labels: None,
            levels: Vec::new(),
            parameters: BTreeMap::new(),
            clock: Clock::still(),
            seed: 0,
        }
    }
}

impl<E: Scalar, D: Backend<E>> Inputs<E, D> {
    /// Copies the values to another device.
    ///
    /// # Errors
    /// If the device that holds them fails.
    pub fn on<T: Backend<E>>(&self, device: &T) -> Result<Inputs<E, T>> {
        let matrix = |m: &Matrix<E, D>| Ok(ops::constant(device, ops::to_host(m)?, *m.shape()));
        let by_view = |all: &[Option<Matrix<E, D>>]| -> Result<_> {
            all.iter().map(|m| m.as_ref().map(matrix).transpose()).collect()
        };
        let level = |l: &Level<E, D>| Level {
            centroids: l.centroids.on(device),
            concentration: l.concentration.clone(),
            assignments: l.assignments.clone(),
            queue_assignments: l.queue_assignments.clone(),
            negatives: l.negatives.clone(),
        };
        Ok(Inputs {
            views: by_view(&self.views)?,
            predictions: by_view(&self.predictions)?,
            keys: by_view(&self.keys)?,
            queue: self.queue.as_ref().map(|q| q.on(device)),
            labels: self.labels.clone(),
            levels: self.levels.iter().map(level).collect(),
            parameters: self
                .parameters
                .iter()
                .map(|(n, p)| Ok((n.clone(), matrix(p)?)))
                .collect::<Result<_>>()?,
            clock: self.clock,
            seed: self.seed,
        })
    }
}

/// A matrix without a gradient that many batches share, such as centroids or a queue. Its values are on the
/// host. The tensor on the device is made on first use. Clones share both, so a kernel that reads the values
/// needs no second copy of a large bank.
#[derive(Clone, Debug)]
pub struct Constant<E: Scalar, D: Backend<E>> {
    device: D,
    values: Arc<Vec<E>>,
    shape: (usize, usize),
    tensor: Rc<OnceCell<Matrix<E, D>>>,
}

impl<E: Scalar, D: Backend<E>> Constant<E, D> {
    /// Builds a matrix from values in row-major order.
    ///
    /// # Shapes
    /// `shape` (rows, cols), rows·cols values
    ///
    /// # Panics
    /// If the number of values differs from the number of elements of the shape.
    pub fn new(device: &D, values: impl Into<Arc<Vec<E>>>, shape: (usize, usize)) -> Self {
        let values = values.into();
        assert_eq!(values.len(), shape.0 * shape.1, "values of a matrix of {}×{}", shape.0, shape.1);
        Constant { device: device.clone(), values, shape, tensor: Rc::default() }
    }

    /// Attaches a tensor that is already on the device and holds the same values.
    ///
    /// # Shapes
    /// the tensor has the shape of the matrix
    pub fn with_tensor(self, tensor: Matrix<E, D>) -> Self {
        Constant { tensor: Rc::new(OnceCell::from(tensor)), ..self }
    }

    /// Returns the same matrix for another device; the values are shared.
    pub fn on<T: Backend<E>>(&self, device: &T) -> Constant<E, T> {
        Constant::new(device, self.values.clone(), self.shape)
    }

    /// Returns the numbers of rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Returns the values in row-major order.
    ///
    /// # Shapes
    /// rows·cols values
    pub fn values(&self) -> &[E] {
        &self.values
    }

    /// Returns the values in row-major order, shared.
    ///
    /// # Shapes
    /// rows·cols values
    pub fn shared(&self) -> Arc<Vec<E>> {
        self.values.clone()
    }

    /// Returns the matrix on the device.
    ///
    /// # Shapes
    /// (rows, cols)
    pub fn tensor(&self) -> Matrix<E, D> {
        let make = || ops::constant(&self.device, self.values.to_vec(), self.shape);
        self.tensor.get_or_init(make).clone()
    }
}

/// One level of a clustering, restricted to a batch. It is constant between two clusterings.
#[derive(Clone, Debug)]
pub struct Level<E: Scalar, D: Backend<E>> {
    /// The centroids as unit rows, (K, D).
    pub centroids: Constant<E, D>,
    /// The concentration φ of each prototype, K values.
    pub concentration: Vec<E>,
    /// The prototype of each sample of the batch, `None` for noise.
    pub assignments: Vec<Option<u32>>,
    /// The prototype of each key of the queue, `None` for noise and for keys of unknown samples; empty if the
    /// queue has no sample ids.
    pub queue_assignments: Vec<Option<u32>>,
    /// Negatives to use instead of random ones, for comparison with other implementations.
    pub negatives: Option<Vec<usize>>,
}

impl<E: Scalar, D: Backend<E>> Level<E, D> {
    /// Returns K.
    pub fn k(&self) -> usize {
        self.centroids.shape.0
    }

    /// Returns the samples that belong to a prototype: their rows in the batch, and their prototypes.
    pub fn members(&self) -> (Vec<usize>, Vec<usize>) {
        let pairs = self.assignments.iter().enumerate().filter_map(|(i, s)| s.map(|s| (i, s as usize)));
        pairs.unzip()
    }
}

/// How batch prototypes are formed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrototypeOptions {
    /// The weight ρ of the centroid in the sum.
    pub rho: f64,
    /// The minimum number of members in the batch (and queue); prototypes with fewer are left out.
    pub n_min: usize,
    /// Whether queued keys of known samples join the sums.
    pub queue: bool,
}

impl Default for PrototypeOptions {
    fn default() -> Self {
        PrototypeOptions { rho: 0.0, n_min: 1, queue: false }
    }
}

/// The prototypes of one level that are occupied in this batch: p_j = norm(Σ_{s(i)=j} q_i + ρ·c_j) from the
/// online branch, and p'_j, the same from the keys.
pub struct BatchPrototypes<E: Scalar, D: Backend<E>> {
    /// The indices of the occupied prototypes, ascending: row r of p is prototype `occupied[r]`.
    pub occupied: Vec<usize>,
    online: Matrix<E, D>,
    keys: OnceCell<Matrix<E, D>>,
    options: PrototypeOptions,
}

impl<E: Scalar, D: Backend<E>> BatchPrototypes<E, D> {
    /// Returns the number of occupied prototypes, |P|.
    pub fn len(&self) -> usize {
        self.occupied.len()
    }

    /// Returns whether no prototype is occupied.
    pub fn is_empty(&self) -> bool {
        self.occupied.is_empty()
    }

    /// Returns p, unit rows, with gradient. Shape (|P|, D).
    pub fn online(&self) -> Taped<(usize, usize), E, D> {
        self.online.retaped()
    }
}

type Cached<E, D> = Vec<(usize, Rc<BatchPrototypes<E, D>>)>;

/// One batch as terms see it: embeddings, keys, queue, labels, cluster levels, batch prototypes.
///
/// Tensors with a gradient are returned with an empty tape. The batch keeps the recorded operations that made
/// them (the normalization, the prototype sums) once, and [`Batch::backward`] runs them.
///
/// ```
/// use dfdx::prelude::*;
/// use pauc_traits::batch::Inputs;
/// use pauc_traits::{Batch, ops};
///
/// // Two views of two samples, as raw projector outputs.
/// let device = Cpu::default();
/// let view = |rows: [f64; 4]| Some(ops::constant(&device, rows.to_vec(), (2, 2)));
/// let views = vec![view([3.0, 4.0, 0.0, 2.0]), view([4.0, 3.0, 0.0, 1.0])];
/// let batch = Batch::new(&device, Inputs { views, ..Inputs::default() })?;
/// assert_eq!((batch.size(), batch.dim()), (2, 2));
///
/// // The loss 1 − mean_i q_i·k_i. Without a momentum encoder, keys are embeddings of the other view.
/// let cosines = ops::row_dots(batch.z(0)?, batch.key(1)?);
/// let loss = -ops::mean(cosines) + 1.0;
/// // Cosines of 0.96 and 1, minus the effect of the epsilon in the norm.
/// let rounding = 2e-12;
/// assert!((ops::item(&loss) - 0.02).abs() < rounding);
///
/// // Gradients arrive at the raw outputs, (B, D) each.
/// let gradients = batch.backward(loss)?;
/// let first_view = gradients.views[0].as_ref().ok_or("view 0 was given")?;
/// assert_eq!(first_view.len(), 4);
/// assert!(first_view[2..].iter().all(|g| g.abs() < rounding)); // the second pair agrees already
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Batch<E: Scalar, D: Backend<E>> {
    device: D,
    inputs: Inputs<E, D>,
    size: usize,
    dim: usize,
    z: Vec<OnceCell<Matrix<E, D>>>,
    p: Vec<OnceCell<Matrix<E, D>>>,
    k: Vec<OnceCell<Matrix<E, D>>>,
    prototypes: RefCell<Cached<E, D>>,
    shared: RefCell<OwnedTape<E, D>>,
    skipped: RefCell<Vec<String>>,
    remembered: RefCell<BTreeMap<String, Vec<E>>>,
    scope: RefCell<String>,
}

/// The gradients of an objective with respect to the inputs of a batch. The rows of a view are plain values
/// in row-major order, or a matrix in the memory of the device.
pub struct BatchGradients<E, Rows = Vec<E>> {
    /// With respect to the raw projector outputs of each view; `None` if the view is absent.
    pub views: Vec<Option<Rows>>,
    /// With respect to the raw predictor outputs of each view; empty without a predictor.
    pub predictions: Vec<Option<Rows>>,
    /// With respect to the learnable matrices.
    pub parameters: BTreeMap<String, Vec<E>>,
    /// Not gradients: the values that terms passed to [`Batch::remember`].
    pub remembered: BTreeMap<String, Vec<E>>,
}

impl<E, Rows> BatchGradients<E, Rows> {
    /// Converts the rows.
    pub fn with_rows<Other>(self, mut of: impl FnMut(Rows) -> Other) -> BatchGradients<E, Other> {
        let BatchGradients { views, predictions, parameters, remembered } = self;
        let mut all = |rows: Vec<Option<Rows>>| rows.into_iter().map(|r| r.map(&mut of)).collect();
        BatchGradients { views: all(views), predictions: all(predictions), parameters, remembered }
    }
}

impl<E: Scalar, D: Backend<E>> Batch<E, D> {
    /// Builds a batch, and checks that all shapes agree.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the input that disagrees with the first view.
    pub fn new(device: &D, inputs: Inputs<E, D>) -> Result<Self> {
        let named = |what: &str, list: &[Option<Matrix<E, D>>]| -> Vec<(String, (usize, usize))> {
            let shape = |(i, m): (usize, &Option<Matrix<E, D>>)| {
                m.as_ref().map(|m| (format!("{what}{i}"), *m.shape()))
            };
            list.iter().enumerate().filter_map(shape).collect()
        };
        let mut matrices = named("view", &inputs.views);
        matrices.extend(named("prediction", &inputs.predictions));
        matrices.extend(named("key", &inputs.keys));
        let Some((first, (size, dim))) = matrices.first().cloned() else {
            return Err(Error::shape("batch", "there are no views; expected at least one"));
        };
        let differs = |name: &str, got: String| {
            Err(Error::shape(format!("batch: {name}"), format!("{got}, but {first} is {size}×{dim}")))
        };
        for (name, shape) in &matrices[1..] {
            if *shape != (size, dim) {
                return differs(name, format!("is {}×{}", shape.0, shape.1));
            }
        }
        if let Some((rows, cols)) = inputs.queue.as_ref().map(|q| q.shape).filter(|q| q.1 != dim) {
            return differs("queue", format!("is {rows}×{cols}"));
        }
        if let Some(n) = inputs.labels.as_ref().map(Vec::len).filter(|n| *n != size) {
            return differs("labels", format!("has {n} values"));
        }
        for (m, level) in inputs.levels.iter().enumerate() {
            let (k, cols) = level.centroids.shape;
            if cols != dim {
                return differs(&format!("prototypes.{m}"), format!("is {k}×{cols}"));
            }
            if level.assignments.len() != size {
                return differs(
                    &format!("assignments.{m}"),
                    format!("has {} values", level.assignments.len()),
                );
            }
            if level.concentration.len() != k {
                return differs(
                    &format!("concentration.{m}"),
                    format!("has {} values for {k} prototypes", level.concentration.len()),
                );
            }
            let queued = level.queue_assignments.iter().flatten();
            if let Some(bad) = level.assignments.iter().flatten().chain(queued).find(|s| **s as usize >= k) {
                return Err(Error::shape(
                    format!("batch: assignments.{m}"),
                    format!("prototype {bad}, but there are only {k}"),
                ));
            }
        }
        Ok(Batch {
            device: device.clone(),
            size,
            dim,
            z: inputs.views.iter().map(|_| OnceCell::new()).collect(),
            p: inputs.predictions.iter().map(|_| OnceCell::new()).collect(),
            k: inputs.keys.iter().map(|_| OnceCell::new()).collect(),
            prototypes: RefCell::default(),
            shared: RefCell::default(),
            skipped: RefCell::default(),
            remembered: RefCell::default(),
            scope: RefCell::default(),
            inputs,
        })
    }

    /// Returns the device of the tensors.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Returns B.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns the position in the run.
    pub fn clock(&self) -> &Clock {
        &self.inputs.clock
    }

    /// Returns the seed of the run.
    pub fn seed(&self) -> u64 {
        self.inputs.seed
    }

    /// Returns the raw projector outputs x of an online view, with gradient. Shape (B, D).
    ///
    /// # Errors
    /// [`Error::Missing`] if the batch has no such view.
    pub fn x(&self, view: usize) -> Result<Taped<(usize, usize), E, D>> {
        Ok(self.raw(view)?.retaped())
    }

    fn raw(&self, view: usize) -> Result<&Matrix<E, D>> {
        self.inputs.views.get(view).and_then(Option::as_ref).ok_or(Error::Missing {
            what: "an online view",
            remedy: "make two views of each image in the recipe",
        })
    }

    /// Returns the unit embeddings z (= q) of an online view, with gradient. Shape (B, D).
    ///
    /// # Errors
    /// [`Error::Missing`] if the batch has no such view.
    pub fn z(&self, view: usize) -> Result<Taped<(usize, usize), E, D>> {
        let x = self.raw(view)?;
        Ok(self.z[view].get_or_init(|| self.share(ops::l2_normalize(x.retaped()))).retaped())
    }

    /// Returns the unit predictions of an online view, with gradient: the outputs of the predictor, or z if
    /// there is no predictor. Shape (B, D).
    ///
    /// # Errors
    /// [`Error::Missing`] if there is a predictor and the view has no predictions, or the batch has no such
    /// view.
    pub fn prediction(&self, view: usize) -> Result<Taped<(usize, usize), E, D>> {
        if self.inputs.predictions.is_empty() {
            return self.z(view);
        }
        let x = self.inputs.predictions.get(view).and_then(Option::as_ref).ok_or(Error::Missing {
            what: "the predictions of a view",
            remedy: "name the view in the term's `Needs::predictions`",
        })?;
        Ok(self.p[view].get_or_init(|| self.share(ops::l2_normalize(x.retaped()))).retaped())
    }

    /// Returns the unit keys of a view: constants from the momentum branch, or z with gradient if there is
    /// none. Shape (B, D).
    ///
    /// # Errors
    /// [`Error::Missing`] if there is a momentum encoder and the view has no keys, or the batch has no such
    /// view.
    pub fn key(&self, view: usize) -> Result<Taped<(usize, usize), E, D>> {
        match self.momentum_key(view) {
            Ok(k) => Ok(k.retaped()),
            Err(_) if self.inputs.keys.is_empty() => self.z(view),
            Err(e) => Err(e),
        }
    }

    /// Returns the unit keys of a view from the momentum branch, a constant. Shape (B, D).
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no momentum encoder, or the view has no keys.
    pub fn momentum_key(&self, view: usize) -> Result<Matrix<E, D>> {
        let raw = self.inputs.keys.get(view).and_then(Option::as_ref).ok_or(Error::Missing {
            what: "momentum keys",
            remedy: "add `momentum_encoder: Ema(momentum: 0.99)` to the recipe",
        })?;
        Ok(self.k[view].get_or_init(|| ops::l2_normalize(raw.clone())).clone())
    }

    /// Returns past keys, unit rows, a constant. Shape (M, D).
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no queue.
    pub fn queue(&self) -> Result<&Constant<E, D>> {
        self.inputs
            .queue
            .as_ref()
            .ok_or(Error::Missing { what: "the queue", remedy: "add `queue: 4096` to the recipe" })
    }

    /// Returns the class labels of the B samples.
    ///
    /// # Shapes
    /// B
    ///
    /// # Errors
    /// [`Error::Missing`] if the data has no labels.
    pub fn labels(&self) -> Result<&[u32]> {
        self.inputs.labels.as_deref().ok_or(Error::Missing {
            what: "class labels",
            remedy: "use a dataset with labels, or another term",
        })
    }

    /// Returns the cluster levels; there is at least one.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no clustering yet.
    pub fn levels(&self) -> Result<&[Level<E, D>]> {
        match self.inputs.levels.as_slice() {
            [] => Err(Error::Missing {
                what: "prototypes",
                remedy: "add a clusterer to the recipe, and start the term after its first fit",
            }),
            levels => Ok(levels),
        }
    }

    /// Sets the term that is evaluated next, so that two terms may have learnable matrices of the same name:
    /// the matrix `name` is looked up as `scope.name` first.
    pub fn enter(&self, scope: &str) {
        self.scope.replace(scope.to_string());
    }

    /// Returns a learnable matrix of this term, with gradient.
    ///
    /// # Shapes
    /// (rows, cols) as the term declares in [`TermInfo::parameters`](crate::TermInfo::parameters)
    ///
    /// # Errors
    /// [`Error::Missing`] if the term has no matrix of this name.
    pub fn parameter(&self, name: &str) -> Result<Taped<(usize, usize), E, D>> {
        Ok(self.named(name)?.1.retaped())
    }

    /// Returns a matrix that this term remembers from the step before, a constant.
    ///
    /// # Shapes
    /// (rows, cols) as the term declares in [`TermInfo::parameters`](crate::TermInfo::parameters)
    ///
    /// # Errors
    /// [`Error::Missing`] if the term has no matrix of this name.
    pub fn remembered(&self, name: &str) -> Result<Matrix<E, D>> {
        Ok(self.named(name)?.1.clone())
    }

    /// Stores these values, row-major, for [`Batch::remembered`] at the next step.
    ///
    /// # Shapes
    /// rows·cols values
    ///
    /// # Errors
    /// If the term has no such matrix, or its number of elements differs.
    pub fn remember(&self, name: &str, values: Vec<E>) -> Result<()> {
        let (key, matrix) = self.named(name)?;
        let (rows, cols) = *matrix.shape();
        if values.len() != rows * cols {
            return Err(Error::shape(name, format!("expected {rows}×{cols} values, got {}", values.len())));
        }
        self.remembered.borrow_mut().insert(key, values);
        Ok(())
    }

    fn named(&self, name: &str) -> Result<(String, &Matrix<E, D>)> {
        let all = &self.inputs.parameters;
        let scoped = format!("{}.{name}", self.scope.borrow());
        let key = if all.contains_key(&scoped) { scoped } else { name.to_string() };
        let found = all.get(&key).ok_or(Error::Missing {
            what: "a matrix of its own",
            remedy: "pass it in the inputs; the engine creates those that `TermInfo::parameters` declares",
        })?;
        Ok((key, found))
    }

    /// Marks the term as skipped for a reason, and returns the value zero. For batches on which the term is
    /// undefined, such as a uniformity over fewer than two prototypes.
    pub fn skip(&self, why: impl Into<String>) -> Value<E, D> {
        self.skipped.borrow_mut().push(why.into());
        ops::scalar(&self.device, 0.0).retaped()
    }

    /// Returns the reasons given to [`Batch::skip`] since the last call.
    pub fn take_skipped(&self) -> Vec<String> {
        std::mem::take(&mut self.skipped.borrow_mut())
    }

    /// Returns the batch prototypes of a level, computed once for equal options.
    ///
    /// # Errors
    /// If the level does not exist, or `options.queue` is set and the queue or its sample ids are missing.
    pub fn prototypes(&self, level: usize, options: PrototypeOptions) -> Result<Rc<BatchPrototypes<E, D>>> {
        let known = |(l, p): &&(usize, Rc<BatchPrototypes<E, D>>)| *l == level && p.options == options;
        if let Some((_, found)) = self.prototypes.borrow().iter().find(known) {
            return Ok(found.clone());
        }
        let occupied = self.occupied(level, options)?;
        let sums = self.prototype_sums(level, &occupied, options, self.z(0)?)?;
        let made =
            Rc::new(BatchPrototypes { occupied, online: self.share(sums), keys: OnceCell::new(), options });
        self.prototypes.borrow_mut().push((level, made.clone()));
        Ok(made)
    }

    /// Returns p' of batch prototypes: the same sums over the keys of view 1. They are constant with a
    /// momentum encoder, and have a gradient otherwise. Shape (|P|, D).
    ///
    /// # Errors
    /// If the level does not exist, or keys of view 1 or the queue are missing.
    pub fn key_prototypes(
        &self,
        level: usize,
        of: &BatchPrototypes<E, D>,
    ) -> Result<Taped<(usize, usize), E, D>> {
        if of.keys.get().is_none() {
            let sums = self.prototype_sums(level, &of.occupied, of.options, self.key(1)?)?;
            // Only this call sets the cell, so it is still empty.
            let _ = of.keys.set(self.share(sums));
        }
        of.keys.get().map(Tensor::retaped).ok_or_else(|| Error::config("key prototypes were not set"))
    }

    fn level(&self, level: usize) -> Result<&Level<E, D>> {
        self.levels()?.get(level).ok_or_else(|| Error::config(format!("there is no cluster level {level}")))
    }

    fn occupied(&self, level: usize, options: PrototypeOptions) -> Result<Vec<usize>> {
        let level = self.level(level)?;
        let mut counts = vec![0usize; level.k()];
        let queued: &[Option<u32>] = if options.queue { &level.queue_assignments } else { &[] };
        for s in level.assignments.iter().chain(queued).flatten() {
            counts[*s as usize] += 1;
        }
        // A prototype without a member in the batch would be a constant, without a gradient.
        let mut present = vec![false; level.k()];
        level.assignments.iter().flatten().for_each(|s| present[*s as usize] = true);
        Ok((0..level.k()).filter(|j| present[*j] && counts[*j] >= options.n_min.max(1)).collect())
    }

    fn prototype_sums(
        &self,
        level: usize,
        occupied: &[usize],
        options: PrototypeOptions,
        members: Taped<(usize, usize), E, D>,
    ) -> Result<Taped<(usize, usize), E, D>> {
        let level = self.level(level)?;
        let rows = occupied.len();
        if rows == 0 {
            return Ok(ops::constant(&self.device, Vec::new(), (0, self.dim)).retaped());
        }
        let selector = |assignments: &[Option<u32>]| {
            let mut m = vec![E::zero(); rows * assignments.len()];
            for (i, s) in assignments.iter().enumerate() {
                if let Some(r) = s.and_then(|s| occupied.binary_search(&(s as usize)).ok()) {
                    m[r * assignments.len() + i] = E::one();
                }
            }
            ops::constant(&self.device, m, (rows, assignments.len()))
        };
        let mut sums = selector(&level.assignments).retaped::<OwnedTape<E, D>>().matmul(members);
        if options.queue {
            let queue = self.queue()?;
            if level.queue_assignments.len() != queue.shape.0 {
                return Err(Error::Missing {
                    what: "the sample ids of the queue",
                    remedy: "set `queue: false` in the term",
                });
            }
            sums = sums + selector(&level.queue_assignments).matmul(queue.tensor());
        }
        if options.rho != 0.0 {
            let mut pick = vec![E::zero(); rows * level.k()];
            occupied.iter().enumerate().for_each(|(r, j)| pick[r * level.k() + j] = E::of(options.rho));
            sums =
                sums + ops::constant(&self.device, pick, (rows, level.k())).matmul(level.centroids.tensor());
        }
        Ok(ops::l2_normalize(sums))
    }

    /// Keeps the recorded operations of a tensor that several terms read, and returns the tensor.
    fn share(&self, tensor: Taped<(usize, usize), E, D>) -> Matrix<E, D> {
        let (tensor, tape) = tensor.split_tape();
        let merged = self.shared.take().merge(tape);
        self.shared.replace(merged);
        tensor
    }

    /// Runs the backward pass of an objective over the terms of this batch. The batch cannot be used for
    /// another one.
    ///
    /// # Shapes
    /// B·D values for each view and its predictions, rows·cols for each learnable matrix
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(self, objective: Value<E, D>) -> Result<BatchGradients<E>> {
        self.backward_by(objective, |gradients, of| ops::gradient(gradients, of))
    }

    /// Like [`Batch::backward`], but gradients of rows stay on the device and may not be computed yet.
    ///
    /// # Shapes
    /// (B, D) for each view and its predictions
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward_on_device(self, objective: Value<E, D>) -> Result<BatchGradients<E, Matrix<E, D>>> {
        self.backward_by(objective, |gradients, of| {
            gradients.try_alloc_for(of).map_err(Error::device)?;
            Ok(gradients.get(of))
        })
    }

    fn backward_by<Rows>(
        self,
        objective: Value<E, D>,
        rows: impl Fn(&mut Gradients<E, D>, &Matrix<E, D>) -> Result<Rows>,
    ) -> Result<BatchGradients<E, Rows>> {
        let (value, tape) = objective.split_tape();
        let tape = tape.merge(self.shared.take());
        let mut gradients: Gradients<E, D> = value.put_tape(tape).try_backward().map_err(Error::device)?;
        let mut all = |of: &[Option<Matrix<E, D>>]| {
            of.iter().map(|m| m.as_ref().map(|m| rows(&mut gradients, m)).transpose()).collect::<Result<_>>()
        };
        let (views, predictions) = (all(&self.inputs.views)?, all(&self.inputs.predictions)?);
        let mut of = |p: &Matrix<E, D>| ops::gradient(&mut gradients, p);
        let parameters = self.inputs.parameters.iter().map(|(n, p)| Ok((n.clone(), of(p)?)));
        let parameters = parameters.collect::<Result<_>>()?;
        let remembered = self.remembered.into_inner();
        Ok(BatchGradients { views, predictions, parameters, remembered })
    }
}
