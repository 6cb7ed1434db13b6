//! Evaluation of one term on given tensors, for example to check a port from another framework.

use crate::recipe::Concentration;
use dfdx::prelude::{Cpu, HasShape};
use pauc_cluster::concentration::Spread;
use pauc_traits::backend::{Backend, Scalar};
use pauc_traits::batch::{BatchGradients, Constant, Inputs, Level};
use pauc_traits::component_ron::Term;
use pauc_traits::schedule::Clock;
use pauc_traits::term::{Facts, Init};
use pauc_traits::{Batch, Error, Result, atomic, ops};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The result of a term.
#[derive(Clone, Debug)]
pub struct TermResult {
    /// Its value.
    pub value: f64,
    /// Its chance level for inputs of these sizes.
    pub chance: Option<f64>,
    /// The concentrations φ of each level's prototypes, as given or as computed.
    pub concentration: Vec<Vec<f64>>,
    /// The reason if it had no value on this batch.
    pub skipped: Option<String>,
    /// `f32` or `f64`, the type of the computation.
    pub dtype: &'static str,
    /// Gradients by input, with their shapes, row-major.
    pub gradients: Vec<(String, [usize; 2], Vec<f64>)>,
}

/// Evaluates a term on the tensors of a safetensors file: `view0`, `view1`, `key0`, `key1` (raw projector
/// outputs), `prediction0`, `prediction1` (raw predictor outputs), `ln_temperature` (1×1), `centre` (1×K),
/// `queue` and `prototypes.M` (rows, used as they are), `concentration.M`, and integers `labels`,
/// `assignments.M` (−1: noise), `negatives.M`. Computes in `f64` if any tensor is `f64`, otherwise in `f32`.
///
/// If the file has `features` (the clustered rows) and `clusters.M` (their prototypes, −1: noise), the
/// concentrations of level M are computed from them by the recipe's `concentration`. Without either, they are
/// 1.
///
/// # Errors
/// If the file is missing or damaged, a tensor is unknown or of the wrong type or shape, an index is out of
/// range, or the term lacks an input.
pub fn evaluate_file<D: Backend<f32> + Backend<f64>>(
    device: &D,
    term: &Term,
    path: &Path,
    concentration: &Concentration,
) -> Result<TermResult> {
    let bytes = std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::NotFound { path: path.into(), remedy: "give the path of a safetensors file".into() }
        }
        _ => Error::io(path, e),
    })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::damaged(path, format!("not a safetensors file: {e}")))?;
    let tensors = Tensors { path, file };
    tensors.check_names(term)?;
    if tensors.file.iter().any(|(_, t)| t.dtype() == Dtype::F64) {
        evaluate::<f64, D>(device, term, &tensors, concentration, "f64")
    } else {
        evaluate::<f32, D>(device, term, &tensors, concentration, "f32")
    }
}

fn evaluate<E: Scalar, D: Backend<E>>(
    device: &D,
    term: &Term,
    tensors: &Tensors<'_>,
    concentration: &Concentration,
    dtype: &'static str,
) -> Result<TermResult> {
    let Prototypes { levels, learnable } = tensors.prototypes(device, concentration)?;
    let concentration = levels.iter().map(|l| l.concentration.iter().map(|v| v.as_f64()).collect()).collect();
    let mut inputs = Inputs { levels, parameters: learnable, ..tensors.rows_and_labels(device)? };
    let facts = facts_of(&inputs);
    tensors.add_term_parameters(device, term, &facts, &mut inputs.parameters)?;
    let shapes = inputs.parameters.iter().map(|(name, p)| (name.clone(), *p.shape())).collect();
    let batch = Batch::new(device, inputs)?;
    let value = term.evaluate(&batch)?;
    let skipped = Some(batch.take_skipped().join("; ")).filter(|s| !s.is_empty());
    Ok(TermResult {
        value: ops::item(&value),
        chance: term.info().chance_level(&facts),
        concentration,
        skipped,
        dtype,
        gradients: named_gradients(batch.backward(value)?, &facts, &shapes),
    })
}

