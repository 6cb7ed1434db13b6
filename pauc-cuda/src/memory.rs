//! Buffers in the device's memory.

use crate::{Context, Error, Result};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceSlice};
use dfdx::prelude::{Cuda, HasShape, ReshapeTo, Shape, Storage, Tensor, ZerosTensor};
use std::fmt::Write;
use std::marker::PhantomData;
use std::rc::Rc;

/// A matrix on dfdx's device.
pub type Matrix = Tensor<(usize, usize), f32, Cuda>;

/// Owned memory of the device: `f32`, or anything else of four bytes that a kernel makes of it.
#[derive(Debug)]
pub struct Buffer {
    /// At least one element: the driver gives no empty memory.
    slice: CudaSlice<f32>,
    len: usize,
}

/// A borrowed run of `f32` in a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    address: u64,
    len: usize,
    owner: PhantomData<&'a Buffer>,
}

/// A run of `f32` in a device's memory, borrowed to be written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    address: u64,
    len: usize,
    owner: PhantomData<&'a mut Buffer>,
}

impl Buffer {
    /// Memory of any content.
    ///
    /// # Errors
    /// If the device has not enough.
    pub fn any(on: &Context, len: usize) -> Result<Self> {
        // SAFETY: every bit pattern is an f32; whoever asked for memory of any content writes it before it is read.
        let slice = unsafe { on.device().alloc::<f32>(len.max(1)) }?;
        Ok(Buffer { slice, len })
    }

    /// Zeros.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn zeros(on: &Context, len: usize) -> Result<Self> {
        Ok(Buffer { slice: on.device().alloc_zeros(len.max(1))?, len })
    }

    /// A copy of host memory.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn from_host(on: &Context, values: &[f32]) -> Result<Self> {
        let mut new = Buffer::any(on, values.len())?;
        new.overwrite(values)?;
        Ok(new)
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address on the device.
    pub fn address(&self) -> u64 {
        *self.slice.device_ptr()
    }

    /// What belongs to the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn context(&self) -> Result<Rc<Context>> {
        Context::at(&self.slice.device())
    }

    /// Replaces the content.
    ///
    /// # Errors
    /// If there are not as many values, or the device fails.
    pub fn overwrite(&mut self, values: &[f32]) -> Result<()> {
        if values.len() != self.len {
            let message = format!("{} values for a buffer of {}", values.len(), self.len);
            return Err(Error::Length { operation: "overwrite", message });
        }
        // SAFETY: there are as many values.
        unsafe { self.context()?.copy_in(&[values], self.address()) }
    }

    /// Sets every element to zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&mut self) -> Result<()> {
        Ok(self.slice.device().memset_zeros(&mut self.slice)?)
    }

    /// A copy in host memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        self.view().to_host(&*self.context()?)
    }

    /// The whole buffer, borrowed.
    pub fn view(&self) -> View<'_> {
        View { address: self.address(), len: self.len, owner: PhantomData }
    }

    /// The whole buffer, borrowed to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { address: self.address(), len: self.len, owner: PhantomData }
    }

    /// Its first half and the rest, borrowed to be written.
    pub fn halves_mut(&mut self) -> (ViewMut<'_>, ViewMut<'_>) {
        let half = self.len / 2;
        (ViewMut::of(self, 0, half), ViewMut::of(self, half, self.len - half))
    }
}

impl<'a> View<'a> {
    /// Some elements from one on; as many of them as there are.
    pub fn part(self, from: usize, len: usize) -> View<'a> {
        let from = from.min(self.len);
        View {
            address: self.address + (from * size_of::<f32>()) as u64,
            len: len.min(self.len - from),
            ..self
        }
    }

    /// The first elements; all of them if there are not so many.
    pub fn first(self, len: usize) -> View<'a> {
        View { len: len.min(self.len), ..self }
    }
}

impl View<'_> {
    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy in host memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self, on: &Context) -> Result<Vec<f32>> {
        // SAFETY: the run has as many elements.
        unsafe { on.copy_out(self.address, self.len) }
    }
}

impl<'a> ViewMut<'a> {
    /// Some elements from one on of memory that only work on the device's stream reads and writes, one after the other.
    pub(crate) fn of(buffer: &'a Buffer, from: usize, len: usize) -> Self {
        let View { address, len, .. } = buffer.view().part(from, len);
        ViewMut { address, len, owner: PhantomData }
    }

    /// Some elements of a new tensor, which nobody shares yet.
    pub(crate) fn part_of<S: Shape>(
        tensor: &'a Tensor<S, f32, Cuda>,
        from: usize,
        len: usize,
    ) -> Result<Self> {
        let all = View { address: address(tensor)?, len: tensor.shape().num_elements(), owner: PhantomData };
        let View { address, len, .. } = all.part(from, len);
        Ok(ViewMut { address, len, owner: PhantomData })
    }
}

impl ViewMut<'_> {
    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Where a tensor's elements lie. dfdx 0.13 keeps this to itself, but for its `Debug` output, which is read up to the
/// address and no further.
///
/// # Errors
/// If the output does not have it.
fn address<S: Shape, T>(of: &Tensor<S, f32, Cuda, T>) -> Result<u64>
where
    Tensor<S, f32, Cuda, T>: std::fmt::Debug,
{
    const BEFORE: &str = "cu_device_ptr: ";
    struct Reader {
        text: String,
        found: Option<u64>,
    }
    impl Write for Reader {
        fn write_str(&mut self, part: &str) -> std::fmt::Result {
            self.text.push_str(part);
            let Some(at) = self.text.find(BEFORE) else { return Ok(()) };
            let digits = &self.text[at + BEFORE.len()..];
            let Some(end) = digits.find(|c: char| !c.is_ascii_digit()) else { return Ok(()) };
            self.found = digits[..end].parse().ok();
            // Enough: an error ends the output.
            Err(std::fmt::Error)
        }
    }
    let mut reader = Reader { text: String::new(), found: None };
    let _ = write!(reader, "{of:?}");
    reader.found.ok_or(Error::Address)
}

