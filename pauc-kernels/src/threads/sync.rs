//! What a team needs of the standard library. `tests/team.rs` puts loom's in its place, which explores the
//! interleavings.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::atomic::AtomicU64;
pub(super) use std::thread::yield_now;
pub(super) use std::thread_local;

/// A cell with the interface of loom's, which checks each access.
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    pub(super) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    pub(super) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}
