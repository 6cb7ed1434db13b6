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
        /// m. It may follow a schedule.
        pub momentum: Scheduled<UnitInterval> = UnitInterval::lit(0.99).into(),
        /// How running statistics, such as those of batch normalization, are updated.
        pub statistics: Statistics = Statistics::Average,
    }
}

/// How the running statistics of a momentum encoder are updated. Independently of this, passes of the
/// momentum branch over training batches update its statistics like every training pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistics {
    /// They are averaged like the weights. This default also works if the branch itself sees no training
    /// batch.
    Average,
    /// They are copied from the online network.
    Copy,
    /// Only the branch's own passes change them, as in the code of MoCo and BYOL.
    Own,
}

/// A momentum encoder as a recipe names it: `Ema(momentum: 0.99)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MomentumConfig {
    /// An exponential moving average.
    Ema(Ema),
}

impl MomentumConfig {
    /// Moves the momentum branch one step toward the online network.
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

/// Computes `branch ← momentum·branch + (1 − momentum)·online`, parameter by parameter.
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
        return differ(format!(
            "{} parameters; expected {}, as in the online network",
            branch.len(),
            online.len()
        ));
    }
    for (from, to) in online.iter().zip(branch) {
        if (&from.name, &from.shape) != (&to.name, &to.shape) {
            let (a, b) = (format!("{} {:?}", to.name, to.shape), format!("{} {:?}", from.name, from.shape));
            return differ(format!("{a}; expected {b}, as in the online network"));
        }
    }
    let mut pairs: Vec<_> =
        online.iter().zip(branch).map(|(from, to)| (to.value_mut(), from.value())).collect();
    device.moving_averages(
        &mut pairs.iter_mut().map(|(to, from)| (&mut **to, &**from)).collect::<Vec<_>>(),
        momentum,
    )
}
