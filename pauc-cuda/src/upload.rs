//! Host values on their way to the device and back, through host memory that it reads and writes by itself; and images, which go up in
//! 8 bits and are normalised there.

use crate::memory::ViewMut;
use crate::{Context, Error, Result, args};
use cudarc::driver::{DevicePtr, result, sys};
use dfdx::prelude::{Cuda, Tensor, ZerosTensor};
use std::ffi::c_void;

/// Bytes that are copied at a time: on the way up by a thread each, on the way down one piece while the next is on its way.
const PIECE: usize = 1 << 20;

/// Host memory that the driver has pinned, and the event after which the device is done with it.
#[derive(Debug)]
struct Pinned {
    start: *mut u8,
    len: usize,
    done: sys::CUevent,
}

impl Pinned {
    fn new(len: usize) -> Result<Self> {
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: the driver writes the address of so many bytes, or fails.
        unsafe { sys::cuMemHostAlloc(&mut start, len.max(1), 0) }.result()?;
        let done = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        Ok(Pinned { start: start.cast(), len, done })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: nobody else has the memory or the event, and the device is done with the memory once the event has passed.
        // There is nobody to tell of a failure.
        unsafe {
            let _ = sys::cuEventSynchronize(self.done).result();
            let _ = result::event::destroy(self.done);
            let _ = sys::cuMemFreeHost(self.start.cast()).result();
        }
    }
}

/// Bytes that go up through pinned memory at most.
pub(crate) const MOST: usize = 64 << 20;

/// Places that copies one way take turns in: one is filled while others are read.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    places: [Option<Pinned>; 4],
    next: usize,
}

impl Stage {
    /// A place for so many bytes that the device is done with.
    fn place(&mut self, len: usize) -> Result<&mut Pinned> {
        self.next = (self.next + 1) % self.places.len();
        let place = &mut self.places[self.next];
        match place {
            // SAFETY: the event exists. One that was never recorded has passed.
            Some(there) if there.len >= len => unsafe { sys::cuEventSynchronize(there.done) }.result()?,
            _ => *place = None,
        }
        match place {
            Some(there) => Ok(there),
            None => Ok(place.insert(Pinned::new(len)?)),
        }
    }

    /// Copies runs of bytes to one place on the device, one after the other, without waiting for it. They are read before this
    /// returns.
    ///
    /// # Safety
    /// There is room for all of them.
    pub(crate) unsafe fn send(&mut self, runs: &[&[u8]], to: u64, stream: sys::CUstream) -> Result<()> {
        let n = runs.iter().map(|r| r.len()).sum();
        if n == 0 {
            return Ok(());
        }
        let place = self.place(n)?;
        // SAFETY: the place has at least so many bytes, and the device has read what was there.
        let host = unsafe { std::slice::from_raw_parts_mut(place.start, n) };
        let mut rest = &mut *host;
        for run in runs {
            let (here, after) = rest.split_at_mut(run.len());
            pauc_kernels::threads::copy(run, here, PIECE);
            rest = after;
        }
        // SAFETY: there is room, and the place is left alone until the event has passed.
        unsafe {
            result::memcpy_htod_async(to, host, stream)?;
            Ok(result::event::record(place.done, stream)?)
        }
    }

    /// Waits for bytes of the device and hands them over, a piece at a time.
    ///
    /// # Safety
    /// There are as many, written by work on the stream.
    pub(crate) unsafe fn receive(
        &mut self,
        from: u64,
        len: usize,
        stream: sys::CUstream,
        mut take: impl FnMut(&[u8]),
    ) -> Result<()> {
        let mut asked: Option<(&[u8], sys::CUevent)> = None;
        for at in (0..len).step_by(PIECE) {
            let place = self.place(PIECE)?;
            // SAFETY: the place has as many bytes, the device is done with what was there, and it is taken again only after three
            // more.
            let host = unsafe { std::slice::from_raw_parts_mut(place.start, PIECE.min(len - at)) };
            // SAFETY: there are as many bytes on the device, and nobody reads the place until the event has passed.
            unsafe {
                result::memcpy_dtoh_async(host, from + at as u64, stream)?;
                result::event::record(place.done, stream)?;
            }
            if let Some(before) = asked.replace((host, place.done)) {
                hand_over(before, &mut take)?;
            }
        }
        asked.map_or(Ok(()), |last| hand_over(last, &mut take))
    }
}

/// Waits until the device has written a piece.
fn hand_over((piece, done): (&[u8], sys::CUevent), take: &mut impl FnMut(&[u8])) -> Result<()> {
    // SAFETY: the event exists.
    unsafe { sys::cuEventSynchronize(done) }.result()?;
    take(piece);
    Ok(())
}

/// 8-bit values, and the factor and shift of each of their channels.
pub type Bytes<'a> = (&'a [u8], &'a [(f32, f32)]);

/// (N, H, W, C).
type Images = Tensor<(usize, usize, usize, usize), f32, Cuda>;

/// Images from runs of 8-bit values, which are uploaded without waiting for the device.
///
/// # Errors
/// If they are not as many values as the shape has, or the device fails.
pub fn images(device: &Cuda, runs: &[Bytes<'_>], shape: (usize, usize, usize, usize)) -> Result<Images> {
    let on = Context::of(device)?;
    let (n, channels) = (runs.iter().map(|r| r.0.len()).sum::<usize>(), shape.3);
    let fits = |(values, normal): &Bytes<'_>| {
        normal.len() == channels && values.len().is_multiple_of(channels.max(1))
    };
    if n != shape.0 * shape.1 * shape.2 * channels || n == 0 || channels > 4 || !runs.iter().all(fits) {
        let message = format!("{n} values in {} runs for {shape:?}", runs.len());
        return Err(Error::Length { operation: "images", message });
    }
    // SAFETY: every bit pattern is a byte, and all are written before they are read.
    let bytes = unsafe { on.device().alloc::<u8>(n) }?;
    // SAFETY: there is room for n bytes.
    unsafe { on.copy_in(&runs.iter().map(|r| r.0).collect::<Vec<_>>(), *bytes.device_ptr()) }?;
    let new: Images = device.try_zeros_like(&shape)?;
    let mut from = 0;
    for (values, normal) in runs {
        let channel = |c: usize| normal.get(c).copied().unwrap_or_default();
        let [(f0, s0), (f1, s1), (f2, s2), (f3, s3)] = std::array::from_fn(channel);
        let (n, to) = (values.len(), ViewMut::part_of(&new, from, values.len())?);
        let at = *bytes.device_ptr() + from as u64;
        let args = args![n, channels as u32, at, f0, s0, f1, s1, f2, s2, f3, s3, to];
        // SAFETY: both runs have n values.
        unsafe { on.launch_over("pauc_normalise", n, args) }?;
        from += n;
    }
    Ok(new)
}
