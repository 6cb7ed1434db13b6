//! What the ranks of a training do together, besides the sums of gradients.
//!
//! Every rank has the same state and takes the same decisions. It passes its own shards through the networks; the rows
//! are gathered, and all ranks evaluate the terms on the whole batch. Rank 0 alone writes.

use pauc_distributed::{CommunicationError, Communicator, bytes_of, bytes_of_mut, joined};
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_traits::shards::ShardExchange;
use pauc_traits::{Error, Param, Result};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Returns the part of `n` equal items that belongs to a rank.
pub(crate) fn share(n: usize, rank: usize, ranks: usize) -> Range<usize> {
    n * rank / ranks..n * (rank + 1) / ranks
}

/// Returns whether `flag` is set on any rank.
///
/// # Errors
/// If another rank has failed.
pub(crate) fn any(ranks: &dyn Communicator, flag: bool) -> Result<bool> {
    let mut all = vec![0; ranks.size()];
    ranks.all_gather(&[flag.into()], &mut all)?;
    Ok(all.contains(&1))
}

/// Gathers numbers, as many on each rank, in the order of ranks.
///
/// # Errors
/// If another rank has failed.
pub(crate) fn gather(ranks: &dyn Communicator, own: &[f32]) -> Result<Vec<f32>> {
    let mut all = vec![0.0; own.len() * ranks.size()];
    ranks.all_gather(bytes_of(own), bytes_of_mut(&mut all))?;
    Ok(all)
}

/// Concatenates the numbers of all ranks, which may have different numbers of them.
///
/// # Errors
/// If another rank has failed.
pub(crate) fn concatenate(ranks: &dyn Communicator, own: Vec<f32>) -> Result<Vec<f32>> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    Ok(joined(&ranks.all_gather_messages(bytes_of(&own))?))
}

/// Exchanges the sums of shards between ranks, in the middle of a pass.
#[derive(Debug)]
pub(crate) struct ExchangeOfRanks {
    ranks: Arc<dyn Communicator>,
    /// The first error, kept until the end of the pass.
    error: RefCell<Option<CommunicationError>>,
}

impl ExchangeOfRanks {
    pub fn new(ranks: Arc<dyn Communicator>) -> Self {
        ExchangeOfRanks { ranks, error: RefCell::default() }
    }
}

impl ShardExchange for ExchangeOfRanks {
    fn gather(&self, own: &[f64]) -> Vec<f64> {
        if self.ranks.size() == 1 {
            return own.to_vec();
        }
        let mut all = vec![0.0; own.len() * self.ranks.size()];
        let mut error = self.error.borrow_mut();
        if error.is_none() {
            *error = self.ranks.all_gather(bytes_of(own), bytes_of_mut(&mut all)).err();
        }
        all
    }

    fn check(&self) -> Result<()> {
        self.error.take().map_or(Ok(()), |error| Err(error.into()))
    }
}

/// How the work of rank 0 ended, as the first byte of a message.
const DONE: u8 = 0;
const STOPPED: u8 = 1;
const FAILED: u8 = 2;

/// Does work on rank 0, and returns its result there; `None` on the other ranks. If it fails, it fails on all.
///
/// # Errors
/// Those of the work.
pub(crate) fn on_first<T>(ranks: &dyn Communicator, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    let mut result = None;
    from_first(ranks, || {
        result = Some(work()?);
        Ok(Vec::new())
    })?;
    Ok(result)
}

/// Does work on rank 0, and returns its result on all ranks.
///
/// # Errors
/// Those of the work. On the other ranks, all but [`Error::Stopped`] are an [`Error::Other`] with the same text.
pub(crate) fn from_first(
    ranks: &dyn Communicator,
    work: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    if ranks.size() == 1 {
        return work();
    }
    let mut result = if ranks.rank() == 0 { Some(work()) } else { None };
    let mut message = match &result {
        None => Vec::new(),
        Some(Ok(bytes)) => [&[DONE], bytes.as_slice()].concat(),
        Some(Err(Error::Stopped)) => vec![STOPPED],
        Some(Err(error)) => [&[FAILED], error.to_string().as_bytes()].concat(),
    };
    let mut length = [message.len() as u64];
    ranks.broadcast(bytes_of_mut(&mut length), 0)?;
    message.resize(length[0] as usize, 0);
    ranks.broadcast(&mut message, 0)?;
    if let Some(result) = result.take() {
        return result;
    }
    match message.split_first() {
        Some((&DONE, bytes)) => Ok(bytes.to_vec()),
        Some((&STOPPED, _)) => Err(Error::Stopped),
        _ => {
            let text = String::from_utf8_lossy(message.get(1..).unwrap_or_default());
            Err(Error::Other(format!("rank 0: {text}").into()))
        }
    }
}

/// The running statistics of a network during the passes of this rank's shards. Afterwards they are moved by the
/// moments of all shards of the batch, in order.
pub(crate) struct Recording<D: NetworkDevice> {
    statistics: Vec<Param<D>>,
    before: Vec<Vec<f32>>,
}

