//! SimCLR's list of augmentations.

use super::{Steps, blur, crop, flip, gray, jitter, preset};
use crate::Interval;
use crate::pixels::Filter;
use pauc_traits::{Count, NonNegative, UnitInterval, component};

component! {
    /// SimCLR's views: crop, flip, strong color jitter, grayscale, blur.
    ///
    /// As published for ImageNet. For CIFAR its authors use `strength: 0.5` and `blur: 0.0`.
    ///
    /// # Shapes
    /// any → `size`×`size`.
    ///
    /// Source: Chen et al., *A simple framework for contrastive learning of visual representations*, 2020, appendix A.
    pub struct SimClr: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
        /// The strength s of the jitter: brightness, contrast and saturation by 0.8 s, hue by 0.2 s.
        pub strength: NonNegative = NonNegative::lit(1.0),
        /// The probability of blur, whose kernel is a tenth of the size.
        pub blur: UnitInterval = UnitInterval::lit(0.5),
        /// The range of the crop's area, as a fraction of the image.
        pub scale: Interval = Interval::lit(0.08, 1.0),
    }
}

impl SimClr {
    fn list(&self) -> Steps {
        let jitter = jitter(self.strength.get(), [0.8, 0.8, 0.8, 0.2]);
        let crop = crop(self.size, self.scale, Filter::Bilinear);
        vec![crop, flip(), jitter, gray(), blur(self.blur, self.size)]
    }
}

preset!(SimClr);
