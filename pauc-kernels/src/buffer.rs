//! Buffers of `f32` aligned to cache lines, and scratch memory that is kept for later tasks.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// One cache line. Its alignment is that of a [`Buffer`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A fixed number of `f32`, aligned to 64 bytes, initially zero.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// Allocates `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Buffer { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// Makes room for at least `len` values. If that needs new memory, all values are zero.
    pub fn grow(&mut self, len: usize) {
        if self.len < len {
            *self = Buffer::zeros(len);
        }
    }

    /// Copies `values`.
    ///
    /// # Shapes
    /// n values → n values
    pub fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Buffer::zeros(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} values)", self.len)
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` consecutive, initialized `f32` (`Line` is `repr(C)` without padding).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as for `deref`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that its thread keeps for the next task once this one drops it.
pub(crate) struct Scratch {
    buffer: Buffer,
    len: usize,
}

/// Returns a buffer of `len` values with unspecified contents.
pub(crate) fn scratch(len: usize) -> Scratch {
    let reused = SCRATCH.with_borrow_mut(|buffers| {
        let best = (0..buffers.len()).filter(|i| buffers[*i].len >= len).min_by_key(|i| buffers[*i].len);
        // If none is large enough, drop the smallest to make room.
        let smallest = (0..buffers.len()).min_by_key(|i| buffers[*i].len).filter(|_| buffers.len() >= 4);
        best.or(smallest).map(|i| buffers.swap_remove(i))
    });
    Scratch { buffer: reused.filter(|b| b.len >= len).unwrap_or_else(|| Buffer::zeros(len)), len }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.with_borrow_mut(|buffers| buffers.push(std::mem::take(&mut self.buffer)));
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let b = Buffer::zeros(len);
            assert_eq!((b.as_ptr() as usize % 64, b.len(), b.iter().sum::<f32>()), (0, len, 0.0));
        }
    }

    #[test]
    fn scratch_is_reused_and_never_shared() {
        let first = scratch(100).as_ptr();
        let (mut a, b) = (scratch(90), scratch(90));
        assert!([a.as_ptr(), b.as_ptr()].contains(&first));
        let before = b.to_vec();
        a.fill(7.0);
        assert_eq!(*b, *before);
    }
}