impl<D: NetworkDevice> Recording<D> {
    /// Begins to record moments.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin(device: &D, network: &Network<D>) -> Result<Self> {
        let statistics = network.statistics();
        let before = statistics.iter().map(|p| device.download(&p.value())).collect::<Result<_>>()?;
        statistics.iter().for_each(Param::record_moments);
        Ok(Recording { statistics, before })
    }

    /// Creates an empty record, for a pass that itself moves the running statistics by the moments of all ranks.
    pub fn of_synced() -> Self {
        Recording { statistics: Vec::new(), before: Vec::new() }
    }

    /// Ends the record, and returns the moments of all statistics, one after the other.
    ///
    /// # Errors
    /// If the network keeps statistics that it does not record, or the device fails.
    pub fn end(&self, device: &D) -> Result<Vec<Vec<f32>>> {
        let mut moments = Vec::with_capacity(self.statistics.len());
        for (p, before) in self.statistics.iter().zip(&self.before) {
            let own = p.take_moments(device)?;
            if own.is_empty() && device.download(&p.value())? != *before {
                let message = format!(
                    "`{}` follows the batches without recording their moments, so its network trains on one rank only",
                    p.name
                );
                return Err(Error::config(message));
            }
            moments.push(own);
        }
        Ok(moments)
    }

    /// Moves the statistics by the moments of all ranks, in the order of ranks.
    ///
    /// # Shapes
    /// moments: for each rank, as many as [`Recording::end`] returned, concatenated
    ///
    /// # Errors
    /// If the device fails.
    pub fn move_by(&self, device: &D, own: &[Vec<f32>], moments: &[&[f32]]) -> Result<()> {
        let mut offset = 0;
        for ((p, before), own) in self.statistics.iter().zip(&self.before).zip(own) {
            let mut running = before.clone();
            for of_rank in moments {
                let of_rank = &of_rank[offset..offset + own.len()];
                pauc_models::batch_moments::repeat_moves(&mut running, of_rank);
            }
            device.overwrite(&mut p.value_mut(), &running)?;
            offset += own.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_distributed::{Alone, Threads};

    #[test]
    fn work_of_the_first_rank_is_known_to_all() {
        let results = Threads::run(3, |ranks| {
            let bytes = from_first(&ranks, || Ok(vec![7; 5]))?;
            let stopped = from_first(&ranks, || Err(Error::Stopped)).unwrap_err();
            let failed = on_first(&ranks, || Err::<(), _>(Error::config("no space"))).unwrap_err();
            let value = on_first(&ranks, || Ok(ranks.rank()))?;
            Ok::<_, Error>((bytes, matches!(stopped, Error::Stopped), failed.to_string(), value))
        });
        for (rank, result) in results.into_iter().enumerate() {
            let (bytes, stopped, failed, value) = result.unwrap();
            assert_eq!((bytes, stopped), (vec![7; 5], true));
            assert_eq!(failed, if rank == 0 { "no space" } else { "rank 0: no space" });
            assert_eq!(value, (rank == 0).then_some(0));
        }
        assert_eq!(from_first(&Alone, || Ok(vec![1])).unwrap(), [1]);
    }

    #[test]
    fn sums_of_shards_come_together_and_a_failure_is_kept() {
        let results = Threads::run(3, |ranks| {
            let rank = ranks.rank();
            let exchange = ExchangeOfRanks::new(Arc::new(ranks));
            let all = exchange.gather(&[rank as f64, 0.5]);
            exchange.check()?;
            // The last rank leaves.
            let failed = (rank < 2).then(|| {
                assert_eq!(exchange.gather(&[1.0]), [0.0; 3]);
                exchange.gather(&[1.0]);
                exchange.check().is_err()
            });
            Ok::<_, Error>((all, failed))
        });
        for (rank, result) in results.into_iter().enumerate() {
            let (all, failed) = result.unwrap();
            assert_eq!((all, failed), (vec![0.0, 0.5, 1.0, 0.5, 2.0, 0.5], (rank < 2).then_some(true)));
        }
        let alone = ExchangeOfRanks::new(Arc::new(Alone));
        assert_eq!(alone.gather(&[3.0]), [3.0]);
        alone.check().unwrap();
    }

    #[test]
    fn ranks_learn_of_each_other() {
        let results = Threads::run(4, |ranks| {
            let rank = ranks.rank();
            let own = vec![rank as f32; rank];
            let all = concatenate(&ranks, own)?;
            let flags = [any(&ranks, rank == 2)?, any(&ranks, false)?];
            Ok::<_, Error>((all, flags, gather(&ranks, &[rank as f32, 0.5])?))
        });
        for result in results {
            let (all, flags, gathered) = result.unwrap();
            assert_eq!(all, [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
            assert_eq!(flags, [true, false]);
            assert_eq!(gathered, [0.0, 0.5, 1.0, 0.5, 2.0, 0.5, 3.0, 0.5]);
        }
        assert_eq!((0..3).map(|rank| share(8, rank, 3)).collect::<Vec<_>>(), [0..2, 2..5, 5..8]);
    }
}
