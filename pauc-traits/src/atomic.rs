//! Atomic writing of files: a file is written completely or not at all.
//!
//! A file is written under a temporary name beside its target, synced, and renamed. Then the folder is
//! synced, so that the rename survives a power failure. Readers see the old or the new content, never a part.

use crate::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The extension of temporary files.
pub const EXTENSION: &str = "tmp";

/// Writes a file atomically.
///
/// # Errors
/// [`Error::Io`] if the write fails; an existing file is then unchanged.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, |temporary| {
        let mut file = File::create(temporary)?;
        file.write_all(content)?;
        file.sync_all()
    })
}

/// Writes a file atomically, piece by piece: `fill` writes the content into a buffer.
///
/// # Errors
/// The errors of [`write()`], or the error of `fill`.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    replace(path, |temporary| {
        let mut file = BufWriter::new(File::create(temporary)?);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    })
}

/// Checks that a file can be written, without changing it, before the work that it needs.
///
/// # Errors
/// [`Error::Io`] if its folder is missing or not writable.
pub fn check_writable(path: &Path) -> Result<()> {
    let temporary = temporary(path)?;
    let written = File::create(&temporary).and_then(|_| fs::remove_file(&temporary));
    written.map_err(|e| Error::io(path, e))
}

/// Creates a folder atomically: `fill` writes its files, synced, into a temporary folder beside it, which is then
/// renamed. An existing folder is replaced; whether that is wanted is for the caller to know.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be created or renamed, or the error of `fill`. Nothing is left behind, and
/// an existing folder is unchanged.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = temporary(path)?;
    let create = || {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder)
    };
    let filled = create().map_err(|e| Error::io(path, e)).and_then(|()| fill(&folder));
    let placed = filled.and_then(|()| place_folder(&folder, path));
    placed.inspect_err(|_| {
        // It is useless now, and the first error is the one to report.
        let _ = fs::remove_dir_all(&folder);
    })
}

/// Renames a folder to `path`, and removes the folder that was there.
fn place_folder(from: &Path, path: &Path) -> Result<()> {
    let io_error = |e| Error::io(path, e);
    let replaced = path.exists().then(|| temporary(path)).transpose()?;
    if let Some(replaced) = &replaced {
        fs::rename(path, replaced).map_err(io_error)?;
    }
    if let Err(error) = rename(from, path) {
        if let Some(replaced) = &replaced {
            let _ = fs::rename(replaced, path);
        }
        return Err(io_error(error));
    }
    // It only takes space now.
    replaced.map_or(Ok(()), |replaced| fs::remove_dir_all(replaced).or(Ok(())))
}

/// Gives the file at `path`, which is synced, the additional name `name`, and replaces a file of that name.
/// Uses a hard link, which takes no space, or a copy if the file system has no hard links.
///
/// # Errors
/// [`Error::Io`] if it fails; `name` is then unchanged.
pub fn alias(path: &Path, name: &Path) -> Result<()> {
    let mut leftover = None;
    replace(name, |temporary| {
        leftover = Some(temporary.to_path_buf());
        fs::hard_link(path, temporary).or_else(|_| {
            fs::copy(path, temporary)?;
            File::open(temporary)?.sync_all()
        })
    })?;
    // POSIX renames a file to another name of the same file by doing nothing.
    if let Some(Err(e)) = leftover.filter(|path| path.exists()).map(fs::remove_file) {
        return Err(Error::io(name, e));
    }
    Ok(())
}

/// Renames a file or folder whose content is already synced, and syncs the target folder.
///
/// # Errors
/// If the operating system reports an error.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(to)
}

/// Returns the process that writes the temporary file `name`; `None` for other names.
pub fn writer_of(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    stem.rsplit_once('.')?.1.parse().ok()
}

/// Returns whether a temporary file of this name belongs to another process that is running.
pub fn is_of_another_living_process(name: &str) -> bool {
    writer_of(name).is_some_and(|id| id != std::process::id() && Path::new(&format!("/proc/{id}")).exists())
}

