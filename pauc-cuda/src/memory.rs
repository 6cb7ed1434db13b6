//! Buffers in device memory.

use crate::kernel_args::{In, Out, Pointee, Readable, Writable, args};
use crate::{Context, Error, Result, same_length};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::marker::PhantomData;
use std::rc::Rc;

/// Owned device memory.
#[derive(Debug)]
pub struct Buffer {
    /// At least one element: the driver does not allocate empty memory.
    slice: CudaSlice<f32>,
    len: usize,
}

/// A borrowed slice of `f32` in device memory.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    address: u64,
    len: usize,
    owner: PhantomData<&'a Buffer>,
}

/// A mutably borrowed slice of `f32` in device memory.
#[derive(Debug)]
pub struct ViewMut<'a> {
    address: u64,
    len: usize,
    owner: PhantomData<&'a mut Buffer>,
}

/// The accessors that borrowed slices share, whether they are read or written.
macro_rules! run_accessors {
    ($($run:ident),*) => { $(
        impl $run<'_> {
            /// Returns the address on the device.
            pub(crate) fn address(&self) -> u64 {
                self.address
            }

            /// Returns the number of elements.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Returns whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }
        }
    )* };
}
pub(crate) use run_accessors;

run_accessors!(View, ViewMut);

impl Buffer {
    /// Allocates uninitialized memory. The caller writes it before reading it.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn uninit(on: &Context, len: usize) -> Result<Self> {
        // SAFETY: every bit pattern is a valid f32.
        let slice = unsafe { on.device().alloc::<f32>(len.max(1)) }?;
        Ok(Buffer { slice, len })
    }

    /// Allocates zeros.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn zeros(on: &Context, len: usize) -> Result<Self> {
        Ok(Buffer { slice: on.device().alloc_zeros(len.max(1))?, len })
    }

    /// Copies host memory.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn from_host(on: &Context, values: &[f32]) -> Result<Self> {
        let mut new = Buffer::uninit(on, values.len())?;
        new.overwrite(values)?;
        Ok(new)
    }

    /// Copies device memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn copy_of(on: &Context, from: View<'_>) -> Result<Self> {
        let mut new = Buffer::uninit(on, from.len)?;
        copy(on, from, new.view_mut())?;
        Ok(new)
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address on the device.
    pub(crate) fn address(&self) -> u64 {
        *self.slice.device_ptr()
    }

    /// Returns the context of the buffer's device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn context(&self) -> Result<Rc<Context>> {
        Context::at(&self.slice.device())
    }

    /// Replaces the contents.
    ///
    /// # Errors
    /// If the number of values differs, or the device fails.
    pub fn overwrite(&mut self, values: &[f32]) -> Result<()> {
        if values.len() != self.len {
            let message = format!("got {} values for a buffer of {}", values.len(), self.len);
            return Err(Error::Length { operation: "overwrite", message });
        }
        // SAFETY: the buffer has at least `self.len` elements, and there are as many values.
        unsafe { self.context()?.copy_in(&[values], self.address()) }
    }

    /// Sets every element to zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn clear(&mut self) -> Result<()> {
        Ok(self.slice.device().memset_zeros(&mut self.slice)?)
    }

    /// Copies the elements to host memory. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        self.view().to_host(&*self.context()?)
    }

    /// Borrows the whole buffer.
    pub fn view(&self) -> View<'_> {
        View { address: self.address(), len: self.len, owner: PhantomData }
    }

    /// Borrows the whole buffer mutably.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { address: self.address(), len: self.len, owner: PhantomData }
    }

    /// Borrows the first half and the rest mutably.
    pub fn split_in_half_mut(&mut self) -> (ViewMut<'_>, ViewMut<'_>) {
        let ViewMut { address, len, owner } = self.view_mut();
        let half = len / 2;
        let second = address + (half * size_of::<f32>()) as u64;
        (ViewMut { address, len: half, owner }, ViewMut { address: second, len: len - half, owner })
    }
}

impl<'a> View<'a> {
    /// Creates a view of `len` elements at an address.
    ///
    /// # Safety
    /// For the lifetime `'a`, device memory at `address` is valid for reads of `len` elements, in stream
    /// order.
    pub(crate) unsafe fn from_raw_parts(address: u64, len: usize) -> Self {
        View { address, len, owner: PhantomData }
    }

    /// Returns up to `len` elements starting at `from`; fewer if the view ends before.
    pub fn part(self, from: usize, len: usize) -> View<'a> {
        let from = from.min(self.len);
        View {
            address: self.address + (from * size_of::<f32>()) as u64,
            len: len.min(self.len - from),
            ..self
        }
    }

    /// Returns up to the first `len` elements; fewer if the view is shorter.
    pub fn first(self, len: usize) -> View<'a> {
        View { len: len.min(self.len), ..self }
    }
}

impl View<'_> {
    /// Copies the elements to host memory. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self, on: &Context) -> Result<Vec<f32>> {
        // SAFETY: a view borrows `len` elements of live memory, as `from_raw_parts` requires.
        unsafe { on.copy_out(self.address, self.len) }
    }
}

impl<'a> ViewMut<'a> {
    /// Creates a mutable view of `len` elements at an address.
    ///
    /// # Safety
    /// For the lifetime `'a`, device memory at `address` is valid for writes of `len` elements, in stream
    /// order.
    pub(crate) unsafe fn from_raw_parts(address: u64, len: usize) -> Self {
        ViewMut { address, len, owner: PhantomData }
    }

    /// Returns up to `len` elements starting at `from`; fewer if the view ends before.
    pub(crate) fn part(self, from: usize, len: usize) -> ViewMut<'a> {
        let View { address, len, .. } = self.as_view().part(from, len);
        ViewMut { address, len, owner: PhantomData }
    }

    /// Splits the view into the elements before `at` and those from `at` on.
    pub(crate) fn split_at(self, at: usize) -> (ViewMut<'a>, ViewMut<'a>) {
        let [first, rest] = [self.as_view().part(0, at), self.as_view().part(at, self.len)];
        let of = |View { address, len, .. }: View<'_>| ViewMut { address, len, owner: PhantomData };
        (of(first), of(rest))
    }
}

impl ViewMut<'_> {
    /// Borrows the same elements for reading.
    pub(crate) fn as_view(&self) -> View<'_> {
        View { address: self.address, len: self.len, owner: PhantomData }
    }
}

/// `to ← from`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn copy(on: &Context, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    let n = same_length("copy", &[from.len(), to.len()])?;
    // SAFETY: `same_length` has checked that both have n elements.
    unsafe { on.launch_over("pauc_copy", n, args![n, In(from), Out(to)]) }
}

/// Memory of `f32` as a kernel argument.
macro_rules! kernel_memory {
    ($($side:ident for $memory:ty => $address:expr;)*) => { $(
        impl $side for $memory {
            fn address(&self) -> u64 {
                $address(self)
            }
            fn pointee(&self) -> Pointee {
                Pointee::F32
            }
        }
    )* };
}
kernel_memory! {
    Readable for &Buffer => Buffer::address;
    Readable for View<'_> => View::address;
    Writable for &mut Buffer => Buffer::address;
    Writable for ViewMut<'_> => ViewMut::address;
}
