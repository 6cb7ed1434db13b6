//! InfoNCE in its in-batch, keys and queue forms.

use crate::findings::{self, warning};
use crate::fused::{self, Bank, CpuBatch, Scale};
#[cfg(feature = "cuda")]
use crate::fused_cuda;
use crate::rows::{self, Rows};
use dfdx::prelude::*;
#[cfg(feature = "cuda")]
use pauc_traits::Compute;
use pauc_traits::term::{Contrast, Facts, Finding, TermParameter};
use pauc_traits::{
    Backend, Batch, ContrastiveLoss, Needs, Positive, Result, Scalar, Temperature, TermInfo, Value,
    component, ops,
};
use serde::{Deserialize, Serialize};

component! {
    /// Tells each sample's other view from other samples by a softmax over cosines.
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
    /// Chance is ln(number of candidates). Values below it mean that views of one image are told from others. The
    /// value is not comparable between numbers of candidates or temperatures.
    ///
    /// A learnable τ is moved by every query's own balance: it falls while positives stand out, and then weights the
    /// hardest negatives alone; `min` bounds it.
    ///
    /// # Gradient
    /// Pulls each query to its own positive and pushes it from near candidates, the harder the smaller τ is. It
    /// knows no clusters and does not contract them: samples of one class are pushed apart like any others.
    ///
    /// # When to use
    /// `InBatch` from 256 samples a batch; `Queue` with a momentum encoder for small batches.
    ///
    /// ```text
    /// (term: InfoNce(temperature: 0.2, negatives: Queue))
    /// ```
    ///
    /// # Degenerate batches
    /// One sample and no queue leave a single candidate: the value is 0. Zero rows have cosine 0 to everything.
    ///
    /// Sources: van den Oord et al. 2018; Chen et al. 2020 (SimCLR); He et al. 2020 (MoCo); Chen et al. 2021 (MoCo v3).
    pub struct InfoNce: ContrastiveLoss {
        /// The temperature τ: a number, a schedule, or Learnable(init: 0.07, min: 0.01).
        pub temperature: Temperature = Positive::lit(0.2).into(),
        /// Where the negatives come from: InBatch, Keys, Queue or QueueAndBatch.
        pub negatives: Negatives = Negatives::InBatch,
        /// Whether both views serve as queries, and the mean is taken. Left out: yes for InBatch, no otherwise.
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
    /// Whether both views serve as queries.
    pub fn is_two_sided(&self) -> bool {
        self.two_sided.unwrap_or(self.negatives == Negatives::InBatch)
    }

    fn reads_queue(&self) -> bool {
        matches!(self.negatives, Negatives::Queue | Negatives::QueueAndBatch)
    }

    /// Candidates of each query, the positive among them.
    fn candidates(&self, batch: usize, queue: usize) -> usize {
        match self.negatives {
            Negatives::InBatch => 2 * batch - 1,
            Negatives::Keys => batch,
            Negatives::Queue => 1 + queue,
            Negatives::QueueAndBatch => batch + queue,
        }
    }

    /// The same through the streaming kernel. It takes keys for constants, so without a momentum encoder the keys forms
    /// stay with the plain composition.
    fn fused(&self, batch: &CpuBatch) -> Result<Option<Value<f32, Cpu>>> {
        let tau = self.temperature.of(batch)?;
        let leaf = self.temperature.leaf(batch)?;
        if self.negatives == Negatives::InBatch {
            if !self.is_two_sided() {
                return Ok(None);
            }
            let (Some((z0, first)), Some((z1, second))) =
                (fused::embeddings(batch, 0)?, fused::embeddings(batch, 1)?)
            else {
                return Ok(None);
            };
            let all = [first, second].concat();
            let mut graded = fused::in_batch(&all, batch.dim(), tau as f32);
            // The loss depends on Z·Zᵀ/τ alone, so −½ Σ Z·∂L/∂Z is its derivative by ln τ.
            let along = leaf.as_ref().map_or(0.0, |_| -0.5 * fused::dot(&all, &graded.gradient));
            let second = graded.gradient.split_off(batch.size() * batch.dim());
            let mut gradients = vec![(z0, graded.gradient), (z1, second)];
            gradients.extend(leaf.map(|leaf| (leaf, vec![along as f32])));
            return Ok(Some(fused::scalar_with_gradients(batch.device(), graded.value, gradients)));
        }
        let directions: &[(usize, usize)] = if self.is_two_sided() { &[(0, 1), (1, 0)] } else { &[(0, 1)] };
        let queue = if self.reads_queue() { Some(batch.queue()?.values()) } else { None };
        let own: Vec<usize> = (0..batch.size()).collect();
        let (mut value, mut along, mut gradients) = (0.0, 0.0, Vec::new());
        for (query, key) in directions {
            let (Some((q, queries)), Ok(k)) = (fused::embeddings(batch, *query)?, batch.momentum_key(*key))
            else {
                return Ok(None);
            };
            let k = fused::values(&k);
            let scale = Scale::Uniform(1.0 / tau as f32);
            let mut banks = Vec::new();
            if self.negatives != Negatives::Queue {
                banks.push(Bank { rows: &k, scale, own: Some(&own) });
            }
            banks.extend(queue.map(|rows| Bank { rows, scale, own: None }));
            let scales = vec![1.0 / tau as f32; batch.size()];
            let graded = fused::cross_entropy(&queries, &k, &scales, &banks, batch.dim());
            let share = 1.0 / directions.len() as f64;
            value += graded.value * share;
            // It depends on q/τ alone, so −Σ q·∂L/∂q is its derivative by ln τ.
            along -= leaf.as_ref().map_or(0.0, |_| fused::dot(&queries, &graded.gradient) * share);
            gradients.push((q, graded.gradient.into_iter().map(|g| g * share as f32).collect()));
        }
        gradients.extend(leaf.map(|leaf| (leaf, vec![along as f32])));
        Ok(Some(fused::scalar_with_gradients(batch.device(), value, gradients)))
    }

    /// The same on CUDA.
    #[cfg(feature = "cuda")]
    fn on_cuda(&self, batch: &fused_cuda::CudaBatch) -> Result<Option<Value<f32, Cuda>>> {
        let (on, tau) = (fused_cuda::context(batch)?, self.temperature.of(batch)? as f32);
        if self.negatives == Negatives::InBatch {
            if !self.is_two_sided() {
                return Ok(None);
            }
            let (views, leaf) = ([batch.z(0)?, batch.z(1)?], self.temperature.leaf(batch)?);
            let all = views.each_ref().map(|z| fused_cuda::dense(z.retaped()));
            let [first, second] = all;
            let graded = fused_cuda::in_batch(&on, [&first?, &second?], batch.dim(), tau)?;
            let [first, second] = views;
            // As on the CPU: −½ Σ Z·∂L/∂Z is the derivative by ln τ.
            let along = match &leaf {
                None => 0.0,
                Some(_) => {
                    let rows = [ops::to_host(&first)?, ops::to_host(&second)?].concat();
                    let gradient = graded.gradients.iter().map(|g| batch.device().download(g));
                    -0.5 * fused::dot(&rows, &gradient.collect::<Result<Vec<_>>>()?.concat())
                }
            };
            let [of_first, of_second] = graded.gradients;
            let mut gradients = vec![(first, of_first, 1.0), (second, of_second, 1.0)];
            if let Some(leaf) = leaf {
                gradients.push((leaf.retaped(), batch.device().upload(&[along as f32])?, 1.0));
            }
            let value = [graded.value];
            return fused_cuda::scalar_with_gradients(&on, batch.device(), &value, gradients).map(Some);
        }
        let directions: &[(usize, usize)] = if self.is_two_sided() { &[(0, 1), (1, 0)] } else { &[(0, 1)] };
        let queue = if self.reads_queue() { Some(fused_cuda::dense(batch.queue()?.tensor())?) } else { None };
        let own: Vec<usize> = (0..batch.size()).collect();
        let scale = fused_cuda::Scale::Same(1.0 / tau);
        let (mut values, mut along, mut gradients) = (Vec::new(), 0.0, Vec::new());
        let leaf = self.temperature.leaf(batch)?;
        for (query, key) in directions {
            let Ok(k) = batch.momentum_key(*key) else { return Ok(None) };
            let (z, k) = (batch.z(*query)?, fused_cuda::dense(k)?);
            let q = fused_cuda::dense(z.retaped())?;
            let mut banks = Vec::new();
            if self.negatives != Negatives::Queue {
                banks.push(fused_cuda::Bank { rows: k.view(), scale, own: Some(&own) });
            }
            banks.extend(queue.iter().map(|q| fused_cuda::Bank { rows: q.view(), scale, own: None }));
            let positives = fused_cuda::Positives::Rows(k.view(), 1.0 / tau);
            let graded = fused_cuda::cross_entropy(&on, &q, positives, &banks, batch.dim())?;
            let share = 1.0 / directions.len() as f64;
            values.push(graded.value);
            if leaf.is_some() {
                let gradient = batch.device().download(&graded.gradient)?;
                // It depends on q/τ alone, so −Σ q·∂L/∂q is its derivative by ln τ.
                along -= fused::dot(&ops::to_host(&z)?, &gradient) * share;
            }
            gradients.push((z, graded.gradient, share as f32));
        }
        if let Some(leaf) = leaf {
            gradients.push((leaf.retaped(), batch.device().upload(&[along as f32])?, 1.0));
        }
        fused_cuda::scalar_with_gradients(&on, batch.device(), &values, gradients).map(Some)
    }

    fn in_batch<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let b = batch.size();
        let all = rows::stack(batch.z(0)?, batch.z(1)?);
        let (queries, targets): (Rows<E, D>, Vec<usize>) = if self.is_two_sided() {
            (all.with_empty_tape(), (0..2 * b).map(|a| (a + b) % (2 * b)).collect())
        } else {
            (batch.z(0)?, (b..2 * b).collect())
        };
        let logits = self.temperature.divide(batch, ops::dot_rows(queries, all))?;
        let logits = rows::mask(logits, |a, c| a == c);
        Ok(ops::mean(ops::cross_entropy_rows(logits, &targets)))
    }

    fn direction<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        (query, key): (usize, usize),
    ) -> Result<Value<E, D>> {
        let (q, k) = (batch.z(query)?, batch.key(key)?);
        let b = batch.size();
        let (logits, targets) = match self.negatives {
            Negatives::Queue => {
                let positives = ops::row_dots(q.with_empty_tape(), k).reshape_like(&(b, 1));
                (rows::beside(positives, ops::dot_rows(q, batch.queue()?.tensor())), vec![0; b])
            }
            Negatives::QueueAndBatch => {
                let keys = ops::dot_rows(q.with_empty_tape(), k);
                (rows::beside(keys, ops::dot_rows(q, batch.queue()?.tensor())), (0..b).collect())
            }
            Negatives::InBatch | Negatives::Keys => (ops::dot_rows(q, k), (0..b).collect()),
        };
        Ok(ops::mean(ops::cross_entropy_rows(self.temperature.divide(batch, logits)?, &targets)))
    }
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
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for InfoNce {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        if let Some(value) = fused::on_cpu(batch, |batch| self.fused(batch))? {
            return Ok(value);
        }
        #[cfg(feature = "cuda")]
        if let Some(value) = fused_cuda::on_cuda(batch, |batch| self.on_cuda(batch))? {
            return Ok(value);
        }
        self.plain(batch)
    }
}

