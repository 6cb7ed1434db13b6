//! Decoded pictures on disk.
//!
//! A file per picture, named by what it holds: the hash of the encoded picture and of how it is read. So a picture
//! that changed is another one, and sets that share pictures share files. A file is
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | `PAUCRGB1` |
//! | 8–15 | height and width, little-endian |
//! | 16–23 | the start of the BLAKE3 hash of what follows |
//! | then | RGB pixels, row by row |

use pauc_traits::{Count, Error, Image, ImageShape, Result, atomic, component};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

component! {
    /// Where decoded pictures are kept on disk, and how much room they may take.
    pub struct DiskCache {
        /// The folder; it is created. What lies there may be deleted at any time.
        pub folder: PathBuf,
        /// The room for decoded pictures in MiB. Once it is taken, nothing more is written.
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
    /// Opens or creates the cache in `folder` and measures what lies there.
    ///
    /// # Errors
    /// If the folder cannot be created or read.
    pub fn open(folder: &Path, budget: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let mut taken = 0;
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
            // What another process deletes meanwhile does not count.
            let files = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
            taken += files.filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum::<u64>();
        }
        Ok(Store { folder: folder.to_path_buf(), room: AtomicU64::new(budget.saturating_sub(taken)) })
    }

    fn path(&self, key: &blake3::Hash) -> PathBuf {
        let name = key.to_hex();
        self.folder.join(&name[..2]).join(format!("{}.rgb", &name[2..]))
    }

    /// The picture of that key, if it is there and whole.
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

    /// Keeps a picture, if there is room. A disk that refuses costs time later, but nothing else.
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
    fn pictures_come_back_until_the_room_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let store = Store::open(&cache, 120).unwrap();
        let keys = [1u8, 2, 3].map(|i| blake3::hash(&[i]));
        keys.iter().zip(1..).for_each(|(k, i)| store.put(k, &image(i)));
        assert_eq!(store.get(&keys[0]), Some(image(1)));
        assert_eq!(store.get(&keys[1]), Some(image(2)));
        assert_eq!(store.get(&keys[2]), None, "54 bytes each: two of 120");
        let again = Store::open(&cache, 120).unwrap();
        assert_eq!(again.get(&keys[1]), Some(image(2)));
        again.put(&keys[2], &image(3));
        assert_eq!(again.get(&keys[2]), None, "what lay there counts");
    }

    #[test]
    fn any_damaged_byte_makes_a_file_worthless() {
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
