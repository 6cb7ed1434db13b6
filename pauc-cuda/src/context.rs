//! The kernels and library handles of one device.

use crate::kernel_args::Arg;
use crate::kernels::{self, FILES};
use crate::staging::{MAX_STAGED, StagingRing};
use crate::{Error, Precision, Result, cudnn, dfdx_compat};
use cudarc::cublas::CudaBlas;
use cudarc::cublas::sys::{cublasHandle_t, cublasMath_t, cublasSetMathMode};
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{CudaDevice, CudaSlice, DevicePtr, DeviceRepr, DeviceSlice, result, sys};
use dfdx::prelude::Cuda;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;
use std::sync::Arc;

/// Threads per block on a GPU.
pub const THREADS: u32 = 256;
/// Threads per block on a device that supports fewer: the emulated one, where every thread costs time.
const EMULATED_THREADS: u32 = 64;

/// A device's kernels and library handles. There is one context per device and host thread.
#[derive(Debug)]
pub struct Context {
    device: Arc<CudaDevice>,
    threads: u32,
    /// Enough blocks to keep every multiprocessor busy.
    enough_blocks: usize,
    functions: RefCell<HashMap<&'static str, sys::CUfunction>>,
    blas: OnceCell<Blas>,
    dnn: OnceCell<Rc<cudnn::Handle>>,
    uploads: RefCell<StagingRing>,
    downloads: RefCell<StagingRing>,
}

/// cuBLAS, and the math mode last set on its handle.
#[derive(Debug)]
struct Blas {
    library: CudaBlas,
    mode: Cell<Option<cublasMath_t>>,
}

impl Blas {
    fn new(device: &Arc<CudaDevice>) -> Result<Self> {
        Ok(Blas { library: CudaBlas::new(device.clone())?, mode: Cell::new(None) })
    }

    /// Sets whether cuBLAS may use TF32.
    fn set_mode(&self, precision: Precision) -> Result<()> {
        let mode = match precision {
            Precision::F32 => cublasMath_t::CUBLAS_DEFAULT_MATH,
            Precision::Tf32 | Precision::Bf16 => cublasMath_t::CUBLAS_TF32_TENSOR_OP_MATH,
        };
        if self.mode.get() != Some(mode) {
            // SAFETY: `library` keeps its handle alive.
            unsafe { cublasSetMathMode(*self.library.handle(), mode) }.result()?;
            self.mode.set(Some(mode));
        }
        Ok(())
    }
}

thread_local! {
    /// A cache: kernels are compiled and library handles created once per device and thread. A context holds
    /// no state that affects results.
    static ALL: RefCell<Vec<Rc<Context>>> = const { RefCell::new(Vec::new()) };
}

/// Returns the value of a cell; initializes it first if needed.
fn get_or_try_init<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

impl Context {
    /// Returns the context of dfdx's device.
    ///
    /// # Errors
    /// If the device fails, or dfdx is not the version this crate was written for.
    pub fn of(device: &Cuda) -> Result<Rc<Self>> {
        let raw = dfdx_compat::device(device)?;
        if let Some(context) = Self::existing(&raw) {
            return Ok(context);
        }
        let new = Self::new(&raw)?;
        dfdx_compat::check(device, &new)?;
        Ok(new.remembered())
    }

