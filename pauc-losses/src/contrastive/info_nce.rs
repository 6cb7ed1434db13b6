//! InfoNCE in its in-batch, keys and queue forms.

use crate::findings::{self, warning};
use crate::rows;
use dfdx::prelude::*;
use pauc_traits::softmax::{Bank, FusedLoss, Graded, Positives, Scale, SoftmaxKernels};
use pauc_traits::term::{Contrast, Facts, FieldValue, Finding, TermParameter};
use pauc_traits::{
    Backend, Batch, Clock, ContrastiveLoss, Needs, Positive, Result, Scalar, Temperature, TermInfo, Value,
    component, ops,
};
use serde::{Deserialize, Serialize};

component! {
    /// Picks out each sample's other view among other samples, by a softmax over cosines.
    ///
    /// ```text
    /// L = mean_i −log [ exp(q_i·k_i/τ) / Σ_c exp(q_i·c/τ) ]
    /// ```
    ///
    /// The candidates c always contain the positive k_i. They are, by `negatives`:
    ///
    /// | negatives | query | candidates | known as |
    /// |---|---|---|---|
    /// | `InBatch` | every row of [z⁰; z¹] | all other 2B − 1 rows; the positive is the other view | SimCLR, NT-Xent |
    /// | `Keys` | q_i | the B keys of the batch | MoCo v3, without its factor 2τ |
    /// | `Queue` | q_i | k_i and the M keys of the queue | MoCo |
    /// | `QueueAndBatch` | q_i | the B keys of the batch and the queue | |
    ///
    /// # Shapes
    /// (B, D) views and keys, (M, D) queue → scalar.
    ///
    /// # Reading
    /// The chance level is ln(number of candidates). Values below it mean that views of one image are told
    /// apart from other images. Values are not comparable between different numbers of candidates or
    /// temperatures.
    ///
    /// A learnable τ follows the gradient of all queries. It falls while positives stand out, and the loss
    /// then weights only the hardest negatives; `min` bounds it.
    ///
    /// # Gradient
    /// Pulls each query to its positive and pushes it from nearby candidates, more strongly for smaller τ. It
    /// ignores clusters and does not contract them: samples of one class are pushed apart like any others.
    ///
    /// # When to use
    /// `InBatch` from 256 samples per batch; `Queue` with a momentum encoder for small batches.
    ///
    /// ```text
    /// (term: InfoNce(temperature: 0.2, negatives: Queue))
    /// ```
    ///
    /// # Degenerate batches
    /// With one sample and no queue there is a single candidate: the value is 0. Zero rows have cosine 0 to
    /// everything.
    ///
    /// Sources: van den Oord et al. 2018; Chen et al. 2020 (SimCLR); He et al. 2020 (MoCo); Chen et al. 2021
    /// (MoCo v3).
    pub struct InfoNce: ContrastiveLoss {
        /// The temperature τ: a number, a schedule, or Learnable(init: 0.07, min: 0.01).
        pub temperature: Temperature = Positive::lit(0.2).into(),
        /// Where the negatives come from: InBatch, Keys, Queue or QueueAndBatch.
        pub negatives: Negatives = Negatives::InBatch,
        /// Whether both views serve as queries, with the mean of both losses. By default only for InBatch.
        pub two_sided: Option<bool> = None,
    }
}

/// Where the negatives of [`InfoNce`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Negatives {
    /// All other rows of both online views.
    InBatch,
    /// The keys of the other samples.
    Keys,
    /// The queue.
    Queue,
    /// The keys of the other samples, and the queue.
    QueueAndBatch,
}

impl InfoNce {
    /// Returns whether both views serve as queries.
    pub fn is_two_sided(&self) -> bool {
        self.two_sided.unwrap_or(self.negatives == Negatives::InBatch)
    }

    fn reads_queue(&self) -> bool {
        matches!(self.negatives, Negatives::Queue | Negatives::QueueAndBatch)
    }

    /// The number of candidates per query, including the positive.
    fn candidates(&self, batch: usize, queue: usize) -> usize {
        match self.negatives {
            Negatives::InBatch => 2 * batch - 1,
            Negatives::Keys => batch,
            Negatives::Queue => 1 + queue,
            Negatives::QueueAndBatch => batch + queue,
        }
    }

    /// Pairs of a query view and a key view, where keys are candidates.
    fn directions(&self) -> &'static [Direction] {
        const BOTH: &[Direction] = &[Direction { query: 0, key: 1 }, Direction { query: 1, key: 0 }];
        if self.is_two_sided() { BOTH } else { &BOTH[..1] }
    }
}

/// A query view, and the view whose keys are its positives.
#[derive(Clone, Copy, Debug)]
struct Direction {
    query: usize,
    key: usize,
}

