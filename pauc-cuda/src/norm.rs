//! Batch normalisation of maps (N, C, P) with P pixels a channel, fused with residual and ReLU. P = 1: rows.

use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::driver::DevicePtr;

/// The shape of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Images, or rows.
    pub batch: usize,
    /// Channels, or columns.
    pub channels: usize,
    /// Pixels of a channel; 1 for rows.
    pub pixels: usize,
}

impl Shape {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.pixels
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Kernels count elements in 32 bits.
    fn check(&self, operation: &'static str, lengths: &[usize]) -> Result<()> {
        let n = self.len();
        if n == 0 || n > u32::MAX as usize || lengths.iter().any(|l| *l < n) {
            let message =
                format!("{self:?} in buffers of {lengths:?}: at most 2³² − 1 elements, and at least one");
            return Err(Error::Length { operation, message });
        }
        Ok(())
    }

    fn sizes(&self) -> (u32, u32, u32) {
        (self.batch as u32, self.channels as u32, self.pixels as u32)
    }

    /// Runs that the elements of a channel are summed in, so that the device has enough blocks to work on.
    fn splits(&self) -> usize {
        let wanted = 1024usize.div_ceil(self.channels.max(1));
        wanted.min((self.batch * self.pixels).div_ceil(4096)).max(1)
    }
}

/// What is added before ReLU: maps, and the normalisation that is still to be applied to them.
pub type Residual<'a> = (View<'a>, Option<&'a Norm>);

/// One layer's statistics and coefficients.
#[derive(Debug)]
pub struct Norm {
    channels: usize,
    /// Mean, variance, 1/deviation, scale, shift, mean of g, mean of g·x̂: each as many as channels.
    parts: [Buffer; 7],
    /// Partial sums in double precision.
    sums: cudarc::driver::CudaSlice<f64>,
}

const MEAN: usize = 0;
const VARIANCE: usize = 1;
const INVERSE: usize = 2;
const SCALE: usize = 3;
const SHIFT: usize = 4;
const MEAN_G: usize = 5;
const MEAN_GX: usize = 6;

