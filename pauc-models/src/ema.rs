//! The momentum encoder: a network that follows the online one.

use crate::device::NetworkDevice;
use crate::network::Network;
use pauc_traits::{Clock, Error, Param, Result, Scheduled, UnitInterval, component};
use serde::{Deserialize, Serialize};

component! {
    /// The exponential moving average of the online network: w ← m·w + (1 − m)·w_online after every step.
    ///
    /// Source: MoCo (He et al. 2020) with m = 0.999 for long runs, BYOL with `Cosine(from: 0.996, to: 1.0, …)`.
    pub struct Ema {
        /// m; it may follow a schedule.
        pub momentum: Scheduled<UnitInterval> = UnitInterval::lit(0.99).into(),
        /// What happens to running statistics, such as those of batch normalisation.
        pub statistics: Statistics = Statistics::Average,
    }
}

/// What happens to the running statistics of a momentum encoder at an update. Independently of it, passes of the
/// momentum branch over training batches update the branch's statistics as every training pass does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistics {
    /// They are averaged like the weights. The default: right also when the branch itself sees no training batch.
    Average,
    /// They are replaced by the online network's.
    Copy,
    /// They are left to the branch's own passes, as in the code of MoCo and BYOL.
    Own,
}

/// A momentum encoder as a recipe names it: `Ema(momentum: 0.99)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MomentumConfig {
    /// An exponential moving average.
    Ema(Ema),
}

impl MomentumConfig {
    /// Lets the momentum branch follow the online network by one step.
    ///
    /// # Errors
    /// If the networks differ, or the device fails.
    pub fn update<D: NetworkDevice>(
        &self,
        device: &D,
        online: &Network<D>,
        branch: &Network<D>,
        clock: &Clock,
    ) -> Result<()> {
        let MomentumConfig::Ema(ema) = self;
        let momentum = ema.momentum.at(clock);
        update(device, &online.followed_parameters(), &branch.parameters(), momentum)?;
        let statistics_momentum = match ema.statistics {
            Statistics::Average => momentum,
            Statistics::Copy => 0.0,
            Statistics::Own => return Ok(()),
        };
        update(device, &online.followed_statistics(), &branch.statistics(), statistics_momentum)
    }
}

/// `branch ← momentum·branch + (1 − momentum)·online`, parameter by parameter.
///
/// # Errors
/// If the lists differ in a name or shape, or the device fails.
pub fn update<D: NetworkDevice>(
    device: &D,
    online: &[Param<D>],
    branch: &[Param<D>],
    momentum: f64,
) -> Result<()> {
    let differ = |what: String| Err(Error::shape("momentum encoder", what));
    if online.len() != branch.len() {
        return differ(format!("{} parameters cannot follow {}", branch.len(), online.len()));
    }
    for (from, to) in online.iter().zip(branch) {
        if (&from.name, &from.shape) != (&to.name, &to.shape) {
            let (a, b) = (format!("{} {:?}", to.name, to.shape), format!("{} {:?}", from.name, from.shape));
            return differ(format!("{a} cannot follow {b}"));
        }
    }
    let mut pairs: Vec<_> =
        online.iter().zip(branch).map(|(from, to)| (to.value_mut(), from.value())).collect();
    device.moving_averages(
        &mut pairs.iter_mut().map(|(to, from)| (&mut **to, &**from)).collect::<Vec<_>>(),
        momentum,
    )
}
