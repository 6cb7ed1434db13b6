//! Settings of property tests: the number of cases, the seed, and how to reproduce a failure.
//!
//! A property test draws its cases from a fixed seed, so that every run of the suite sees the same cases.
//! `PAUC_TEST_SEED` changes the seed: a number, or `random`. `PAUC_TEST_CASES` replaces the number of cases.
//! A failure prints the command that reproduces it. Its input is stored in `proptest-regressions`, and later
//! runs try it first.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, FailurePersistence, FileFailurePersistence, PersistedSeed, RngSeed};
use std::any::Any;
use std::sync::OnceLock;

/// The environment variable that sets the seed: a number, or `random`.
pub const SEED: &str = "PAUC_TEST_SEED";
/// The environment variable that replaces the number of cases of each property test.
pub const CASES: &str = "PAUC_TEST_CASES";
/// The seed if [`SEED`] is not set.
const FIXED: u64 = 20221121;

/// Returns the seed of this process.
///
/// # Panics
/// If [`SEED`] is neither a number nor `random`.
pub fn seed() -> u64 {
    static CHOSEN: OnceLock<u64> = OnceLock::new();
    *CHOSEN.get_or_init(|| match std::env::var(SEED).as_deref() {
        Err(_) => FIXED,
        Ok("random") => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(FIXED, |now| now.as_nanos() as u64 % 1_000_000_007),
        Ok(text) => match text.parse() {
            Ok(seed) => seed,
            Err(_) => panic!("{SEED}={text:?} is not a seed; expected a number below 2^64, or `random`"),
        },
    })
}

/// Returns the number of cases for a test that asks for `usual`.
///
/// # Panics
/// If [`CASES`] is not a number.
pub fn count(usual: u32) -> u32 {
    match std::env::var(CASES) {
        Err(_) => usual,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{CASES}={text:?} is not a number of cases; expected a whole number")),
    }
}

/// Returns the settings of a property test with this usual number of cases.
///
/// ```
/// use proptest::prelude::*;
/// proptest! {
///     #![proptest_config(pauc_testing::property::cases(20))]
///     # /*
///     #[test]
///     # */
///     fn doubling_is_adding(n in 0u32..1000) {
///         prop_assert_eq!(2 * n, n + n);
///     }
/// }
/// # doubling_is_adding();
/// ```
pub fn cases(usual: u32) -> Config {
    Config {
        cases: count(usual),
        rng_seed: RngSeed::Fixed(seed()),
        // The limit on rejections by `prop_assume!` grows with the number of cases.
        max_global_rejects: count(usual).saturating_mul(16).max(1024),
        failure_persistence: Some(Box::new(Repeatable(FileFailurePersistence::default()))),
        ..Config::default()
    }
}

/// Sizes from `range`, uniform over orders of magnitude: small sizes, which are cheap, are as frequent as
/// large ones.
///
/// # Panics
/// If the range is empty or begins with 0.
pub fn size(range: std::ops::Range<usize>) -> impl Strategy<Value = usize> + Clone {
    assert!(
        range.start > 0 && range.start < range.end,
        "the range of sizes must be nonempty and above 0, got {range:?}"
    );
    let (low, high) = ((range.start as f64).ln(), (range.end as f64).ln());
    // Rounding may reach the end of the range.
    (0.0..1.0f64).prop_map(move |share| {
        ((low + share * (high - low)).exp() as usize).clamp(range.start, range.end - 1)
    })
}

/// Stores failing inputs in a file, and prints how to reproduce the failure.
#[derive(Clone, Debug, PartialEq)]
struct Repeatable(FileFailurePersistence);

impl FailurePersistence for Repeatable {
    fn load_persisted_failures2(&self, source: Option<&'static str>) -> Vec<PersistedSeed> {
        self.0.load_persisted_failures2(source)
    }

    fn save_persisted_failure2(
        &mut self,
        source: Option<&'static str>,
        seed: PersistedSeed,
        shrunken_value: &dyn std::fmt::Debug,
    ) {
        eprintln!("\n{}\n", command());
        self.0.save_persisted_failure2(source, seed, shrunken_value);
    }

    fn box_clone(&self) -> Box<dyn FailurePersistence> {
        Box::new(self.clone())
    }

    // proptest's trait requires that two of its trait objects are compared by downcasting.
    fn eq(&self, other: &dyn FailurePersistence) -> bool {
        other.as_any().downcast_ref::<Self>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Returns the command that repeats the test of this thread with this seed.
pub fn command() -> String {
    let package = std::env::var("CARGO_PKG_NAME").map_or(String::new(), |name| format!(" -p {name}"));
    // The harness names a thread after its test, unless there is only one thread.
    let test = std::thread::current().name().filter(|name| *name != "main").unwrap_or_default().to_string();
    let kept = [CASES, "PAUC_SIMD", "RAYON_NUM_THREADS"]
        .map(|name| std::env::var(name).map_or(String::new(), |value| format!("{name}={value} ")));
    format!("repeat this with:\n    {}{SEED}={} cargo test{package} {test}", kept.concat(), seed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::test_runner::{TestCaseError, TestRunner};
    use std::cell::RefCell;

    fn drawn(seed: u64) -> Vec<u64> {
        let seen = RefCell::new(Vec::new());
        let config = Config { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..cases(5) };
        TestRunner::new(config)
            .run(&proptest::num::u64::ANY, |n| {
                seen.borrow_mut().push(n);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        seen.into_inner()
    }

    #[test]
    fn the_seed_decides_what_is_drawn() {
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn sizes_cover_their_range() {
        let counts = RefCell::new([0; 64]);
        let config = Config { failure_persistence: None, ..cases(5000) };
        TestRunner::new(config)
            .run(&size(1..64), |n| {
                counts.borrow_mut()[n] += 1;
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        let counts = counts.into_inner();
        assert!(counts[0] == 0 && counts[1..].iter().all(|c| *c > 0), "{counts:?}");
        let share = |from: usize, to: usize| counts[from..to].iter().sum::<u32>() as f64 / 5000.0;
        // Sizes between consecutive powers of two have equal shares.
        assert!((share(8, 16) - 1.0 / 6.0).abs() < crate::tolerance::frequency(1.0 / 6.0, 5000));
    }

    #[test]
    fn a_failure_prints_how_to_reproduce_it() {
        let text = command();
        assert!(text.contains(&format!("{SEED}={} cargo test -p pauc-testing", seed())), "{text}");
        let shown = std::thread::current().name() == Some("main");
        assert!(shown || text.ends_with("property::tests::a_failure_prints_how_to_reproduce_it"), "{text}");
    }

    #[test]
    fn failures_are_stored_and_tried_again() {
        let file = std::env::temp_dir().join(format!("pauc-testing-{}.txt", std::process::id()));
        let path: &'static str = Box::leak(file.display().to_string().into_boxed_str());
        let run = |reject: &dyn Fn(u64) -> bool| {
            let store = Repeatable(FileFailurePersistence::Direct(path));
            let config = Config { failure_persistence: Some(Box::new(store)), ..cases(200) };
            let first = RefCell::new(None);
            let outcome = TestRunner::new(config).run(&(0u64..1000), |n| {
                first.borrow_mut().get_or_insert(n);
                if reject(n) { Err(TestCaseError::fail("rejected")) } else { Ok(()) }
            });
            (outcome.is_ok(), first.into_inner())
        };
        let (passed, _) = run(&|n| n >= 700);
        assert!(!passed);
        let (passed, first) = run(&|_| false);
        std::fs::remove_file(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert!(passed && first.is_some_and(|n| n >= 700), "the stored input comes first: {first:?}");
    }
}
