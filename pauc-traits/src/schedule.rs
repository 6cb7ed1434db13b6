//! Durations in training, and values that change over time.

use crate::ron_text::Spanned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::Debug;

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Horizon {
    /// Optimizer steps in one epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps in the whole run.
    pub total_steps: u64,
}

/// A point in a run: the next step, counted from 0, and the length of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clock {
    /// The next step.
    pub step: u64,
    /// The length of the run.
    pub horizon: Horizon,
}

impl Clock {
    /// Returns the clock of a run of a single step, for evaluating a term outside a run.
    pub fn still() -> Self {
        Clock { step: 0, horizon: Horizon { steps_per_epoch: 1, total_steps: 1 } }
    }

    /// Returns the epoch of the current step.
    pub fn epoch(&self) -> u64 {
        self.step / self.horizon.steps_per_epoch.max(1)
    }
}

/// A duration in training, written `Steps(500)`, `Epochs(2)` or `Fraction(0.1)` (of the whole run).
///
/// ```
/// use pauc_traits::{Horizon, TrainingSpan, UnitInterval};
///
/// let horizon = Horizon { steps_per_epoch: 20, total_steps: 200 };
/// assert_eq!(TrainingSpan::epochs(2).steps(&horizon), 40);
/// assert_eq!(TrainingSpan::Fraction(UnitInterval::lit(0.1)).steps(&horizon), 20);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum TrainingSpan {
    /// Optimizer steps.
    Steps(u64),
    /// Epochs; fractions of an epoch are allowed.
    Epochs(crate::NonNegative),
    /// A fraction of the whole run.
    Fraction(crate::UnitInterval),
}

impl TrainingSpan {
    /// Returns whole epochs, for defaults in code.
    pub const fn epochs(n: u32) -> Self {
        TrainingSpan::Epochs(crate::NonNegative::lit(n as f64))
    }

    /// Returns the duration in optimizer steps, rounded to the nearest.
    pub fn steps(&self, horizon: &Horizon) -> u64 {
        match *self {
            TrainingSpan::Steps(n) => n,
            TrainingSpan::Epochs(e) => (e.get() * horizon.steps_per_epoch as f64).round() as u64,
            TrainingSpan::Fraction(f) => (f.get() * horizon.total_steps as f64).round() as u64,
        }
    }
}

impl std::fmt::Display for TrainingSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TrainingSpan::Steps(n) => write!(f, "step {n}"),
            TrainingSpan::Epochs(e) => write!(f, "epoch {e}"),
            TrainingSpan::Fraction(x) => write!(f, "{x} of the run"),
        }
    }
}

/// A value that changes during training. `T` is the validated number type of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Schedule<T> {
    /// A straight line from `from` to `to` over the duration, then `to`.
    Linear {
        /// First value.
        from: T,
        /// Last value.
        to: T,
        /// The duration.
        over: TrainingSpan,
    },
    /// Half a cosine from `from` to `to` over the duration, then `to`.
    Cosine {
        /// First value.
        from: T,
        /// Last value.
        to: T,
        /// The duration.
        over: TrainingSpan,
    },
    /// `from` before the given time, `to` afterwards.
    Step {
        /// The value before.
        from: T,
        /// The value afterwards.
        to: T,
        /// When it changes.
        at: TrainingSpan,
    },
    /// A straight line from zero to `to` over the duration, then `to`. The value is `to·(step+1)/steps`, so
    /// that the first step is not lost.
    Warmup {
        /// The last value.
        to: T,
        /// The duration.
        over: TrainingSpan,
    },
}

/// A constant, written as a plain number, or a [`Schedule`].
///
/// ```
/// use pauc_traits::component_ron::options;
/// use pauc_traits::{Clock, Horizon, NonNegative, Scheduled};
///
/// // From 0 to 0.1 over the first five of ten epochs, then 0.1.
/// let text = "Linear(from: 0.0, to: 0.1, over: Epochs(5))";
/// let weight: Scheduled<NonNegative> = options().from_str(text)?;
/// let horizon = Horizon { steps_per_epoch: 20, total_steps: 200 };
/// let at = |step| weight.at(&Clock { step, horizon });
/// assert_eq!((at(0), at(50), at(100), at(199)), (0.0, 0.05, 0.1, 0.1));
///
/// let constant: Scheduled<NonNegative> = NonNegative::lit(0.5).into();
/// assert_eq!(constant.at(&Clock { step: 123, horizon }), 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scheduled<T> {
    /// The same value throughout.
    Constant(T),
    /// A value that changes.
    Along(Schedule<T>),
}

