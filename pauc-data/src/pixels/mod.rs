//! The pixel operations of augmentations, with given parameters.
//!
//! Every function follows the arithmetic of Pillow or torchvision, so that a recipe gives the same views.
//!
//! | module | contents |
//! |---|---|
//! | [`geometry`] | crops with padding, flips |
//! | [`resample`] | resizing of a rectangle: bilinear and bicubic, with antialiasing |
//! | [`color`] | brightness, contrast, saturation, hue, grayscale, solarization |
//! | [`blur`] | Gaussian blur: Pillow's approximation and the exact convolution |
//! | [`mod@rotate`] | rotation about the center |
//! | [`rounding`] | rounding functions that vectorize |

pub mod blur;
pub mod color;
pub mod geometry;
pub mod resample;
pub mod rotate;
pub mod rounding;

pub use geometry::Rect;
pub use resample::Filter;
pub use rotate::RotationFilter;
