//! The linear probe by stochastic gradient descent, as reported in the literature.

use crate::head::{Decay, Head, shuffled};
use crate::linear::{Standardization, hold_out};
use crate::{Labeled, ProbeTime, Space, largest, when};
use pauc_traits::probe::{Metric, ProbeContext, RowsView, Views, When};
use pauc_traits::{Count, Error, Positive, Probe, Result, TrainingSpan, component, progress, stop};
use std::borrow::Cow;

component! {
    /// Accuracy on the test split of a linear classifier on frozen features, by stochastic gradient descent.
    ///
    /// The protocol of MoCo, which PCL and others follow: mean cross-entropy of W x + b, momentum 0.9, no
    /// weight decay, learning rate 30, a tenth of it after 60 % and a hundredth after 80 % of 100 epochs,
    /// batches of 256, weights from N(0, 0.01²), features without standardization. In MoCo, images are
    /// cropped and flipped anew in every epoch. `views: CropFlip` does the same, with one encoder pass over
    /// the training images per epoch. The default, `Evaluation`, needs no additional pass, and its results
    /// can only be compared with each other.
    ///
    /// With several learning rates, every fifth training sample of each class is held out. A classifier is
    /// trained at each rate, the rate with the best accuracy on the held-out samples is chosen (the smallest,
    /// if several are best), and the final classifier is trained on all samples. The test split is never used
    /// for the choice. `Linear` instead finds the optimum of a different objective and has no learning rate.
    ///
    /// Metrics: `linear/sgd/e100/b256/step0.1/lr30`, a fraction. With several rates, the name leaves out
    /// `/lr30`, and `/lr` is appended for the chosen rate. If the weights overflow at some rate, its accuracy
    /// is that of chance. `/crop-flip`, `/standardised` and `/embeddings` are appended to the name if they apply. Source:
    /// He et al. 2020 (MoCo), Li et al. 2021 (PCL).
    pub struct LinearSgd: Probe {
        /// The learning rate, or several to choose from.
        pub lr: Vec<Positive> = vec![Positive::lit(30.0)],
        /// Epochs on the training split.
        pub epochs: Count = Count::lit(100),
        /// The number of samples in a batch. The last batch of an epoch has the rest.
        pub batch: Count = Count::lit(256),
        /// How the rate falls: `Step(0.1)`, times 0.1 after 60 % and after 80 % of the epochs; `Cosine`; or
        /// `Constant`.
        pub decay: Decay = Decay::Step(Positive::lit(0.1)),
        /// The views of training images: `Evaluation`, or `CropFlip` as in the recipe's first view.
        pub views: Views = Views::Evaluation,
        /// Whether features are standardized by mean and deviation of the training split's evaluation views.
        pub standardise: bool = false,
        /// The vectors classified: `Features` before the projector, or its outputs, `Embeddings`.
        pub space: Space = Space::Features,
        /// How often it runs during training, such as `Epochs(5)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl LinearSgd {
    fn name(&self) -> String {
        let mut name =
            format!("linear/sgd/e{}/b{}/{}", self.epochs.get(), self.batch.get(), self.decay.name());
        name.push_str(self.views.suffix());
        name.push_str(if self.standardise { "/standardised" } else { "" });
        name.push_str(self.space.suffix());
        if let [lr] = self.lr[..] {
            name.push_str(&format!("/lr{}", lr.get()));
        }
        name
    }
}

impl Probe for LinearSgd {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn check(&self) -> Result<()> {
        if self.lr.is_empty() {
            return Err(Error::config("LinearSgd: `lr` is empty; give at least one learning rate"));
        }
        if self.views == Views::CropFlip && self.space == Space::Embeddings {
            return Err(Error::config("LinearSgd: `views: CropFlip` needs features; leave `space` out"));
        }
        Ok(())
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        self.check()?;
        let Some(splits) = self.space.labeled(context) else { return Ok(Vec::new()) };
        splits.check("LinearSgd", context.classes)?;
        let Labeled { train, labels, test, test_labels } = splits;
        let scale = self.standardise.then(|| Standardization::of(train));
        let still = scaled(scale.as_ref(), Cow::Borrowed(train.data), train.cols);
        let mut epoch_rows: Box<RowsOf<'_>> = match self.views {
            Views::Evaluation => Box::new(|_| Ok(Cow::Borrowed(&still[..]))),
            Views::CropFlip => {
                // Raw pixels have no crops here.
                let (Some(network), Some(images)) = (context.network, context.train.images) else {
                    return Ok(Vec::new());
                };
                Box::new(|epoch| {
                    let rows = network.features(images, Views::CropFlip, context.seed, epoch)?;
                    Ok(scaled(scale.as_ref(), Cow::Owned(rows), train.cols))
                })
            }
        };
        let mut rates: Vec<f64> = self.lr.iter().map(|l| l.get()).collect();
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        let fit = Fit { labels, dim: train.cols, classes: context.classes, probe: self, seed: context.seed };
        let (order, fitted) = hold_out(labels, context.classes);
        let lr = match rates[..] {
            [lr] => lr,
            // Too few samples to hold any out.
            [smallest, ..] if fitted == 0 || fitted == order.len() => smallest,
            _ => {
                let heads = fit.heads(&order[..fitted], &rates, &mut epoch_rows)?;
                let held_out = &order[fitted..];
                let x: Vec<f32> = held_out
                    .iter()
                    .flat_map(|i| &still[i * train.cols..(i + 1) * train.cols])
                    .copied()
                    .collect();
                let held_labels: Vec<u32> = held_out.iter().map(|i| labels[*i]).collect();
                let score = |head: &Head| {
                    if head.is_finite() { head.accuracy(&x, &held_labels) } else { f64::NEG_INFINITY }
                };
                let scores: Vec<f64> = heads.iter().map(score).collect();
                rates[largest(&scores)]
            }
        };
        let samples: Vec<usize> = (0..labels.len()).collect();
        let head = &fit.heads(&samples, &[lr], &mut epoch_rows)?[0];
        let accuracy =
            head.accuracy(&scaled(scale.as_ref(), Cow::Borrowed(test.data), test.cols), test_labels);
        let name = self.name();
        let mut metrics = vec![Metric::accuracy(&name, accuracy)];
        if rates.len() > 1 {
            metrics.push(Metric::detail(&name, "lr", lr));
        }
        Ok(metrics)
    }
}

