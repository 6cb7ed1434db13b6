//! Transfer of images from the loader to the device, including the prefetch of the next step.

use pauc_data::{ImageBatch, LoaderOptions, ViewPipeline};
use pauc_models::device::NetworkDevice;
use pauc_traits::encoder::Images;
use pauc_traits::{Error, Result};
use std::ops::Range;

/// Adapts a loader's options to a device: one that normalizes images itself receives 8-bit images.
pub(crate) fn loader_options<D: NetworkDevice>(options: LoaderOptions) -> LoaderOptions {
    if D::NORMALIZES_IMAGES { options.for_accelerator() } else { options }
}

/// A batch sent to the device before its step begins.
pub(crate) struct DevicePrefetch<D: NetworkDevice> {
    epoch: u64,
    step: u64,
    ids: Vec<u64>,
    branches: Vec<BranchImages<D>>,
}

/// The views that one branch reads, one tensor per image size.
struct BranchImages<D: NetworkDevice> {
    views: Vec<usize>,
    images: Vec<Images<D>>,
}

impl<D: NetworkDevice> DevicePrefetch<D> {
    /// Sends all samples of a batch, in the views that each branch reads.
    ///
    /// # Errors
    /// If the device fails.
    pub fn send(device: &D, views: &ViewPipeline, data: &ImageBatch, branches: &[&[usize]]) -> Result<Self> {
        let whole = 0..data.ids.len();
        let send = |read: &&[usize]| {
            Ok(BranchImages { views: read.to_vec(), images: images(device, views, data, read, &whole)? })
        };
        let branches = branches.iter().map(send).collect::<Result<_>>()?;
        Ok(DevicePrefetch { epoch: data.epoch, step: data.step, ids: data.ids.clone(), branches })
    }

    /// Takes the prefetched images of this batch and these views; `None` if there are none, or they were
    /// already taken.
    pub fn take(&mut self, data: &ImageBatch, views: &[usize]) -> Option<Vec<Images<D>>> {
        if (self.epoch, self.step, &self.ids) != (data.epoch, data.step, &data.ids) {
            return None;
        }
        let branch = self.branches.iter().position(|b| b.views == views)?;
        Some(self.branches.swap_remove(branch).images)
    }
}

/// Sends some samples in all views that a branch reads. Adjacent views of one size become one tensor.
///
/// # Errors
/// If the device fails.
pub(crate) fn images<D: NetworkDevice>(
    device: &D,
    views: &ViewPipeline,
    data: &ImageBatch,
    read: &[usize],
    samples: &Range<usize>,
) -> Result<Vec<Images<D>>> {
    let send = |same_size: &[usize]| {
        let shape = views.shape(same_size[0]);
        let values = samples.start * shape.len()..samples.end * shape.len();
        let pixels: Vec<_> = same_size.iter().map(|v| &data.views[*v]).collect();
        let count = same_size.len() * samples.len();
        device.images(&pixels, values, (count, shape.height, shape.width, shape.channels))
    };
    of_one_size(views, read).map(send).collect()
}

/// As [`images`], for samples in any order, of batches that may not have all pixels.
///
/// # Errors
/// If the batch lacks the pixels of a sample, or the device fails.
pub(crate) fn selected<D: NetworkDevice>(
    device: &D,
    views: &ViewPipeline,
    data: &ImageBatch,
    read: &[usize],
    samples: &[usize],
) -> Result<Vec<Images<D>>> {
    let send = |same_size: &[usize]| {
        let shape = views.shape(same_size[0]);
        let select = |view: &usize| {
            let lacks = || Error::config(format!("the batch lacks pixels of view {view}"));
            let positions = data.positions(*view, samples).ok_or_else(lacks)?;
            Ok(data.views[*view].selected(&positions, shape.len()))
        };
        let selected = same_size.iter().map(select).collect::<Result<Vec<_>>>()?;
        let count = same_size.len() * samples.len();
        let values = 0..samples.len() * shape.len();
        let pixels: Vec<_> = selected.iter().collect();
        device.images(&pixels, values, (count, shape.height, shape.width, shape.channels))
    };
    of_one_size(views, read).map(send).collect()
}

/// Splits views into runs of adjacent views of one size.
pub(crate) fn of_one_size<'a>(
    views: &'a ViewPipeline,
    read: &'a [usize],
) -> impl Iterator<Item = &'a [usize]> {
    read.chunk_by(|a, b| views.shape(*a) == views.shape(*b))
}
