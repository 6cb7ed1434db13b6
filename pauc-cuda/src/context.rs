//! What belongs to one device: its kernels, compiled, and the handles of libraries.

use crate::conv::{Dnn, Math};
use crate::kernels::FILES;
use crate::upload::{self, Stage};
use crate::{Error, Result};
use cudarc::cublas::CudaBlas;
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{CudaDevice, CudaSlice, DevicePtr, DeviceRepr, DeviceSlice, result, sys};
use dfdx::prelude::{Cuda, Storage};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;
use std::sync::Arc;

/// Threads of a block, on every GPU.
pub const THREADS: u32 = 256;
/// On a device that takes fewer a block: an emulated one, where each costs time.
const FEW_THREADS: u32 = 64;

/// A device's kernels and handles. One for each device and thread.
#[derive(Debug)]
pub struct Context {
    device: Arc<CudaDevice>,
    threads: u32,
    /// Blocks that keep every multiprocessor busy.
    enough_blocks: usize,
    functions: RefCell<HashMap<&'static str, sys::CUfunction>>,
    blas: OnceCell<CudaBlas>,
    dnn: OnceCell<Rc<Dnn>>,
    math: Cell<Math>,
    up: RefCell<Stage>,
    down: RefCell<Stage>,
}

thread_local! {
    static ALL: RefCell<Vec<Rc<Context>>> = const { RefCell::new(Vec::new()) };
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// An address on the device.
    Address(u64),
    /// A number of elements, `size_t` in the kernel.
    Count(u64),
    /// `unsigned`.
    U32(u32),
    /// `float`.
    F32(f32),
}

impl Arg {
    fn pointer(&mut self) -> *mut c_void {
        match self {
            Arg::Address(v) | Arg::Count(v) => std::ptr::from_mut(v).cast(),
            Arg::U32(v) => std::ptr::from_mut(v).cast(),
            Arg::F32(v) => std::ptr::from_mut(v).cast(),
        }
    }
}

impl From<&crate::Buffer> for Arg {
    fn from(b: &crate::Buffer) -> Self {
        Arg::Address(b.address())
    }
}

impl From<&mut crate::Buffer> for Arg {
    fn from(b: &mut crate::Buffer) -> Self {
        Arg::Address(b.address())
    }
}

impl From<crate::View<'_>> for Arg {
    fn from(v: crate::View<'_>) -> Self {
        Arg::Address(v.address())
    }
}

impl From<crate::memory::ViewMut<'_>> for Arg {
    fn from(v: crate::memory::ViewMut<'_>) -> Self {
        Arg::Address(v.address())
    }
}

impl From<u64> for Arg {
    fn from(address: u64) -> Self {
        Arg::Address(address)
    }
}

impl From<usize> for Arg {
    fn from(count: usize) -> Self {
        Arg::Count(count as u64)
    }
}

impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Arg::U32(v)
    }
}

impl From<bool> for Arg {
    fn from(v: bool) -> Self {
        Arg::U32(v.into())
    }
}

impl From<f32> for Arg {
    fn from(v: f32) -> Self {
        Arg::F32(v)
    }
}

/// The arguments of a kernel from whatever they are made of.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &mut [$($crate::context::Arg::from($arg)),*] };
}