/// A tensor whose elements lie one after the other, so that kernels can read them.
#[derive(Debug)]
pub struct Dense<S: Shape> {
    tensor: Tensor<S, f32, Cuda>,
    address: u64,
}

impl<S: Shape> Dense<S> {
    /// Of any tensor; one that is permuted or repeated is written out.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(tensor: Tensor<S, f32, Cuda>) -> Result<Self> {
        let tensor = tensor.try_contiguous()?;
        let address = address(&tensor)?;
        Ok(Dense { tensor, address })
    }

    /// The elements.
    pub fn view(&self) -> View<'_> {
        View { address: self.address, len: self.tensor.shape().num_elements(), owner: PhantomData }
    }
}

/// Whether a tensor's elements lie one after the other, as those of its gradient then do too.
pub fn is_dense<S: Shape>(tensor: &Tensor<S, f32, Cuda>) -> bool {
    let written_out = tensor.clone().try_contiguous().map(|t| address(&t).ok());
    written_out.is_ok_and(|there| there.is_some() && there == address(tensor).ok())
}

/// A tensor with a copy of a run's elements.
///
/// # Errors
/// If there are not as many, or the device fails.
pub fn to_tensor<S: Shape>(on: &Cuda, from: View<'_>, shape: S) -> Result<Tensor<S, f32, Cuda>> {
    if shape.num_elements() != from.len {
        let message = format!("{} values for a tensor of {shape:?}", from.len);
        return Err(Error::Length { operation: "tensor", message });
    }
    let new: Tensor<S, f32, Cuda> = on.try_zeros_like(&shape)?;
    crate::elementwise::copy(&*Context::of(on)?, from, ViewMut::part_of(&new, 0, from.len)?)?;
    Ok(new)
}

/// Some rows of a matrix.
///
/// # Errors
/// If there are not so many rows, or the device fails.
pub fn rows(on: &Cuda, of: &Matrix, range: std::ops::Range<usize>) -> Result<Matrix> {
    let (all, cols) = *of.shape();
    if range.start > range.end || range.end > all {
        return Err(Error::Length { operation: "rows", message: format!("{range:?} of {all}") });
    }
    let dense = Dense::new(of.clone())?;
    to_tensor(on, dense.view().part(range.start * cols, range.len() * cols), (range.len(), cols))
}

/// Matrices of one shape below each other, zeros in the place of those that are absent.
///
/// # Errors
/// If a shape differs, or the device fails.
pub fn stacked(on: &Cuda, parts: &[Option<&Matrix>], (rows, cols): (usize, usize)) -> Result<Matrix> {
    let new: Matrix = on.try_zeros_like(&(parts.len() * rows, cols))?;
    for (i, part) in parts.iter().enumerate() {
        let Some(part) = part else { continue };
        let dense = Dense::new((*part).clone())?;
        let to = ViewMut::part_of(&new, i * rows * cols, rows * cols)?;
        crate::elementwise::copy(&*Context::of(on)?, dense.view(), to)?;
    }
    Ok(new)
}

/// Overwrites rows of a matrix in place, also for those who share it.
///
/// # Errors
/// If the rows do not end within the matrix, it is permuted or repeated, or the device fails.
pub fn replace_rows(on: &Cuda, of: &Matrix, from: usize, rows: &[f32]) -> Result<()> {
    let (all, cols) = *of.shape();
    if cols == 0 || !rows.len().is_multiple_of(cols) || from * cols + rows.len() > all * cols {
        let message = format!("{} values from row {from} on in {all}×{cols}", rows.len());
        return Err(Error::Length { operation: "replace rows", message });
    }
    if !is_dense(of) {
        let message = "the matrix is permuted or repeated".to_string();
        return Err(Error::Length { operation: "replace rows", message });
    }
    let context = Context::of(on)?;
    let new = Buffer::from_host(&context, rows)?;
    let at = address(of)? + (from * cols * size_of::<f32>()) as u64;
    crate::elementwise::copy(
        &context,
        new.view(),
        ViewMut { address: at, len: rows.len(), owner: PhantomData },
    )
}

/// A run's elements in memory of their own.
///
/// # Errors
/// If the device fails.
pub fn copy_of(on: &Context, from: View<'_>) -> Result<Buffer> {
    let mut new = Buffer::any(on, from.len)?;
    crate::elementwise::copy(on, from, new.view_mut())?;
    Ok(new)
}

/// A tensor's elements in row-major order, in host memory.
///
/// # Errors
/// If the device fails.
pub fn to_host<S: Shape>(of: &Tensor<S, f32, Cuda>) -> Result<Vec<f32>> {
    Dense::new(of.clone())?.view().to_host(&*Context::of(of.device())?)
}

/// A gradient, as dfdx stores it.
pub fn gradient(of: &<Cuda as Storage<f32>>::Vec) -> View<'_> {
    View { address: *of.device_ptr(), len: of.len(), owner: PhantomData }
}

/// A copy of a gradient, as dfdx stores it.
///
/// # Errors
/// If the device fails.
pub fn taken(of: &<Cuda as Storage<f32>>::Vec) -> Result<Buffer> {
    copy_of(&*Context::at(&of.device())?, gradient(of))
}

/// A gradient, as dfdx stores it, to add to.
pub fn gradient_mut(of: &mut <Cuda as Storage<f32>>::Vec) -> ViewMut<'_> {
    ViewMut { address: *of.device_ptr(), len: of.len(), owner: PhantomData }
}
