//! Transfers from GPU to GPU with NCCL, which is loaded at its first use.
//!
//! NCCL only moves numbers here. Its own sums depend on the number of ranks and on the sizes of messages.

use crate::library::{Library, NCCL};
use crate::{Buffer, Context, Error, Result, View, ViewMut, elementwise, memory};
use cudarc::driver::sys;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::rc::Rc;

/// The id of a group. Rank 0 creates it, and all ranks need it to connect.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

/// `ncclFloat32`.
const FLOAT: c_int = 7;

type Group = *mut c_void;
type Stream = sys::CUstream;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
type InitRank = unsafe extern "C" fn(*mut Group, c_int, UniqueId, c_int) -> c_int;
type AllGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Group, Stream) -> c_int;
type Bracket = unsafe extern "C" fn() -> c_int;
type ErrorText = unsafe extern "C" fn(c_int) -> *const c_char;
type Transfer = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Group, Stream) -> c_int;

/// The functions of NCCL 2.7 and later.
#[derive(Clone, Copy, Debug)]
struct Functions {
    get_unique_id: GetUniqueId,
    init_rank: InitRank,
    all_gather: AllGather,
    send: Transfer,
    receive: Transfer,
    group_start: Bracket,
    group_end: Bracket,
    error_text: ErrorText,
}

/// Returns a function of NCCL.
macro_rules! function {
    ($name:literal: $type:ty) => {{
        let address = NCCL.address($name).ok_or_else(|| missing(concat!("it has no function ", $name)))?;
        // SAFETY: `$type` is the type of the function in `nccl.h`. Const and mutable pointers, and the
        // opaque pointers to a communicator and a stream, are passed alike.
        unsafe { std::mem::transmute::<usize, $type>(address) }
    }};
}

fn missing(problem: &str) -> Error {
    let Library { name, remedy, .. } = NCCL;
    Error::Missing { name, problem: problem.into(), remedy }
}

impl Functions {
    fn load() -> Result<Self> {
        NCCL.problem().map_or(Ok(()), |problem| Err(missing(problem)))?;
        Ok(Functions {
            get_unique_id: function!("ncclGetUniqueId": GetUniqueId),
            init_rank: function!("ncclCommInitRank": InitRank),
            all_gather: function!("ncclAllGather": AllGather),
            send: function!("ncclSend": Transfer),
            receive: function!("ncclRecv": Transfer),
            group_start: function!("ncclGroupStart": Bracket),
            group_end: function!("ncclGroupEnd": Bracket),
            error_text: function!("ncclGetErrorString": ErrorText),
        })
    }

    /// Turns a status into a result.
    fn check(&self, operation: &'static str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: for any status, NCCL returns a text that is never freed.
        let text = unsafe { CStr::from_ptr((self.error_text)(status)) };
        Err(Error::Peers { operation, message: text.to_string_lossy().into_owned() })
    }
}

/// Returns whether NCCL can be used on this machine.
pub fn is_available() -> bool {
    Functions::load().is_ok()
}

/// Returns the id of a new group. Rank 0 calls this, and sends the id to the other ranks.
///
/// # Errors
/// If NCCL is missing or fails.
pub fn unique_id() -> Result<UniqueId> {
    let functions = Functions::load()?;
    let mut id = UniqueId([0; 128]);
    // SAFETY: the function writes 128 bytes.
    functions.check("a new group", unsafe { (functions.get_unique_id)(&mut id) })?;
    Ok(id)
}

/// A group of GPUs, one for each rank. All ranks call the same operations in the same order. The operations run on the
/// device's stream.
///
/// Dropping a group does not wait for the other ranks. NCCL's memory is freed when the process ends.
#[derive(Debug)]
pub struct Peers {
    on: Rc<Context>,
    functions: Functions,
    group: Group,
    rank: usize,
    size: usize,
}

