//! BYOL's two lists of augmentations.

use super::{Steps, blur, crop, flip, gray, jitter, preset};
use crate::Interval;
use crate::pixels::Filter;
use crate::views::Solarize;
use pauc_traits::{Count, UnitInterval, component};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One of BYOL's two views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ByolView {
    /// Always blurred, never solarized.
    First,
    /// Blurred with probability 0.1, solarized with probability 0.2.
    Second,
}

component! {
    /// BYOL's two views, which differ.
    ///
    /// Use both: `views: [(count: 1, ops: [Byol(size: 32, view: First)]), (count: 1, ops: [Byol(size: 32,
    /// view: Second)])]`.
    ///
    /// Both use a crop with the bicubic filter, a flip, color jitter and grayscale. The first is then always
    /// blurred; the second is blurred with probability 0.1 and solarized with probability 0.2.
    ///
    /// # Shapes
    /// any → `size`×`size`.
    ///
    /// Source: Grill et al., *Bootstrap your own latent*, 2020, appendix B.
    pub struct Byol: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
        /// `First` or `Second`.
        pub view: ByolView,
        /// The range of the crop's area, as a fraction of the image.
        pub scale: Interval = Interval::lit(0.08, 1.0),
    }
}

impl Byol {
    fn list(&self) -> Steps {
        let (blurred, solarized) = match self.view {
            ByolView::First => (1.0, 0.0),
            ByolView::Second => (0.1, 0.2),
        };
        let solarize = Arc::new(Solarize { p: UnitInterval::lit(solarized), threshold: 128 });
        let crop = crop(self.size, self.scale, Filter::Bicubic);
        let jitter = jitter(1.0, [0.4, 0.4, 0.2, 0.1]);
        vec![crop, flip(), jitter, gray(), blur(UnitInterval::lit(blurred), self.size), solarize]
    }
}

preset!(Byol);
