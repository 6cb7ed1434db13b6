//! All vectors of a network in one launch: moving averages, norms, optimizer steps.

use crate::kernel_args::{In, Out, args};
use crate::{Buffer, Context, Error, Result, same_length};
use cudarc::driver::CudaSlice;
use pauc_kernels::optim;

/// Elements per block: `CHUNK` in the kernels.
const CHUNK: usize = 8192;

/// The vectors of a launch, as the kernel reads them: one struct per vector, made of 64-bit words.
struct Table {
    words: CudaSlice<u64>,
    vectors: u32,
    blocks: usize,
}

impl Table {
    /// Builds the table for vectors of these lengths. `words` returns the struct of a vector, given its index
    /// and the number of its first block.
    fn new(
        on: &Context,
        lengths: impl Iterator<Item = usize>,
        mut words: impl FnMut(usize, u32) -> Vec<u64>,
    ) -> Result<Self> {
        let (mut all, mut vectors, mut blocks) = (Vec::new(), 0, 0usize);
        for (i, n) in lengths.enumerate() {
            let first_block = u32::try_from(blocks).map_err(|_| Error::Length {
                operation: "a launch over many vectors",
                message: format!("too many blocks for one grid: {blocks}"),
            })?;
            all.extend(words(i, first_block));
            vectors += 1;
            blocks += blocks_of(n);
        }
        Ok(Table { words: on.upload(&all)?, vectors, blocks })
    }
}

/// Returns the number of blocks for a vector of `n` elements: at least one, so that each vector has a first
/// block.
fn blocks_of(n: usize) -> usize {
    n.div_ceil(CHUNK).max(1)
}

/// Packs two 32-bit numbers as a struct stores them.
fn two_words(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn two_floats(first: f32, second: f32) -> u64 {
    two_words(first.to_bits(), second.to_bits())
}

fn all_same_length(operation: &'static str, mut pairs: impl Iterator<Item = (usize, usize)>) -> Result<()> {
    pairs.try_for_each(|(a, b)| same_length(operation, &[a, b]).map(drop))
}

/// `to ← to + rate·(from − to)` for each pair `(to, from)`. With rate 1 it copies.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn moving_averages(on: &Context, pairs: &mut [(&mut Buffer, &Buffer)], rate: f32) -> Result<()> {
    all_same_length("moving average", pairs.iter().map(|(to, from)| (to.len(), from.len())))?;
    let words = |i: usize, first_block| {
        let (to, from) = &pairs[i];
        vec![to.address(), from.address(), to.len() as u64, two_words(first_block, 0)]
    };
    let table = Table::new(on, pairs.iter().map(|(to, _)| to.len()), words)?;
    let (all, count) = (In(&table.words), table.vectors);
    // SAFETY: each `Pair` of the table names two live buffers, the first borrowed mutably, and their length,
    // which was checked.
    unsafe {
        match rate == 1.0 {
            true => on.launch("pauc_copies", table.blocks, args![all, count]),
            false => on.launch("pauc_averages", table.blocks, args![all, count, rate]),
        }
    }
}

/// Sets every element of the buffers to zero.
///
/// # Errors
/// If the device fails.
pub fn clear(on: &Context, buffers: &mut [&mut Buffer]) -> Result<()> {
    let words = |i: usize, first_block| {
        vec![buffers[i].address(), 0, buffers[i].len() as u64, two_words(first_block, 0)]
    };
    let table = Table::new(on, buffers.iter().map(|b| b.len()), words)?;
    // SAFETY: each `Pair` of the table names a live buffer, borrowed mutably, and its length. The kernel does
    // not read `from`.
    unsafe { on.launch("pauc_clear", table.blocks, args![In(&table.words), table.vectors]) }
}