/// Removes what killed processes left behind while they wrote `path`, or files beside it whose names begin with
/// the same stem; `path` may be a file or a folder. Does nothing on systems without `/proc`, where nobody knows
/// which processes are running.
pub fn remove_leftovers(path: &Path) {
    let Some(stem) = path.file_stem().filter(|_| Path::new("/proc/self").exists()) else { return };
    let start = format!(".{}.", stem.to_string_lossy());
    for entry in fs::read_dir(folder_of(path)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let writer = writer_of(&name).filter(|_| name.starts_with(&start));
        if writer.is_some_and(|id| id != std::process::id()) && !is_of_another_living_process(&name) {
            // It only takes space; the command that comes now says if the folder cannot be written.
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
}

/// Lets `make` create a temporary file, and renames it to `path`. A failure leaves no temporary file behind.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let temporary = temporary(path)?;
    // A killed process with the same number may have left it. It must not be overwritten: it may be a hard
    // link to a file that is still needed.
    let _ = fs::remove_file(&temporary);
    let outcome = make(&temporary).and_then(|()| rename(&temporary, path));
    outcome.map_err(|e| {
        // The file is useless now, and the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

/// Returns `.<name>.<count>.<process>.tmp` beside `path`, a name that no other process or thread uses.
fn temporary(path: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        Error::io(path, io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))
    })?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{count}.{}.{EXTENSION}", std::process::id()));
    Ok(path.with_file_name(temporary))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Other systems cannot open a folder as a file.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_missing_is_found_before_the_work() {
        let folder = Folder::new("check");
        let file = folder.0.join("a.html");
        fs::write(&file, "old").unwrap();
        check_writable(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
        let error = check_writable(&folder.0.join("missing/a.html")).unwrap_err().to_string();
        assert!(error.contains("a.html"), "{error}");
    }

    /// A folder for one test, removed when it is dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pauc-atomic-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_that_a_file_has_already_leaves_nothing_behind() {
        let folder = Folder::new("twice");
        let (path, name) = (folder.0.join("a"), folder.0.join("b"));
        write(&path, b"x").unwrap();
        for _ in 0..2 {
            alias(&path, &name).unwrap();
            assert_eq!(folder.names(), ["a", "b"]);
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_failure_leaves_nothing_behind() {
        let folder = Folder::new("replaced");
        let path = folder.0.join("a");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::create_dir(folder.0.join("b")).unwrap();
        assert!(write(&folder.0.join("b"), b"x").is_err(), "a folder is not replaced");
        assert!(write(&folder.0.join("none/a"), b"x").unwrap_err().to_string().contains("none"));
        assert!(write(Path::new("/"), b"x").unwrap_err().to_string().contains("file name"));
        assert_eq!(folder.names(), ["a", "b"]);
    }

    #[test]
    fn half_written_content_is_never_seen() {
        let folder = Folder::new("half");
        let path = folder.0.join("a");
        write(&path, b"before").unwrap();
        let error = write_with(&path, |file| {
            // More than the buffer, so that it is on the disk when writing fails.
            file.write_all(&[7; 1 << 16])?;
            assert_eq!(fs::read(&path)?, b"before");
            Err(io::Error::other("no more"))
        });
        let text = error.unwrap_err().to_string();
        assert!(text.contains("no more") && text.contains(&path.display().to_string()), "{text}");
        assert_eq!((fs::read(&path).unwrap(), folder.names()), (b"before".to_vec(), vec!["a".to_string()]));
        write_with(&path, |file| file.write_all(b"after")).unwrap();
        assert_eq!((fs::read(&path).unwrap(), folder.names()), (b"after".to_vec(), vec!["a".to_string()]));
    }

    #[test]
    fn a_folder_is_complete_or_absent_and_replaced_as_a_whole() {
        let folder = Folder::new("folder");
        let path = folder.0.join("export");
        let fill = |text: &'static str| move |to: &Path| write(&to.join("a"), text.as_bytes());
        let failed = write_folder(&path, |to| {
            write(&to.join("a"), b"half")?;
            assert!(!path.exists());
            Err(Error::config("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(folder.names(), Vec::<String>::new());
        write_folder(&path, fill("one")).unwrap();
        fs::write(path.join("b"), "of the first").unwrap();
        assert!(write_folder(&path, |_| Err(Error::config("no more"))).is_err());
        assert_eq!(fs::read(path.join("a")).unwrap(), b"one");
        write_folder(&path, fill("two")).unwrap();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"two");
        assert!(!path.join("b").exists());
        assert_eq!(folder.names(), ["export"]);
        let missing = write_folder(&folder.0.join("none/export"), fill("x")).unwrap_err().to_string();
        assert!(missing.contains("none/export"), "{missing}");
    }

    #[test]
    fn an_alias_is_the_file_and_moves_to_another() {
        let folder = Folder::new("alias");
        let (first, second, last) = (folder.0.join("1"), folder.0.join("2"), folder.0.join("last"));
        write(&first, b"first").unwrap();
        write(&second, b"second").unwrap();
        alias(&first, &last).unwrap();
        alias(&second, &last).unwrap();
        assert_eq!(
            (fs::read(&last).unwrap(), fs::read(&first).unwrap()),
            (b"second".into(), b"first".into())
        );
        assert!(alias(&folder.0.join("none"), &last).is_err());
        assert_eq!(fs::read(&last).unwrap(), b"second");
        rename(&last, &folder.0.join("3")).unwrap();
        assert_eq!(folder.names(), ["1", "2", "3"]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_dead_left_beside_a_file_goes_and_all_else_stays() {
        let folder = Folder::new("leftovers");
        let (dead, own) = (u32::MAX, std::process::id());
        let gone = [format!(".a.npy.0.{dead}.tmp"), format!(".a.ids.npy.1.{dead}.tmp")];
        let stays = [format!(".a.npy.0.{own}.tmp"), ".a.npy.0.1.tmp".into(), format!(".ab.npy.0.{dead}.tmp")];
        gone.iter().chain(&stays).for_each(|name| fs::write(folder.0.join(name), "x").unwrap());
        remove_leftovers(&folder.0.join("a.npy"));
        remove_leftovers(&folder.0.join("missing/a.npy"));
        let mut stays = stays.to_vec();
        stays.sort();
        assert_eq!(folder.names(), stays);
    }

    #[test]
    fn a_temporary_name_identifies_its_writer() {
        let path = temporary(Path::new("run/run.json")).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(".run.json.") && path.parent() == Some(Path::new("run")), "{name}");
        assert_eq!(writer_of(name), Some(std::process::id()));
        assert_ne!(path, temporary(Path::new("run/run.json")).unwrap());
        assert_eq!(
            (writer_of(".last.7.tmp"), writer_of("report.html.tmp"), writer_of("a.7")),
            (Some(7), None, None)
        );
    }
}
