//! The memory allocator: its settings, and what happens if the system has no memory left.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks the allocator to keep freed memory instead of returning it to the system.
///
/// The vectors of a training step are freed and allocated again every few milliseconds. If the allocator
/// returns their pages each time, the system has to clear and map them again: on two threads, a fused InfoNCE
/// of 512 rows took 1.5 times as long. Up to 128 MiB stay with the process. Only has an effect with glibc's
/// allocator.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` may be called at any time and only stores numbers. If it fails, the defaults apply.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 20);
        // Larger blocks are mapped and returned one by one. This is glibc's maximum.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
    }
}

/// Whether an allocation has failed in this process.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// The system's allocator, which remembers a failure for [`exit_without_memory`].
#[derive(Debug)]
pub struct Allocator;

fn remember(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        REFUSED.store(true, Ordering::Relaxed);
    }
    block
}

// SAFETY: every call is passed to the system's allocator as it is, and so is the result.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        remember(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        remember(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        remember(unsafe { System.realloc(block, layout, size) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Makes a process whose global allocator is [`Allocator`] end with exit code 1 and a message if it gets no memory.
/// Rust would end it with SIGABRT, which looks like a fault of the program. An abort for any other reason stays one.
pub fn exit_without_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: all zeros is a valid `sigaction`, `end` only makes calls that are allowed in a handler of signals, and
    // the handler's type is the one that a `sigaction` without SA_SIGINFO has. If it fails, the default stays.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = end as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGABRT, &action, std::ptr::null_mut());
    }
}

/// The handler of SIGABRT. If it returns, the process aborts.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
extern "C" fn end(_: libc::c_int) {
    const MESSAGE: &str = "error: no memory is left for this process\n\
        end other processes, raise its limit (`ulimit -v`), or lower what the recipe needs: `pauc-cli explain` \
        lists it; a run can be resumed from its last checkpoint\n";
    if REFUSED.load(Ordering::Relaxed) {
        // SAFETY: both may be called in a handler of signals, and the message has this address and length.
        unsafe {
            libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(1);
        }
    }
}