/// Returns the sizes of a file's inputs for a term.
fn facts_of<E: Scalar, D: Backend<E>>(inputs: &Inputs<E, D>) -> Facts {
    let shape = |m: &Option<ops::Matrix<E, D>>| m.as_ref().map(|m| *m.shape());
    let (batch, dim) = inputs.views.iter().chain(&inputs.keys).find_map(shape).unwrap_or((0, 0));
    let classes = |labels: &Vec<u32>| labels.iter().collect::<BTreeSet<_>>().len();
    Facts {
        batch,
        dim,
        samples: batch,
        momentum: !inputs.keys.is_empty(),
        predictor: !inputs.predictions.is_empty(),
        queue: inputs.queue.as_ref().map(|q| q.shape().0),
        prototypes: inputs.levels.iter().map(|l| Some(l.k())).collect(),
        classes: inputs.labels.as_ref().map(classes),
        relative_weight: 1.0,
    }
}

/// Returns the gradients under the names of their inputs in a file. A term's memories have none.
fn named_gradients<E: Scalar>(
    gradients: BatchGradients<E>,
    facts: &Facts,
    shapes: &BTreeMap<String, (usize, usize)>,
) -> Vec<(String, [usize; 2], Vec<f64>)> {
    let BatchGradients { views, predictions, parameters, remembered, .. } = gradients;
    let wide = |g: Vec<E>| g.into_iter().map(|v| v.as_f64()).collect::<Vec<f64>>();
    let mut named: Vec<_> = Vec::new();
    for (what, by_view) in [("view", views), ("prediction", predictions)] {
        for (view, gradient) in by_view.into_iter().enumerate() {
            named.extend(gradient.map(|g| (format!("{what}{view}"), [facts.batch, facts.dim], wide(g))));
        }
    }
    for (name, gradient) in parameters.into_iter().filter(|(name, _)| !remembered.contains_key(name)) {
        let (rows, cols) = shapes.get(&name).copied().unwrap_or((0, 0));
        let name = if name == "prototypes" { "prototypes.0".to_string() } else { name };
        named.push((name, [rows, cols], wide(gradient)));
    }
    named
}

/// Writes gradients in the type of the computation.
///
/// # Errors
/// If the disk fails.
pub fn write_gradients(result: &TermResult, path: &Path) -> Result<()> {
    let dtype = if result.dtype == "f64" { Dtype::F64 } else { Dtype::F32 };
    let bytes = |values: &[f64]| -> Vec<u8> {
        match dtype {
            Dtype::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
        }
    };
    let data: Vec<_> = result.gradients.iter().map(|(n, s, v)| (n, s.to_vec(), bytes(v))).collect();
    let views = data.iter().map(|(n, s, b)| Ok((n.as_str(), TensorView::new(dtype, s.clone(), b)?)));
    let views: Vec<_> =
        views.collect::<Result<_, safetensors::SafeTensorError>>().map_err(|e| Error::Other(e.into()))?;
    let file = safetensors::serialize(views, None).map_err(|e| Error::Other(e.into()))?;
    atomic::write(path, &file)
}

/// The prototypes in a file: a clusterer's, level by level, and those that a term learns.
struct Prototypes<E: Scalar, D: Backend<E>> {
    levels: Vec<Level<E, D>>,
    learnable: BTreeMap<String, ops::Matrix<E, D>>,
}

struct Tensors<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
}