/// Returns Σ x² of each buffer, summed in a fixed order.
///
/// # Errors
/// If the device fails.
pub fn squared_norms(on: &Context, buffers: &[&Buffer]) -> Result<Vec<f64>> {
    let words = |i: usize, first_block| {
        vec![0, buffers[i].address(), buffers[i].len() as u64, two_words(first_block, 0)]
    };
    let table = Table::new(on, buffers.iter().map(|x| x.len()), words)?;
    let mut sums = on.device().alloc_zeros::<f64>(table.blocks.max(1))?;
    let args = args![In(&table.words), table.vectors, Out(&mut sums)];
    // SAFETY: each `Pair` of the table names a live buffer and its length; the kernel does not write to `to`.
    // There is one sum per block, and a block writes only its own.
    unsafe { on.launch("pauc_square_sums", table.blocks, args) }?;
    let sums = on.download(&sums)?;
    let mut rest = &sums[..];
    let norms = buffers.iter().map(|x| {
        let (own, after) = rest.split_at(blocks_of(x.len()));
        rest = after;
        own.iter().sum()
    });
    Ok(norms.collect())
}

/// A parameter in an optimizer step: its values, its gradient, and the optimizer's N state vectors.
pub type ParameterStep<'a, const N: usize> = (&'a mut Buffer, &'a Buffer, [&'a mut Buffer; N]);

fn check<const N: usize>(
    operation: &'static str,
    parameters: &[ParameterStep<'_, N>],
    constants: usize,
) -> Result<()> {
    let lengths = parameters.iter().flat_map(|(w, g, state)| {
        std::iter::once((w.len(), g.len())).chain(state.iter().map(|k| (w.len(), k.len())))
    });
    all_same_length(operation, lengths.chain([(parameters.len(), constants)]))
}

/// d = a·(g + λw); v ← μv + d; w ← w − η·(v, or d + μv with Nesterov), for each parameter with its constants.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn sgd(on: &Context, parameters: &mut [ParameterStep<'_, 1>], constants: &[optim::Sgd]) -> Result<()> {
    check("sgd", parameters, constants.len())?;
    let words = |i: usize, first_block| {
        let ((w, g, [v]), step) = (&parameters[i], constants[i]);
        let optim::Sgd { lr, momentum, weight_decay, adaptation, nesterov } = step;
        let memory = [w.address(), g.address(), v.address(), w.len() as u64];
        let numbers = [
            two_words(first_block, nesterov.into()),
            two_floats(lr, momentum),
            two_floats(weight_decay, adaptation),
        ];
        [&memory[..], &numbers].concat()
    };
    let table = Table::new(on, parameters.iter().map(|(w, ..)| w.len()), words)?;
    // SAFETY: each `Sgd` of the table names three live buffers and their length, which `check` has compared.
    // Buffers that are written are borrowed mutably.
    unsafe { on.launch("pauc_sgd", table.blocks, args![In(&table.words), table.vectors]) }
}

/// w ← (1 − ηλ)w; m ← β₁m + (1 − β₁)g; s ← β₂s + (1 − β₂)g²; w ← w − η·m̂/(√ŝ + ε), with m̂ = m/(1 − β₁ᵗ) and
/// ŝ = s/(1 − β₂ᵗ), for each parameter with its constants.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn adamw(
    on: &Context,
    parameters: &mut [ParameterStep<'_, 2>],
    constants: &[optim::AdamW],
) -> Result<()> {
    check("adamw", parameters, constants.len())?;
    let words = |i: usize, first_block: u32| {
        let ((w, g, [m, s]), step) = (&parameters[i], constants[i]);
        let (t, (beta1, beta2)) = (step.step as f64, step.betas);
        let rate = (step.lr / (1.0 - beta1.powf(t))) as f32;
        let correction = (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32;
        let (keep, epsilon) = ((1.0 - step.lr * step.weight_decay) as f32, step.epsilon as f32);
        let (new1, new2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        let memory = [w.address(), g.address(), m.address(), s.address(), w.len() as u64];
        let numbers = [
            two_words(first_block, rate.to_bits()),
            two_floats(correction, keep),
            two_floats(epsilon, beta1 as f32),
            two_floats(new1, beta2 as f32),
            two_words(new2.to_bits(), 0),
        ];
        [&memory[..], &numbers].concat()
    };
    let table = Table::new(on, parameters.iter().map(|(w, ..)| w.len()), words)?;
    // SAFETY: each `AdamW` of the table names four live buffers and their length, which `check` has compared.
    // Buffers that are written are borrowed mutably.
    unsafe { on.launch("pauc_adamw", table.blocks, args![In(&table.words), table.vectors]) }
}
