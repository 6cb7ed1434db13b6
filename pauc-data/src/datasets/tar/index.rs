//! The index file: the positions of images in archives.

use super::scan::{Bytes, Item, items};
use pauc_traits::{Error, Result, atomic};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

const VERSION: u32 = 2;

/// An archive at the time it was indexed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shard {
    path: PathBuf,
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    items: Vec<Item>,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    version: u32,
    shards: Vec<Shard>,
}

/// The index file and its pending changes.
pub(super) struct Index {
    path: PathBuf,
    content: Content,
    changed: Vec<String>,
    new: usize,
}

impl Index {
    /// Reads the index. A file that is missing, damaged or of another version counts as empty.
    pub fn read(path: &Path) -> Self {
        let content: Option<Content> = std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let content = content.filter(|c| c.version == VERSION);
        let content = content.unwrap_or(Content { version: VERSION, shards: Vec::new() });
        Index { path: path.to_path_buf(), content, changed: Vec::new(), new: 0 }
    }

    /// Opens an archive and returns its items, from the index if the archive is unchanged.
    ///
    /// # Errors
    /// If the archive cannot be read or is damaged.
    pub fn open(&mut self, path: &Path) -> Result<(File, Vec<Item>)> {
        let failed = |e| Error::io(path, e);
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let since = meta.modified().ok().and_then(|m| m.duration_since(UNIX_EPOCH).ok());
        let (size, modified) = (meta.len(), since.map_or(0, |d| d.as_nanos() as u64));
        let indexed = self.content.shards.iter().position(|s| s.path == path);
        if let Some(shard) = indexed.map(|i| &self.content.shards[i]) {
            let inside = |i: &Item| i.at.checked_add(i.len).is_some_and(|end| end <= size);
            if (shard.size, shard.modified) == (size, modified) && shard.items.iter().all(inside) {
                return Ok((file, shard.items.clone()));
            }
        }
        let items = items(BufReader::new(&file), Bytes::InPlace(size), path)?;
        let shard = Shard { path: path.to_path_buf(), size, modified, items: items.clone() };
        match indexed {
            Some(i) => {
                self.changed.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
                self.content.shards[i] = shard;
            }
            None => self.content.shards.push(shard),
        }
        self.new += 1;
        Ok((file, items))
    }

    /// Writes the changes and returns notes for the report. A folder that is not writable is an error only if
    /// the index is `required`.
    pub fn finish(self, required: bool) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        if !self.changed.is_empty() {
            notes.push(format!("changed archives indexed again: {}", self.changed.join(", ")));
        }
        if self.new > 0 {
            let text = serde_json::to_vec(&self.content).map_err(|e| Error::Other(e.into()))?;
            match atomic::write(&self.path, &text) {
                Err(e) if required => return Err(e),
                Err(e) => notes.push(format!("index not saved ({e})")),
                Ok(()) => {}
            }
        }
        Ok(notes)
    }
}
