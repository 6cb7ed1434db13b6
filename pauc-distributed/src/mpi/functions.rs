//! The functions of an MPI library, for handles of any type.

use crate::{CommunicationError, Result};
use std::ffi::{c_char, c_int, c_void};

/// A handle of an ABI in which handles are pointers. It names an object of the library.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Pointer(pub *mut c_void);

// SAFETY: the pointer is only passed back to the library, by the one thread that may call it.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

/// What this crate calls. Callers must keep lengths below 2³¹.
pub trait Calls: Send + Sync + std::fmt::Debug {
    /// Returns what the library says of itself.
    fn version(&self) -> String;
    /// Initializes MPI for calls from this thread, with errors that are returned, and returns rank and size.
    fn start(&self) -> Result<(usize, usize)>;
    /// `all` has room for `own` of every rank.
    fn all_gather(&self, own: &[u8], all: &mut [u8], size: usize) -> Result<()>;
    /// Both have `size` equal parts.
    fn exchange(&self, to_each: &[u8], from_each: &mut [u8], size: usize) -> Result<()>;
    /// Both have the same length. Sends to the first rank and receives from the second.
    fn shift(&self, to: &[u8], from: &mut [u8], ranks: (usize, usize)) -> Result<()>;
    fn broadcast(&self, bytes: &mut [u8], from: usize) -> Result<()>;
    fn barrier(&self) -> Result<()>;
    fn abort(&self, code: c_int);
    fn finalize(&self) -> Result<()>;
}

/// Room for an `MPI_Status`, which has at most 32 bytes in the three ABIs.
#[repr(align(16))]
struct Status {
    _room: [u8; 64],
}

type SendReceive<H> = unsafe extern "C" fn(
    *const c_void,
    c_int,
    H,
    c_int,
    c_int,
    *mut c_void,
    c_int,
    H,
    c_int,
    c_int,
    H,
    *mut Status,
) -> c_int;
type Gather<H> = unsafe extern "C" fn(*const c_void, c_int, H, *mut c_void, c_int, H, H) -> c_int;

/// The functions of a library and its constants, with handles of type `H`.
pub struct Functions<H> {
    /// `MPI_THREAD_FUNNELED`.
    funneled: c_int,
    world: H,
    byte: H,
    errors_return: H,
    version: unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int,
    init: unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int,
    set_error_handler: unsafe extern "C" fn(H, H) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    rank: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    size: unsafe extern "C" fn(H, *mut c_int) -> c_int,
    all_gather: Gather<H>,
    all_to_all: Gather<H>,
    send_receive: SendReceive<H>,
    broadcast: unsafe extern "C" fn(*mut c_void, c_int, H, c_int, H) -> c_int,
    barrier: unsafe extern "C" fn(H) -> c_int,
    abort: unsafe extern "C" fn(H, c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
}

impl<H> std::fmt::Debug for Functions<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Functions").finish_non_exhaustive()
    }
}

/// Returns a function of the library.
fn function<F: Copy>(library: &'static libloading::Library, name: &str) -> Result<F, String> {
    // SAFETY: `F` is the type that the MPI standard gives this function, with this ABI's handles. The library
    // stays loaded.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|f| *f).map_err(|e| format!("{name}: {e}"))
}

impl<H: Copy + Send + Sync + 'static> Functions<H> {
    /// Finds the functions in a library with these constants.
    pub fn find(
        library: &'static libloading::Library,
        funneled: c_int,
        world: H,
        byte: H,
        errors_return: H,
    ) -> Result<Box<dyn Calls>, String> {
        Ok(Box::new(Functions {
            funneled,
            world,
            byte,
            errors_return,
            version: function(library, "MPI_Get_library_version")?,
            init: function(library, "MPI_Init_thread")?,
            set_error_handler: function(library, "MPI_Comm_set_errhandler")?,
            error_string: function(library, "MPI_Error_string")?,
            rank: function(library, "MPI_Comm_rank")?,
            size: function(library, "MPI_Comm_size")?,
            all_gather: function(library, "MPI_Allgather")?,
            all_to_all: function(library, "MPI_Alltoall")?,
            send_receive: function(library, "MPI_Sendrecv")?,
            broadcast: function(library, "MPI_Bcast")?,
            barrier: function(library, "MPI_Barrier")?,
            abort: function(library, "MPI_Abort")?,
            finalize: function(library, "MPI_Finalize")?,
        }))
    }

    /// Turns a function's result into an error with the library's message.
    fn check(&self, function: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the buffer is longer than any library's MPI_MAX_ERROR_STRING, which is at most 1024.
        let message = text(4096, |text, len| unsafe { (self.error_string)(code, text, len) });
        let message = if message.is_empty() { format!("error {code}") } else { message };
        Err(CommunicationError::Mpi { function, message })
    }
}

