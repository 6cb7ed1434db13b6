//! What the tests of all crates share.
//!
//! | module | what lives there |
//! |---|---|
//! | [`tolerance`], [`rounded`] | how far a result may be off, derived from the arithmetic; numbers that carry that along |
//! | [`property`] | seeds and cases of property tests, and how a failure is repeated |
//! | [`inputs`], [`npy`] | inputs that many tests read, as numbers and as files |
//! | [`golden`] | what the golden files and their tests agree on |
//! | [`vectors`] | lengths and distances |
//!
//! Only tests depend on this crate.
#![forbid(unsafe_code)]

pub mod golden;
pub mod inputs;
pub mod npy;
pub mod property;
pub mod rounded;
pub mod tolerance;
pub mod vectors;

pub use rounded::Rounded;

/// Asserts that a value lies within a tolerance of the one that is expected.
///
/// The tolerance is the largest difference that passes; take it from [`tolerance`], so that it has a derivation.
///
/// ```
/// use pauc_testing::{assert_within, tolerance};
/// // Seven additions of numbers whose absolute values sum to 0.7.
/// let sum: f32 = [0.1f32; 7].iter().sum();
/// assert_within!(sum, 0.7, tolerance::f32(7, 0.7));
/// ```
#[macro_export]
macro_rules! assert_within {
    ($got:expr, $want:expr, $tolerance:expr $(,)?) => {
        $crate::assert_within!($got, $want, $tolerance, "{}", stringify!($got))
    };
    ($got:expr, $want:expr, $tolerance:expr, $($context:tt)+) => {{
        let (got, want, tolerance) = (f64::from($got), f64::from($want), f64::from($tolerance));
        let off = (got - want).abs();
        assert!(
            off <= tolerance,
            "{}: {got} for {want}, off by {off:e} where {tolerance:e} is allowed",
            format_args!($($context)+)
        );
    }};
}
