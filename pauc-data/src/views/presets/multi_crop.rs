//! SwAV's crops of two scales.

use super::{Steps, crop, flip, gray, jitter, preset};
use crate::Interval;
use crate::pixels::Filter;
use crate::views::{BlurModel, GaussianBlur};
use pauc_traits::{Count, UnitInterval, component};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The size of a crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CropSize {
    /// 14 % to 100 % of the area.
    Global,
    /// 5 % to 14 % of the area.
    Local,
}

component! {
    /// SwAV's crops of two scales.
    ///
    /// Use both: `views: [(count: 2, ops: [MultiCrop(size: 32, crop: Global)]), (count: 4, ops: [MultiCrop(size:
    /// 32, crop: Local)])]`.
    ///
    /// Crop, flip, color jitter as in SimCLR, grayscale, Pillow's blur. With a convolutional encoder or a
    /// vision transformer, the small crops may have a smaller `size` than the large ones. Evaluation uses the size of
    /// the first views. `SwappedAssignment(local_views: …)` is the term that learns from more than two views.
    ///
    /// # Shapes
    /// any → `size`×`size`.
    ///
    /// Source: Caron et al., *Unsupervised learning of visual features by contrasting cluster assignments*, 2020.
    pub struct MultiCrop: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
        /// `Global` or `Local`.
        pub crop: CropSize,
    }
}

impl MultiCrop {
    fn list(&self) -> Steps {
        let scale = match self.crop {
            CropSize::Global => Interval::lit(0.14, 1.0),
            CropSize::Local => Interval::lit(0.05, 0.14),
        };
        let (sigma, model, kernel) = (Interval::lit(0.1, 2.0), BlurModel::Pil, None);
        let blur = Arc::new(GaussianBlur { p: UnitInterval::lit(0.5), sigma, model, kernel });
        let crop = crop(self.size, scale, Filter::Bilinear);
        vec![crop, flip(), jitter(1.0, [0.8, 0.8, 0.8, 0.2]), gray(), blur]
    }
}

preset!(MultiCrop);
