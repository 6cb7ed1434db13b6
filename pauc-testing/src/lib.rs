//! Shared parts of the tests of all crates.
//!
//! | module | contents |
//! |---|---|
//! | [`tolerance`], [`rounded`] | allowed errors, derived from the arithmetic; numbers that carry an error bound |
//! | [`property`] | seeds and cases of property tests, and commands that reproduce a failure |
//! | [`inputs`], [`npy`] | inputs that many tests read, as numbers and as files |
//! | [`mpi`] | the MPI launchers of this machine, for tests with several processes |
//! | [`random`] | random numbers for tests that build their inputs step by step |
//! | [`golden`] | names shared by the golden files and their tests |
//! | [`vectors`] | lengths and distances |
//!
//! Only tests depend on this crate.
#![forbid(unsafe_code)]

pub mod golden;
pub mod inputs;
pub mod mpi;
pub mod npy;
pub mod property;
pub mod random;
pub mod rounded;
pub mod tolerance;
pub mod vectors;

pub use rounded::Rounded;

/// Asserts that a value is within a tolerance of the expected one.
///
/// The tolerance is the largest difference that passes. Take it from [`tolerance`], so that it has a
/// derivation.
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
            "{}: expected {want}, got {got}; they differ by {off:e}, allowed is {tolerance:e}",
            format_args!($($context)+)
        );
    }};
}
