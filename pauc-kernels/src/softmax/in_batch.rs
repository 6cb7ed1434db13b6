//! The softmax of a batch over itself.

use super::rows::{both_probabilities, exp_add, sum_exp, times_both};
use super::{Graded, dot};
use crate::gemm::{Strides, gemm};
use crate::threads::{awake, for_each};
use rayon::prelude::*;
use std::cell::Cell;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Rows per task of [`in_batch`].
const BLOCK: usize = 128;
/// Up to this many logits, [`in_batch`] keeps them between its two passes. Above, it computes them again.
pub(super) const KEPT: usize = 1 << 20;
/// If logits differ by less than this, single precision holds all of their exponentials relative to one
/// shift.
pub(super) const SPREAD: f32 = 80.0;

thread_local! {
    /// Memory of the tiles of [`in_batch_kept`], which writes every element before it reads it.
    static TILES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The state of a row between the passes of [`in_batch`].
struct Row {
    /// Its loss.
    loss: f64,
    /// log Σ exp of all its candidates.
    lse: f32,
    /// The probability of its negatives.
    negatives: f64,
    /// 1/Σ exp(logit − ceiling), if there is a ceiling.
    inverse: f32,
}

impl Row {
    /// Computes the state from the positive's logit, and Σ exp(logit − top) of the negatives. `near` means
    /// that no logit exceeds `top` or is so far below it that its exponential vanishes.
    fn new(positive: f64, (top, sum): (f32, f64), near: bool) -> Row {
        let top = f64::from(top);
        let shift = if near { top } else { top.max(positive) };
        let (own, negatives) = ((positive - shift).exp(), sum * (top - shift).exp());
        let lse = (own + negatives).ln() + shift;
        Row {
            loss: if near || positive == shift { (negatives / own).ln_1p() } else { lse - positive },
            lse: lse as f32,
            negatives: negatives / (own + negatives),
            inverse: (1.0 / (own + negatives)) as f32,
        }
    }
}

/// Computes in-batch InfoNCE over the 2B rows of z = [z⁰; z¹] and its gradient with respect to z. The
/// positive of row a is row a ± B; its candidates are all rows except itself. Logits are inner products times
/// `scale`, 1/τ.
///
/// If no two logits are so far apart that one exponential vanishes beside the other, all are taken relative
/// to one ceiling, max ‖z‖²·scale. Then exp(logit) is the same for its row and its column, and is computed
/// once.
///
/// # Shapes
/// (2B, D), an even number of rows → gradient (2B, D).
///
/// # Panics
/// If the length of `z` is not an even multiple of `dim`.
pub fn in_batch(z: &[f32], dim: usize, scale: f32) -> Graded {
    let n = z.len() / dim.max(1);
    assert!(dim > 0 && z.len() == n * dim && n.is_multiple_of(2), "expected an even number of rows of {dim}");
    crate::threads::inside(|| in_batch_inside(z, n, dim, scale))
}

fn in_batch_inside(z: &[f32], n: usize, dim: usize, scale: f32) -> Graded {
    let largest = z.chunks_exact(dim).map(|row| dot(row, row)).fold(0.0, f32::max);
    let ceiling = scale * largest;
    if n * n <= KEPT && 2.0 * ceiling < SPREAD {
        in_batch_kept(z, n, dim, scale, ceiling)
    } else {
        in_batch_streamed(z, n, dim, scale)
    }
}

/// Returns the tiles on and above the diagonal of a square of `blocks` blocks, row by row.
fn upper(blocks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..blocks).flat_map(move |i| (i..blocks).map(move |j| (i, j)))
}

/// [`in_batch`] relative to one ceiling. Logits, exponentials and weights are symmetric matrices: only tiles
/// on and above the diagonal are stored.
fn in_batch_kept(z: &[f32], n: usize, dim: usize, scale: f32, ceiling: f32) -> Graded {
    let blocks = n.div_ceil(BLOCK);
    let places: Vec<(usize, usize)> = upper(blocks).collect();
    let mut values = TILES.take();
    values.resize(places.len() * BLOCK * BLOCK, 0.0);
    let batch = KeptBatch { z, n, dim, scale, ceiling };
    let tile = |((i, j), values): (&(usize, usize), _)| {
        RwLock::new(Tile::new(batch.size(*i), batch.size(*j), values))
    };
    let tiles: Vec<RwLock<Tile<'_>>> =
        places.iter().zip(values.chunks_exact_mut(BLOCK * BLOCK)).map(tile).collect();
    // The losses and weights of all rows, once their sums are known.
    let rows: OnceLock<(Vec<Row>, Vec<f32>)> = OnceLock::new();
    let mut gradient = vec![0.0; n * dim];
    let parts: Vec<Mutex<&mut [f32]>> = gradient.chunks_mut(BLOCK * dim).map(Mutex::new).collect();
    awake(|| {
        for_each(places.len(), |t| batch.measure(places[t], &mut write(&tiles[t])));
        rows.set(batch.add_up(&places, &tiles)).ok();
        for_each(places.len(), |t| {
            let (rows, inverses) = rows.get().expect("`add_up` ran before");
            batch.weigh(places[t], rows, inverses, &mut write(&tiles[t]));
        });
        for_each(blocks, |j| {
            batch.pull(j, &tiles, &mut parts[j].lock().unwrap_or_else(PoisonError::into_inner));
        });
    });
    drop((parts, tiles));
    TILES.set(values);
    let (rows, _) = rows.into_inner().expect("`add_up` ran above");
    Graded { value: rows.iter().map(|r| r.loss).sum::<f64>() / n.max(1) as f64, gradient }
}

