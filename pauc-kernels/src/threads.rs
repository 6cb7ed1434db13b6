//! Work in fixed portions.
//!
//! How work is cut never depends on the number of threads, and sums over portions are taken in the order of the
//! portions. So the bits of a result do not depend on how many threads there are; rayon decides only who does what.

use rayon::prelude::*;

/// Calls `work` for each portion 0..n, on as many threads as the current rayon pool has.
pub fn for_each(n: usize, work: impl Fn(usize) + Sync + Send) {
    if n == 1 {
        return work(0);
    }
    if rayon::current_num_threads() == 1 {
        // Handing over to a pool of one thread only costs the time to wake it.
        return (0..n).for_each(work);
    }
    (0..n).into_par_iter().with_max_len(1).for_each(work);
}

/// Does work of several parallel steps on a thread of the current rayon pool: a thread from outside hands over and is
/// woken once, not at each step.
pub(crate) fn inside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if rayon::current_thread_index().is_some() { work() } else { rayon::scope(|_| work()) }
}

/// The range of portion `i` when `total` is cut into `parts` of nearly equal size.
pub fn portion(total: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    let (size, more) = (total / parts, total % parts);
    let start = i * size + i.min(more);
    start..start + size + usize::from(i < more)
}

/// A slice that several threads write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` only hands out pointers; whoever writes through them answers for disjointness.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// A pointer to element `i`, which may be the end.
    #[inline(always)]
    pub(crate) fn at(self, i: usize) -> *mut T {
        debug_assert!(i <= self.len, "{i} of {}", self.len);
        // SAFETY: `i` is within the slice or at its end.
        unsafe { self.start.add(i) }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other thread may use the part meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn part(self, range: std::ops::Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_cover_everything_once() {
        for total in 0..40 {
            for parts in 1..9 {
                let all: Vec<usize> = (0..parts).flat_map(|i| portion(total, parts, i)).collect();
                assert_eq!(all, (0..total).collect::<Vec<_>>());
            }
        }
    }
}
