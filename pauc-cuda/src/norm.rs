//! Batch normalisation of maps (N, H, W, C), fused with residual and ReLU.

use crate::field::{Element, Elements, ElementsMut, Maps};
use crate::{Buffer, Context, Error, Result, args};
use cudarc::driver::{CudaSlice, DevicePtr};

/// What is added before ReLU: maps, and the normalisation that is still to be applied to them.
pub type Residual<'a> = (Elements<'a>, Option<&'a Norm>);

/// The ReLU behind a normalisation, for a gradient that passes it.
#[derive(Clone, Copy, Debug)]
pub enum Relu<'a> {
    /// None.
    No,
    /// Of the normalised values alone, which tell where it was shut.
    Own,
    /// Of their sum with a residual: the output tells where it was shut.
    Output(Elements<'a>),
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

/// γ, β and what is added to a variance before its root is taken.
pub type Affine<'a> = (&'a Buffer, &'a Buffer, f32);

/// One layer's coefficients.
#[derive(Debug)]
pub struct Norm {
    channels: usize,
    /// Mean, 1/deviation, scale, shift, mean of g, mean of g·x̂: each as many as channels.
    parts: [Buffer; 6],
    /// Partial sums in double precision, two a channel and run.
    sums: Option<CudaSlice<f64>>,
}

const SCALE: usize = 2;
const SHIFT: usize = 3;

/// How many blocks go through maps, and in how many runs their rows are: `Lane` of the kernels.
fn blocks(on: &Context, maps: Maps, element: Element) -> (usize, usize) {
    let packs = maps.channels / element.pack(maps.channels);
    let tile = packs.next_power_of_two().min(on.threads());
    let (groups, rows) = (packs.div_ceil(tile), on.threads() / tile);
    let runs = (on.enough_blocks() / groups).min(maps.pixels().div_ceil(rows)).max(1);
    (groups * runs, runs)
}

impl Norm {
    /// For so many channels.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn new(on: &Context, channels: usize) -> Result<Self> {
        let mut parts = Vec::with_capacity(6);
        for _ in 0..6 {
            parts.push(Buffer::zeros(on, channels)?);
        }
        Ok(Norm { channels, parts: parts.try_into().map_err(|_| Error::Address)?, sums: None })
    }

    /// Room for two sums a channel and run.
    fn sums(&mut self, on: &Context, runs: usize) -> Result<u64> {
        let (len, there) = (2 * runs * self.channels, self.sums.take());
        let sums = match there {
            Some(sums) if cudarc::driver::DeviceSlice::len(&sums) >= len => sums,
            _ => on.device().alloc_zeros(len)?,
        };
        let address = *sums.device_ptr();
        self.sums = Some(sums);
        Ok(address)
    }

    fn check(&self, operation: &'static str, maps: Maps, runs: &[Elements<'_>]) -> Result<Element> {
        if maps.channels != self.channels {
            let message = format!("{maps:?} for a normalisation of {} channels", self.channels);
            return Err(Error::Length { operation, message });
        }
        maps.check(operation, runs)
    }

    fn check_channels(&self, lengths: &[usize]) -> Result<()> {
        if lengths.iter().all(|l| *l == self.channels) {
            return Ok(());
        }
        let message = format!("lengths {lengths:?} for {} channels", self.channels);
        Err(Error::Length { operation: "batch normalisation", message })
    }

    /// Coefficients from mean and variance of a batch, towards which the running statistics are moved.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn measure(
        &mut self,
        on: &Context,
        (y, maps): (Elements<'_>, Maps),
        (mean, variance, momentum): (&mut Buffer, &mut Buffer, f32),
        (gamma, beta, epsilon): Affine<'_>,
    ) -> Result<()> {
        let element = self.check("batch statistics", maps, &[y])?;
        self.check_channels(&[mean.len(), variance.len(), gamma.len(), beta.len()])?;
        let (blocks, runs) = blocks(on, maps, element);
        let sums = self.sums(on, runs)?;
        let (element, rows, c) = (element.code(maps.channels), maps.pixels(), maps.channels as u32);
        let [own_mean, inverse, scale, shift, ..] = &self.parts;
        // SAFETY: y holds the maps; there is room for the sums of so many runs; all else has one element a channel.
        unsafe {
            on.launch("pauc_norm_sums", blocks, args![element, y, sums, rows, c])?;
            let args = args![
                element,
                y,
                sums,
                runs as u32,
                rows,
                c,
                mean,
                variance,
                momentum,
                gamma,
                beta,
                epsilon,
                own_mean,
                inverse,
                scale,
                shift
            ];
            on.launch("pauc_norm_moments", maps.channels, args)
        }
    }

    /// Coefficients from given mean and variance.
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
        let [own_mean, inverse, scale, shift, ..] = &self.parts;
        let c = self.channels as u32;
        let args = args![c, mean, variance, gamma, beta, epsilon, own_mean, inverse, scale, shift];
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
        (y, maps): (Elements<'_>, Maps),
        residual: Option<Residual<'_>>,
        relu: bool,
        out: ElementsMut<'_>,
    ) -> Result<()> {
        let element =
            self.check("batch normalisation", maps, &[y, out.read(), residual.map_or(y, |r| r.0)])?;
        let (added, own) = residual.map_or((0, None), |(r, norm)| (r.address(), norm));
        let part = |i: usize| own.map_or(0, |n| n.parts[i].address());
        let (scale, shift) = (&self.parts[SCALE], &self.parts[SHIFT]);
        let (blocks, _) = blocks(on, maps, element);
        let (element, c) = (element.code(maps.channels), maps.channels as u32);
        let (own_scale, own_shift) = (part(SCALE), part(SHIFT));
        let args = args![element, maps.pixels(), c, y, scale, shift, added, own_scale, own_shift, relu, &out];
        // SAFETY: all runs hold the maps; an absent residual is address 0, which the kernel leaves alone.
        unsafe { on.launch("pauc_norm_apply", blocks, args) }
    }

    /// Adds to the gradients of γ and β, given that of the output, `g`, and leaves what [`Norm::input_gradient`] needs. Where
    /// ReLU follows a residual, `g` is set to zero wherever ReLU was shut, as it then is the residual's gradient too, and `more`
    /// of the output's gradient, which lies apart, is added first.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn own_gradient(
        &mut self,
        on: &Context,
        (g, more): (&mut ElementsMut<'_>, Option<Elements<'_>>),
        relu: Relu<'_>,
        (y, maps): (Elements<'_>, Maps),
        (d_gamma, d_beta): (&mut Buffer, &mut Buffer),
    ) -> Result<()> {
        const OPERATION: &str = "gradient of a batch normalisation";
        let (out, behind) = if let Relu::Output(out) = relu { (out, true) } else { (y, false) };
        let element = self.check(OPERATION, maps, &[g.read(), y, out, more.unwrap_or(y)])?;
        if more.is_some() && !behind {
            let message = "a gradient lies apart, and nothing is written where it could be added".into();
            return Err(Error::Length { operation: OPERATION, message });
        }
        let more = more.map_or(0, |m| m.address());
        self.check_channels(&[d_gamma.len(), d_beta.len()])?;
        let (blocks, runs) = blocks(on, maps, element);
        let sums = self.sums(on, runs)?;
        let [mean, inverse, scale, shift, mean_g, mean_gx] = &self.parts;
        let (element, rows, c) = (element.code(maps.channels), maps.pixels(), maps.channels as u32);
        let args = args![element, relu.code(), &*g, more, out, y, mean, inverse, scale, shift, sums, rows, c];
        // SAFETY: all runs hold the maps, there is room for the sums, and all else has one element a channel.
        unsafe {
            on.launch("pauc_norm_gradient_sums", blocks, args)?;
            let args = args![sums, runs as u32, rows, c, d_gamma, d_beta, mean_g, mean_gx];
            on.launch("pauc_norm_gradient_finish", maps.channels, args)
        }
    }

    /// The gradient of `y`, written to `dy`, or in place of `g` without one; after [`Norm::own_gradient`].
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn input_gradient(
        &self,
        on: &Context,
        g: &mut ElementsMut<'_>,
        relu: Relu<'_>,
        (y, maps): (Elements<'_>, Maps),
        dy: Option<ElementsMut<'_>>,
    ) -> Result<()> {
        let to = dy.as_ref().unwrap_or(g);
        let element = self.check("gradient of a batch normalisation", maps, &[g.read(), y, to.read()])?;
        let (blocks, _) = blocks(on, maps, element);
        let [mean, inverse, scale, shift, mean_g, mean_gx] = &self.parts;
        let (element, rows, c) = (element.code(maps.channels), maps.pixels(), maps.channels as u32);
        let args =
            args![element, relu.code(), rows, c, &*g, y, mean, inverse, scale, shift, mean_g, mean_gx, to];
        // SAFETY: all runs hold the maps, and each thread reads an element before it writes there.
        unsafe { on.launch("pauc_norm_gradient", blocks, args) }
    }
}
