//! Images of the next step, sent to a device that still works on this one.

use pauc_data::{ImageBatch, ViewPipeline};
use pauc_models::device::NetworkDevice;
use pauc_traits::Result;
use pauc_traits::encoder::Images;
use std::ops::Range;

/// Images on a device, each branch's as it reads them.
pub(crate) struct DevicePrefetch<D: NetworkDevice> {
    /// The batch that they are of: its epoch, its step, its samples.
    of: (u64, u64, Vec<u64>),
    /// By the views that they are made of.
    images: Vec<(Vec<usize>, Vec<Images<D>>)>,
}

impl<D: NetworkDevice> DevicePrefetch<D> {
    /// Sends all samples of a batch, in the views that each branch reads.
    ///
    /// # Errors
    /// If the device fails.
    pub fn send(device: &D, views: &ViewPipeline, data: &ImageBatch, branches: &[&[usize]]) -> Result<Self> {
        let mut sent = Vec::new();
        for read in branches {
            sent.push((read.to_vec(), images(device, views, data, read, &(0..data.ids.len()))?));
        }
        Ok(DevicePrefetch { of: (data.epoch, data.step, data.ids.clone()), images: sent })
    }

    /// What was sent of a batch in some views, once.
    pub fn take(&mut self, data: &ImageBatch, read: &[usize]) -> Option<Vec<Images<D>>> {
        if (self.of.0, self.of.1, &self.of.2) != (data.epoch, data.step, &data.ids) {
            return None;
        }
        let found = self.images.iter().position(|(views, _)| views == read)?;
        Some(self.images.swap_remove(found).1)
    }
}

/// The samples of a part, in all views that a branch reads, as one batch a size.
///
/// # Errors
/// If the device fails.
pub(crate) fn images<D: NetworkDevice>(
    device: &D,
    views: &ViewPipeline,
    data: &ImageBatch,
    read: &[usize],
    part: &Range<usize>,
) -> Result<Vec<Images<D>>> {
    let batch = |same: &[usize]| {
        let shape = views.shape(same[0]);
        let span = part.start * shape.len()..part.end * shape.len();
        let pixels: Vec<_> = same.iter().map(|v| &data.views[*v]).collect();
        let count = same.len() * part.len();
        device.images(&pixels, span, (count, shape.height, shape.width, shape.channels))
    };
    read.chunk_by(|a, b| views.shape(*a) == views.shape(*b)).map(batch).collect()
}