/// The definition, in dfdx operations.
impl InfoNce {
    pub(crate) fn plain<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        if self.negatives == Negatives::InBatch {
            return self.plain_in_batch(batch);
        }
        match self.directions() {
            [forth, back] => {
                let sum = self.plain_direction(batch, *forth)? + self.plain_direction(batch, *back)?;
                Ok(sum * E::of(0.5)) // scalar
            }
            directions => self.plain_direction(batch, directions[0]),
        }
    }

    fn plain_in_batch<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let b = batch.size();
        let candidates = rows::stack(batch.z(0)?, batch.z(1)?); // (2B, D)
        let (queries, positives): (rows::Rows<E, D>, Vec<usize>) = if self.is_two_sided() {
            (candidates.with_empty_tape(), (0..2 * b).map(|row| (row + b) % (2 * b)).collect()) // (2B, D)
        } else {
            (batch.z(0)?, (b..2 * b).collect()) // (B, D)
        };
        let cosines = ops::dot_rows(queries, candidates); // (B or 2B, 2B)
        let logits = self.temperature.divide(batch, cosines)?; // (B or 2B, 2B)
        let logits = rows::mask(logits, |query, candidate| query == candidate); // (B or 2B, 2B)
        let losses = ops::cross_entropy_rows(logits, &positives); // (B or 2B,)
        Ok(ops::mean(losses)) // scalar
    }

    fn plain_direction<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        direction: Direction,
    ) -> Result<Value<E, D>> {
        let b = batch.size();
        let queries = batch.z(direction.query)?; // (B, D)
        let keys = batch.key(direction.key)?; // (B, D)
        let (cosines, positives) = match self.negatives {
            Negatives::InBatch | Negatives::Keys => (ops::dot_rows(queries, keys), (0..b).collect()), // (B, B)
            Negatives::Queue => {
                let own = ops::row_dots(queries.with_empty_tape(), keys).reshape_like(&(b, 1)); // (B, 1)
                let queued = ops::dot_rows(queries, batch.queue()?.tensor()); // (B, M)
                (rows::beside(own, queued), vec![0; b]) // (B, 1 + M)
            }
            Negatives::QueueAndBatch => {
                let of_batch = ops::dot_rows(queries.with_empty_tape(), keys); // (B, B)
                let queued = ops::dot_rows(queries, batch.queue()?.tensor()); // (B, M)
                (rows::beside(of_batch, queued), (0..b).collect()) // (B, B + M)
            }
        };
        let logits = self.temperature.divide(batch, cosines)?; // (B, candidates)
        let losses = ops::cross_entropy_rows(logits, &positives); // (B,)
        Ok(ops::mean(losses)) // scalar
    }
}

/// The fused form, through the device's kernels.
impl InfoNce {
    /// Returns whether the kernels can compute this form. `InBatch` always compares every row of both views.
    /// Keys have to be constants, which they are if they come from a momentum encoder.
    pub(crate) fn has_fused<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> bool {
        match self.negatives {
            Negatives::InBatch => self.is_two_sided(),
            _ => self.directions().iter().all(|direction| batch.momentum_key(direction.key).is_ok()),
        }
    }

    pub(crate) fn fused<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        kernels: &D::Softmax,
    ) -> Result<Value<E, D>> {
        let scale = E::one() / E::of(self.temperature.of(batch)?); // 1/τ
        let mut loss = FusedLoss::new(self.temperature.leaf(batch)?);
        if self.negatives == Negatives::InBatch {
            fused_in_batch(batch, kernels, scale, &mut loss)?;
        } else {
            self.fused_keys(batch, kernels, scale, &mut loss)?;
        }
        kernels.record(loss) // scalar
    }

    fn fused_keys<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        kernels: &D::Softmax,
        scale: E,
        loss: &mut FusedLoss<E, D, D::Softmax>,
    ) -> Result<()> {
        let queue = if self.reads_queue() { Some(kernels.constant_rows(batch.queue()?)?) } else { None }; // (M, D)
        let own_keys: Vec<usize> = (0..batch.size()).collect(); // B
        let share = 1.0 / self.directions().len() as f64;
        for direction in self.directions() {
            let z = batch.z(direction.query)?; // (B, D)
            let queries = kernels.rows(&z)?; // (B, D)
            let keys = kernels.rows(&batch.momentum_key(direction.key)?)?; // (B, D)
            let mut banks = Vec::new();
            if self.negatives != Negatives::Queue {
                banks.push(Bank { rows: &keys, scale: Scale::Uniform(scale), own: Some(&own_keys) });
            }
            banks.extend(queue.iter().map(|rows| Bank { rows, scale: Scale::Uniform(scale), own: None }));
            let positives = Positives::Rows(&keys, scale);
            let Graded { value, gradient } =
                kernels.cross_entropy(&queries, positives, &banks, batch.dim())?; // scalar, (B, D)
            // The loss depends on q/τ alone, so that its derivative by ln τ is −Σ q·∂L/∂q.
            loss.add_by_log_temperature(-share, || kernels.dot(&[&queries], &[&gradient]))?;
            loss.add_value(share, value);
            loss.add_gradient(z, share, gradient)?;
        }
        Ok(())
    }
}

