//! A cache of decoded images on disk.
//!
//! There is one file per image. Its name is the hash of the encoded image and of the decoding options. A
//! changed image therefore gets a new entry, and datasets that share images share entries. The format of a
//! file is
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | `PAUCRGB1` |
//! | 8–15 | height and width, little-endian |
//! | 16–23 | the first bytes of the BLAKE3 hash of the pixels |
//! | then | RGB pixels, row by row |

use pauc_traits::{Count, Error, Image, ImageShape, Result, atomic, component};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

component! {
    /// The folder of the disk cache for decoded images, and its size.
    pub struct DiskCache {
        /// The folder; it is created if missing. Its files may be deleted at any time.
        pub folder: PathBuf,
        /// The maximum size in MiB. Once it is reached, nothing more is written.
        pub budget: Count = Count::lit(10_240),
    }
}

const MAGIC: &[u8; 8] = b"PAUCRGB1";
const HEADER: usize = 24;

/// An open cache.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    room: AtomicU64,
}

impl Store {
    /// Opens or creates the cache in `folder` and measures its size.
    ///
    /// # Errors
    /// If the folder cannot be created or read.
    pub fn open(folder: &Path, budget: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let mut taken = 0;
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
            // Files that another process deletes meanwhile are skipped.
            let files = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
            taken += files.filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum::<u64>();
        }
        Ok(Store { folder: folder.to_path_buf(), room: AtomicU64::new(budget.saturating_sub(taken)) })
    }

    fn path(&self, key: &blake3::Hash) -> PathBuf {
        let name = key.to_hex();
        self.folder.join(&name[..2]).join(format!("{}.rgb", &name[2..]))
    }

    /// Returns the image with that key, if its entry exists and is intact.
    pub fn get(&self, key: &blake3::Hash) -> Option<Image<'static>> {
        let mut bytes = std::fs::read(self.path(key)).ok()?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (check, pixels) = rest.split_first_chunk::<8>()?;
        let side = |b: &[u8]| b.iter().rev().fold(0usize, |n, b| (n << 8) | usize::from(*b));
        let shape = ImageShape { height: side(&size[..4]), width: side(&size[4..]), channels: 3 };
        let length = shape.height.checked_mul(shape.width)?.checked_mul(3)?;
        if magic != MAGIC || pixels.len() != length || blake3::hash(pixels).as_bytes()[..8] != check[..] {
            return None;
        }
        bytes.drain(..HEADER);
        Some(Image::new(shape, bytes))
    }

    /// Stores an image, if it fits. A failed write is ignored; the image is then decoded again.
    pub fn put(&self, key: &blake3::Hash, image: &Image<'_>) {
        let (Ok(height), Ok(width)) = (u32::try_from(image.shape.height), u32::try_from(image.shape.width))
        else {
            return;
        };
        let length = (HEADER + image.pixels.len()) as u64;
        let take = |room: u64| room.checked_sub(length);
        if image.shape.channels != 3
            || self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err()
        {
            return;
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(height.to_le_bytes());
        bytes.extend(width.to_le_bytes());
        bytes.extend(&blake3::hash(&image.pixels).as_bytes()[..8]);
        bytes.extend_from_slice(&image.pixels);
        let path = self.path(key);
        let written = path.parent().is_some_and(|p| std::fs::create_dir_all(p).is_ok())
            && atomic::write(&path, &bytes).is_ok();
        if !written {
            self.room.fetch_add(length, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(value: u8) -> Image<'static> {
        Image::new(ImageShape { height: 2, width: 5, channels: 3 }, vec![value; 30])
    }

    #[test]
    fn images_are_stored_up_to_the_budget() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let store = Store::open(&cache, 120).unwrap();
        let keys = [1u8, 2, 3].map(|i| blake3::hash(&[i]));
        keys.iter().zip(1..).for_each(|(k, i)| store.put(k, &image(i)));
        assert_eq!(store.get(&keys[0]), Some(image(1)));
        assert_eq!(store.get(&keys[1]), Some(image(2)));
        assert_eq!(store.get(&keys[2]), None, "54 bytes each: two fit into 120");
        let again = Store::open(&cache, 120).unwrap();
        assert_eq!(again.get(&keys[1]), Some(image(2)));
        again.put(&keys[2], &image(3));
        assert_eq!(again.get(&keys[2]), None, "existing files count");
    }

    #[test]
    fn any_damaged_byte_invalidates_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1000).unwrap();
        let key = blake3::hash(b"a");
        store.put(&key, &image(7));
        let file = std::fs::read(store.path(&key)).unwrap();
        for place in 0..file.len() {
            let mut bytes = file.clone();
            bytes[place] ^= 0x10;
            std::fs::write(store.path(&key), &bytes).unwrap();
            assert_eq!(store.get(&key), None, "byte {place}");
            std::fs::write(store.path(&key), &file[..place]).unwrap();
            assert_eq!(store.get(&key), None, "cut at {place}");
        }
    }
}
