//! A second look at the batch of a step that failed: the same pass, with everything that it computes kept.
//!
//! A step is a function of the state before it, and a step that fails has not changed the parameters. So the
//! pass costs nothing as long as no step fails.

use crate::batch_pass::{BatchPass, OnlineRows, TRAIN_NO_GRAD};
use crate::objective::TermValue;
use crate::rows_by_view::HostRows;
use pauc_models::device::NetworkDevice;
use pauc_traits::batch::BatchGradients;
use pauc_traits::{Result, ops};

/// What a batch gives on its way through the networks and the terms, on the host.
pub(crate) struct Inspection {
    /// The number of samples B.
    pub samples: usize,
    /// The encoder's outputs.
    pub features: Rows,
    /// The projector's outputs.
    pub embeddings: Rows,
    /// The predictor's outputs; no views without a predictor.
    pub predictions: Rows,
    /// The momentum network's outputs; no views without one.
    pub keys: Rows,
    /// The active terms with the gradients at their inputs, before weighting.
    pub terms: Vec<(TermValue, BatchGradients<f32>)>,
}

/// Rows of each view, (B, width) each.
#[derive(Default)]
pub(crate) struct Rows {
    /// The width of a row.
    pub width: usize,
    /// The values by view, row-major; `None` for views that nothing reads.
    pub views: Vec<Option<Vec<f32>>>,
}

impl Rows {
    /// Returns the views that are read, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.views.iter().enumerate().filter_map(|(view, rows)| Some((view, rows.as_deref()?)))
    }

    /// Returns the first view that is read.
    pub fn first(&self) -> Option<&[f32]> {
        self.iter().next().map(|(_, rows)| rows)
    }
}

impl<D: NetworkDevice> BatchPass<'_, D> {
    /// Repeats the forward passes of the batch and evaluates each term for itself. Changes running statistics, but
    /// no parameter.
    pub fn inspect(mut self) -> Result<Inspection> {
        let (batch, views) = (self.batch, self.batch.data.views.len());
        let (samples, read) = (batch.samples(), &batch.reads.online);
        let room = |width| HostRows::new(views, read, (samples, width));
        let feature_dim = self.state.network.feature_dim();
        let (mut features, mut embeddings) = (room(feature_dim), room(batch.dim));
        let mut predictions = self.predicts().then(|| room(batch.dim));
        for part in batch.parts() {
            let output = self.forward_images(part, TRAIN_NO_GRAD, 0)?;
            features.put(read, part, &ops::to_host(&output.features)?);
            embeddings.put(read, part, &ops::to_host(&output.embeddings)?);
            if let Some(all) = &mut predictions
                && let Some(rows) = self.predict(&output.embeddings, TRAIN_NO_GRAD)?
            {
                all.put(read, part, &ops::to_host(&rows)?);
            }
        }
        let of = |rows: &HostRows, width| Rows { width, views: rows.to_views() };
        let predicted = predictions.as_ref().map(|p| of(p, batch.dim)).unwrap_or_default();
        let (of_features, of_embeddings) = (of(&features, feature_dim), of(&embeddings, batch.dim));
        let online = OnlineRows {
            embeddings: embeddings.upload(self.device),
            predictions: predictions.map(|rows| rows.upload(self.device)).unwrap_or_default(),
        };
        let keys = self.forward_keys()?.rows;
        let on_host = |m: &Option<ops::Matrix<f32, D>>| m.as_ref().map(ops::to_host).transpose();
        let of_keys = keys.iter().map(on_host).collect::<Result<_>>()?;
        let inputs = self.term_inputs(online, keys)?;
        let terms = self.evaluate_each(&inputs)?;
        Ok(Inspection {
            samples,
            features: of_features,
            embeddings: of_embeddings,
            predictions: predicted,
            keys: Rows { width: batch.dim, views: of_keys },
            terms,
        })
    }
}
