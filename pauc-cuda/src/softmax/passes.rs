//! The two passes over the logits of [`super::cross_entropy`]: first the softmax sums, then the gradient.

use super::{Bank, Graded, LogitBudget, Positives, Scale, mean};
use crate::kernel_args::{In, Out, args};
use crate::split_f16::{self, Side, SplitMatrix, WeightedSums};
use crate::{Buffer, Context, Error, Result, View};
use cudarc::driver::CudaSlice;
use std::ops::Range;

/// A bank on the device.
struct Candidates {
    rows: SplitMatrix,
    count: usize,
    /// One scale for all candidates, or one per candidate.
    scale: Buffer,
    /// The largest magnitude of a scale.
    largest_scale: f32,
    own: Option<CudaSlice<u32>>,
}

impl Candidates {
    fn new(on: &Context, rows: SplitMatrix, bank: &Bank<'_>, count: usize) -> Result<Self> {
        let (scale, largest) = match bank.scale {
            Scale::Uniform(s) => (Buffer::from_host(on, &[s])?, s.abs()),
            Scale::Each(scales) => (Buffer::from_host(on, scales)?, largest_magnitude(scales)),
        };
        let largest_scale = if largest > 0.0 && largest.is_finite() { largest } else { 1.0 };
        let own = match bank.own {
            Some(own) => Some(on.upload(&own.iter().map(|j| *j as u32).collect::<Vec<_>>())?),
            None => None,
        };
        Ok(Candidates { rows, count, scale, largest_scale, own })
    }

    fn has_one_scale(&self) -> bool {
        self.scale.len() == 1
    }
}

/// Returns the largest magnitude, or 0 without numbers.
fn largest_magnitude(numbers: &[f32]) -> f32 {
    // Eight at a time, which compiles to vector instructions.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (eights, rest) = numbers.as_chunks::<8>();
    let of_eights =
        eights.iter().fold([0.0; 8], |largest, v| std::array::from_fn(|i| larger(largest[i], v[i].abs())));
    of_eights.into_iter().chain(rest.iter().map(|v| v.abs())).fold(0.0, larger)
}

/// Inner products of queries with candidates, before scaling: all of them, or one tile.
pub(super) struct Logits {
    n: usize,
    queries: SplitMatrix,
    banks: Vec<Candidates>,
    scores: Buffer,
    /// Whether `scores` holds all logits.
    are_kept: bool,
    /// The maximum number of candidates per tile.
    pub tile_rows: usize,
}

/// All queries with some candidates of one bank.
pub(super) struct Tile {
    bank: usize,
    rows: Range<usize>,
    /// The position of its scores, (B, rows).
    scores: Range<usize>,
}

impl Logits {
    /// Prepares the logits of queries (n, dim). Computes all of them here if the budget allows to keep them.
    pub fn new(
        on: &Context,
        budget: LogitBudget,
        (queries, n, dim): (View<'_>, usize, usize),
        banks: &[Bank<'_>],
        counts: &[usize],
    ) -> Result<Self> {
        let total: usize = counts.iter().sum();
        let are_kept = n * total <= budget.kept;
        let widest = counts.iter().copied().max().unwrap_or(0).max(1);
        let tile_rows = if are_kept { widest } else { (budget.tile / n).clamp(1, widest) };
        let mut scores = Buffer::uninit(on, n * if are_kept { total } else { tile_rows })?;
        let queries = SplitMatrix::new(on, queries, dim, Side::Left)?;
        // Kept logits are computed first, so that the device works while the rest is prepared.
        let (mut candidates, mut from) = (Vec::new(), 0);
        for (bank, &m) in banks.iter().zip(counts) {
            let rows = SplitMatrix::new(on, bank.rows, dim, Side::Right)?;
            if are_kept && m > 0 {
                split_f16::product(on, &queries, &rows, 0..m, scores.view_mut().part(from, n * m))?;
                from += n * m;
            }
            candidates.push(Candidates::new(on, rows, bank, m)?);
        }
        Ok(Logits { n, queries, banks: candidates, scores, are_kept, tile_rows })
    }

    pub fn tiles(&self) -> Vec<Tile> {
        let (mut tiles, mut from) = (Vec::new(), 0);
        for (bank, candidates) in self.banks.iter().enumerate() {
            for start in (0..candidates.count).step_by(self.tile_rows) {
                let rows = start..candidates.count.min(start + self.tile_rows);
                let scores = from..from + self.n * rows.len();
                from = if self.are_kept { scores.end } else { 0 };
                tiles.push(Tile { bank, rows, scores });
            }
        }
        tiles
    }

    /// Computes the scores of a tile, unless they are kept.
    pub fn compute(&mut self, on: &Context, tile: &Tile) -> Result<()> {
        if self.are_kept {
            return Ok(());
        }
        let to = self.scores.view_mut().part(tile.scores.start, tile.scores.len());
        split_f16::product(on, &self.queries, &self.banks[tile.bank].rows, tile.rows.clone(), to)
    }

    fn scores(&self, tile: &Tile) -> View<'_> {
        self.scores.view().part(tile.scores.start, tile.scores.len())
    }

    /// Returns both inverse scales. A score times both is an inner product.
    fn inverse_scales(&self, tile: &Tile) -> [&Buffer; 2] {
        [self.queries.inverse_scale(), self.banks[tile.bank].rows.inverse_scale()]
    }
}

/// The rows of the positives, and their scale; `None` if it is that of the first bank.
pub(super) struct Positive<'a> {
    rows: View<'a>,
    scale: Option<Buffer>,
}

