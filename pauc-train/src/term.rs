//! One term on given tensors: how a port from another framework is checked.

use crate::recipe::Concentration;
use pauc_traits::backend::{Backend, Scalar};
use pauc_traits::batch::{BatchGradients, Constant, Inputs, Level};
use pauc_traits::component_ron::Term;
use pauc_traits::schedule::Clock;
use pauc_traits::term::{Facts, Init};
use pauc_traits::{Batch, Error, Result, ops};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What a term gave.
#[derive(Clone, Debug)]
pub struct TermResult {
    /// Its value.
    pub value: f64,
    /// Its chance level for inputs of these sizes.
    pub chance: Option<f64>,
    /// The concentrations φ of each level's prototypes, as given or as computed.
    pub concentration: Vec<Vec<f64>>,
    /// Why it had no value on this batch, if it had none.
    pub skipped: Option<String>,
    /// `f32` or `f64`, the type it was computed in.
    pub dtype: &'static str,
    /// Gradients by input, with their shapes, row-major.
    pub gradients: Vec<(String, [usize; 2], Vec<f64>)>,
}

/// Evaluates a term on the tensors of a safetensors file: `view0`, `view1`, `key0`, `key1` (raw projector outputs),
/// `prediction0`, `prediction1` (raw predictor outputs), `ln_temperature` (1×1), `centre` (1×K),
/// `queue` and `prototypes.M` (rows, used as they are), `concentration.M`, and integers `labels`, `assignments.M`
/// (−1: noise), `negatives.M`. `f64` if any of them is, `f32` otherwise.
///
/// Where it holds `features` (the rows that were clustered) and `clusters.M` (their prototypes, −1: noise), the
/// concentrations of level M are computed from them as a recipe's `concentration` says; without any they are 1.
///
/// # Errors
/// If the file is missing or damaged, a tensor is unknown or of the wrong type or shape, an index has no row, or the
/// term lacks an input.
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
        .map_err(|e| Error::damaged(path, format!("no safetensors file: {e}")))?;
    let tensors = Tensors { path, file };
    tensors.check_names()?;
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
    scale: &Concentration,
    dtype: &'static str,
) -> Result<TermResult> {
    let bank = |name: &str| -> Result<Option<Constant<E, D>>> {
        let Some((values, shape)) = tensors.floats::<E>(name)? else { return Ok(None) };
        match shape[..] {
            [rows, cols] => Ok(Some(Constant::new(device, values, (rows, cols)))),
            _ => Err(tensors.wrong(name, format!("has shape {shape:?}; give a matrix"))),
        }
    };
    let matrix = |name: &str| -> Result<Option<ops::Matrix<E, D>>> { Ok(bank(name)?.map(|b| b.tensor())) };
    let by_view = |prefix: &str| -> Result<Vec<Option<ops::Matrix<E, D>>>> {
        let mut list = vec![matrix(&format!("{prefix}0"))?, matrix(&format!("{prefix}1"))?];
        while list.last().is_some_and(Option::is_none) {
            list.pop();
        }
        Ok(list)
    };
    let id = |v: i64| u32::try_from(v).ok();
    let (mut levels, mut parameters): (Vec<Level<E, D>>, _) = (Vec::new(), BTreeMap::new());
    let (features, mut spreads) = (bank("features")?, Vec::new());
    for m in 0.. {
        let name = format!("prototypes.{m}");
        let Some(centroids) = bank(&name)? else { break };
        let k = centroids.shape().0;
        // Without assignments the prototypes are a term's own, learnable ones.
        let Some(assignments) = tensors.integers(&format!("assignments.{m}"))? else {
            parameters.insert(if m == 0 { "prototypes".into() } else { name }, centroids.tensor());
            continue;
        };
        let negatives = tensors.integers(&format!("negatives.{m}"))?;
        let concentration = tensors.floats::<E>(&format!("concentration.{m}"))?.map(|(v, _)| v);
        if let Some(features) = features.as_ref().filter(|_| concentration.is_none()) {
            spreads.push(tensors.distances(m, features, &centroids)?);
        }
        levels.push(Level {
            centroids,
            concentration: concentration.unwrap_or_else(|| vec![E::one(); k]),
            assignments: assignments.into_iter().map(id).collect(),
            queue_assignments: Vec::new(),
            negatives: negatives.map(|n| n.into_iter().filter_map(|v| usize::try_from(v).ok()).collect()),
        });
    }
    if !spreads.is_empty() {
        if spreads.len() != levels.len() {
            let message =
                "stands beside a `concentration.M`: give it for every level, or `clusters.M` for every level";
            return Err(tensors.wrong("features", message.into()));
        }
        let (alpha, temperature) = (E::of(scale.alpha.get()), E::of(scale.now(&Clock::still())));
        let phi = scale.kind.of_spreads(&spreads, alpha, temperature);
        levels.iter_mut().zip(phi).for_each(|(level, phi)| level.concentration = phi);
    }
    let concentration = levels.iter().map(|l| l.concentration.iter().map(|v| v.as_f64()).collect()).collect();
    let labels = tensors.integers("labels")?;
    let labels = labels.map(|l| l.into_iter().map(|v| id(v).unwrap_or(u32::MAX)).collect::<Vec<_>>());
    let (views, keys, queue) = (by_view("view")?, by_view("key")?, bank("queue")?);
    let predictions = by_view("prediction")?;
    let rows = |m: &Option<ops::Matrix<E, D>>| m.as_ref().map(|m| *dfdx::prelude::HasShape::shape(m));
    let (batch, dim) = views.iter().chain(&keys).find_map(rows).unwrap_or((0, 0));
    let facts = Facts {
        batch,
        dim,
        samples: batch,
        momentum: !keys.is_empty(),
        predictor: !predictions.is_empty(),
        queue: queue.as_ref().map(|q| q.shape().0),
        prototypes: levels.iter().map(|l: &Level<E, D>| Some(l.k())).collect(),
        classes: labels.as_ref().map(|l| l.iter().collect::<BTreeSet<_>>().len()),
    };
    // A term's own matrices that start at a constant may be left out.
    for p in term.info().parameters(&facts) {
        let given = if p.name == "prototypes" { None } else { matrix(p.name)? };
        match (given, p.init) {
            (Some(m), _) => drop(parameters.insert(p.name.into(), m)),
            (None, Init::Constant(v)) => {
                let values = vec![E::of(v); p.rows * p.cols];
                parameters.insert(p.name.into(), ops::constant(device, values, (p.rows, p.cols)));
            }
            _ => {}
        }
    }
    let shapes: BTreeMap<String, (usize, usize)> =
        parameters.iter().map(|(n, p)| (n.clone(), *dfdx::prelude::HasShape::shape(p))).collect();
    let inputs = Inputs { views, predictions, keys, queue, labels, levels, parameters, ..Inputs::default() };
    let batch_view = Batch::new(device, inputs)?;
    let value = term.evaluate(&batch_view)?;
    let skipped = Some(batch_view.take_skipped().join("; ")).filter(|s| !s.is_empty());
    let number = ops::item(&value);
    let BatchGradients { views, predictions, parameters, remembered, .. } = batch_view.backward(value)?;
    let wide = |g: Vec<E>| g.into_iter().map(|v| v.as_f64()).collect::<Vec<f64>>();
    let mut gradients: Vec<_> = Vec::new();
    for (what, all) in [("view", views), ("prediction", predictions)] {
        let named =
            |(v, g): (usize, Option<Vec<E>>)| g.map(|g| (format!("{what}{v}"), [batch, dim], wide(g)));
        gradients.extend(all.into_iter().enumerate().filter_map(named));
    }
    for (name, g) in parameters.into_iter().filter(|(name, _)| !remembered.contains_key(name)) {
        let (rows, cols) = shapes.get(&name).copied().unwrap_or((0, 0));
        let name = if name == "prototypes" { "prototypes.0".to_string() } else { name };
        gradients.push((name, [rows, cols], wide(g)));
    }
    let chance = term.info().chance_level(&facts);
    Ok(TermResult { value: number, chance, concentration, skipped, dtype, gradients })
}

