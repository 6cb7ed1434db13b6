//! Batch normalization of feature maps (N, H, W, C), fused with residual and ReLU.

use crate::feature_map::{MapShape, MapSlice, MapSliceMut};
use crate::kernel_args::{Arg, In, Out, args};
use crate::{Buffer, Context, Element, Error, Result};
use cudarc::driver::{CudaSlice, DeviceSlice};

/// The maps added before ReLU, and a normalization still to be applied to them.
pub type Residual<'a> = (MapSlice<'a>, Option<&'a BatchNorm>);

/// The ReLU after a normalization, as its gradient needs it.
#[derive(Clone, Copy, Debug)]
pub enum Relu<'a> {
    /// No ReLU.
    No,
    /// ReLU of the normalized values alone: their sign is the ReLU mask.
    Own,
    /// ReLU of the sum with a residual: the given output is the ReLU mask.
    Output(MapSlice<'a>),
}

impl Relu<'_> {
    fn code(self) -> u32 {
        match self {
            Relu::No => 0,
            Relu::Own => 1,
            Relu::Output(_) => 2,
        }
    }
}

/// γ, β, and the ε that is added to the variance.
pub type Affine<'a> = (&'a Buffer, &'a Buffer, f32);

/// The batch normalization of one layer, with the coefficients of the last batch.
#[derive(Debug)]
pub struct BatchNorm {
    channels: usize,
    coefficients: Coefficients,
    /// Partial sums over the rows of maps: two per channel and run.
    partial_sums: Option<CudaSlice<f64>>,
    /// The partial maximum of each channel and run, used for gradients in fp16.
    partial_largest: Option<Buffer>,
    /// See [`ScaledF16::inverse_scale`].
    inverse_scale: Buffer,
}

/// Per-channel coefficients.
#[derive(Debug)]
struct Coefficients {
    mean: Buffer,
    /// 1/√(variance + ε)
    inverse: Buffer,
    /// γ/√(variance + ε)
    scale: Buffer,
    /// β − mean·scale
    shift: Buffer,
    /// The mean of the gradient g of the normalized values.
    mean_g: Buffer,
    /// The mean of g·x̂.
    mean_gx: Buffer,
    /// The largest |g·scale|.
    size_g: Buffer,
}

impl Coefficients {
    fn zeros(on: &Context, channels: usize) -> Result<Self> {
        let zeros = || Buffer::zeros(on, channels);
        Ok(Coefficients {
            mean: zeros()?,
            inverse: zeros()?,
            scale: zeros()?,
            shift: zeros()?,
            mean_g: zeros()?,
            mean_gx: zeros()?,
            size_g: zeros()?,
        })
    }
}

/// A gradient in fp16, scaled by a power of two.
#[derive(Clone, Copy, Debug)]
pub struct ScaledF16<'a> {
    /// The gradient times that power of two.
    pub values: MapSlice<'a>,
    /// The inverse of the power of two, a single number.
    pub inverse_scale: &'a Buffer,
}

const OPERATION: &str = "batch normalization";
const GRADIENT: &str = "gradient of a batch normalization";

/// Returns the number of blocks of a pass over maps, and of the runs of rows that they process: `Lane` in the
/// kernels.
fn blocks_and_runs(on: &Context, shape: MapShape, element: Element) -> (usize, usize) {
    let packs = shape.channels / element.pack(shape.channels);
    let tile = packs.next_power_of_two().min(on.threads());
    let (groups, rows) = (packs.div_ceil(tile), on.threads() / tile);
    // Each thread takes several rows, since the sums of the runs are added up in a second pass.
    let runs = (on.enough_blocks() / groups).min(shape.pixels().div_ceil(8 * rows)).max(1);
    (groups * runs, runs)
}

/// Checks that an fp16 copy, if requested, holds the maps, and that the maps are `f32`.
fn check_f16(
    operation: &'static str,
    shape: MapShape,
    element: Element,
    f16: Option<&MapSliceMut<'_>>,
) -> Result<()> {
    let Some(f16) = f16 else { return Ok(()) };
    let copied = shape.check(operation, &[f16.as_slice()])?;
    if (copied, element) == (Element::F16, Element::F32) {
        return Ok(());
    }
    Err(Error::Length {
        operation,
        message: format!("expected an F16 copy of F32 maps, got {copied:?} of {element:?}"),
    })
}

/// Returns the memory of `slot`, enlarged to at least `len` sums.
fn sums_of<'a>(
    slot: &'a mut Option<CudaSlice<f64>>,
    on: &Context,
    len: usize,
) -> Result<&'a mut CudaSlice<f64>> {
    let sums = match slot.take().filter(|sums| sums.len() >= len) {
        Some(sums) => sums,
        None => on.device().alloc_zeros(len)?,
    };
    Ok(slot.insert(sums))
}

/// Returns the memory of `slot`, enlarged to at least `len` elements.
fn buffer_of<'a>(slot: &'a mut Option<Buffer>, on: &Context, len: usize) -> Result<&'a mut Buffer> {
    let buffer = slot.take().filter(|b| b.len() >= len).map_or_else(|| Buffer::uninit(on, len), Ok)?;
    Ok(slot.insert(buffer))
}

