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
    /// Mean, 1/deviation, scale, shift, mean of g, mean of g·x̂, size of g: each as many as channels.
    parts: [Buffer; 7],
    /// Partial sums in double precision, two a channel and run.
    sums: Option<CudaSlice<f64>>,
    /// The largest of each channel and run, where halves are asked for.
    largest: Option<Buffer>,
    /// What takes halves of a gradient back to its size.
    unit: Buffer,
}

/// A gradient as halves, [`Element::F16`], times a power of two.
#[derive(Clone, Copy, Debug)]
pub struct Halved<'a> {
    /// The halves.
    pub values: Elements<'a>,
    /// One number, the power's inverse.
    pub unit: &'a Buffer,
}

const GRADIENT: &str = "gradient of a batch normalisation";
const SCALE: usize = 2;
const SHIFT: usize = 3;

/// How many blocks go through maps, and in how many runs their rows are: `Lane` of the kernels.
fn blocks(on: &Context, maps: Maps, element: Element) -> (usize, usize) {
    let packs = maps.channels / element.pack(maps.channels);
    let tile = packs.next_power_of_two().min(on.threads());
    let (groups, rows) = (packs.div_ceil(tile), on.threads() / tile);
    // Several rows a thread: each run's sums are added up once more.
    let runs = (on.enough_blocks() / groups).min(maps.pixels().div_ceil(8 * rows)).max(1);
    (groups * runs, runs)
}

/// Where halves are to be written, or 0: they lie beside maps in `f32`.
fn beside(
    operation: &'static str,
    maps: Maps,
    element: Element,
    halves: Option<ElementsMut<'_>>,
) -> Result<u64> {
    let Some(halves) = halves else { return Ok(0) };
    let there = maps.check(operation, &[halves.read()])?;
    if (there, element) != (Element::F16, Element::F32) {
        return Err(Error::Length { operation, message: format!("{there:?} beside {element:?}") });
    }
    Ok(halves.address())
}

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
        Ok(Norm { channels, parts, sums: None, largest: None, unit: Buffer::zeros(on, 1)? })
    }

    /// Room for the largest of each channel and run.
    fn largest(&mut self, on: &Context, runs: usize) -> Result<u64> {
        let len = runs * self.channels;
        let there = self.largest.take().filter(|b| b.len() >= len);
        Ok(self.largest.insert(there.map_or_else(|| Buffer::any(on, len), Ok)?).address())
    }

    /// Halves that [`Norm::input_gradient`] has written.
    pub fn halved<'a>(&'a self, values: Elements<'a>) -> Halved<'a> {
        Halved { values, unit: &self.unit }
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

    /// `out ← ReLU?(scale·y + shift + residual)`, and the same as halves if there is room for them.
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
        halves: Option<ElementsMut<'_>>,
    ) -> Result<()> {
        const OPERATION: &str = "batch normalisation";
        let element = self.check(OPERATION, maps, &[y, out.read(), residual.map_or(y, |r| r.0)])?;
        let halves = beside(OPERATION, maps, element, halves)?;
        let (added, own) = residual.map_or((0, None), |(r, norm)| (r.address(), norm));
        let part = |i: usize| own.map_or(0, |n| n.parts[i].address());
        let (scale, shift) = (&self.parts[SCALE], &self.parts[SHIFT]);
        let (blocks, _) = blocks(on, maps, element);
        let (element, c) = (element.code(maps.channels), maps.channels as u32);
        let (own_scale, own_shift) = (part(SCALE), part(SHIFT));
        let args = args![
            element,
            maps.pixels(),
            c,
            y,
            scale,
            shift,
            added,
            own_scale,
            own_shift,
            relu,
            halves,
            &out
        ];
        // SAFETY: all runs hold the maps; an absent residual is address 0, which the kernel leaves alone.
        unsafe { on.launch("pauc_norm_apply", blocks, args) }
    }

    /// Adds to the gradients of γ and β, given that of the output, `g`, and leaves what [`Norm::input_gradient`] needs: with
    /// `halves`, also for halves. `more` of the output's gradient, which lies apart, is first added to `g`. Then, and where ReLU
    /// follows a residual, whose gradient it is too, `g` is set to zero wherever ReLU was shut.
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
        halves: bool,
    ) -> Result<()> {
        let out = if let Relu::Output(out) = relu { out } else { y };
        let element = self.check(GRADIENT, maps, &[g.read(), y, out, more.unwrap_or(y)])?;
        let more = more.map_or(0, |m| m.address());
        self.check_channels(&[d_gamma.len(), d_beta.len()])?;
        let (blocks, runs) = blocks(on, maps, element);
        let (sums, largest) = (self.sums(on, runs)?, if halves { self.largest(on, runs)? } else { 0 });
        let [mean, inverse, scale, shift, mean_g, mean_gx, size] = &self.parts;
        let size = if halves { size.address() } else { 0 };
        let (element, rows, c) = (element.code(maps.channels), maps.pixels(), maps.channels as u32);
        // SAFETY: all runs hold the maps, there is room for the sums, and all else has one element a channel.
        unsafe {
            let relu = relu.code();
            let args =
                args![element, relu, &*g, more, out, y, mean, inverse, scale, shift, sums, largest, rows, c];
            on.launch("pauc_norm_gradient_sums", blocks, args)?;
            let runs = runs as u32;
            let args = args![sums, largest, runs, rows, scale, d_gamma, d_beta, mean_g, mean_gx, size];
            on.launch("pauc_norm_gradient_finish", maps.channels, args)
        }
    }

    /// The gradient of `y`, written to `dy`, or in place of `g` without one; after [`Norm::own_gradient`]. With room for
    /// halves, of maps in `f32`, these are written beside it: [`Norm::halved`].
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
        halves: Option<ElementsMut<'_>>,
    ) -> Result<()> {
        let to = dy.as_ref().unwrap_or(g);
        let element = self.check(GRADIENT, maps, &[g.read(), y, to.read()])?;
        let halves = beside(GRADIENT, maps, element, halves)?;
        let (blocks, _) = blocks(on, maps, element);
        let [mean, inverse, scale, shift, mean_g, mean_gx, size] = &self.parts;
        let (element, rows, c) = (element.code(maps.channels), maps.pixels(), maps.channels as u32);
        let (relu, unit) = (relu.code(), &self.unit);
        let args = args![
            element, relu, rows, c, &*g, y, mean, inverse, scale, shift, mean_g, mean_gx, size, unit, halves,
            to
        ];
        // SAFETY: all runs hold the maps, and each thread reads an element before it writes there.
        unsafe { on.launch("pauc_norm_gradient", blocks, args) }
    }
}