/// Writes gradients in the type that they were computed in.
///
/// # Errors
/// If the disk refuses.
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
    std::fs::write(path, file).map_err(|e| Error::io(path, e))
}

struct Tensors<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
}

impl Tensors<'_> {
    fn wrong(&self, name: &str, message: String) -> Error {
        Error::damaged(self.path, format!("tensor `{name}` {message}"))
    }

    fn check_names(&self) -> Result<()> {
        let single = [
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
        let levelled = ["prototypes", "assignments", "clusters", "concentration", "negatives"];
        for name in self.file.names() {
            let of_level = name
                .split_once('.')
                .is_some_and(|(p, m)| levelled.contains(&p) && m.parse::<usize>().is_ok());
            if !single.contains(&name) && !of_level {
                let known =
                    format!("{}, {}", single.join(", "), levelled.map(|l| format!("{l}.M")).join(", "));
                return Err(self.wrong(name, format!("is not one that terms read; known: {known}")));
            }
        }
        Ok(())
    }

    /// Of each prototype of level `m`, the sum of its samples' distances to it, and their number.
    fn distances<E: Scalar, D: Backend<E>>(
        &self,
        m: usize,
        features: &Constant<E, D>,
        centroids: &Constant<E, D>,
    ) -> Result<(Vec<E>, Vec<usize>)> {
        let name = format!("clusters.{m}");
        let Some(clusters) = self.integers(&name)? else {
            return Err(self.wrong("features", format!("needs `{name}`, the prototype of each row")));
        };
        let ((n, dim), (k, cols)) = (features.shape(), centroids.shape());
        if clusters.len() != n || dim != cols {
            let message = format!(
                "has {} values, but features are {n}×{dim} and prototypes {k}×{cols}",
                clusters.len()
            );
            return Err(self.wrong(&name, message));
        }
        let (mut sums, mut sizes) = (vec![E::zero(); k], vec![0; k]);
        for (x, c) in features.values().chunks_exact(dim.max(1)).zip(&clusters) {
            let Ok(c) = usize::try_from(*c) else { continue };
            if c >= k {
                return Err(self.wrong(&name, format!("names prototype {c} of {k}")));
            }
            let centroid = &centroids.values()[c * dim..][..dim];
            let square = x.iter().zip(centroid).fold(E::zero(), |s, (a, b)| s + (*a - *b) * (*a - *b));
            sums[c] += square.sqrt();
            sizes[c] += 1;
        }
        Ok((sums, sizes))
    }

    fn floats<E: Scalar>(&self, name: &str) -> Result<Option<(Vec<E>, Vec<usize>)>> {
        let Ok(t) = self.file.tensor(name) else { return Ok(None) };
        let values = match t.dtype() {
            Dtype::F32 => {
                t.data().as_chunks().0.iter().map(|b| E::of(f32::from_le_bytes(*b) as f64)).collect()
            }
            Dtype::F64 => t.data().as_chunks().0.iter().map(|b| E::of(f64::from_le_bytes(*b))).collect(),
            other => return Err(self.wrong(name, format!("is {other:?}; give f32 or f64"))),
        };
        Ok(Some((values, t.shape().to_vec())))
    }

    fn integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        let Ok(t) = self.file.tensor(name) else { return Ok(None) };
        match t.dtype() {
            Dtype::I64 => Ok(Some(t.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())),
            other => Err(self.wrong(name, format!("is {other:?}; give i64"))),
        }
    }
}
