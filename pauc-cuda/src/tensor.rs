//! dfdx's tensors as memory for kernels.

use crate::dfdx_compat::address;
use crate::memory::copy;
use crate::{Buffer, Context, Error, Result, View, ViewMut};
use cudarc::driver::{DevicePtr, DeviceSlice};
use dfdx::prelude::{Cuda, HasShape, ReshapeTo, Shape, Storage, Tensor, ZerosTensor};
use std::ops::Range;

/// A matrix on dfdx's device.
pub type Matrix = Tensor<(usize, usize), f32, Cuda>;

/// The gradient of a tensor, as dfdx stores it.
type Gradient = <Cuda as Storage<f32>>::Vec;

/// A tensor whose elements are contiguous and in row-major order, so that kernels can read them.
#[derive(Debug)]
pub struct Contiguous<S: Shape> {
    tensor: Tensor<S, f32, Cuda>,
    address: u64,
}

impl<S: Shape> Contiguous<S> {
    /// Keeps the tensor, or copies it if it is permuted or broadcast.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(tensor: Tensor<S, f32, Cuda>) -> Result<Self> {
        let tensor = tensor.try_contiguous()?;
        let address = address(&tensor)?;
        Ok(Contiguous { tensor, address })
    }

    /// Borrows the elements.
    pub fn view(&self) -> View<'_> {
        // SAFETY: `tensor` keeps its memory alive. It is contiguous, so it has an element for each index of
        // its shape.
        unsafe { View::from_raw_parts(self.address, self.tensor.shape().num_elements()) }
    }
}

/// Returns whether a tensor's elements are contiguous. Those of its gradient then are, too.
pub fn is_contiguous<S: Shape>(tensor: &Tensor<S, f32, Cuda>) -> bool {
    let contiguous = tensor.clone().try_contiguous().map(|t| address(&t).ok());
    contiguous.is_ok_and(|copied| copied.is_some() && copied == address(tensor).ok())
}

/// Borrows the elements of a new, unshared tensor.
pub(crate) fn new_elements_mut<S: Shape>(tensor: &mut Tensor<S, f32, Cuda>) -> Result<ViewMut<'_>> {
    // SAFETY: callers pass tensors from `try_zeros_like`. These are contiguous, so there is an element for
    // each index of the shape. `tensor` keeps its memory alive and is borrowed mutably.
    Ok(unsafe { ViewMut::from_raw_parts(address(tensor)?, tensor.shape().num_elements()) })
}

/// Copies the elements into a new tensor.
///
/// # Errors
/// If their number is not that of the shape, or the device fails.
pub fn to_tensor<S: Shape>(device: &Cuda, from: View<'_>, shape: S) -> Result<Tensor<S, f32, Cuda>> {
    if shape.num_elements() != from.len() {
        let message = format!("{} values for a tensor of {shape:?}", from.len());
        return Err(Error::Length { operation: "tensor", message });
    }
    let mut new: Tensor<S, f32, Cuda> = device.try_zeros_like(&shape)?;
    copy(&*Context::of(device)?, from, new_elements_mut(&mut new)?)?;
    Ok(new)
}

/// Copies a range of rows of a matrix.
///
/// # Errors
/// If the range ends after the last row, or the device fails.
pub fn rows(device: &Cuda, matrix: &Matrix, range: Range<usize>) -> Result<Matrix> {
    let (all, cols) = *matrix.shape();
    if range.start > range.end || range.end > all {
        return Err(Error::Length { operation: "rows", message: format!("{range:?} of {all}") });
    }
    let contiguous = Contiguous::new(matrix.clone())?;
    let some = contiguous.view().part(range.start * cols, range.len() * cols);
    to_tensor(device, some, (range.len(), cols))
}

/// Stacks matrices of one shape, with zeros in place of absent ones.
///
/// # Errors
/// If a shape differs, or the device fails.
pub fn stacked(device: &Cuda, parts: &[Option<&Matrix>], (rows, cols): (usize, usize)) -> Result<Matrix> {
    let mut new: Matrix = device.try_zeros_like(&(parts.len() * rows, cols))?;
    for (i, part) in parts.iter().enumerate() {
        let Some(part) = part else { continue };
        let part = Contiguous::new((*part).clone())?;
        let to = new_elements_mut(&mut new)?.part(i * rows * cols, rows * cols);
        copy(&*Context::of(device)?, part.view(), to)?;
    }
    Ok(new)
}

/// Overwrites rows of a matrix in place. Tensors that share its memory change, too.
///
/// # Errors
/// If the rows do not fit into the matrix, it is permuted or broadcast, or the device fails.
pub fn replace_rows(device: &Cuda, matrix: &Matrix, from: usize, rows: &[f32]) -> Result<()> {
    const OPERATION: &str = "replace rows";
    let (all, cols) = *matrix.shape();
    if cols == 0 || !rows.len().is_multiple_of(cols) || from * cols + rows.len() > all * cols {
        let message = format!("{} values do not fit at row {from} of {all}×{cols}", rows.len());
        return Err(Error::Length { operation: OPERATION, message });
    }
    if !is_contiguous(matrix) {
        let message = "the matrix is permuted or broadcast".to_string();
        return Err(Error::Length { operation: OPERATION, message });
    }
    let on = Context::of(device)?;
    let new = Buffer::from_host(&on, rows)?;
    let start = address(matrix)? + (from * cols * size_of::<f32>()) as u64;
    // SAFETY: the matrix is contiguous and the rows end within it, as checked. Tensors that share it are read
    // and written in stream order, like here.
    let to = unsafe { ViewMut::from_raw_parts(start, rows.len()) };
    copy(&on, new.view(), to)
}

/// Copies a tensor's elements to host memory, in row-major order.
///
/// # Errors
/// If the device fails.
pub fn to_host<S: Shape>(tensor: &Tensor<S, f32, Cuda>) -> Result<Vec<f32>> {
    Contiguous::new(tensor.clone())?.view().to_host(&*Context::of(tensor.device())?)
}

/// Borrows a gradient's elements.
pub fn gradient(gradient: &Gradient) -> View<'_> {
    // SAFETY: `gradient` owns `gradient.len()` elements and is borrowed as long as the view lives.
    unsafe { View::from_raw_parts(*gradient.device_ptr(), gradient.len()) }
}

/// Copies a gradient's elements.
///
/// # Errors
/// If the device fails.
pub fn gradient_copy(from: &Gradient) -> Result<Buffer> {
    Buffer::copy_of(&*Context::at(&from.device())?, gradient(from))
}

/// Borrows a gradient's elements mutably, to accumulate into them.
pub fn gradient_mut(gradient: &mut Gradient) -> ViewMut<'_> {
    // SAFETY: `gradient` owns `gradient.len()` elements and is mutably borrowed as long as the view lives.
    unsafe { ViewMut::from_raw_parts(*gradient.device_ptr(), gradient.len()) }
}