impl Tensors<'_> {
    fn wrong(&self, name: &str, message: String) -> Error {
        Error::damaged(self.path, format!("tensor `{name}` {message}"))
    }

    /// Refuses a file with a tensor that neither terms in general nor this one read.
    fn check_names(&self, term: &Term) -> Result<()> {
        let mut single = vec![
            "view0",
            "view1",
            "key0",
            "key1",
            "prediction0",
            "prediction1",
            "queue",
            "features",
            "labels",
            "ln_temperature",
            "centre",
        ];
        let leveled = ["prototypes", "assignments", "clusters", "concentration", "negatives"];
        // Names do not depend on sizes.
        let own =
            term.info().parameters(&facts_of::<f32, Cpu>(&Inputs::default())).into_iter().map(|p| p.name);
        for name in own {
            if !leveled.contains(&name) && !single.contains(&name) {
                single.push(name);
            }
        }
        for name in self.file.names() {
            let of_level =
                name.split_once('.').is_some_and(|(p, m)| leveled.contains(&p) && m.parse::<usize>().is_ok());
            if !single.contains(&name) && !of_level {
                let known =
                    format!("{}, {}", single.join(", "), leveled.map(|l| format!("{l}.M")).join(", "));
                return Err(self.wrong(name, format!("is not an input of terms; known: {known}")));
            }
        }
        Ok(())
    }

    /// Returns the rows of the views, their keys and predictions, the queue, and the labels.
    fn rows_and_labels<E: Scalar, D: Backend<E>>(&self, device: &D) -> Result<Inputs<E, D>> {
        let label = |v: i64| u32::try_from(v).unwrap_or(u32::MAX);
        let labels = self.integers("labels")?.map(|labels| labels.into_iter().map(label).collect());
        let (views, keys) = (self.by_view(device, "view")?, self.by_view(device, "key")?);
        let queue = self.bank(device, "queue")?;
        let predictions = self.by_view(device, "prediction")?;
        Ok(Inputs { views, predictions, keys, queue, labels, ..Inputs::default() })
    }

    /// Returns the matrices named `prefix` and a view number, up to the last one present.
    fn by_view<E: Scalar, D: Backend<E>>(
        &self,
        device: &D,
        prefix: &str,
    ) -> Result<Vec<Option<ops::Matrix<E, D>>>> {
        let mut list =
            vec![self.matrix(device, &format!("{prefix}0"))?, self.matrix(device, &format!("{prefix}1"))?];
        while list.last().is_some_and(Option::is_none) {
            list.pop();
        }
        Ok(list)
    }

    fn matrix<E: Scalar, D: Backend<E>>(&self, device: &D, name: &str) -> Result<Option<ops::Matrix<E, D>>> {
        Ok(self.bank(device, name)?.map(|rows| rows.tensor()))
    }

    /// Returns rows that are used as they are.
    fn bank<E: Scalar, D: Backend<E>>(&self, device: &D, name: &str) -> Result<Option<Constant<E, D>>> {
        let Some((values, shape)) = self.floats::<E>(name)? else { return Ok(None) };
        match shape[..] {
            [rows, cols] => Ok(Some(Constant::new(device, values, (rows, cols)))),
            _ => Err(self.wrong(name, format!("has shape {shape:?}; expected a matrix"))),
        }
    }

    /// Returns every level of prototypes, with the concentrations of the file, or those computed from its
    /// features.
    fn prototypes<E: Scalar, D: Backend<E>>(
        &self,
        device: &D,
        scale: &Concentration,
    ) -> Result<Prototypes<E, D>> {
        let features: Option<Constant<E, D>> = self.bank(device, "features")?;
        let (mut levels, mut spreads) = (Vec::new(), Vec::new());
        let mut learnable = BTreeMap::new();
        for m in 0.. {
            let name = format!("prototypes.{m}");
            let Some(centroids) = self.bank::<E, D>(device, &name)? else { break };
            // Without assignments, the prototypes are the learnable ones of a term.
            let Some(assignments) = self.integers(&format!("assignments.{m}"))? else {
                learnable.insert(if m == 0 { "prototypes".into() } else { name }, centroids.tensor());
                continue;
            };
            let negatives = self.integers(&format!("negatives.{m}"))?;
            let concentration = self.floats::<E>(&format!("concentration.{m}"))?.map(|(v, _)| v);
            if let Some(features) = features.as_ref().filter(|_| concentration.is_none()) {
                spreads.push(self.spread(m, features, &centroids)?);
            }
            let k = centroids.shape().0;
            levels.push(Level {
                centroids,
                concentration: concentration.unwrap_or_else(|| vec![E::one(); k]),
                assignments: assignments.into_iter().map(|v| u32::try_from(v).ok()).collect(),
                queue_assignments: Vec::new(),
                negatives: negatives.map(|n| n.into_iter().filter_map(|v| usize::try_from(v).ok()).collect()),
            });
        }
        self.set_concentrations(&mut levels, spreads, scale)?;
        Ok(Prototypes { levels, learnable })
    }

    /// Sets the concentrations computed from the spreads of all levels, if there are any.
    fn set_concentrations<E: Scalar, D: Backend<E>>(
        &self,
        levels: &mut [Level<E, D>],
        spreads: Vec<Spread<E>>,
        scale: &Concentration,
    ) -> Result<()> {
        if spreads.is_empty() {
            return Ok(());
        }
        if spreads.len() != levels.len() {
            let message = "is combined with a `concentration.M`; give `concentration.M` or `clusters.M` for every level";
            return Err(self.wrong("features", message.into()));
        }
        let (alpha, temperature) = (E::of(scale.alpha.get()), E::of(scale.now(&Clock::still())));
        let phi = scale.kind.of_spreads(&spreads, alpha, temperature);
        levels.iter_mut().zip(phi).for_each(|(level, phi)| level.concentration = phi);
        Ok(())
    }

    /// Adds a term's own matrices. Those that start at a constant may be omitted from the file.
    fn add_term_parameters<E: Scalar, D: Backend<E>>(
        &self,
        device: &D,
        term: &Term,
        facts: &Facts,
        parameters: &mut BTreeMap<String, ops::Matrix<E, D>>,
    ) -> Result<()> {
        for p in term.info().parameters(facts) {
            let given = if p.name == "prototypes" { None } else { self.matrix(device, p.name)? };
            let constant = |v| ops::constant(device, vec![E::of(v); p.rows * p.cols], (p.rows, p.cols));
            let matrix = match (given, p.init) {
                (Some(given), _) => Some(given),
                (None, Init::Constant(v)) => Some(constant(v)),
                _ => None,
            };
            parameters.extend(matrix.map(|m| (p.name.to_string(), m)));
        }
        Ok(())
    }

    /// Returns the distances of the features from the prototypes that `clusters.m` assigns them to.
    fn spread<E: Scalar, D: Backend<E>>(
        &self,
        m: usize,
        features: &Constant<E, D>,
        centroids: &Constant<E, D>,
    ) -> Result<Spread<E>> {
        let name = format!("clusters.{m}");
        let Some(clusters) = self.integers(&name)? else {
            return Err(self.wrong("features", format!("requires `{name}`, the prototype of each row")));
        };
        let ((n, dim), (k, cols)) = (features.shape(), centroids.shape());
        if clusters.len() != n || dim != cols {
            let message = format!(
                "has {} values, but features are {n}×{dim} and prototypes {k}×{cols}",
                clusters.len()
            );
            return Err(self.wrong(&name, message));
        }
        let (mut distances, mut sizes) = (vec![E::zero(); k], vec![0; k]);
        for (x, c) in features.values().chunks_exact(dim.max(1)).zip(&clusters) {
            let Ok(c) = usize::try_from(*c) else { continue };
            if c >= k {
                return Err(self.wrong(&name, format!("has index {c}, but there are {k} prototypes")));
            }
            let centroid = &centroids.values()[c * dim..][..dim];
            let square = x.iter().zip(centroid).fold(E::zero(), |s, (a, b)| s + (*a - *b) * (*a - *b));
            distances[c] += square.sqrt();
            sizes[c] += 1;
        }
        Ok(Spread { distances, sizes })
    }

    fn floats<E: Scalar>(&self, name: &str) -> Result<Option<(Vec<E>, Vec<usize>)>> {
        let Ok(t) = self.file.tensor(name) else { return Ok(None) };
        let values = match t.dtype() {
            Dtype::F32 => {
                t.data().as_chunks().0.iter().map(|b| E::of(f32::from_le_bytes(*b) as f64)).collect()
            }
            Dtype::F64 => t.data().as_chunks().0.iter().map(|b| E::of(f64::from_le_bytes(*b))).collect(),
            other => return Err(self.wrong(name, format!("is {other:?}; expected f32 or f64"))),
        };
        let values: Vec<E> = values;
        if values.is_empty() {
            return Err(self.wrong(name, format!("has shape {:?}: it is empty", t.shape())));
        }
        if let Some(i) = values.iter().position(|v| !v.as_f64().is_finite()) {
            return Err(self.wrong(
                name,
                format!("has {} at index {i}; every value must be finite", values[i].as_f64()),
            ));
        }
        Ok(Some((values, t.shape().to_vec())))
    }

    fn integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let Ok(t) = self.file.tensor(name) else { return Ok(None) };
        match t.dtype() {
            Dtype::I64 => Ok(Some(t.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())),
            other => Err(self.wrong(name, format!("is {other:?}; expected i64"))),
        }
    }
}
