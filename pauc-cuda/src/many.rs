//! All of a network's vectors in one pass each: moving averages, norms, steps of optimisers.

use crate::elementwise::same;
use crate::{Buffer, Context, Error, Result, args};
use cudarc::driver::{CudaSlice, DevicePtr};
use pauc_kernels::optim;

/// Elements of a block: `CHUNK` of the kernels.
const CHUNK: usize = 8192;

/// A pass over vectors, as its kernel reads them: words of 64 bits, so many a vector.
struct Table {
    words: Vec<u64>,
    vectors: u32,
    blocks: usize,
}

impl Table {
    /// `words` makes a vector's words from the number of its first block.
    fn new(
        lengths: impl Iterator<Item = usize>,
        mut words: impl FnMut(usize, u32) -> Vec<u64>,
    ) -> Result<Self> {
        let mut table = Table { words: Vec::new(), vectors: 0, blocks: 0 };
        for (i, n) in lengths.enumerate() {
            let first = u32::try_from(table.blocks).map_err(|_| Error::Length {
                operation: "a pass over many vectors",
                message: format!("{} blocks are more than a grid can have", table.blocks),
            })?;
            table.words.extend(words(i, first));
            table.vectors += 1;
            table.blocks += n.div_ceil(CHUNK).max(1);
        }
        Ok(table)
    }

    fn upload(&self, on: &Context) -> Result<CudaSlice<u64>> {
        on.upload(&self.words)
    }
}

/// Two numbers of 32 bits as they lie in memory.
fn two(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn floats(first: f32, second: f32) -> u64 {
    two(first.to_bits(), second.to_bits())
}

fn all_same(operation: &'static str, mut lengths: impl Iterator<Item = (usize, usize)>) -> Result<()> {
    lengths.try_for_each(|(a, b)| same(operation, &[a, b]).map(drop))
}

/// `to ← to + rate·(from − to)` of each pair; with a rate of 1 it is a copy.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn averages(on: &Context, pairs: &mut [(&mut Buffer, &Buffer)], rate: f32) -> Result<()> {
    all_same("moving average", pairs.iter().map(|(to, from)| (to.len(), from.len())))?;
    let lengths = pairs.iter().map(|(to, _)| to.len());
    let word = |i: usize, first| {
        let (to, from) = &pairs[i];
        vec![to.address(), from.address(), to.len() as u64, two(first, 0)]
    };
    let table = Table::new(lengths, word)?;
    let at = table.upload(on)?;
    let (all, count) = (*at.device_ptr(), table.vectors);
    // SAFETY: the table names pairs of vectors of the lengths that it says.
    unsafe {
        match rate == 1.0 {
            true => on.launch("pauc_copies", table.blocks, args![all, count]),
            false => on.launch("pauc_averages", table.blocks, args![all, count, rate]),
        }
    }
}

/// Sets every element to zero.
///
/// # Errors
/// If the device fails.
pub fn clear(on: &Context, all: &mut [&mut Buffer]) -> Result<()> {
    let word = |i: usize, first| vec![all[i].address(), 0, all[i].len() as u64, two(first, 0)];
    let table = Table::new(all.iter().map(|b| b.len()), word)?;
    let at = table.upload(on)?;
    // SAFETY: the table names vectors of the lengths that it says.
    unsafe { on.launch("pauc_clear", table.blocks, args![*at.device_ptr(), table.vectors]) }
}

/// Σ x² of each vector, each in one fixed order.
///
/// # Errors
/// If the device fails.
pub fn squared_norms(on: &Context, of: &[&Buffer]) -> Result<Vec<f64>> {
    let word = |i: usize, first| vec![0, of[i].address(), of[i].len() as u64, two(first, 0)];
    let table = Table::new(of.iter().map(|x| x.len()), word)?;
    let sums = on.device().alloc_zeros::<f64>(table.blocks.max(1))?;
    let (at, sums_at) = (table.upload(on)?, *sums.device_ptr());
    let args = args![*at.device_ptr(), table.vectors, sums_at];
    // SAFETY: the table names vectors of the lengths that it says, and each block writes one of the sums.
    unsafe { on.launch("pauc_square_sums", table.blocks, args) }?;
    let sums = on.download(&sums)?;
    let mut rest = &sums[..];
    let each = of.iter().map(|x| {
        let (own, after) = rest.split_at(x.len().div_ceil(CHUNK).max(1));
        rest = after;
        own.iter().sum()
    });
    Ok(each.collect())
}

/// A parameter in a step: its values, its gradient, and what the optimiser keeps of it.
pub type Moving<'a, const N: usize> = (&'a mut Buffer, &'a Buffer, [&'a mut Buffer; N]);

fn checked<const N: usize>(operation: &'static str, all: &[Moving<'_, N>], constants: usize) -> Result<()> {
    let lengths = all.iter().flat_map(|(w, g, kept)| {
        std::iter::once((w.len(), g.len())).chain(kept.iter().map(|k| (w.len(), k.len())))
    });
    all_same(operation, lengths.chain([(all.len(), constants)]))
}

/// d = a·(g + λw); v ← μv + d; w ← w − η·(v, or d + μv with Nesterov): of each parameter, with its constants.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn sgd(on: &Context, all: &mut [Moving<'_, 1>], constants: &[optim::Sgd]) -> Result<()> {
    checked("sgd", all, constants.len())?;
    let word = |i: usize, first| {
        let ((w, g, [v]), step) = (&all[i], constants[i]);
        let optim::Sgd { lr, momentum, weight_decay, adaptation, nesterov } = step;
        let addresses = [w.address(), g.address(), v.address(), w.len() as u64];
        let rest = [two(first, nesterov.into()), floats(lr, momentum), floats(weight_decay, adaptation)];
        [&addresses[..], &rest].concat()
    };
    let table = Table::new(all.iter().map(|(w, ..)| w.len()), word)?;
    let at = table.upload(on)?;
    // SAFETY: the table names vectors of the lengths that it says.
    unsafe { on.launch("pauc_sgd", table.blocks, args![*at.device_ptr(), table.vectors]) }
}

/// w ← (1 − ηλ)w; m ← β₁m + (1 − β₁)g; s ← β₂s + (1 − β₂)g²; w ← w − η·m̂/(√ŝ + ε), with m̂ = m/(1 − β₁ᵗ) and
/// ŝ = s/(1 − β₂ᵗ): of each parameter, with its constants.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn adamw(on: &Context, all: &mut [Moving<'_, 2>], constants: &[optim::AdamW]) -> Result<()> {
    checked("adamw", all, constants.len())?;
    let word = |i: usize, first: u32| {
        let ((w, g, [m, s]), step) = (&all[i], constants[i]);
        let (t, (beta1, beta2)) = (step.step as f64, step.betas);
        let rate = (step.lr / (1.0 - beta1.powf(t))) as f32;
        let correction = (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32;
        let (keep, epsilon) = ((1.0 - step.lr * step.weight_decay) as f32, step.epsilon as f32);
        let (new1, new2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        let addresses = [w.address(), g.address(), m.address(), s.address(), w.len() as u64];
        let rest = [
            two(first, rate.to_bits()),
            floats(correction, keep),
            floats(epsilon, beta1 as f32),
            floats(new1, beta2 as f32),
            two(new2.to_bits(), 0),
        ];
        [&addresses[..], &rest].concat()
    };
    let table = Table::new(all.iter().map(|(w, ..)| w.len()), word)?;
    let at = table.upload(on)?;
    // SAFETY: the table names vectors of the lengths that it says.
    unsafe { on.launch("pauc_adamw", table.blocks, args![*at.device_ptr(), table.vectors]) }
}
