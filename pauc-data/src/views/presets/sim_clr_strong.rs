//! SimCLR's list with solarization and equalization.

use super::{SimClr, Steps, preset};
use crate::Interval;
use crate::views::{Equalize, Solarize};
use pauc_traits::{Augmentation, Count, NonNegative, UnitInterval, component};
use std::sync::Arc;

component! {
    /// SimCLR's views, then solarization and equalization, each with probability 0.2.
    ///
    /// # Shapes
    /// any → `size`×`size`.
    ///
    /// Source: Chen et al., *A simple framework for contrastive learning of visual representations*, 2020; the two
    /// additions as in Grill et al., *Bootstrap your own latent*, 2020, and da Costa et al., *solo-learn*, 2022.
    pub struct SimClrStrong: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
        /// The strength s of the jitter: brightness, contrast and saturation by 0.8 s, hue by 0.2 s.
        pub strength: NonNegative = NonNegative::lit(1.0),
        /// The range of the crop's area, as a fraction of the image.
        pub scale: Interval = Interval::lit(0.08, 1.0),
    }
}

impl SimClrStrong {
    fn list(&self) -> Steps {
        let Self { size, strength, scale } = *self;
        let p = UnitInterval::lit(0.2);
        let mut steps =
            SimClr { size, strength, scale, blur: UnitInterval::lit(0.5) }.steps().unwrap_or_default();
        steps.push(Arc::new(Solarize { p, threshold: 128 }));
        steps.push(Arc::new(Equalize { p }));
        steps
    }
}

preset!(SimClrStrong);
