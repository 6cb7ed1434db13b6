//! Learning-rate schedules: the factor on an optimizer's base learning rate.

use pauc_traits::{Clock, TrainingSpan, UnitInterval, component};
use serde::{Deserialize, Serialize};

component! {
    /// A straight line up to 1 during warm-up, then half a cosine down to `floor` at the last step.
    ///
    /// With W warm-up steps in a run of T: (s+1)/W for s < W, then floor + (1 − floor)·(1 + cos(π·(s − W)/(T
    /// − W − 1)))/2. Source: SimCLR; steps are counted as in lightly.
    pub struct WarmupCosine {
        /// The length of the warm-up.
        pub warmup: TrainingSpan,
        /// The factor at the end of the run.
        pub floor: UnitInterval = UnitInterval::lit(0.0),
        /// Whether the factor changes with each step or only with each epoch.
        pub per: Per = Per::Step,
    }
}

component! {
    /// Half a cosine from 1 at the first step down to `floor` at the last step.
    ///
    /// Source: SGDR (Loshchilov & Hutter 2017), without restarts. MoCo's and PCL's schedule changes per epoch.
    pub struct Cosine {
        /// The factor at the end of the run.
        pub floor: UnitInterval = UnitInterval::lit(0.0),
        /// Whether the factor changes with each step or only with each epoch.
        pub per: Per = Per::Step,
    }
}

component! {
    /// The learning rate is multiplied by `factor` at each milestone.
    pub struct Step {
        /// The times at which the learning rate drops.
        pub milestones: Vec<TrainingSpan>,
        /// The factor of each drop.
        pub factor: UnitInterval = UnitInterval::lit(0.1),
    }
}

/// How often a factor changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Per {
    /// At every optimizer step.
    Step,
    /// At the start of every epoch.
    Epoch,
}

/// A learning-rate schedule as a recipe names it: `WarmupCosine(warmup: Epochs(5))`.
///
/// ```
/// use pauc_models::schedule::LrSchedule;
/// use pauc_traits::component_ron::options;
/// use pauc_traits::{Clock, Horizon};
///
/// let schedule: LrSchedule = options().from_str("WarmupCosine(warmup: Steps(4))")?;
/// let horizon = Horizon { steps_per_epoch: 10, total_steps: 100 };
/// let at = |step| schedule.factor_at(&Clock { step, horizon });
/// assert_eq!((at(0), at(1), at(3), at(4)), (0.25, 0.5, 1.0, 1.0));
/// assert!(at(50) < 0.6 && at(99) < 1e-15);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub enum LrSchedule {
    /// The base learning rate throughout.
    #[default]
    Constant,
    /// Half a cosine.
    Cosine(Cosine),
    /// Warm-up, then half a cosine.
    WarmupCosine(WarmupCosine),
    /// Drops at milestones.
    Step(Step),
}

impl LrSchedule {
    /// Returns the factor on the base learning rate at the clock's step.
    pub fn factor_at(&self, clock: &Clock) -> f64 {
        match self {
            LrSchedule::Constant => 1.0,
            LrSchedule::Cosine(c) => warmup_cosine(0, c.floor.get(), c.per, clock),
            LrSchedule::WarmupCosine(c) => {
                warmup_cosine(c.warmup.steps(&clock.horizon), c.floor.get(), c.per, clock)
            }
            LrSchedule::Step(s) => {
                let passed = s.milestones.iter().filter(|m| clock.step >= m.steps(&clock.horizon)).count();
                s.factor.get().powi(passed as i32)
            }
        }
    }
}

fn warmup_cosine(warmup: u64, floor: f64, per: Per, clock: &Clock) -> f64 {
    let unit = match per {
        Per::Step => 1,
        Per::Epoch => clock.horizon.steps_per_epoch.max(1),
    };
    let warmup = (warmup as f64 / unit as f64).round() as u64;
    let (now, end) = (clock.step / unit, clock.horizon.total_steps.div_ceil(unit));
    if now < warmup {
        return (now + 1) as f64 / warmup as f64;
    }
    let last = end.saturating_sub(warmup + 1);
    let progress = if last == 0 { 1.0 } else { ((now - warmup) as f64 / last as f64).min(1.0) };
    floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}
