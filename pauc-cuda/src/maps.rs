//! Feature maps (N, H, W, C): from pixels, to features, and the maximum of windows.

use crate::field::{Element, Elements, ElementsMut, Maps};
use crate::{Context, Error, Result, View, args};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceSlice};

/// Maps of any element from others, or from images, of `f32` whose channels come last, (N, H, W, C); channels that those do not
/// have are 0.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn pixels(
    on: &Context,
    from: Elements<'_>,
    channels: usize,
    (to, maps): (ElementsMut<'_>, Maps),
) -> Result<()> {
    let element = maps.check("pixels", &[to.read()])?;
    let there = Maps { channels, ..maps }.check("pixels", &[from])?;
    if there != Element::F32 || channels > maps.channels {
        let message = format!("{} of {there:?} in {channels} channels for {maps:?}", from.len());
        return Err(Error::Length { operation: "pixels", message });
    }
    let (code, n) = (element.code(maps.channels), maps.len());
    let args = args![code, n, channels as u32, maps.channels as u32, from, &to];
    // SAFETY: both have as many pixels as the maps.
    unsafe { on.launch_over("pauc_pixels", n / element.pack(maps.channels), args) }
}

/// `y ← y + x`.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn add(on: &Context, x: Elements<'_>, (y, maps): (ElementsMut<'_>, Maps)) -> Result<()> {
    let element = maps.check("sum of maps", &[x, y.read()])?;
    let (code, n) = (element.code(maps.len()), maps.len());
    // SAFETY: both hold the maps.
    unsafe { on.launch_over("pauc_add_maps", n / element.pack(n), args![code, n, x, &y]) }
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

    fn check(&self, from: Maps, to: Maps) -> Result<u64> {
        let side = |n: usize| (n - 1) / 2 + 1;
        if to == (Maps { height: side(from.height), width: side(from.width), ..from })
            && self.0.len() >= to.len()
        {
            return Ok(*self.0.device_ptr());
        }
        let message = format!("{from:?} to {to:?} with {} choices", self.0.len());
        Err(Error::Length { operation: "max pool", message })
    }
}

/// The maximum of 3×3 windows at stride 2 with padding 1.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn max_pool(
    on: &Context,
    (x, from): (Elements<'_>, Maps),
    (y, to): (ElementsMut<'_>, Maps),
    chosen: &mut Chosen,
) -> Result<()> {
    let element = from.check("max pool", &[x])?;
    if to.check("max pool", &[y.read()])? != element {
        return Err(kinds("max pool"));
    }
    let (chosen, code, n) = (chosen.check(from, to)?, element.code(to.channels), to.len());
    let (h, w, c) = (from.height as u32, from.width as u32, from.channels as u32);
    let args = args![code, n, c, x, h, w, &y, chosen, to.height as u32, to.width as u32];
    // SAFETY: maps and choices have the shapes, which fit.
    unsafe { on.launch_over("pauc_max_pool", n / element.pack(to.channels), args) }
}

/// `dx ←` the gradient of [`max_pool`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn max_pool_gradient(
    on: &Context,
    (dy, to): (Elements<'_>, Maps),
    chosen: &Chosen,
    (dx, from): (ElementsMut<'_>, Maps),
) -> Result<()> {
    let element = to.check("gradient of max pool", &[dy])?;
    if from.check("gradient of max pool", &[dx.read()])? != element {
        return Err(kinds("gradient of max pool"));
    }
    let (chosen, code, n) = (chosen.check(from, to)?, element.code(to.channels), from.len());
    let (h, w, c) = (from.height as u32, from.width as u32, from.channels as u32);
    let args = args![code, n, c, dy, chosen, to.height as u32, to.width as u32, &dx, h, w];
    // SAFETY: maps and choices have the shapes, which fit.
    unsafe { on.launch_over("pauc_max_pool_gradient", n / element.pack(from.channels), args) }
}

fn kinds(operation: &'static str) -> Error {
    Error::Length { operation, message: "maps of different elements".into() }
}

/// Features (N, grid², C): the means of grid × grid equal parts of each map.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn cell_mean(
    on: &Context,
    (x, maps): (Elements<'_>, Maps),
    grid: usize,
    features: &mut crate::Buffer,
) -> Result<()> {
    let element = maps.check("cell mean", &[x])?;
    let n = cells(maps, grid, features.len())?;
    let (c, h, w) = (maps.channels as u32, maps.height as u32, maps.width as u32);
    let args = args![element.code(maps.channels), n, x, c, h, w, grid as u32, features];
    // SAFETY: x holds the maps, and there is room for so many features.
    unsafe { on.launch_over("pauc_cell_mean", n / element.pack(maps.channels), args) }
}

/// `dx ←` the gradient of [`cell_mean`].
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn cell_mean_gradient(
    on: &Context,
    features: View<'_>,
    grid: usize,
    (dx, maps): (ElementsMut<'_>, Maps),
) -> Result<()> {
    let element = maps.check("gradient of cell mean", &[dx.read()])?;
    cells(maps, grid, features.len())?;
    let (c, h, w) = (maps.channels as u32, maps.height as u32, maps.width as u32);
    let (code, n) = (element.code(maps.channels), maps.len());
    let args = args![code, n, features, c, h, w, grid as u32, &dx];
    // SAFETY: dx holds the maps, and the features are as many as it has cells.
    unsafe { on.launch_over("pauc_cell_mean_gradient", n / element.pack(maps.channels), args) }
}

fn cells(maps: Maps, grid: usize, features: usize) -> Result<usize> {
    let outputs = maps.batch * grid * grid * maps.channels;
    if (1..=maps.height.min(maps.width)).contains(&grid) && features >= outputs {
        return Ok(outputs);
    }
    let message = format!("{features} features of {maps:?} in {grid}×{grid} cells");
    Err(Error::Length { operation: "cell mean", message })
}