impl<'a> Positive<'a> {
    pub fn new(on: &Context, positives: Positives<'a>, banks: &[Bank<'a>]) -> Result<Self> {
        match (positives, banks.first()) {
            (Positives::Rows(rows, scale), _) => {
                Ok(Positive { rows, scale: Some(Buffer::from_host(on, &[scale])?) })
            }
            (Positives::Own, Some(first)) => Ok(Positive { rows: first.rows, scale: None }),
            (Positives::Own, None) => Err(Error::Internal("`check` refuses own positives without a bank")),
        }
    }

    /// Returns the scale, and each query's row unless it has the query's number.
    fn scale_and_own<'s>(&'s self, logits: &'s Logits) -> (&'s Buffer, Option<&'s CudaSlice<u32>>) {
        match &self.scale {
            Some(scale) => (scale, None),
            // `new` has found a first bank.
            None => (&logits.banks[0].scale, logits.banks[0].own.as_ref()),
        }
    }
}

/// Per query: the logit of the positive, the largest logit so far, and the sum over negatives of exp(logit −
/// largest).
pub(super) struct State {
    positive_logits: Buffer,
    largest: Buffer,
    sums: CudaSlice<f64>,
}

impl State {
    /// Computes the positives' logits. No candidates are included yet.
    pub fn new(
        on: &Context,
        queries: View<'_>,
        dim: usize,
        positive: &Positive<'_>,
        logits: &Logits,
    ) -> Result<Self> {
        let n = logits.n;
        let (mut positive_logits, mut largest) = (Buffer::uninit(on, n)?, Buffer::uninit(on, n)?);
        let (scale, own) = positive.scale_and_own(logits);
        let args = args![
            In(queries),
            In(positive.rows),
            In(own),
            In(scale),
            scale.len() == 1,
            dim as u32,
            Out(&mut positive_logits),
            Out(&mut largest)
        ];
        // SAFETY: one block for each of n queries. `check` has established that there are n rows of
        // positives, or that `own` names rows of the first bank. The scale is a single one, or one for each
        // row. The results have n elements.
        unsafe { on.launch("pauc_row_dots", n, args) }?;
        Ok(State { positive_logits, largest, sums: on.device().alloc_zeros::<f64>(n)? })
    }

    /// Adds the candidates of a tile.
    pub fn add_to_sums(&mut self, on: &Context, logits: &Logits, tile: &Tile) -> Result<()> {
        let bank = &logits.banks[tile.bank];
        let [of_queries, of_rows] = logits.inverse_scales(tile);
        let args = args![
            In(logits.scores(tile)),
            In(&bank.scale),
            bank.has_one_scale(),
            In(bank.own.as_ref()),
            tile.rows.start as u32,
            tile.rows.len() as u32,
            In(of_queries),
            In(of_rows),
            Out(&mut self.largest),
            Out(&mut self.sums)
        ];
        // SAFETY: one block for each of n queries, with a row of scores of the tile's candidates. The
        // candidates are rows of the bank. The scale is a single one, or one for each row. `own`, `largest`
        // and `sums` have n elements.
        unsafe { on.launch("pauc_softmax_sums", logits.n, args) }
    }
}

