//! Files that are there whole or not at all.

use pauc_traits::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file whole: under a temporary name beside it, synced, then renamed.
///
/// # Errors
/// If the disk refuses; a file that was there before is then untouched.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0); // threads of one process write side by side
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{name}.{}.{count}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        // The temporary file is of no use to anybody; a failure to remove it changes nothing.
        let _ = fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_failure_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::create_dir(folder.path().join("b")).unwrap();
        assert!(write(&folder.path().join("b"), b"x").is_err(), "a folder is not replaced");
        assert!(write(&folder.path().join("none/a"), b"x").unwrap_err().to_string().contains("none"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