impl<T: Copy + Into<f64>> Scheduled<T> {
    /// Returns the value at a step.
    pub fn at(&self, clock: &Clock) -> f64 {
        let progress = |over: &TrainingSpan| {
            let steps = over.steps(&clock.horizon);
            if steps == 0 { 1.0 } else { (clock.step as f64 / steps as f64).min(1.0) }
        };
        match self {
            Scheduled::Constant(v) => (*v).into(),
            Scheduled::Along(Schedule::Linear { from, to, over }) => {
                let (a, b): (f64, f64) = ((*from).into(), (*to).into());
                a + (b - a) * progress(over)
            }
            Scheduled::Along(Schedule::Cosine { from, to, over }) => {
                let (a, b): (f64, f64) = ((*from).into(), (*to).into());
                b + (a - b) * 0.5 * (1.0 + (std::f64::consts::PI * progress(over)).cos())
            }
            Scheduled::Along(Schedule::Step { from, to, at }) => {
                if clock.step < at.steps(&clock.horizon) {
                    (*from).into()
                } else {
                    (*to).into()
                }
            }
            Scheduled::Along(Schedule::Warmup { to, over }) => {
                let (steps, to) = (over.steps(&clock.horizon), (*to).into());
                if clock.step >= steps { to } else { to * (clock.step + 1) as f64 / steps as f64 }
            }
        }
    }

    /// Returns the last value in a run that is long enough.
    pub fn last(&self) -> f64 {
        match self {
            Scheduled::Constant(v) => (*v).into(),
            Scheduled::Along(
                Schedule::Linear { to, .. }
                | Schedule::Cosine { to, .. }
                | Schedule::Step { to, .. }
                | Schedule::Warmup { to, .. },
            ) => (*to).into(),
        }
    }

    /// Returns the largest value.
    pub fn largest(&self) -> f64 {
        match self {
            Scheduled::Along(
                Schedule::Linear { from, .. } | Schedule::Cosine { from, .. } | Schedule::Step { from, .. },
            ) => self.last().max((*from).into()),
            _ => self.last(),
        }
    }

    /// Returns the value at the end of the run.
    pub fn settled(&self, horizon: &Horizon) -> f64 {
        self.at(&Clock { step: horizon.total_steps, horizon: *horizon })
    }
}

impl<T> From<T> for Scheduled<T> {
    fn from(v: T) -> Self {
        Scheduled::Constant(v)
    }
}

impl<T: Serialize> Serialize for Scheduled<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Scheduled::Constant(v) => v.serialize(s),
            Scheduled::Along(schedule) => schedule.serialize(s),
        }
    }
}

impl<'de, T> Deserialize<'de> for Scheduled<T>
where
    T: for<'a> Deserialize<'a>,
{
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Spanned::deserialize(d)?;
        if text.starts_with_identifier() {
            text.parse().map(Scheduled::Along)
        } else {
            text.parse().map(Scheduled::Constant)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NonNegative, Positive};
    use pauc_testing::{assert_within, tolerance};

    fn at(text: &str, step: u64) -> f64 {
        let s: Scheduled<NonNegative> = crate::component_ron::options().from_str(text).unwrap();
        s.at(&Clock { step, horizon: Horizon { steps_per_epoch: 10, total_steps: 100 } })
    }

    #[test]
    fn schedules_pass_through_their_ends() {
        assert_eq!(at("0.25", 7), 0.25);
        assert_eq!(at("3", 7), 3.0);
        let linear = "Linear(from: 0.0, to: 0.1, over: Epochs(5))";
        assert_eq!((at(linear, 0), at(linear, 25), at(linear, 50), at(linear, 99)), (0.0, 0.05, 0.1, 0.1));
        let cosine = "Cosine(from: 1.0, to: 0.0, over: Fraction(0.5))";
        // An angle, its cosine, a sum and two products.
        for (step, want) in [(0, 1.0), (25, 0.5), (50, 0.0)] {
            assert_within!(at(cosine, step), want, tolerance::f64(5, 1.0), "{step}");
        }
        assert_eq!(at(cosine, 0), 1.0);
        let step = "Step(from: 1.0, to: 2.0, at: Steps(3))";
        assert_eq!((at(step, 2), at(step, 3)), (1.0, 2.0));
        let ends = |text: &str| {
            let s: Scheduled<NonNegative> = crate::component_ron::options().from_str(text).unwrap();
            (s.last(), s.largest())
        };
        assert_eq!((ends("3"), ends(linear), ends(cosine)), ((3.0, 3.0), (0.1, 0.1), (0.0, 1.0)));
        assert_eq!((ends(step), ends("Warmup(to: 2.0, over: Steps(4))")), ((2.0, 2.0), (2.0, 2.0)));
        let warmup = "Warmup(to: 1.0, over: Steps(4))";
        assert_eq!((at(warmup, 0), at(warmup, 3), at(warmup, 4)), (0.25, 1.0, 1.0));
    }

    #[test]
    fn a_bad_end_or_name_is_refused() {
        let parse = |t: &str| {
            crate::component_ron::options().from_str::<Scheduled<Positive>>(t).unwrap_err().to_string()
        };
        assert!(parse("-1.0").contains("greater than 0, got -1"));
        assert!(parse("Linear(from: 0.0, to: 1.0, over: Steps(3))").contains("got 0"));
        assert!(parse("Linaer(from: 1.0, to: 1.0, over: Steps(3))").contains("Linaer"));
    }

    #[test]
    fn schedules_round_trip() {
        for text in ["0.25", "Linear(from:0.0,to:0.1,over:Epochs(5.0))"] {
            let s: Scheduled<NonNegative> = crate::component_ron::options().from_str(text).unwrap();
            assert_eq!(crate::component_ron::options().to_string(&s).unwrap(), text);
        }
    }
}