/// Standardizes the rows; without a scale, they are not copied.
fn scaled<'a>(scale: Option<&Standardization>, rows: Cow<'a, [f32]>, dim: usize) -> Cow<'a, [f32]> {
    let Some(scale) = scale else { return rows };
    let every: Vec<usize> = (0..rows.len() / dim).collect();
    Cow::Owned(scale.apply(RowsView::new(&rows, dim), &every))
}

/// Returns the rows of all training samples in an epoch.
type RowsOf<'a> = dyn FnMut(u64) -> Result<Cow<'a, [f32]>> + 'a;

struct Fit<'a> {
    labels: &'a [u32],
    dim: usize,
    classes: usize,
    probe: &'a LinearSgd,
    seed: u64,
}

impl Fit<'_> {
    /// Trains one classifier per learning rate, all on `samples` in the same batches.
    fn heads<'r>(&self, samples: &[usize], rates: &[f64], rows: &mut RowsOf<'r>) -> Result<Vec<Head>> {
        let epochs = self.probe.epochs.get() as u64;
        let mut heads = vec![Head::new(self.dim, self.classes, self.seed); rates.len()];
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let task = progress::task("linear probe", epochs);
        for epoch in 0..epochs {
            let rows = rows(epoch)?;
            let factor = self.probe.decay.factor(epoch, epochs);
            for batch in shuffled(samples, self.seed, epoch).chunks(self.probe.batch.get()) {
                stop::check()?;
                x.clear();
                y.clear();
                for i in batch {
                    x.extend_from_slice(&rows[i * self.dim..(i + 1) * self.dim]);
                    y.push(self.labels[*i]);
                }
                for (head, lr) in heads.iter_mut().zip(rates) {
                    head.step(&x, &y, lr * factor, 0.0);
                }
            }
            task.advance(1);
        }
        Ok(heads)
    }
}

#[cfg(test)]
mod tests;
