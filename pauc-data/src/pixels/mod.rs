//! What augmentations do to pixels, apart from how their parameters are drawn.
//!
//! Every function follows Pillow's or torchvision's arithmetic, so that a recipe means the same here as there.
//!
//! | module | what lives there |
//! |---|---|
//! | [`geometry`] | crops with padding, flips |
//! | [`resample`] | resizing of a rectangle, bilinear and bicubic with antialiasing |
//! | [`color`] | brightness, contrast, saturation, hue, grayscale, solarization |
//! | [`blur`] | Gaussian blur, Pillow's approximation and the exact one |
//! | [`mod@rotate`] | rotation about the center |
//! | [`rounding`] | the roundings that vectorize |

pub mod blur;
pub mod color;
pub mod geometry;
pub mod resample;
pub mod rotate;
pub mod rounding;

pub use geometry::Rect;
pub use resample::Filter;
pub use rotate::RotationFilter;
