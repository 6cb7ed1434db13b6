//! MoCo v2's list of augmentations.

use super::{Steps, crop, flip, gray, jitter, preset};
use crate::Interval;
use crate::pixels::Filter;
use crate::views::{BlurModel, GaussianBlur};
use pauc_traits::{Count, UnitInterval, component};
use std::sync::Arc;

component! {
    /// MoCo v2's views: crop, flip, color jitter, grayscale, Pillow's blur.
    ///
    /// # Shapes
    /// any → `size`×`size`.
    ///
    /// Source: Chen et al., *Improved baselines with momentum contrastive learning*, 2020.
    pub struct MocoV2: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
        /// The probability of blur.
        pub blur: UnitInterval = UnitInterval::lit(0.5),
        /// The range of the crop's area, as a fraction of the image.
        pub scale: Interval = Interval::lit(0.2, 1.0),
    }
}

impl MocoV2 {
    fn list(&self) -> Steps {
        let (sigma, model, kernel) = (Interval::lit(0.1, 2.0), BlurModel::Pil, None);
        let blur = Arc::new(GaussianBlur { p: self.blur, sigma, model, kernel });
        let crop = crop(self.size, self.scale, Filter::Bilinear);
        vec![crop, flip(), jitter(1.0, [0.4, 0.4, 0.4, 0.1]), gray(), blur]
    }
}

preset!(MocoV2);