fn fused_in_batch<E: Scalar, D: Backend<E>>(
    batch: &Batch<E, D>,
    kernels: &D::Softmax,
    scale: E,
    loss: &mut FusedLoss<E, D, D::Softmax>,
) -> Result<()> {
    let (first, second) = (batch.z(0)?, batch.z(1)?); // (B, D) each
    let rows = [kernels.rows(&first)?, kernels.rows(&second)?]; // (B, D) each
    let views = rows.each_ref();
    let Graded { value, gradient } = kernels.in_batch(views, scale, batch.dim())?; // scalar, (B, D) each
    // The loss depends on Z·Zᵀ/τ alone, so that its derivative by ln τ is −½ Σ Z·∂L/∂Z.
    loss.add_by_log_temperature(-0.5, || kernels.dot(&views, &gradient.each_ref()))?;
    loss.add_value(1.0, value);
    let [of_first, of_second] = gradient;
    loss.add_gradient(first, 1.0, of_first)?;
    loss.add_gradient(second, 1.0, of_second)
}

impl TermInfo for InfoNce {
    fn needs(&self) -> Needs {
        let queue = self.reads_queue();
        match (self.negatives, self.is_two_sided()) {
            (Negatives::InBatch, _) => Needs { queries: &[0, 1], ..Needs::default() },
            (_, true) => Needs { queries: &[0, 1], keys: &[0, 1], queue, ..Needs::default() },
            (_, false) => Needs { queries: &[0], keys: &[1], queue, ..Needs::default() },
        }
    }

    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        let queue = if self.reads_queue() { facts.queue? } else { 0 };
        Some((self.candidates(facts.batch.max(1), queue) as f64).ln())
    }

    fn contrast(&self, facts: &Facts) -> Option<Contrast> {
        let queue = if self.reads_queue() { facts.queue? } else { 0 };
        Some(Contrast { positives: 1, negatives: self.candidates(facts.batch.max(1), queue) - 1 })
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.reads_queue() && !facts.momentum {
            found.push(warning(
                findings::QUEUE_WITHOUT_MOMENTUM,
                "negatives",
                format!(
                    "a queue of {} keys without a momentum encoder mixes embeddings of different networks",
                    facts.queue.unwrap_or(0)
                ),
                "add `momentum_encoder: Ema(momentum: 0.99)`, or use `negatives: InBatch`",
            ));
        }
        if facts.batch < 2 && !self.reads_queue() {
            found.push(findings::error(
                findings::TOO_FEW_ROWS,
                "negatives",
                format!("a batch of {} has no negatives", facts.batch),
                "use a batch of at least 2, or `negatives: Queue`",
            ));
        }
        found
    }

    fn parameters(&self, _: &Facts) -> Vec<TermParameter> {
        self.temperature.parameters()
    }

    fn temperature(&self, clock: &Clock) -> Option<FieldValue> {
        Some(FieldValue { field: "temperature", value: self.temperature.planned(clock) })
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for InfoNce {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        match batch.softmax_kernels()? {
            Some(kernels) if self.has_fused(batch) => self.fused(batch, &kernels),
            _ => self.plain(batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Condition, Data, Forms, dot, unit};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms = Forms {
        forms: &[
            "",
            "two_sided: false",
            "negatives: Keys",
            "negatives: Keys, two_sided: true",
            "negatives: Queue",
            "negatives: Queue, two_sided: true",
            "negatives: QueueAndBatch, temperature: 0.1",
            "negatives: QueueAndBatch, two_sided: true",
            "temperature: Learnable()",
            "negatives: Keys, temperature: Learnable(init: 0.2)",
            "negatives: QueueAndBatch, two_sided: true, temperature: Learnable()",
        ],
        extremes: &[
            "temperature: 0.01",
            "negatives: Keys, temperature: 0.01",
            "negatives: Queue, temperature: 0.01",
            "negatives: QueueAndBatch, temperature: 0.01",
            "negatives: QueueAndBatch, temperature: 0.01, two_sided: true",
        ],
        ..Forms::of("InfoNce")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("info_nce", 6);
    }

    #[test]
    fn equals_the_loop_over_candidates() {
        let data = Data::toy(6, 4);
        let row = |m: &Option<Vec<f64>>, i| unit(m.as_ref().unwrap(), 4, i);
        let queue: Vec<&[f64]> = data.queue.as_ref().unwrap().chunks(4).collect();
        let direction = |q: usize, k: usize, with_batch: bool, with_queue: bool| {
            let mut sum = 0.0;
            for i in 0..6 {
                let query = row(&data.views[q], i);
                let positive = dot(&query, &row(&data.keys[k], i)) / 0.2;
                let mut all = vec![positive.exp()];
                if with_batch {
                    let others = (0..6).filter(|j| *j != i);
                    all.extend(others.map(|j| (dot(&query, &row(&data.keys[k], j)) / 0.2).exp()));
                }
                if with_queue {
                    all.extend(queue.iter().map(|k| (dot(&query, k) / 0.2).exp()));
                }
                sum += all.iter().sum::<f64>().ln() - positive;
            }
            sum / 6.0
        };
        let check = |text: &str, want: f64| {
            let got = testing::value(text, &data);
            assert_within!(got, want, Condition::of(text, &data).of_value(tolerance::f64), "{text}");
        };
        check("InfoNce(negatives: QueueAndBatch)", direction(0, 1, true, true));
        let both = 0.5 * (direction(0, 1, true, false) + direction(1, 0, true, false));
        check("InfoNce(negatives: Keys, two_sided: true)", both);
        let both = 0.5 * (direction(0, 1, false, true) + direction(1, 0, false, true));
        check("InfoNce(negatives: Queue, two_sided: true)", both);
        let one_sided: f64 = (0..6)
            .map(|i| {
                let q = row(&data.views[0], i);
                let cosines = [0, 1].into_iter().flat_map(|v| (0..6).map(move |j| (v, j)));
                let others = cosines.filter(|c| *c != (0, i));
                let sum: f64 = others.map(|(v, j)| (dot(&q, &row(&data.views[v], j)) / 0.2).exp()).sum();
                sum.ln() - dot(&q, &row(&data.views[1], i)) / 0.2
            })
            .sum();
        check("InfoNce(two_sided: false)", one_sided / 6.0);
    }

    #[test]
    fn fused_and_plain_agree() {
        for fields in FORMS.forms.iter().filter(|fields| **fields != "two_sided: false") {
            let text = FORMS.text(fields);
            let term: InfoNce = testing::parse(&text);
            let fused = |batch: &Batch<f32, Cpu>| {
                assert!(term.has_fused(batch), "{text}");
                term.fused(batch, &batch.softmax_kernels()?.unwrap())
            };
            for (rows, dim) in [(1, 3), (2, 1), (7, 5), (33, 16), (70, 31)] {
                testing::fused_equals_plain(&text, &Data::toy(rows, dim), &fused, &|b| term.plain(b));
            }
        }
    }

    #[test]
    fn forms_without_kernels_are_computed_plainly() {
        let dev = Cpu::default();
        let online = Data::toy(7, 4).without_momentum();
        let same = |text: &str, data: &Data| {
            let term: InfoNce = testing::parse(text);
            let batch = Batch::<f32, Cpu>::new(&dev, data.inputs(&dev)).unwrap();
            assert!(!term.has_fused(&batch), "{text}");
            let (loss, plain) = (term.loss(&batch).unwrap(), term.plain(&batch).unwrap());
            assert_eq!(ops::item(&loss), ops::item(&plain), "{text}");
        };
        same("InfoNce(two_sided: false)", &Data::toy(7, 4));
        same("InfoNce(negatives: Keys)", &online);
        same("InfoNce(negatives: Queue, two_sided: true)", &online);
    }

    #[test]
    fn one_sample_alone_costs_nothing() {
        assert_eq!(testing::value("InfoNce()", &Data::toy(1, 4)), 0.0);
    }

    #[test]
    fn a_collapsed_batch_is_at_chance() {
        let data = testing::degenerate().into_iter().find(|(n, _)| *n == "identical rows").unwrap().1;
        let facts = Facts { queue: Some(9), ..testing::facts(7, 4, &[]) };
        for text in ["InfoNce()", "InfoNce(negatives: Keys)"] {
            let chance = testing::term(text).info().chance_level(&facts).unwrap();
            // All logits are 1/τ = 5, but for the rounding of rows and inner products.
            assert_within!(testing::value(text, &data), chance, tolerance::f64(64, 5.0), "{text}");
        }
        let term = testing::term("InfoNce(negatives: QueueAndBatch)");
        assert_eq!(term.info().contrast(&facts), Some(Contrast { positives: 1, negatives: 15 }));
        assert_eq!(term.info().chance_level(&facts), Some(16f64.ln()));
        assert!(term.info().check(&facts).is_empty());
        let alone = Facts { momentum: false, ..facts };
        assert_eq!(term.info().check(&alone)[0].code, findings::QUEUE_WITHOUT_MOMENTUM);
        let tiny = Facts { batch: 1, ..alone };
        assert_eq!(testing::term("InfoNce()").info().check(&tiny)[0].code, findings::TOO_FEW_ROWS);
    }
}