impl InfoNce {
    /// The definition, in plain operations.
    fn plain<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        if self.negatives == Negatives::InBatch {
            return self.in_batch(batch);
        }
        let forth = self.direction(batch, (0, 1))?;
        if self.is_two_sided() {
            Ok((forth + self.direction(batch, (1, 0))?) * E::of(0.5))
        } else {
            Ok(forth)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Condition, Data, dot, unit};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: &[&str] = &[
        "InfoNce()",
        "InfoNce(two_sided: false)",
        "InfoNce(negatives: Keys)",
        "InfoNce(negatives: Keys, two_sided: true)",
        "InfoNce(negatives: Queue)",
        "InfoNce(negatives: Queue, two_sided: true)",
        "InfoNce(negatives: QueueAndBatch, temperature: 0.1)",
        "InfoNce(temperature: Learnable())",
        "InfoNce(negatives: QueueAndBatch, two_sided: true, temperature: Learnable())",
    ];

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("info_nce", 6);
    }

    #[test]
    fn gradients_and_invariances() {
        for text in FORMS {
            let toy = Data::toy(5, 4);
            testing::finite_differences(text, &toy);
            testing::finite_differences(text, &toy.clone().without_momentum());
            testing::permutation_invariant(text, &toy);
            testing::rotation_invariant(text, &toy);
        }
    }

    #[test]
    fn stays_finite_on_degenerate_batches() {
        for text in FORMS {
            testing::finite(text);
        }
        testing::finite("InfoNce(temperature: 0.01)");
        testing::finite("InfoNce(temperature: 0.01, negatives: QueueAndBatch)");
        assert_eq!(testing::value("InfoNce()", &Data::toy(1, 4)), 0.0);
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
    fn the_fused_kernel_equals_the_plain_composition() {
        for (rows, dim) in [(1, 3), (2, 1), (7, 5), (33, 16), (70, 31)] {
            let data = Data::toy(rows, dim);
            for text in FORMS {
                let term: InfoNce =
                    pauc_traits::component_ron::options().from_str(&text.replace("InfoNce", "")).unwrap();
                testing::fused_equals_plain(text, &data, &|b| term.loss(b), &|b| term.plain(b));
            }
        }
    }

    #[test]
    fn a_collapsed_batch_stands_at_chance() {
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