/// The inputs of the passes of [`in_batch_kept`].
#[derive(Clone, Copy)]
struct KeptBatch<'a> {
    z: &'a [f32],
    n: usize,
    dim: usize,
    scale: f32,
    ceiling: f32,
}

impl KeptBatch<'_> {
    /// Returns the number of rows of a block.
    fn size(&self, block: usize) -> usize {
        BLOCK.min(self.n - block * BLOCK)
    }

    fn rows_of(&self, block: usize) -> &[f32] {
        &self.z[block * BLOCK * self.dim..][..self.size(block) * self.dim]
    }

    fn partner(&self, row: usize) -> usize {
        (row + self.n / 2) % self.n
    }

    /// Computes exp(logit − ceiling) of the candidates of a tile, and their sums over rows and over columns.
    fn measure(&self, (i, j): (usize, usize), tile: &mut Tile<'_>) {
        let (half, rows, columns) = (self.n / 2, self.size(i), self.size(j));
        let queries = (self.rows_of(i), Strides::row_major(self.dim));
        let candidates = (self.rows_of(j), Strides::transposed(self.dim));
        let logits = (&mut *tile.values, Strides::row_major(columns));
        gemm((rows, columns, self.dim), self.scale, queries, candidates, 0.0, logits);
        for (r, row) in tile.values.chunks_exact_mut(columns).enumerate() {
            let a = i * BLOCK + r;
            let column = |b: usize| b.checked_sub(j * BLOCK).filter(|c| *c < columns);
            if let Some(c) = column(a) {
                row[c] = f32::NEG_INFINITY;
            }
            // Partners of the first half of the rows are above the diagonal, those of the second half below.
            if a < half
                && let Some(c) = column(a + half)
            {
                tile.positives.push((a, row[c]));
                row[c] = f32::NEG_INFINITY;
            }
            if i == j
                && a >= half
                && let Some(c) = column(a - half)
            {
                row[c] = f32::NEG_INFINITY;
            }
            tile.rows[r] = exp_add(row, self.ceiling, &mut tile.columns);
        }
    }

    /// Computes each row's loss and weights from the sums of its tiles, and 1/Σ exp(logit − ceiling) of all
    /// rows.
    fn add_up(&self, places: &[(usize, usize)], tiles: &[RwLock<Tile<'_>>]) -> (Vec<Row>, Vec<f32>) {
        let half = self.n / 2;
        let (mut negatives, mut positives) = (vec![0.0f64; self.n], vec![0.0f64; half]);
        for ((i, j), tile) in places.iter().zip(tiles) {
            let tile = read(tile);
            let mut add = |block: usize, part: &[f32]| {
                negatives[block * BLOCK..].iter_mut().zip(part).for_each(|(s, p)| *s += f64::from(*p));
            };
            add(*i, &tile.rows);
            if i != j {
                add(*j, &tile.columns);
            }
            tile.positives.iter().for_each(|(a, logit)| positives[*a] = f64::from(*logit));
        }
        let row = |(a, sum): (usize, &f64)| Row::new(positives[a % half], (self.ceiling, *sum), true);
        let all: Vec<Row> = negatives.iter().enumerate().map(row).collect();
        let inverses = all.iter().map(|r| r.inverse).collect();
        (all, inverses)
    }

    /// Computes W_ab = P_ab + P_ba; for partners, −(negatives' probability) of both. The gradient is
    /// W·z/(τ·n).
    fn weigh(&self, (i, j): (usize, usize), rows: &[Row], inverses: &[f32], tile: &mut Tile<'_>) {
        let columns = self.size(j);
        let others = &inverses[j * BLOCK..][..columns];
        for (r, row) in tile.values.chunks_exact_mut(columns).enumerate() {
            let a = i * BLOCK + r;
            times_both(row, inverses[a], others);
            let partner = self.partner(a);
            if let Some(c) = partner.checked_sub(j * BLOCK).filter(|c| *c < columns) {
                row[c] = -(rows[a].negatives + rows[partner].negatives) as f32;
            }
        }
    }

    /// Computes the gradient of the rows of a block.
    fn pull(&self, j: usize, tiles: &[RwLock<Tile<'_>>], gradient: &mut [f32]) {
        let blocks = self.n.div_ceil(BLOCK);
        let row_major = Strides::row_major(self.dim);
        // The index counts the tiles in rows of blocks before i, and those before j in row i.
        let tile_at = |i: usize, j: usize| read(&tiles[i * blocks - i * i.saturating_sub(1) / 2 + (j - i)]);
        for i in 0..blocks {
            // Tiles below the diagonal are transposes of those above.
            let (tile, strides) = if i < j {
                (tile_at(i, j), Strides::transposed(self.size(j)))
            } else {
                (tile_at(j, i), Strides::row_major(self.size(i)))
            };
            let keep = if i == 0 { 0.0 } else { 1.0 };
            let (weights, others) = ((&*tile.values, strides), (self.rows_of(i), row_major));
            let size = (self.size(j), self.dim, self.size(i));
            gemm(size, self.scale / self.n as f32, weights, others, keep, (&mut *gradient, row_major));
        }
    }
}

fn read<'a, 'v>(tile: &'a RwLock<Tile<'v>>) -> RwLockReadGuard<'a, Tile<'v>> {
    tile.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<'a, 'v>(tile: &'a RwLock<Tile<'v>>) -> RwLockWriteGuard<'a, Tile<'v>> {
    tile.write().unwrap_or_else(PoisonError::into_inner)
}

/// A tile of [`in_batch_kept`], and its contributions to the sums of its rows and, mirrored, of its columns.
struct Tile<'a> {
    /// Logits, then exponentials, then weights.
    values: &'a mut [f32],
    rows: Vec<f32>,
    columns: Vec<f32>,
    /// The logits of rows with their partners.
    positives: Vec<(usize, f32)>,
}

impl<'a> Tile<'a> {
    fn new(rows: usize, columns: usize, values: &'a mut [f32]) -> Tile<'a> {
        Tile {
            values: &mut values[..rows * columns],
            rows: vec![0.0; rows],
            columns: vec![0.0; columns],
            positives: Vec::new(),
        }
    }
}

/// [`in_batch`] in O(n·[`BLOCK`]) memory: logits are computed again for the gradient.
fn in_batch_streamed(z: &[f32], n: usize, dim: usize, scale: f32) -> Graded {
    let partner = |a: usize| (a + n / 2) % n;
    let (row_major, transposed) = (Strides::row_major(dim), Strides::transposed(dim));
    let wide = Strides::row_major(n);
    // The scaled inner products of a block of rows with all rows.
    let logits = |block: usize, rows: usize| {
        let mut out = vec![0.0; rows * n];
        let of = &z[block * BLOCK * dim..][..rows * dim];
        gemm((rows, n, dim), scale, (of, row_major), (z, transposed), 0.0, (&mut out, wide));
        out
    };
    let measure = |block: usize| -> Vec<Row> {
        let first = block * BLOCK;
        let one = |(i, row): (usize, &mut [f32])| {
            let a = first + i;
            let positive = f64::from(row[partner(a)]);
            row[a] = f32::NEG_INFINITY;
            row[partner(a)] = f32::NEG_INFINITY;
            let (top, sum) = sum_exp(row);
            Row::new(positive, (top, f64::from(sum)), false)
        };
        logits(block, BLOCK.min(n - first)).chunks_exact_mut(n).enumerate().map(one).collect()
    };
    let rows: Vec<Vec<Row>> = (0..n.div_ceil(BLOCK)).into_par_iter().with_max_len(1).map(measure).collect();
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    let of_all: Vec<f32> = rows.iter().map(|r| r.lse).collect();
    let pull = |(block, gradient): (usize, &mut [f32])| {
        let here = gradient.len() / dim;
        let mut weights = logits(block, here);
        for (i, row) in weights.chunks_exact_mut(n).enumerate() {
            let a = block * BLOCK + i;
            both_probabilities(row, of_all[a], &of_all);
            row[a] = 0.0;
            row[partner(a)] = -(rows[a].negatives + rows[partner(a)].negatives) as f32;
        }
        gemm((here, dim, n), scale / n as f32, (&weights, wide), (z, row_major), 0.0, (gradient, row_major));
    };
    let mut gradient = vec![0.0; n * dim];
    gradient.par_chunks_mut(BLOCK * dim).with_max_len(1).enumerate().for_each(pull);
    Graded { value: rows.iter().map(|r| r.loss).sum::<f64>() / n.max(1) as f64, gradient }
}