impl Peers {
    /// Connects this rank's GPU with those of the others. Waits for all of them.
    ///
    /// # Errors
    /// If NCCL is missing or fails.
    pub fn connect(on: Rc<Context>, id: UniqueId, rank: usize, size: usize) -> Result<Self> {
        let functions = Functions::load()?;
        on.device().bind_to_thread()?;
        let mut group = std::ptr::null_mut();
        // SAFETY: the function writes one pointer, to the group of the thread's current device.
        let status = unsafe { (functions.init_rank)(&mut group, size as c_int, id, rank as c_int) };
        functions.check("connecting GPUs", status)?;
        Ok(Peers { on, functions, group, rank, size })
    }

    /// Sums buffers over all ranks in a binary tree over the ranks. Each rank sums one slice; then the slices are gathered.
    /// All ranks have buffers of the same lengths.
    ///
    /// # Errors
    /// If NCCL or the device fails.
    pub fn sum(&self, buffers: &mut [Buffer]) -> Result<()> {
        let on = &*self.on;
        let slice = buffers.iter().map(Buffer::len).sum::<usize>().div_ceil(self.size);
        let mut all = Buffer::zeros(on, slice * self.size)?;
        let mut start = 0;
        for buffer in buffers.iter() {
            memory::copy(on, buffer.view(), all.view_mut().part(start, buffer.len()))?;
            start += buffer.len();
        }
        let mut slices = Buffer::uninit(on, slice * self.size)?;
        self.exchange(&all, &mut slices, slice)?;
        self.sum_by_halves(&mut slices, slice)?;
        self.all_gather(slices.view().part(0, slice), all.view_mut())?;
        start = 0;
        for buffer in buffers {
            let len = buffer.len();
            memory::copy(on, all.view().part(start, len), buffer.view_mut())?;
            start += len;
        }
        Ok(())
    }

    /// Sums slices of equal length in a binary tree, into the first of them.
    fn sum_by_halves(&self, slices: &mut Buffer, slice: usize) -> Result<()> {
        let mut distance = 1;
        while distance < self.size {
            for first in (0..self.size - distance).step_by(2 * distance) {
                let pair = slices.view_mut().part(first * slice, (distance + 1) * slice);
                let (to, summand) = pair.split_at(distance * slice);
                elementwise::add(&self.on, to.part(0, slice), 1.0, summand.as_view())?;
            }
            distance *= 2;
        }
        Ok(())
    }

    /// Sends part r of `to_each` to rank r. Part r of `from_each` comes from rank r.
    fn exchange(&self, to_each: &Buffer, from_each: &mut Buffer, part: usize) -> Result<()> {
        let functions = &self.functions;
        let own = self.rank * part;
        memory::copy(&self.on, to_each.view().part(own, part), from_each.view_mut().part(own, part))?;
        let stream = *self.on.device().cu_stream();
        // SAFETY: the function has no preconditions.
        functions.check("an exchange", unsafe { (functions.group_start)() })?;
        for peer in (0..self.size).filter(|peer| *peer != self.rank) {
            let from = to_each.view().part(peer * part, part).address() as *mut c_void;
            let to = from_each.view_mut().part(peer * part, part).address() as *mut c_void;
            // SAFETY: both have `part` elements of memory of this device, which is freed in the order of the stream. The
            // peer transfers as many.
            let status = unsafe { (functions.send)(from, part, FLOAT, peer as c_int, self.group, stream) };
            functions.check("sending", status)?;
            // SAFETY: as above.
            let status = unsafe { (functions.receive)(to, part, FLOAT, peer as c_int, self.group, stream) };
            functions.check("receiving", status)?;
        }
        // SAFETY: a group of operations was started.
        functions.check("an exchange", unsafe { (functions.group_end)() })
    }

    /// Gathers parts of equal length from all ranks, in their order.
    fn all_gather(&self, own: View<'_>, all: ViewMut<'_>) -> Result<()> {
        let (from, to) = (own.address() as *const c_void, all.address() as *mut c_void);
        let stream = *self.on.device().cu_stream();
        // SAFETY: `all` has as many parts as there are ranks, each as long as `own`, both on this device.
        let status = unsafe { (self.functions.all_gather)(from, to, own.len(), FLOAT, self.group, stream) };
        self.functions.check("gathering", status)
    }
}
