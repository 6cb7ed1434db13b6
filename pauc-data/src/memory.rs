//! Images in memory.

use pauc_traits::dataset::ImageSource;
use pauc_traits::{Error, Image, ImageShape, Result};
use rayon::prelude::*;
use std::borrow::Cow;

/// Images of one shape, contiguous in memory.
#[derive(Clone, Debug)]
pub struct MemoryImages {
    shape: ImageShape,
    pixels: Vec<u8>,
    labels: Option<Vec<u32>>,
    other_labels: Option<Vec<u32>>,
}

impl MemoryImages {
    /// Makes images from contiguous pixels.
    ///
    /// # Errors
    /// If the number of pixels is not a multiple of an image's size, or the number of labels differs from
    /// that of images.
    pub fn new(shape: ImageShape, pixels: Vec<u8>, labels: Option<Vec<u32>>) -> Result<Self> {
        if shape.is_empty() || !pixels.len().is_multiple_of(shape.len()) {
            return Err(Error::shape(
                "images",
                format!("{} values are not a whole number of images of {shape}", pixels.len()),
            ));
        }
        let images = MemoryImages { shape, pixels, labels: None, other_labels: None };
        images.check(&labels)?;
        Ok(MemoryImages { labels, ..images })
    }

    /// Adds labels of a second granularity.
    ///
    /// # Errors
    /// If the number of labels differs from that of images.
    pub fn with_other_labels(self, labels: Vec<u32>) -> Result<Self> {
        let other_labels = Some(labels);
        self.check(&other_labels)?;
        Ok(MemoryImages { other_labels, ..self })
    }

    fn check(&self, labels: &Option<Vec<u32>>) -> Result<()> {
        match labels {
            Some(l) if l.len() != self.len() => {
                Err(Error::shape("images", format!("{} labels for {} images", l.len(), self.len())))
            }
            _ => Ok(()),
        }
    }

    /// Returns the pixels of all images.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Returns each channel's mean and standard deviation over all pixels, in 0..1.
    pub fn statistics(&self) -> Vec<(f32, f32)> {
        statistics(&self.pixels, self.shape.channels)
    }
}

impl ImageSource for MemoryImages {
    fn len(&self) -> usize {
        self.pixels.len() / self.shape.len()
    }

    fn shape(&self) -> Option<ImageShape> {
        Some(self.shape)
    }

    fn image(&self, index: usize) -> Result<Image<'_>> {
        let n = self.shape.len();
        match self.pixels.get(index.saturating_mul(n)..(index.saturating_add(1)).saturating_mul(n)) {
            Some(pixels) => Ok(Image { shape: self.shape, pixels: Cow::Borrowed(pixels) }),
            None => {
                Err(Error::config(format!("image {index} is out of range; the dataset has {}", self.len())))
            }
        }
    }

    fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    fn fine_labels(&self) -> Option<&[u32]> {
        self.other_labels.as_deref()
    }
}

/// Sums of each channel's values and squares. They are integers, so the order of summation does not matter.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    count: u64,
    sums: Vec<(u64, u64)>,
}

impl Moments {
    pub(crate) fn of(pixels: &[u8], channels: usize) -> Self {
        let mut histogram = vec![[0u64; 256]; channels];
        for pixel in pixels.chunks_exact(channels) {
            pixel.iter().zip(&mut histogram).for_each(|(v, h)| h[usize::from(*v)] += 1);
        }
        let sums = histogram.iter().map(|h| {
            let weighted = h.iter().zip(0u64..);
            weighted.fold((0, 0), |(s, q), (n, v)| (s + n * v, q + n * v * v))
        });
        Moments { count: (pixels.len() / channels) as u64, sums: sums.collect() }
    }

    pub(crate) fn join(mut self, other: Moments) -> Self {
        if self.sums.is_empty() {
            return other;
        }
        self.count += other.count;
        self.sums.iter_mut().zip(other.sums).for_each(|(a, b)| *a = (a.0 + b.0, a.1 + b.1));
        self
    }

    pub(crate) fn none() -> Self {
        Moments { count: 0, sums: Vec::new() }
    }

    /// Returns the mean and standard deviation of each channel, in 0..1.
    pub(crate) fn statistics(&self) -> Vec<(f32, f32)> {
        let n = self.count.max(1) as f64;
        let moments = |&(sum, squares): &(u64, u64)| {
            let mean = sum as f64 / n;
            let variance = (squares as f64 / n - mean * mean).max(0.0);
            ((mean / 255.0) as f32, (variance.sqrt() / 255.0) as f32)
        };
        self.sums.iter().map(moments).collect()
    }
}

fn statistics(pixels: &[u8], channels: usize) -> Vec<(f32, f32)> {
    let parts = pixels.par_chunks(channels << 18).map(|part| Moments::of(part, channels));
    parts.reduce(Moments::none, Moments::join).statistics()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn images_and_labels_are_found_by_index() {
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        let images = MemoryImages::new(shape, vec![1, 2, 3, 4], Some(vec![7, 8])).unwrap();
        assert_eq!((images.len(), &*images.image(1).unwrap().pixels), (2, &[3, 4][..]));
        assert_eq!(images.labels(), Some(&[7, 8][..]));
        assert!(
            images.image(2).unwrap_err().to_string().contains("image 2 is out of range; the dataset has 2")
        );
        assert!(MemoryImages::new(shape, vec![1, 2, 3], None).is_err());
        assert!(MemoryImages::new(shape, vec![1, 2], Some(vec![1, 2])).is_err());
        assert!(images.with_other_labels(vec![1]).is_err());
    }

    #[test]
    fn statistics_equal_a_plain_loop() {
        let shape = ImageShape { height: 600, width: 500, channels: 3 };
        let pixels: Vec<u8> = (0..shape.len()).map(|i| (i * i % 97 + i % 3 * 50) as u8).collect();
        let images = MemoryImages::new(shape, pixels.clone(), None).unwrap();
        for (c, (mean, deviation)) in images.statistics().into_iter().enumerate() {
            let values: Vec<f64> = pixels.iter().skip(c).step_by(3).map(|v| f64::from(*v) / 255.0).collect();
            let m = values.iter().sum::<f64>() / values.len() as f64;
            let v = values.iter().map(|x| (x - m) * (x - m)).sum::<f64>() / values.len() as f64;
            // One rounding to `f32`, and the roundings of the sums in `f64`.
            let rounding = |value: f64| tolerance::f32(1, value) + tolerance::f64(values.len(), value);
            assert_within!(mean, m, rounding(m));
            assert_within!(deviation, v.sqrt(), rounding(v.sqrt()));
        }
    }
}
