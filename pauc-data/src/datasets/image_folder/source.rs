//! Reading, shrinking and keeping of pictures.

use super::scan::Files;
use crate::decode;
use crate::pixels::{Filter, Rect, resample};
use pauc_traits::dataset::ImageSource;
use pauc_traits::{Error, Image, ImageShape, Result};
use rayon::prelude::*;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// How files become images, and what memory is left for them.
pub(super) struct Reader {
    pixel_limit: usize,
    shorter_side: Option<usize>,
    /// Bytes that decoded images may still take.
    room: AtomicUsize,
}

impl Reader {
    pub fn new(pixel_limit: usize, shorter_side: Option<usize>, room: usize) -> Self {
        Reader { pixel_limit, shorter_side, room: AtomicUsize::new(room) }
    }

    fn read(&self, path: &Path) -> Result<Image<'static>> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let image = decode::decode(&bytes, self.pixel_limit, path)?;
        let (height, width) = self.size(image.shape.height, image.shape.width);
        if (height, width) == (image.shape.height, image.shape.width) {
            return Ok(image);
        }
        Ok(resample::resize(&image, Rect::whole(image.shape), height, width, Filter::Bilinear))
    }

    /// Height and width after shrinking.
    fn size(&self, height: usize, width: usize) -> (usize, usize) {
        let short = height.min(width);
        match self.shorter_side {
            Some(side) if side < short => (height * side / short, width * side / short),
            _ => (height, width),
        }
    }

    fn shape(&self, path: &Path) -> Result<ImageShape> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let (height, width) = decode::dimensions(&bytes, self.pixel_limit, path)?;
        let (height, width) = self.size(height, width);
        Ok(ImageShape { height, width, channels: 3 })
    }

    /// Takes `bytes` of the memory, if there are as many left.
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
        let cache = files.paths.iter().map(|_| OnceLock::new()).collect();
        Source { files, shape: None, reader, cache }
    }

    /// Decodes everything and leaves out what cannot be; the errors of what was left out, in order.
    pub fn drop_unreadable(&mut self) -> Vec<Error> {
        let outcome: Vec<Option<Error>> =
            (0..self.len()).into_par_iter().map(|i| self.image(i).err()).collect();
        let keep: Vec<bool> = outcome.iter().map(Option::is_none).collect();
        let kept = |i: usize| keep[i];
        let Files { paths, labels } = std::mem::take(&mut self.files);
        let paths: Vec<PathBuf> = paths.into_iter().enumerate().filter(|p| kept(p.0)).map(|p| p.1).collect();
        let labels = labels.map(|l| l.into_iter().enumerate().filter(|p| kept(p.0)).map(|p| p.1).collect());
        self.files = Files { paths, labels };
        let cache = std::mem::take(&mut self.cache);
        self.cache = cache.into_iter().enumerate().filter(|p| kept(p.0)).map(|p| p.1).collect();
        outcome.into_iter().flatten().collect()
    }

    /// Finds out whether all images have one shape. The headers of all files are read only as long as they agree.
    pub fn find_shape(&mut self) -> Result<()> {
        const AT_ONCE: usize = 256;
        let mut common = None;
        for paths in self.files.paths.chunks(AT_ONCE) {
            // Collected before the errors are looked at, so that it is always the first one that is reported.
            let shapes: Vec<Result<ImageShape>> = paths.par_iter().map(|p| self.reader.shape(p)).collect();
            let shapes = shapes.into_iter().collect::<Result<Vec<_>>>()?;
            let first = *common.get_or_insert(shapes[0]);
            if shapes.iter().any(|s| *s != first) {
                return Ok(());
            }
        }
        self.shape = common;
        Ok(())
    }
}

impl ImageSource for Source {
    fn len(&self) -> usize {
        self.files.paths.len()
    }

    fn shape(&self) -> Option<ImageShape> {
        self.shape
    }

    fn image(&self, index: usize) -> Result<Image<'_>> {
        let (Some(path), Some(place)) = (self.files.paths.get(index), self.cache.get(index)) else {
            return Err(Error::config(format!("image {index} of a set of {}", self.len())));
        };
        if let Some(image) = place.get() {
            return Ok(Image { shape: image.shape, pixels: Cow::Borrowed(&image.pixels) });
        }
        let image = self.reader.read(path)?;
        if !self.reader.reserve(image.pixels.len()) {
            return Ok(image);
        }
        // Two threads that read the same image at once both pay for it; that happens once at most.
        let image = place.get_or_init(|| image);
        Ok(Image { shape: image.shape, pixels: Cow::Borrowed(&image.pixels) })
    }

    fn labels(&self) -> Option<&[u32]> {
        self.files.labels.as_deref()
    }
}