/// The gradient with respect to the queries, accumulated over tiles.
pub(super) struct Gradient {
    n: usize,
    dim: usize,
    weighted: WeightedSums,
    /// (n, dim)
    sum: Buffer,
}

impl Gradient {
    pub fn new(on: &Context, n: usize, dim: usize, tile_rows: usize) -> Result<Self> {
        let weighted = WeightedSums::new(on, n, tile_rows, dim)?;
        Ok(Gradient { n, dim, weighted, sum: Buffer::zeros(on, n * dim)? })
    }

    /// Returns the weight of a query in the mean.
    fn share(&self) -> f32 {
        1.0 / self.n as f32
    }

    /// Adds the candidates of a tile, given the sums over all candidates.
    pub fn add(&mut self, on: &Context, state: &State, logits: &Logits, tile: &Tile) -> Result<()> {
        let (n, share, bank) = (self.n, self.share(), &logits.banks[tile.bank]);
        let [of_queries, of_rows] = logits.inverse_scales(tile);
        let t = tile.rows.len();
        let blocks = (on.enough_blocks() / n).clamp(1, t.div_ceil(on.threads()));
        let args = args![
            n as u32,
            In(logits.scores(tile)),
            In(&bank.scale),
            bank.has_one_scale(),
            bank.largest_scale,
            In(bank.own.as_ref()),
            tile.rows.start as u32,
            t as u32,
            In(of_queries),
            In(of_rows),
            In(&state.largest),
            In(&state.sums),
            Out(self.weighted.weights.slice_mut())
        ];
        // SAFETY: `blocks` blocks for each of n queries, with scores, scales and `own` as in `add_to_sums`.
        // `new` has allocated two parts of a weight for each query and each candidate of the longest tile.
        unsafe { on.launch("pauc_softmax_weights", n * blocks, args) }?;
        let [of_high, of_low] = self.weighted.multiply(on, &bank.rows, tile.rows.clone())?;
        let (len, [high_sums, low_sums]) = (n * self.dim, &self.weighted.sums);
        let args = args![
            len,
            self.dim as u32,
            of_high as u32,
            of_low as u32,
            In(high_sums),
            In(low_sums),
            In(of_rows),
            bank.largest_scale,
            In(&state.positive_logits),
            In(&state.largest),
            In(&state.sums),
            share,
            Out(&mut self.sum)
        ];
        // SAFETY: `multiply` has written `of_high` partial sums of (n, 2·dim) and `of_low` of (n, dim). The
        // result is (n, dim), and each buffer of the state has n elements.
        unsafe { on.launch_over("pauc_softmax_gather", len, args) }
    }

    /// Adds the positives and computes the value.
    pub fn finish(
        mut self,
        on: &Context,
        state: &State,
        positive: &Positive<'_>,
        logits: &Logits,
    ) -> Result<Graded> {
        let (n, share) = (self.n, self.share());
        let mut losses = on.device().alloc_zeros::<f64>(n)?;
        let (scale, own) = positive.scale_and_own(logits);
        let args = args![
            In(&state.positive_logits),
            In(positive.rows),
            In(own),
            In(scale),
            scale.len() == 1,
            self.dim as u32,
            In(&state.largest),
            In(&state.sums),
            share,
            Out(&mut losses),
            Out(&mut self.sum)
        ];
        // SAFETY: one block for each of n queries, with positives and their scale as in `State::new`. Each
        // buffer of the state and the losses have n elements, and the gradient has n rows of `dim`.
        unsafe { on.launch("pauc_softmax_finish", n, args) }?;
        Ok(Graded { value: mean(on, &losses, n)?, gradient: self.sum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitude_is_found_at_any_index() {
        for n in [1, 7, 8, 9, 31] {
            for place in 0..n {
                let mut numbers: Vec<f32> = (0..n).map(|i| 3.0 - 0.1 * i as f32).collect();
                numbers[place] = -3.5;
                assert_eq!(largest_magnitude(&numbers), 3.5, "{place} of {n}");
            }
        }
        assert_eq!(largest_magnitude(&[]), 0.0);
    }
}
