//! Pinned host memory, through which values are copied to and from the device without the driver's own
//! staging copy.

use crate::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// Bytes per piece of a copy. For uploads, one thread copies a piece into pinned memory; for downloads, one
/// piece is in flight while the previous one is read.
const PIECE: usize = 1 << 20;

/// Larger uploads bypass pinned memory.
pub(crate) const MAX_STAGED: usize = 64 << 20;

/// Pinned host memory, and the event after which the device no longer uses it.
#[derive(Debug)]
struct Pinned {
    start: *mut u8,
    len: usize,
    done: sys::CUevent,
}

impl Pinned {
    fn new(len: usize) -> Result<Self> {
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: `start` outlives the call, which either writes the address of at least `len` bytes to it or
        // fails.
        unsafe { sys::cuMemHostAlloc(&mut start, len.max(1), 0) }.result()?;
        let done = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        Ok(Pinned { start: start.cast(), len, done })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: memory and event were created in `new` and belong to `self` alone. After the event, the
        // device has finished with the memory. `drop` cannot report failures.
        unsafe {
            let _ = sys::cuEventSynchronize(self.done).result();
            let _ = result::event::destroy(self.done);
            let _ = sys::cuMemFreeHost(self.start.cast()).result();
        }
    }
}

/// Pinned buffers that copies in one direction use in turn: one is filled while others are in flight.
#[derive(Debug, Default)]
pub(crate) struct StagingRing {
    places: [Option<Pinned>; 4],
    next: usize,
}

impl StagingRing {
    /// Returns the next buffer, of at least `len` bytes, once the device has finished with it.
    fn next_place(&mut self, len: usize) -> Result<&mut Pinned> {
        self.next = (self.next + 1) % self.places.len();
        let place = &mut self.places[self.next];
        match place {
            // SAFETY: the event lives as long as its buffer. Waiting for an event that was never recorded
            // returns at once.
            Some(pinned) if pinned.len >= len => unsafe { sys::cuEventSynchronize(pinned.done) }.result()?,
            _ => *place = None,
        }
        match place {
            Some(pinned) => Ok(pinned),
            None => Ok(place.insert(Pinned::new(len)?)),
        }
    }

    /// Copies the runs, one after the other, to `to` on the device, without waiting for it. All host memory
    /// has been read when this returns.
    ///
    /// # Safety
    /// Device memory at `to` is valid for writes of all runs' bytes, in stream order.
    pub(crate) unsafe fn send(&mut self, runs: &[&[u8]], to: u64, stream: sys::CUstream) -> Result<()> {
        let n = runs.iter().map(|r| r.len()).sum();
        if n == 0 {
            return Ok(());
        }
        let place = self.next_place(n)?;
        // SAFETY: `next_place` returned at least n bytes that the device no longer uses, borrowed mutably
        // through `self`.
        let host = unsafe { std::slice::from_raw_parts_mut(place.start, n) };
        let mut unfilled = &mut *host;
        for run in runs {
            let (target, rest) = unfilled.split_at_mut(run.len());
            pauc_kernels::threads::copy(run, target, PIECE);
            unfilled = rest;
        }
        // SAFETY: the caller guarantees the target. The source is not written again until `next_place` has
        // waited for the event.
        unsafe {
            result::memcpy_htod_async(to, host, stream)?;
            Ok(result::event::record(place.done, stream)?)
        }
    }

    /// Waits for `len` bytes of device memory and passes them to `take` piece by piece.
    ///
    /// # Safety
    /// Device memory at `from` is valid for reads of `len` bytes, in stream order.
    pub(crate) unsafe fn receive(
        &mut self,
        from: u64,
        len: usize,
        stream: sys::CUstream,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut in_flight: Option<(&[u8], sys::CUevent)> = None;
        for offset in (0..len).step_by(PIECE) {
            let place = self.next_place(PIECE)?;
            // SAFETY: `next_place` returned at least PIECE bytes that the device no longer uses. At most two
            // of the four buffers are in flight, so this one is not reused before `hand_over` has read it.
            let host = unsafe { std::slice::from_raw_parts_mut(place.start, PIECE.min(len - offset)) };
            // SAFETY: the caller guarantees the source. The target is read only after `hand_over` has waited
            // for the event.
            unsafe {
                result::memcpy_dtoh_async(host, from + offset as u64, stream)?;
                result::event::record(place.done, stream)?;
            }
            if let Some(before) = in_flight.replace((host, place.done)) {
                hand_over(before, &mut take)?;
            }
        }
        in_flight.map_or(Ok(()), |last| hand_over(last, &mut take))
    }
}

/// Waits until the device has written a piece, then passes it on.
fn hand_over((piece, done): (&[u8], sys::CUevent), take: &mut impl FnMut(&[u8])) -> Result<()> {
    // SAFETY: the event belongs to a buffer of the calling ring, which is alive.
    unsafe { sys::cuEventSynchronize(done) }.result()?;
    take(piece);
    Ok(())
}
