//! What becomes of freed memory.

/// Asks the allocator to keep freed memory for the next step instead of handing it back to the system.
///
/// The vectors of a training step are freed and wanted again every few milliseconds. An allocator that returns their
/// pages each time makes the system clear and map them anew: on two threads a fused InfoNCE of 512 rows took half as
/// long again. Up to 128 MiB stay with the process. Does something where the allocator is glibc's, and nothing elsewhere.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` may be called at any time; it only stores numbers. A refusal leaves the defaults in force.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 20);
        // Larger blocks are mapped and returned one by one; this is the most that glibc takes.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
    }
}