    /// Returns the context of cudarc's device.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn at(device: &Arc<CudaDevice>) -> Result<Rc<Self>> {
        match Self::existing(device) {
            Some(context) => Ok(context),
            None => Ok(Self::new(device)?.remembered()),
        }
    }

    /// Returns this thread's context of a device, if it exists.
    fn existing(device: &Arc<CudaDevice>) -> Option<Rc<Self>> {
        ALL.with_borrow(|all| all.iter().find(|context| Arc::ptr_eq(&context.device, device)).cloned())
    }

    fn new(device: &Arc<CudaDevice>) -> Result<Self> {
        device.bind_to_thread()?;
        let max_threads = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let threads = if max_threads < THREADS as i32 { EMULATED_THREADS } else { THREADS };
        let processors = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(Context {
            device: device.clone(),
            threads,
            enough_blocks: 8 * processors.max(1) as usize,
            functions: RefCell::default(),
            blas: OnceCell::new(),
            dnn: OnceCell::new(),
            uploads: RefCell::default(),
            downloads: RefCell::default(),
        })
    }

    /// Caches this context for its device on this thread.
    fn remembered(self) -> Rc<Self> {
        let context = Rc::new(self);
        ALL.with_borrow_mut(|all| all.push(context.clone()));
        context
    }

    /// Returns cudarc's device.
    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// Returns the number of threads per block, a power of two.
    pub(crate) fn threads(&self) -> usize {
        self.threads as usize
    }

    /// Returns a number of blocks that keeps every multiprocessor busy, for kernels whose blocks loop over
    /// many elements.
    pub(crate) fn enough_blocks(&self) -> usize {
        self.enough_blocks
    }

    /// Copies host values into new device memory.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        // SAFETY: `copy_in` below writes all elements. Without values, the one allocated element is never read.
        let new = unsafe { self.device.alloc::<T>(values.len().max(1)) }?;
        // SAFETY: `new` was allocated with at least `values.len()` elements.
        unsafe { self.copy_in(&[values], *new.device_ptr()) }?;
        Ok(new)
    }

    /// Copies the runs, one after the other, to `to` on the device. All host memory has been read when this
    /// returns. Waits for the device only if the runs are too large for pinned memory.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// Device memory at `to` is valid for writes of all runs' elements.
    pub(crate) unsafe fn copy_in<T: DeviceRepr>(&self, runs: &[&[T]], to: u64) -> Result<()> {
        self.device.bind_to_thread()?;
        let stream = *self.device.cu_stream();
        if runs.iter().map(|v| size_of_val(*v)).sum::<usize>() <= MAX_STAGED {
            // SAFETY: the bytes are those of a live slice. `DeviceRepr` types are plain numbers without
            // padding.
            let bytes =
                |v: &&[T]| unsafe { std::slice::from_raw_parts(v.as_ptr().cast::<u8>(), size_of_val(*v)) };
            let runs: Vec<&[u8]> = runs.iter().map(bytes).collect();
            // SAFETY: the caller guarantees the target, and the runs have as many bytes as before.
            return unsafe { self.uploads.borrow_mut().send(&runs, to, stream) };
        }
        let mut target = to;
        for values in runs {
            // SAFETY: the caller guarantees the target. `synchronize` below returns only after the device has
            // read the values.
            unsafe { result::memcpy_htod_async(target, values, stream) }?;
            target += size_of_val(*values) as u64;
        }
        Ok(self.device.synchronize()?)
    }

    /// Copies values to host memory. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn download<T: DeviceRepr + Copy>(&self, values: &CudaSlice<T>) -> Result<Vec<T>> {
        // SAFETY: address and length describe live memory, which every writer in this crate initializes.
        unsafe { self.copy_out(*values.device_ptr(), values.len()) }
    }

    /// Like [`Context::download`], for `len` values at an address.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Safety
    /// Device memory at `from` is valid for reads of `len` values of type `T`.
    pub(crate) unsafe fn copy_out<T: DeviceRepr + Copy>(&self, from: u64, len: usize) -> Result<Vec<T>> {
        self.device.bind_to_thread()?;
        let mut values: Vec<T> = Vec::with_capacity(len);
        let take = |piece: &[u8]| {
            // SAFETY: by the caller's guarantee, the bytes are values of type T. `StagingRing` passes pieces
            // whose size is a power of two, so no value straddles two pieces. They are in pinned memory,
            // which is page-aligned.
            values.extend_from_slice(unsafe {
                std::slice::from_raw_parts(piece.as_ptr().cast::<T>(), piece.len() / size_of::<T>())
            });
        };
        let stream = *self.device.cu_stream();
        // SAFETY: the caller guarantees the source.
        unsafe { self.downloads.borrow_mut().receive(from, len * size_of::<T>(), stream, take) }?;
        Ok(values)
    }

    /// Returns cuBLAS on the device's stream, for products rounded to `precision`.
    ///
    /// The precision is a mode of the library's handle, so the returned handle is valid only until the next
    /// call of this function. dfdx has its own handle, which computes in `f32`.
    ///
    /// # Errors
    /// If the library does not start.
    pub(crate) fn blas(&self, precision: Precision) -> Result<cublasHandle_t> {
        let blas = get_or_try_init(&self.blas, || Blas::new(&self.device))?;
        blas.set_mode(precision)?;
        Ok(*blas.library.handle())
    }

    /// Returns cuDNN on the device's stream.
    ///
    /// # Errors
    /// If the library is missing or does not start.
    pub fn dnn(&self) -> Result<Rc<cudnn::Handle>> {
        get_or_try_init(&self.dnn, || Ok(Rc::new(cudnn::Handle::new(&self.device)?))).cloned()
    }

    /// Returns whether tensor cores accept `f32`, of which they read 11 mantissa bits (TF32). The emulated
    /// device counts as if they did.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn has_tf32(&self) -> Result<bool> {
        let major = self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok(major >= 8 || self.threads < THREADS)
    }

    /// Lets the driver keep freed memory for later allocations instead of returning it to the system at every
    /// synchronization.
    pub(crate) fn keep_memory(&self) -> Result<()> {
        if self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Ok(());
        }
        // SAFETY: cudarc got the device from the driver. The attribute is a 64-bit number, and `keep`
        // outlives the call.
        unsafe {
            let mut pool = std::ptr::null_mut();
            sys::cuDeviceGetDefaultMemPool(&mut pool, *self.device.cu_device()).result()?;
            let mut keep = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            Ok(sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut keep).cast()).result()?)
        }
    }

    /// Launches a kernel with `blocks` blocks.
    ///
    /// # Errors
    /// If the kernel does not compile or start. With debug assertions, also if the arguments do not match the
    /// kernel's parameters.
    ///
    /// # Safety
    /// The arguments match the kernel's parameters in number, kind and order, and with them the kernel stays
    /// within their memory.
    pub(crate) unsafe fn launch(&self, kernel: &'static str, blocks: usize, args: &[Arg<'_>]) -> Result<()> {
        if cfg!(debug_assertions) {
            kernels::check(kernel, args)?;
        }
        if blocks == 0 {
            return Ok(());
        }
        let function = self.function(kernel)?;
        let grid = u32::try_from(blocks).map_err(|_| Error::Length {
            operation: kernel,
            message: format!("too many blocks for one grid: {blocks}"),
        })?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let (grid, block) = ((grid, 1, 1), (self.threads, 1, 1));
        // SAFETY: `function` belongs to a module that is never unloaded, and the stream belongs to this
        // device. The driver copies the arguments before the call returns. The caller guarantees what the
        // kernel does with them.
        Ok(unsafe {
            result::launch_kernel(function, grid, block, 0, *self.device.cu_stream(), &mut pointers)
        }?)
    }

    /// Like [`Context::launch`], with one thread per element. Above 2¹⁶ blocks, each thread loops over
    /// several elements.
    ///
    /// # Errors
    /// As [`Context::launch`].
    ///
    /// # Safety
    /// As [`Context::launch`].
    pub(crate) unsafe fn launch_over(&self, kernel: &'static str, n: usize, args: &[Arg<'_>]) -> Result<()> {
        // SAFETY: the caller upholds the contract of `launch`.
        unsafe { self.launch(kernel, n.div_ceil(self.threads as usize).min(1 << 16), args) }
    }

    fn function(&self, kernel: &'static str) -> Result<sys::CUfunction> {
        if let Some(function) = self.functions.borrow().get(kernel) {
            return Ok(*function);
        }
        let failure = |file, message: &str| Error::Compile { file, message: message.into() };
        let file = FILES.iter().find(|f| f.names().any(|name| name == kernel));
        let file = file.ok_or_else(|| failure(kernel, "no file has a kernel of this name"))?;
        let major = self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let ptx = CString::new(file.compiled((major, minor))?);
        let ptx = ptx.map_err(|_| failure(file.name, "the compiled text contains a NUL"))?;
        self.device.bind_to_thread()?;
        // SAFETY: the text ends with a NUL and outlives the call.
        let module = unsafe { result::module::load_data(ptx.as_ptr().cast()) }?;
        let mut functions = self.functions.borrow_mut();
        for name in file.names() {
            let text = CString::new(name).map_err(|_| failure(file.name, "a name contains a NUL"))?;
            // SAFETY: the module was just loaded and is never unloaded.
            functions.insert(name, unsafe { result::module::get_function(module, text) }?);
        }
        functions
            .get(kernel)
            .copied()
            .ok_or(Error::Internal("a file's names include the kernel it was found by"))
    }
}
