//! Reads, shrinks and caches images.

use super::{Files, Reading, skip};
use crate::decode::{self, Decoding};
use crate::disk_cache::Store;
use crate::pixels::{Filter, Rect, resample};
use pauc_traits::dataset::{ImageSource, Skipped};
use pauc_traits::{Error, Image, ImageShape, Result, progress};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::locator::Locator;

/// How files are decoded, and the memory left for caching them.
pub(super) struct Reader {
    decoding: Decoding,
    shorter_side: Option<usize>,
    disk: Option<Store>,
    /// Bytes left for decoded images.
    room: AtomicUsize,
}

impl Reader {
    pub fn new(reading: &Reading<'_>, disk: Option<Store>) -> Self {
        let (r, g, b) = reading.background;
        Reader {
            decoding: Decoding { pixel_limit: reading.pixel_limit, background: [r, g, b] },
            shorter_side: reading.shorter_side,
            disk,
            room: AtomicUsize::new(reading.cache.saturating_mul(1 << 20)),
        }
    }

    fn bytes(&self, locator: &Locator) -> Result<Vec<u8>> {
        locator.read(decode::max_file_size(self.decoding.pixel_limit))
    }

    fn read(&self, locator: &Locator) -> Result<Image<'static>> {
        let bytes = self.bytes(locator)?;
        let Some(disk) = &self.disk else { return self.decode(&bytes, locator) };
        let key = self.key(&bytes);
        if let Some(image) = disk.get(&key) {
            return Ok(image);
        }
        let image = self.decode(&bytes, locator)?;
        disk.put(&key, &image);
        Ok(image)
    }

    /// Returns the hash of everything that a decoded image depends on.
    fn key(&self, bytes: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("pauc decoded picture 1");
        hasher.update(&(self.shorter_side.unwrap_or(0) as u64).to_le_bytes());
        hasher.update(&(self.decoding.pixel_limit as u64).to_le_bytes());
        hasher.update(&self.decoding.background);
        hasher.update(bytes).finalize()
    }

    fn decode(&self, bytes: &[u8], locator: &Locator) -> Result<Image<'static>> {
        let image = decode::decode(bytes, self.decoding, &locator.path())?;
        let (height, width) = self.size(image.shape.height, image.shape.width);
        if (height, width) == (image.shape.height, image.shape.width) {
            return Ok(image);
        }
        Ok(resample::resize(&image, Rect::whole(image.shape), height, width, Filter::Bilinear))
    }

    /// Returns height and width after shrinking.
    fn size(&self, height: usize, width: usize) -> (usize, usize) {
        let short = height.min(width);
        match self.shorter_side {
            Some(side) if side < short => (height * side / short, width * side / short),
            _ => (height, width),
        }
    }

    fn shape(&self, locator: &Locator) -> Result<ImageShape> {
        let bytes = self.bytes(locator)?;
        let (height, width) = decode::dimensions(&bytes, self.decoding.pixel_limit, &locator.path())?;
        let (height, width) = self.size(height, width);
        Ok(ImageShape { height, width, channels: 3 })
    }

    /// Reserves `bytes` of the memory, if that many are left.
    fn reserve(&self, bytes: usize) -> bool {
        let take = |room: usize| room.checked_sub(bytes);
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// The images of one split.
pub(super) struct Source {
    files: Files,
    shape: Option<ImageShape>,
    reader: Arc<Reader>,
    cache: Vec<OnceLock<Image<'static>>>,
}

impl Source {
    pub fn new(files: Files, reader: Arc<Reader>) -> Self {
        let cache = files.locators.iter().map(|_| OnceLock::new()).collect();
        Source { files, shape: None, reader, cache }
    }

    /// Decodes all images and drops the unreadable ones; returns the dropped ones in order.
    pub fn drop_unreadable(&mut self) -> Vec<Skipped> {
        let task = progress::task("reading images", self.len() as u64);
        let outcome: Vec<Option<Skipped>> = (0..self.len())
            .into_par_iter()
            .inspect(|_| task.advance(1))
            .map(|i| self.image(i).err().map(|e| skip(self.name(i), &e)))
            .collect();
        let keep: Vec<bool> = outcome.iter().map(Option::is_none).collect();
        self.files = std::mem::take(&mut self.files).pick(|i| keep[i]);
        let cache = std::mem::take(&mut self.cache);
        self.cache = cache.into_iter().enumerate().filter(|p| keep[p.0]).map(|p| p.1).collect();
        outcome.into_iter().flatten().collect()
    }

    /// Determines whether all images have one shape. Stops reading headers once two differ.
    pub fn find_shape(&mut self) -> Result<()> {
        const AT_ONCE: usize = 256;
        let mut common = None;
        let task = progress::task("reading sizes", self.len() as u64);
        for files in self.files.locators.chunks(AT_ONCE) {
            // Collected before the errors are checked, so that always the first one is reported.
            let shapes: Vec<Result<ImageShape>> = files.par_iter().map(|p| self.reader.shape(p)).collect();
            let shapes = shapes.into_iter().collect::<Result<Vec<_>>>()?;
            let first = *common.get_or_insert(shapes[0]);
            if shapes.iter().any(|s| *s != first) {
                return Ok(());
            }
            task.advance(files.len() as u64);
        }
        self.shape = common;
        Ok(())
    }
}

impl ImageSource for Source {
    fn len(&self) -> usize {
        self.files.locators.len()
    }

    fn shape(&self) -> Option<ImageShape> {
        self.shape
    }

    fn image(&self, index: usize) -> Result<Image<'_>> {
        let (Some(locator), Some(cached)) = (self.files.locators.get(index), self.cache.get(index)) else {
            return Err(Error::config(format!(
                "image {index} is out of range; the dataset has {}",
                self.len()
            )));
        };
        if let Some(image) = cached.get() {
            return Ok(Image { shape: image.shape, pixels: Cow::Borrowed(&image.pixels) });
        }
        let image = self.reader.read(locator)?;
        if !self.reader.reserve(image.pixels.len()) {
            return Ok(image);
        }
        // Two threads that read the same image at once both reserve memory for it, at most once per image.
        let image = cached.get_or_init(|| image);
        Ok(Image { shape: image.shape, pixels: Cow::Borrowed(&image.pixels) })
    }

    fn name(&self, index: usize) -> String {
        self.files.locators.get(index).map_or_else(String::new, |l| l.path().display().to_string())
    }

    fn path(&self, index: usize) -> Option<String> {
        self.files.locators.get(index).map(Locator::path_in_dataset)
    }

    fn labels(&self) -> Option<&[u32]> {
        self.files.labels.as_deref()
    }

    fn fine_labels(&self) -> Option<&[u32]> {
        self.files.other_labels.as_deref()
    }
}
