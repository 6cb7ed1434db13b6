//! Memory-mapped files: the system loads what is read, and drops it when memory is short.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// A file mapped into memory.
///
/// The file must not change while it is mapped. If it is truncated, the system ends a process that reads
/// beyond the new end. If it is written to, the values of a `&[u8]` or `&[f32]` change, which Rust forbids.
/// No system offers a mapping that other processes cannot change, so this is accepted, as by every user of
/// memmap2.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// If it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Mapped> {
        // Asked before it is opened: opening a pipe blocks until something writes to it.
        if !std::fs::metadata(path)?.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "is not a file"));
        }
        let file = File::open(path)?;
        // SAFETY: nothing in this process writes to the mapping, which is read-only. That other processes do
        // not change the file is beyond our control: the type's documentation requires it of the user.
        unsafe { memmap2::Mmap::map(&file) }.map(Mapped)
    }

    /// Returns the file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns `count` little-endian values starting at byte `offset`; `None` if the file ends before, they
    /// are not aligned to four bytes, or the processor is not little-endian.
    ///
    /// # Shapes
    /// → count
    pub fn f32s(&self, offset: usize, count: usize) -> Option<&[f32]> {
        let bytes = self.0.get(offset..offset.checked_add(count.checked_mul(4)?)?)?;
        // SAFETY: every bit pattern is a valid f32, and `align_to` returns only aligned values in the middle.
        let (before, values, after) = unsafe { bytes.align_to::<f32>() };
        (cfg!(target_endian = "little") && before.is_empty() && after.is_empty()).then_some(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_file() {
        let path = std::env::temp_dir().join(format!("pauc-mapped-{}", std::process::id()));
        let values = [1.5f32, -2.0, f32::MAX];
        let bytes: Vec<u8> =
            [9u8; 4].into_iter().chain(values.iter().flat_map(|v| v.to_le_bytes())).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        assert_eq!(mapped.bytes(), bytes);
        assert_eq!(mapped.f32s(4, 3), Some(&values[..]));
        assert_eq!((mapped.f32s(4, 4), mapped.f32s(3, 1), mapped.f32s(usize::MAX, 1)), (None, None, None));
        std::fs::remove_file(&path).unwrap();
        assert!(Mapped::open(&path).is_err() && Mapped::open(&std::env::temp_dir()).is_err());
    }
}