/// Returns the text that a function writes into a buffer of this size.
fn text(room: usize, write: impl FnOnce(*mut c_char, *mut c_int) -> c_int) -> String {
    let (mut buffer, mut len) = (vec![0u8; room], 0);
    if write(buffer.as_mut_ptr().cast(), &mut len) != 0 {
        return String::new();
    }
    String::from_utf8_lossy(&buffer[..usize::try_from(len).unwrap_or(0).min(room)]).into_owned()
}

/// Returns a length as MPI counts; callers move pieces of fewer bytes.
fn count(bytes: usize) -> c_int {
    c_int::try_from(bytes).unwrap_or_else(|_| panic!("{bytes} bytes in one call of MPI"))
}

impl<H: Copy + Send + Sync + 'static> Calls for Functions<H> {
    fn version(&self) -> String {
        // SAFETY: the buffer is longer than any library's MPI_MAX_LIBRARY_VERSION_STRING, at most 8192. MPI allows
        // this call at any time.
        text(16384, |text, len| unsafe { (self.version)(text, len) })
    }

    fn start(&self) -> Result<(usize, usize)> {
        let (mut provided, mut rank, mut size) = (0, 0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: MPI allows null for the arguments of `main`. The caller initializes once.
        let code = unsafe { (self.init)(none, none.cast(), self.funneled, &mut provided) };
        self.check("MPI_Init_thread", code)?;
        if provided < self.funneled {
            let message = "the library does not support processes with several threads".into();
            return Err(CommunicationError::Mpi { function: "MPI_Init_thread", message });
        }
        // SAFETY: MPI is initialized, and the handles are those of this ABI.
        self.check("MPI_Comm_set_errhandler", unsafe {
            (self.set_error_handler)(self.world, self.errors_return)
        })?;
        // SAFETY: as above.
        self.check("MPI_Comm_rank", unsafe { (self.rank)(self.world, &mut rank) })?;
        // SAFETY: as above.
        self.check("MPI_Comm_size", unsafe { (self.size)(self.world, &mut size) })?;
        // MPI's ranks and sizes are not negative.
        Ok((rank as usize, size as usize))
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8], size: usize) -> Result<()> {
        assert_eq!(all.len(), own.len() * size);
        let n = count(own.len());
        let (from, to) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        // SAFETY: `all` has room for n bytes of each of the communicator's `size` ranks.
        let code = unsafe { (self.all_gather)(from, n, self.byte, to, n, self.byte, self.world) };
        self.check("MPI_Allgather", code)
    }

    fn exchange(&self, to_each: &[u8], from_each: &mut [u8], size: usize) -> Result<()> {
        assert!(to_each.len() == from_each.len() && to_each.len().is_multiple_of(size));
        let n = count(to_each.len() / size);
        let (from, to) = (to_each.as_ptr().cast(), from_each.as_mut_ptr().cast());
        // SAFETY: both have n bytes for each of the communicator's `size` ranks.
        let code = unsafe { (self.all_to_all)(from, n, self.byte, to, n, self.byte, self.world) };
        self.check("MPI_Alltoall", code)
    }

    fn shift(&self, to: &[u8], from: &mut [u8], (next, previous): (usize, usize)) -> Result<()> {
        assert_eq!(to.len(), from.len());
        let (n, byte, world) = (count(to.len()), self.byte, self.world);
        let (next, previous) = (count(next), count(previous));
        let (to, from, mut status) =
            (to.as_ptr().cast(), from.as_mut_ptr().cast(), Status { _room: [0; 64] });
        // SAFETY: both have n bytes, and all ranks send and receive as many. `status` has room for an MPI_Status.
        let code = unsafe {
            (self.send_receive)(to, n, byte, next, 0, from, n, byte, previous, 0, world, &mut status)
        };
        self.check("MPI_Sendrecv", code)
    }

    fn broadcast(&self, bytes: &mut [u8], from: usize) -> Result<()> {
        let (to, n, from) = (bytes.as_mut_ptr().cast(), count(bytes.len()), count(from));
        // SAFETY: `bytes` has n bytes. A rank that does not exist is an error of the library.
        let code = unsafe { (self.broadcast)(to, n, self.byte, from, self.world) };
        self.check("MPI_Bcast", code)
    }

    fn barrier(&self) -> Result<()> {
        // SAFETY: MPI is initialized; the handle is that of this ABI.
        self.check("MPI_Barrier", unsafe { (self.barrier)(self.world) })
    }

    fn abort(&self, code: c_int) {
        // SAFETY: as above.
        unsafe { (self.abort)(self.world, code) };
    }

    fn finalize(&self) -> Result<()> {
        // SAFETY: MPI is initialized, and nothing is called after this.
        self.check("MPI_Finalize", unsafe { (self.finalize)() })
    }
}
