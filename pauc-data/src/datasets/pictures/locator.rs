//! The location of an encoded image: a file of its own, or a range of an archive.

use pauc_traits::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The location of an encoded image.
#[derive(Clone, Debug)]
pub(in super::super) enum Locator {
    /// A file of its own; `key` is a name that does not depend on the location of the dataset.
    File { path: PathBuf, key: String },
    /// A range of an archive.
    Part { archive: Arc<Archive>, name: String, offset: u64, len: u64 },
}

/// An archive whose images are read in place.
#[derive(Debug)]
pub(in super::super) struct Archive {
    pub path: PathBuf,
    pub content: Content,
}

/// The source of an archive's bytes.
#[derive(Debug)]
pub(in super::super) enum Content {
    /// The file itself.
    Plain(Shared),
    /// The images of a compressed archive, unpacked and concatenated.
    Unpacked(Vec<u8>),
}

impl Locator {
    /// Locates the file `path` of a dataset in `root`.
    pub fn file(path: PathBuf, root: &Path) -> Self {
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let parts = relative.components().map(|c| c.as_os_str().to_string_lossy().into_owned());
        let key = parts.collect::<Vec<_>>().join("/");
        Locator::File { path, key }
    }

    /// Returns a name that does not depend on the location of the dataset.
    pub fn key(&self) -> String {
        match self {
            Locator::File { key, .. } => key.clone(),
            Locator::Part { name, .. } => name.clone(),
        }
    }

    /// Returns the path within the dataset; in an archive, the archive's file name followed by the name in it.
    pub fn path_in_dataset(&self) -> String {
        match self {
            Locator::File { key, .. } => key.clone(),
            Locator::Part { archive, name, .. } => {
                let file = archive.path.file_name().unwrap_or_default();
                format!("{}/{name}", file.to_string_lossy())
            }
        }
    }

    /// Returns the path for messages; in an archive, the archive's path followed by the name in it.
    pub fn path(&self) -> PathBuf {
        match self {
            Locator::File { path, .. } => path.clone(),
            Locator::Part { archive, name, .. } => archive.path.join(name),
        }
    }

    /// Reads the encoded image. Memory is bounded by the file's size and by `limit`.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let too_large = |n: u64| {
            Error::damaged(
                self.path(),
                format!(
                    "has {n} bytes, more than an image within the pixel limit can have; raise `pixel_limit`"
                ),
            )
        };
        match self {
            Locator::File { path, .. } => {
                let failed = |e| Error::io(path, e);
                // Asked before it is opened: opening a pipe blocks until something writes to it.
                if !std::fs::metadata(path).map_err(failed)?.is_file() {
                    return Err(Error::damaged(
                        path,
                        "is not a regular file but a pipe, socket, device or folder",
                    ));
                }
                let file = File::open(path).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                if size > limit {
                    return Err(too_large(size));
                }
                let mut bytes = Vec::with_capacity(size as usize);
                file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
                Ok(bytes)
            }
            Locator::Part { len, .. } if *len > limit => Err(too_large(*len)),
            Locator::Part { archive, offset, len, .. } => match &archive.content {
                Content::Plain(file) => {
                    file.read(*offset, *len as usize).map_err(|e| Error::io(self.path(), e))
                }
                Content::Unpacked(bytes) => {
                    let part = bytes.get(*offset as usize..(*offset + *len) as usize);
                    part.map(<[u8]>::to_vec)
                        .ok_or_else(|| Error::damaged(self.path(), "is outside its archive"))
                }
            },
        }
    }
}

/// A file that threads read from concurrently.
#[cfg(unix)]
#[derive(Debug)]
pub(in super::super) struct Shared(File);

#[cfg(unix)]
impl Shared {
    pub fn new(file: File) -> Self {
        Shared(file)
    }

    fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(&self.0, &mut bytes, offset)?;
        Ok(bytes)
    }
}

/// A file that threads read from one at a time.
#[cfg(not(unix))]
#[derive(Debug)]
pub(in super::super) struct Shared(std::sync::Mutex<File>);

#[cfg(not(unix))]
impl Shared {
    pub fn new(file: File) -> Self {
        Shared(std::sync::Mutex::new(file))
    }

    fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        use std::io::{Seek, SeekFrom};
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
