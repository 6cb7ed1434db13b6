//! Pooling of feature maps (N, H, W, C): maxima of windows, and means of a grid of cells.

use crate::feature_map::{MapShape, MapSlice, MapSliceMut};
use crate::kernel_args::{In, Out, args};
use crate::{Buffer, Context, Error, Result, View};
use cudarc::driver::{CudaSlice, DeviceSlice};

/// The pixel of its window that each maximum came from.
#[derive(Debug)]
pub struct ArgMax(CudaSlice<u8>);

impl ArgMax {
    /// Allocates indices for `len` maxima.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(on: &Context, len: usize) -> Result<Self> {
        Ok(ArgMax(on.device().alloc_zeros(len.max(1))?))
    }

    fn check(&self, from: MapShape, to: MapShape) -> Result<()> {
        let side = |n: usize| (n - 1) / 2 + 1;
        let pooled = MapShape { height: side(from.height), width: side(from.width), ..from };
        if to == pooled && self.0.len() >= to.len() {
            return Ok(());
        }
        let message = format!("cannot pool {from:?} to {to:?} with {} indices", self.0.len());
        Err(Error::Length { operation: "max pool", message })
    }
}

/// Computes the maximum of 3×3 windows with stride 2 and padding 1.
///
/// # Shapes
/// `x` (N, H, W, C), `y` (N, ⌈H/2⌉, ⌈W/2⌉, C)
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn max_pool(
    on: &Context,
    (x, from): (MapSlice<'_>, MapShape),
    (y, to): (MapSliceMut<'_>, MapShape),
    indices: &mut ArgMax,
) -> Result<()> {
    let element = from.check("max pool", &[x])?;
    if to.check("max pool", &[y.as_slice()])? != element {
        return Err(element_mismatch("max pool"));
    }
    indices.check(from, to)?;
    let (code, n, c) = (element.code(to.channels), to.len(), from.channels as u32);
    let ([h, w], [out_h, out_w]) = (sides(from), sides(to));
    let args = args![code, n, c, In(x), h, w, Out(y), Out(&mut indices.0), out_h, out_w];
    // SAFETY: the checks above have established that x and y hold their shapes, that `to` is the pooled shape
    // of `from`, and that there is an index for each of its n elements.
    unsafe { on.launch_over("pauc_max_pool", n / element.pack(to.channels), args) }
}

/// `dx ←` the gradient of [`max_pool`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn max_pool_gradient(
    on: &Context,
    (dy, to): (MapSlice<'_>, MapShape),
    indices: &ArgMax,
    (dx, from): (MapSliceMut<'_>, MapShape),
) -> Result<()> {
    let element = to.check("gradient of max pool", &[dy])?;
    if from.check("gradient of max pool", &[dx.as_slice()])? != element {
        return Err(element_mismatch("gradient of max pool"));
    }
    indices.check(from, to)?;
    let (code, n, c) = (element.code(to.channels), from.len(), from.channels as u32);
    let ([h, w], [out_h, out_w]) = (sides(from), sides(to));
    let args = args![code, n, c, In(dy), In(&indices.0), out_h, out_w, Out(dx), h, w];
    // SAFETY: both calls of `MapShape::check` have established that dy and dx hold their shapes.
    // `indices.check` has established that there is an index for each element of dy, and that `to` is the
    // pooled shape of `from`.
    unsafe { on.launch_over("pauc_max_pool_gradient", n / element.pack(from.channels), args) }
}

fn sides(shape: MapShape) -> [u32; 2] {
    [shape.height as u32, shape.width as u32]
}

fn element_mismatch(operation: &'static str) -> Error {
    Error::Length { operation, message: "maps of different element types".into() }
}

/// Computes the means of grid × grid equal cells of each map.
///
/// # Shapes
/// `x` (N, H, W, C), `features` (N, grid², C)
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn cell_mean(
    on: &Context,
    (x, shape): (MapSlice<'_>, MapShape),
    grid: usize,
    features: &mut Buffer,
) -> Result<()> {
    let element = shape.check("cell mean", &[x])?;
    let n = check_cells(shape, grid, features.len())?;
    let (code, c, [h, w]) = (element.code(shape.channels), shape.channels as u32, sides(shape));
    let args = args![code, n, In(x), c, h, w, grid as u32, Out(features)];
    // SAFETY: `check` has established that x holds the shape, and `check_cells` that there are n features.
    unsafe { on.launch_over("pauc_cell_mean", n / element.pack(shape.channels), args) }
}

/// `dx ←` the gradient of [`cell_mean`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn cell_mean_gradient(
    on: &Context,
    features: View<'_>,
    grid: usize,
    (dx, shape): (MapSliceMut<'_>, MapShape),
) -> Result<()> {
    let element = shape.check("gradient of cell mean", &[dx.as_slice()])?;
    check_cells(shape, grid, features.len())?;
    let (code, n) = (element.code(shape.channels), shape.len());
    let (c, [h, w]) = (shape.channels as u32, sides(shape));
    let args = args![code, n, In(features), c, h, w, grid as u32, Out(dx)];
    // SAFETY: `check` has established that dx holds the shape, and `check_cells` that there is a feature for
    // each cell.
    unsafe { on.launch_over("pauc_cell_mean_gradient", n / element.pack(shape.channels), args) }
}

/// Checks that the grid fits and that there is a feature for each cell. Returns the number of cells of all
/// maps and channels.
fn check_cells(shape: MapShape, grid: usize, features: usize) -> Result<usize> {
    let cells = shape.batch * grid * grid * shape.channels;
    if (1..=shape.height.min(shape.width)).contains(&grid) && features >= cells {
        return Ok(cells);
    }
    let message = format!("{features} features do not fit {grid}×{grid} cells of {shape:?}");
    Err(Error::Length { operation: "cell mean", message })
}