impl Norm {
    /// For so many channels.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn new(on: &Context, channels: usize) -> Result<Self> {
        let mut parts = Vec::with_capacity(7);
        for _ in 0..7 {
            parts.push(Buffer::zeros(on, channels)?);
        }
        let parts = parts.try_into().map_err(|_| Error::Address)?;
        // At most 1024 blocks, or one a channel, and two sums each.
        let sums = on.device().alloc_zeros(2 * (1024 + channels))?;
        Ok(Norm { channels, parts, sums })
    }

    fn sums(&self) -> u64 {
        *self.sums.device_ptr()
    }

    fn check(&self, operation: &'static str, shape: Shape, lengths: &[usize]) -> Result<()> {
        if shape.channels != self.channels {
            let message = format!("{shape:?} for a normalisation of {} channels", self.channels);
            return Err(Error::Length { operation, message });
        }
        shape.check(operation, lengths)
    }

    /// Takes mean and variance from a batch, and moves the running statistics towards them.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn measure(
        &mut self,
        on: &Context,
        y: View<'_>,
        shape: Shape,
        (mean, variance): (&mut Buffer, &mut Buffer),
        momentum: f32,
    ) -> Result<()> {
        self.check("batch statistics", shape, &[y.len()])?;
        self.check_channels(&[mean.len(), variance.len()])?;
        let ((n, c, p), splits) = (shape.sizes(), shape.splits());
        let sums = args![y, self.sums(), n, c, p, splits as u32];
        // SAFETY: y has the shape; there is room for the sums of so many splits; all else has one element a channel.
        unsafe {
            on.launch("pauc_norm_sums", splits * shape.channels, sums)?;
            let parts = &self.parts;
            let args = args![
                y,
                self.sums(),
                &parts[MEAN],
                &parts[VARIANCE],
                mean,
                variance,
                n,
                c,
                p,
                splits as u32,
                momentum
            ];
            on.launch_over("pauc_norm_moments", shape.channels, args)
        }
    }

    /// Takes mean and variance as given.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn set(&mut self, on: &Context, mean: &Buffer, variance: &Buffer) -> Result<()> {
        self.check_channels(&[mean.len(), variance.len()])?;
        crate::elementwise::copy(on, mean.view(), self.parts[MEAN].view_mut())?;
        crate::elementwise::copy(on, variance.view(), self.parts[VARIANCE].view_mut())
    }

    /// Makes scale and shift from γ, β and what [`Norm::measure`] or [`Norm::set`] left.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn prepare(&mut self, on: &Context, gamma: &Buffer, beta: &Buffer, epsilon: f32) -> Result<()> {
        self.check_channels(&[gamma.len(), beta.len()])?;
        let [mean, variance, inverse, scale, shift, ..] = &self.parts;
        let args = args![mean, variance, gamma, beta, epsilon, inverse, scale, shift, self.channels as u32];
        // SAFETY: all have one element a channel.
        unsafe { on.launch_over("pauc_norm_prepare", self.channels, args) }
    }

    /// `out ← ReLU?(scale·y + shift + residual)`.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn apply(
        &self,
        on: &Context,
        y: View<'_>,
        shape: Shape,
        residual: Option<Residual<'_>>,
        relu: bool,
        out: ViewMut<'_>,
    ) -> Result<()> {
        let rest = residual.map_or(usize::MAX, |r| r.0.len());
        self.check("batch normalisation", shape, &[y.len(), out.len(), rest])?;
        let (_, c, p) = shape.sizes();
        let (added, own) = residual.map_or((0, None), |(r, norm)| (r.address(), norm));
        let part = |i: usize| own.map_or(0, |n| n.parts[i].address());
        let args = args![
            shape.len(),
            c,
            p,
            y,
            &self.parts[SCALE],
            &self.parts[SHIFT],
            added,
            part(SCALE),
            part(SHIFT),
            relu,
            out
        ];
        // SAFETY: all maps have the shape; an absent residual is address 0, which the kernel leaves alone.
        unsafe { on.launch_over("pauc_norm_apply", shape.len(), args) }
    }

    /// From the gradient `g` of the output to that of y, `dy`, and those of γ and β, which are added to. With `out`, the
    /// output after ReLU, `g` is set to zero wherever that is not positive.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn backward(
        &mut self,
        on: &Context,
        g: &mut Buffer,
        out: Option<View<'_>>,
        y: View<'_>,
        shape: Shape,
        (d_gamma, d_beta): (&mut Buffer, &mut Buffer),
        dy: ViewMut<'_>,
    ) -> Result<()> {
        let masked = out.map_or(usize::MAX, |o| o.len());
        self.check("gradient of a batch normalisation", shape, &[g.len(), y.len(), dy.len(), masked])?;
        self.check_channels(&[d_gamma.len(), d_beta.len()])?;
        let ((n, c, p), splits) = (shape.sizes(), shape.splits());
        let parts = &self.parts;
        let out = out.map_or(0, |o| o.address());
        // SAFETY: all maps have the shape, there is room for the sums, and all else has one element a channel.
        unsafe {
            let args = args![&*g, out, y, &parts[MEAN], &parts[INVERSE], self.sums(), n, c, p, splits as u32];
            on.launch("pauc_norm_gradient_sums", splits * shape.channels, args)?;
            let (mean_g, mean_gx) = (&parts[MEAN_G], &parts[MEAN_GX]);
            let args = args![self.sums(), d_gamma, d_beta, mean_g, mean_gx, n, c, p, splits as u32];
            on.launch_over("pauc_norm_gradient_finish", shape.channels, args)?;
            let args = args![
                shape.len(),
                c,
                p,
                &*g,
                y,
                &parts[MEAN],
                &parts[INVERSE],
                &parts[SCALE],
                mean_g,
                mean_gx,
                dy
            ];
            on.launch_over("pauc_norm_gradient", shape.len(), args)
        }
    }

    fn check_channels(&self, lengths: &[usize]) -> Result<()> {
        if lengths.iter().all(|l| *l == self.channels) {
            return Ok(());
        }
        let message = format!("lengths {lengths:?} for {} channels", self.channels);
        Err(Error::Length { operation: "batch normalisation", message })
    }
}
