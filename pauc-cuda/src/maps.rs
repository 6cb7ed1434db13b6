//! Feature maps (N, C, H, W): from pixels, to features, and the maximum of windows.

use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceSlice};

/// The shape of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maps {
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Maps {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.height * self.width
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As normalisation sees it.
    pub fn flat(&self) -> crate::norm::Shape {
        crate::norm::Shape { batch: self.batch, channels: self.channels, pixels: self.height * self.width }
    }

    fn check(&self, operation: &'static str, length: usize) -> Result<()> {
        if self.is_empty() || self.len() > u32::MAX as usize || length < self.len() {
            let message =
                format!("{self:?} in a buffer of {length}: at most 2³² − 1 elements, and at least one");
            return Err(Error::Length { operation, message });
        }
        Ok(())
    }
}

/// Maps from images whose channels come last, (N, H, W, C).
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn channels_first(on: &Context, images: View<'_>, shape: Maps, to: &mut Buffer) -> Result<()> {
    shape.check("channels first", images.len().min(to.len()))?;
    let args = args![shape.len(), shape.channels as u32, (shape.height * shape.width) as u32, images, to];
    // SAFETY: both have as many elements as the shape.
    unsafe { on.launch_over("pauc_channels_first", shape.len(), args) }
}

/// Which pixel of its window each maximum came from.
#[derive(Debug)]
pub struct Chosen(CudaSlice<u8>);

impl Chosen {
    /// For so many maxima.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn new(on: &Context, len: usize) -> Result<Self> {
        Ok(Chosen(on.device().alloc_zeros(len.max(1))?))
    }
}

/// The maximum of 3×3 windows at stride 2 with padding 1.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn max_pool(
    on: &Context,
    (x, from): (View<'_>, Maps),
    (y, to): (ViewMut<'_>, Maps),
    chosen: &mut Chosen,
) -> Result<()> {
    from.check("max pool", x.len())?;
    to.check("max pool", y.len().min(chosen.0.len()))?;
    pooled(from, to)?;
    let (h, w) = (from.height as u32, from.width as u32);
    let args = args![to.len(), x, h, w, y, *chosen.0.device_ptr(), to.height as u32, to.width as u32];
    // SAFETY: maps and choices have the shapes, which fit.
    unsafe { on.launch_over("pauc_max_pool", to.len(), args) }
}

/// `dx ←` the gradient of [`max_pool`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn max_pool_gradient(
    on: &Context,
    (dy, to): (View<'_>, Maps),
    chosen: &Chosen,
    (dx, from): (ViewMut<'_>, Maps),
) -> Result<()> {
    from.check("gradient of max pool", dx.len())?;
    to.check("gradient of max pool", dy.len().min(chosen.0.len()))?;
    pooled(from, to)?;
    let (h, w) = (from.height as u32, from.width as u32);
    let chosen = *chosen.0.device_ptr();
    let args = args![from.len(), dy, chosen, to.height as u32, to.width as u32, dx, h, w];
    // SAFETY: maps and choices have the shapes, which fit.
    unsafe { on.launch_over("pauc_max_pool_gradient", from.len(), args) }
}

fn pooled(from: Maps, to: Maps) -> Result<()> {
    let side = |n: usize| (n - 1) / 2 + 1;
    let want = Maps { height: side(from.height), width: side(from.width), ..from };
    if to == want {
        return Ok(());
    }
    Err(Error::Length { operation: "max pool", message: format!("{from:?} to {to:?}") })
}

/// Features (N, grid², C): the means of grid × grid equal parts of each map.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn cell_mean(
    on: &Context,
    (x, shape): (View<'_>, Maps),
    grid: usize,
    features: &mut Buffer,
) -> Result<()> {
    shape.check("cell mean", x.len())?;
    let outputs = cells(shape, grid, features.len())?;
    let (c, h, w) = (shape.channels as u32, shape.height as u32, shape.width as u32);
    // SAFETY: the maps have the shape, and there is room for so many features.
    unsafe { on.launch_over("pauc_cell_mean", outputs, args![outputs, x, c, h, w, grid as u32, features]) }
}

/// `dx ←` the gradient of [`cell_mean`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn cell_mean_gradient(
    on: &Context,
    features: View<'_>,
    grid: usize,
    (dx, shape): (ViewMut<'_>, Maps),
) -> Result<()> {
    shape.check("gradient of cell mean", dx.len())?;
    cells(shape, grid, features.len())?;
    let (c, h, w) = (shape.channels as u32, shape.height as u32, shape.width as u32);
    let args = args![shape.len(), features, c, h, w, grid as u32, dx];
    // SAFETY: the maps have the shape, and the features are as many as it has cells.
    unsafe { on.launch_over("pauc_cell_mean_gradient", shape.len(), args) }
}

fn cells(shape: Maps, grid: usize, features: usize) -> Result<usize> {
    let outputs = shape.batch * grid * grid * shape.channels;
    if (1..=shape.height.min(shape.width)).contains(&grid) && features >= outputs {
        return Ok(outputs);
    }
    let message = format!("{features} features of {shape:?} in {grid}×{grid} cells");
    Err(Error::Length { operation: "cell mean", message })
}