impl Context {
    /// The context of dfdx's device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn of(device: &Cuda) -> Result<Rc<Self>> {
        // dfdx shows its device on every buffer that it makes.
        Self::at(&<Cuda as Storage<f32>>::try_alloc_len(device, 1)?.device())
    }

    /// The context of cudarc's device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn at(device: &Arc<CudaDevice>) -> Result<Rc<Self>> {
        let known = |all: &RefCell<Vec<Rc<Context>>>| {
            all.borrow().iter().find(|c| Arc::ptr_eq(&c.device, device)).cloned()
        };
        if let Some(found) = ALL.with(known) {
            return Ok(found);
        }
        device.bind_to_thread()?;
        let most = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let threads = if most < THREADS as i32 { FEW_THREADS } else { THREADS };
        let processors = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let (device, functions) = (device.clone(), RefCell::default());
        let new = Rc::new(Context {
            device,
            threads,
            enough_blocks: 8 * processors.max(1) as usize,
            functions,
            blas: OnceCell::new(),
            dnn: OnceCell::new(),
            math: Cell::default(),
            up: RefCell::default(),
            down: RefCell::default(),
        });
        ALL.with(|all| all.borrow_mut().push(new.clone()));
        Ok(new)
    }

    /// cudarc's device.
    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// Threads of a block: a power of two.
    pub(crate) fn threads(&self) -> usize {
        self.threads as usize
    }

    /// Blocks that keep every multiprocessor busy, for kernels whose blocks go through much each.
    pub(crate) fn enough_blocks(&self) -> usize {
        self.enough_blocks
    }

    /// A copy of host values in memory of their own.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        // SAFETY: all of the memory is written before it is read, or there is nothing to read.
        let new = unsafe { self.device.alloc::<T>(values.len().max(1)) }?;
        // SAFETY: there is room.
        unsafe { self.copy_in(&[values], *new.device_ptr()) }?;
        Ok(new)
    }

    /// Copies runs of host values to one place on the device, one after the other. They are read before this returns; the device
    /// need not have come so far, unless they are too many for pinned memory.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// There is room for all of them.
    pub(crate) unsafe fn copy_in<T: DeviceRepr>(&self, runs: &[&[T]], to: u64) -> Result<()> {
        self.device.bind_to_thread()?;
        // SAFETY: what a device can represent has no padding and may be read byte by byte.
        let bytes = |v: &[T]| unsafe { std::slice::from_raw_parts(v.as_ptr().cast::<u8>(), size_of_val(v)) };
        let stream = *self.device.cu_stream();
        let mut at = to;
        if runs.iter().map(|v| size_of_val(*v)).sum::<usize>() <= upload::MOST {
            let runs: Vec<&[u8]> = runs.iter().map(|v| bytes(v)).collect();
            // SAFETY: there is room.
            return unsafe { self.up.borrow_mut().send(&runs, to, stream) };
        }
        for values in runs {
            // SAFETY: there is room, and the values stay until the device has read them.
            unsafe { result::memcpy_htod_async(at, values, stream) }?;
            at += size_of_val(*values) as u64;
        }
        Ok(self.device.synchronize()?)
    }

    /// A copy in host memory, once the device has come so far.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn download<T: DeviceRepr + Copy>(&self, values: &CudaSlice<T>) -> Result<Vec<T>> {
        // SAFETY: so many are there.
        unsafe { self.copy_out(*values.device_ptr(), values.len()) }
    }

    /// As [`Context::download`], of values that lie at an address.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// There are as many.
    pub(crate) unsafe fn copy_out<T: DeviceRepr + Copy>(&self, from: u64, len: usize) -> Result<Vec<T>> {
        self.device.bind_to_thread()?;
        let mut out: Vec<T> = Vec::with_capacity(len);
        let take = |piece: &[u8]| {
            // SAFETY: they are values of the device's, whole ones, since pieces are of a multiple of their size, and pinned memory
            // begins at a multiple of a page's.
            out.extend_from_slice(unsafe {
                std::slice::from_raw_parts(piece.as_ptr().cast::<T>(), piece.len() / size_of::<T>())
            });
        };
        let stream = *self.device.cu_stream();
        // SAFETY: as the caller answers for.
        unsafe { self.down.borrow_mut().receive(from, len * size_of::<T>(), stream, take) }?;
        Ok(out)
    }

    /// cuBLAS on the device's stream.
    ///
    /// # Errors
    /// If the library does not start.
    pub fn blas(&self) -> Result<&CudaBlas> {
        if self.blas.get().is_none() {
            let new = CudaBlas::new(self.device.clone())?;
            let _ = self.blas.set(new);
            self.set_math(self.math.get())?;
        }
        self.blas.get().ok_or(Error::Address)
    }

    /// How convolutions and products that are set up from now on are rounded; those of dfdx have their own handle and stay.
    pub fn math(&self) -> Math {
        self.math.get()
    }

    /// Sets how convolutions that are set up from now on, and all products, are rounded.
    ///
    /// # Errors
    /// If cuBLAS does not take it.
    pub fn set_math(&self, math: Math) -> Result<()> {
        use cudarc::cublas::sys::{cublasMath_t, cublasSetMathMode};
        self.math.set(math);
        let mode = match math {
            Math::F32 => cublasMath_t::CUBLAS_DEFAULT_MATH,
            Math::Tf32 | Math::Bf16 => cublasMath_t::CUBLAS_TF32_TENSOR_OP_MATH,
        };
        if let Some(blas) = self.blas.get() {
            // SAFETY: the handle is this context's own.
            unsafe { cublasSetMathMode(*blas.handle(), mode) }.result()?;
        }
        Ok(())
    }

    /// Does something with products in `f32`, whatever [`Context::math`] says.
    ///
    /// # Errors
    /// If cuBLAS does not take it, and those of what is done.
    pub fn in_f32<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.in_math(Math::F32, work)
    }

    /// Does something with products that are rounded in some way, whatever [`Context::math`] says.
    pub(crate) fn in_math<T>(&self, math: Math, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.math();
        self.set_math(math)?;
        let done = work();
        self.set_math(before)?;
        done
    }

    /// cuDNN on the device's stream.
    ///
    /// # Errors
    /// If the library is missing or does not start.
    pub fn dnn(&self) -> Result<Rc<Dnn>> {
        if self.dnn.get().is_none() {
            let new = Rc::new(Dnn::new(self)?);
            let _ = self.dnn.set(new);
        }
        self.dnn.get().cloned().ok_or(Error::Address)
    }

    /// Whether tensor cores take `f32`, of which they read eleven digits. An emulated device is taken for one whose cores do.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn has_tf32(&self) -> Result<bool> {
        let major = self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok(major >= 8 || self.threads < THREADS)
    }

    /// Lets the driver keep freed memory for what comes next, instead of giving it back at every synchronisation.
    pub(crate) fn keep_memory(&self) -> Result<()> {
        if self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Ok(());
        }
        // SAFETY: the device is one that the driver gave, and the attribute is a 64-bit number.
        unsafe {
            let mut pool = std::ptr::null_mut();
            sys::cuDeviceGetDefaultMemPool(&mut pool, *self.device.cu_device()).result()?;
            let mut keep = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            Ok(sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut keep).cast()).result()?)
        }
    }

    /// Starts a kernel with `blocks` blocks.
    ///
    /// # Errors
    /// If it does not compile or start.
    ///
    /// # Safety
    /// The arguments are those that the kernel declares, and it stays within the memory that they name.
    pub(crate) unsafe fn launch(&self, kernel: &'static str, blocks: usize, args: &mut [Arg]) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        let function = self.function(kernel)?;
        let grid = u32::try_from(blocks).map_err(|_| Error::Length {
            operation: kernel,
            message: format!("{blocks} blocks are more than a grid can have"),
        })?;
        let mut pointers: Vec<*mut c_void> = args.iter_mut().map(Arg::pointer).collect();
        let (grid, block) = ((grid, 1, 1), (self.threads, 1, 1));
        // SAFETY: the function is one of a module that is never unloaded; the rest is what the caller answers for.
        Ok(unsafe {
            result::launch_kernel(function, grid, block, 0, *self.device.cu_stream(), &mut pointers)
        }?)
    }

    /// As [`Context::launch`], with a thread for each of `n` elements, or several elements a thread where there are more
    /// than a grid of moderate size has threads.
    ///
    /// # Safety
    /// As [`Context::launch`].
    pub(crate) unsafe fn launch_over(&self, kernel: &'static str, n: usize, args: &mut [Arg]) -> Result<()> {
        // SAFETY: as the caller answers for.
        unsafe { self.launch(kernel, n.div_ceil(self.threads as usize).min(1 << 16), args) }
    }

    fn function(&self, kernel: &'static str) -> Result<sys::CUfunction> {
        if let Some(found) = self.functions.borrow().get(kernel) {
            return Ok(*found);
        }
        let missing = |file, message: &str| Error::Compile { file, message: message.into() };
        let file = FILES.iter().find(|f| f.has(kernel));
        let file = file.ok_or_else(|| missing(kernel, "no file has a kernel of this name"))?;
        let major = self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let code = CString::new(file.compiled((major, minor))?);
        let code = code.map_err(|_| missing(file.name, "the compiled text has a zero in it"))?;
        self.device.bind_to_thread()?;
        // SAFETY: the text ends with a zero, and stays until it is loaded.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) }?;
        let mut functions = self.functions.borrow_mut();
        for name in file.names() {
            let text = CString::new(name).map_err(|_| missing(file.name, "a name has a zero in it"))?;
            // SAFETY: the module was loaded, and stays so.
            functions.insert(name, unsafe { result::module::get_function(module, text) }?);
        }
        Ok(functions[kernel])
    }
}