impl BatchNorm {
    /// Creates a normalization of `channels` channels.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(on: &Context, channels: usize) -> Result<Self> {
        Ok(BatchNorm {
            channels,
            coefficients: Coefficients::zeros(on, channels)?,
            partial_sums: None,
            partial_largest: None,
            inverse_scale: Buffer::zeros(on, 1)?,
        })
    }

    /// Returns the fp16 gradient written by [`BatchNorm::input_gradient`].
    pub fn scaled_f16<'a>(&'a self, values: MapSlice<'a>) -> ScaledF16<'a> {
        ScaledF16 { values, inverse_scale: &self.inverse_scale }
    }

    fn check(&self, operation: &'static str, shape: MapShape, slices: &[MapSlice<'_>]) -> Result<Element> {
        if shape.channels != self.channels {
            let message = format!("{shape:?} does not have the normalization's {} channels", self.channels);
            return Err(Error::Length { operation, message });
        }
        shape.check(operation, slices)
    }

    fn check_channels(&self, lengths: &[usize]) -> Result<()> {
        if lengths.iter().all(|l| *l == self.channels) {
            return Ok(());
        }
        let message =
            format!("expected one element for each of {} channels, got lengths {lengths:?}", self.channels);
        Err(Error::Length { operation: OPERATION, message })
    }

    /// Computes the coefficients from the mean and variance of a batch, and moves the running statistics
    /// toward these by `momentum`.
    ///
    /// # Shapes
    /// `y` (N, H, W, C), statistics, γ and β C
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn measure(
        &mut self,
        on: &Context,
        (y, shape): (MapSlice<'_>, MapShape),
        (mean, variance, momentum): (&mut Buffer, &mut Buffer, f32),
        (gamma, beta, epsilon): Affine<'_>,
    ) -> Result<()> {
        let element = self.check("batch statistics", shape, &[y])?;
        self.check_channels(&[mean.len(), variance.len(), gamma.len(), beta.len()])?;
        let (blocks, runs) = blocks_and_runs(on, shape, element);
        let sums = sums_of(&mut self.partial_sums, on, 2 * runs * self.channels)?;
        let (code, rows, c) = (element.code(shape.channels), shape.pixels(), shape.channels as u32);
        // SAFETY: `check` has established that y holds the shape, with `self.channels`. `sums` has two
        // elements per channel and run.
        unsafe { on.launch("pauc_norm_sums", blocks, args![code, In(y), Out(&mut *sums), rows, c]) }?;
        let own = &mut self.coefficients;
        let args = args![
            code,
            In(y),
            In(&*sums),
            runs as u32,
            rows,
            Out(mean),
            Out(variance),
            momentum,
            In(gamma),
            In(beta),
            epsilon,
            Out(&mut own.mean),
            Out(&mut own.inverse),
            Out(&mut own.scale),
            Out(&mut own.shift)
        ];
        // SAFETY: one block per channel. The kernel reads the first row of y, and the sums, two per channel
        // and run. Everything else has one element per channel: statistics, γ and β by `check_channels`,
        // coefficients by `new`.
        unsafe { on.launch("pauc_norm_moments", shape.channels, args) }
    }

    /// Computes the coefficients from a given mean and variance.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn set(
        &mut self,
        on: &Context,
        (mean, variance): (&Buffer, &Buffer),
        (gamma, beta, epsilon): Affine<'_>,
    ) -> Result<()> {
        self.check_channels(&[mean.len(), variance.len(), gamma.len(), beta.len()])?;
        let (n, own) = (self.channels, &mut self.coefficients);
        let args = args![
            n as u32,
            In(mean),
            In(variance),
            In(gamma),
            In(beta),
            epsilon,
            Out(&mut own.mean),
            Out(&mut own.inverse),
            Out(&mut own.scale),
            Out(&mut own.shift)
        ];
        // SAFETY: all have one element per channel: inputs by `check_channels`, coefficients by `new`.
        unsafe { on.launch_over("pauc_norm_prepare", n, args) }
    }

    /// `out ← ReLU?(scale·y + shift + residual)`; also written in fp16 if `f16` is given.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn apply(
        &self,
        on: &Context,
        (y, shape): (MapSlice<'_>, MapShape),
        residual: Option<Residual<'_>>,
        relu: bool,
        out: MapSliceMut<'_>,
        f16: Option<MapSliceMut<'_>>,
    ) -> Result<()> {
        let (added, its_norm) = residual.unzip();
        let its_norm = its_norm.flatten();
        let element = self.check(OPERATION, shape, &[y, out.as_slice(), added.unwrap_or(y)])?;
        its_norm.map_or(Ok(()), |norm| norm.check_channels(&[self.channels]))?;
        check_f16(OPERATION, shape, element, f16.as_ref())?;
        let own = &self.coefficients;
        let (blocks, _) = blocks_and_runs(on, shape, element);
        let args = args![
            element.code(shape.channels),
            shape.pixels(),
            shape.channels as u32,
            In(y),
            In(&own.scale),
            In(&own.shift),
            In(added),
            In(its_norm.map(|n| &n.coefficients.scale)),
            In(its_norm.map(|n| &n.coefficients.shift)),
            relu,
            Out(f16),
            Out(out)
        ];
        // SAFETY: the checks above have established that y, residual, fp16 copy and `out` hold the shape, and
        // that both normalizations have its channels. The kernel does not access null pointers.
        unsafe { on.launch("pauc_norm_apply", blocks, args) }
    }

    /// Accumulates the gradients of γ and β from `g`, the gradient of the output, and saves the sums that
    /// [`BatchNorm::input_gradient`] needs. With `f16`, it also saves the maxima for a gradient in fp16.
    ///
    /// If `extra` is given, it is added to `g` first. With a residual or `extra`, `g` is then set to zero
    /// where ReLU was closed, which makes it the gradient of the residual.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn parameter_gradients(
        &mut self,
        on: &Context,
        (g, extra): (&mut MapSliceMut<'_>, Option<MapSlice<'_>>),
        relu: Relu<'_>,
        (y, shape): (MapSlice<'_>, MapShape),
        (d_gamma, d_beta): (&mut Buffer, &mut Buffer),
        f16: bool,
    ) -> Result<()> {
        let out = if let Relu::Output(out) = relu { out } else { y };
        let element = self.check(GRADIENT, shape, &[g.as_slice(), y, out, extra.unwrap_or(y)])?;
        self.check_channels(&[d_gamma.len(), d_beta.len()])?;
        let (blocks, runs) = blocks_and_runs(on, shape, element);
        let sums = sums_of(&mut self.partial_sums, on, 2 * runs * self.channels)?;
        let mut largest = match f16 {
            true => Some(buffer_of(&mut self.partial_largest, on, runs * self.channels)?),
            false => None,
        };
        let own = &mut self.coefficients;
        let (rows, c) = (shape.pixels(), shape.channels as u32);
        let args = args![
            element.code(shape.channels),
            relu.code(),
            Out(g.reborrow()),
            In(extra),
            In(out),
            In(y),
            In(&own.mean),
            In(&own.inverse),
            In(&own.scale),
            In(&own.shift),
            Out(&mut *sums),
            Out(largest.as_deref_mut()),
            rows,
            c
        ];
        // SAFETY: `check` has established that all maps hold the shape, with `self.channels`, the length of
        // each coefficient vector. `sums` has two elements per channel and run, and `largest` has one. The
        // kernel does not access null pointers.
        unsafe { on.launch("pauc_norm_gradient_sums", blocks, args) }?;
        let args = args![
            In(&*sums),
            In(largest.as_deref()),
            runs as u32,
            rows,
            In(&own.scale),
            Out(d_gamma),
            Out(d_beta),
            Out(&mut own.mean_g),
            Out(&mut own.mean_gx),
            Out(f16.then_some(&mut own.size_g))
        ];
        // SAFETY: one block per channel. `sums` and `largest` are those of the previous kernel. Everything
        // else has one element per channel: gradients by `check_channels`, coefficients by `new`.
        unsafe { on.launch("pauc_norm_gradient_finish", shape.channels, args) }
    }

    /// Computes the gradient of `y`, after [`BatchNorm::parameter_gradients`], and writes it to `dy`, or over
    /// `g` without `dy`. If `f16` is given, it is also written there, scaled: [`BatchNorm::scaled_f16`].
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn input_gradient(
        &mut self,
        on: &Context,
        g: &mut MapSliceMut<'_>,
        relu: Relu<'_>,
        (y, shape): (MapSlice<'_>, MapShape),
        dy: Option<MapSliceMut<'_>>,
        f16: Option<MapSliceMut<'_>>,
    ) -> Result<()> {
        let to = dy.as_ref().map_or_else(|| g.as_slice(), MapSliceMut::as_slice);
        let element = self.check(GRADIENT, shape, &[g.as_slice(), y, to])?;
        check_f16(GRADIENT, shape, element, f16.as_ref())?;
        let (blocks, _) = blocks_and_runs(on, shape, element);
        let [from, to] = match dy {
            Some(dy) => [Arg::from(In(g.as_slice())), Arg::from(Out(dy))],
            None => g.in_place(),
        };
        let own = &self.coefficients;
        let args = args![
            element.code(shape.channels),
            relu.code(),
            shape.pixels(),
            shape.channels as u32,
            from,
            In(y),
            In(&own.mean),
            In(&own.inverse),
            In(&own.scale),
            In(&own.shift),
            In(&own.mean_g),
            In(&own.mean_gx),
            In(&own.size_g),
            Out(&mut self.inverse_scale),
            Out(f16),
            to
        ];
        // SAFETY: the checks above have established that all maps hold the shape, with `self.channels`, the
        // length of each coefficient vector. In place, each thread reads its elements of g before it writes
        // them, and reads no other thread's.
        unsafe { on.launch("pauc_norm_gradient", blocks, args) }
    }
}
