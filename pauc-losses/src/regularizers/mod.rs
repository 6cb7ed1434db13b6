//! Penalties on how embeddings or prototypes are distributed.

mod alignment;
mod correlation;
mod entropy_of_assignments;
mod ko_leo;
mod uniformity;
mod variance;

pub use alignment::{Alignment, AlignmentLevel};
pub use correlation::{Correlation, CorrelationKind, CorrelationLevel};
pub use entropy_of_assignments::EntropyOfAssignments;
pub use ko_leo::KoLeo;
pub use uniformity::{Uniformity, UniformityLevel};
pub use variance::Variance;
