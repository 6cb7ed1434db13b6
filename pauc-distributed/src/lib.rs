//! The processes of one training, and how they exchange data.
//!
//! Internal to pauc: this crate may change in any release.
//!
//! A *communicator* connects `size` processes, the *ranks* 0, 1, …. Each calls the same collective operations
//! in the same order. They move bytes and add nothing up, so a result cannot depend on the library or the
//! network that moves them.
//!
//! | communicator | ranks |
//! |---|---|
//! | [`Alone`] | this process only |
//! | [`Threads`] | threads of this process, for tests and for programs that embed pauc |
//! | [`Mpi`] | processes that `mpirun`, `mpiexec` or `srun` has started, on any number of machines |
//!
//! Code that works on several ranks takes a `&dyn Communicator`. There is no global one.

mod agreement;
mod alone;
mod bytes;
mod error;
mod launcher;
mod mpi;
mod pieces;
mod threads;

pub use agreement::{Disagreement, agree};
pub use alone::Alone;
pub use bytes::{Plain, bytes_of, bytes_of_mut, joined};
pub use error::CommunicationError;
pub use launcher::{Family, Launcher, LauncherError};
pub use mpi::library::{Library, LibraryError, find};
pub use mpi::{Mpi, StartError};
pub use threads::{RankError, Threads};

/// The result of a collective operation.
pub type Result<T, E = CommunicationError> = std::result::Result<T, E>;

/// Moves bytes between the ranks of a training.
///
/// Every method but [`rank`](Self::rank), [`size`](Self::size) and [`abort`](Self::abort) is collective: all ranks
/// must call it, in the same order and with the same lengths, and it may wait for them. If a rank ends or fails
/// before it has called the method, the ranks that wait for it get an error or are ended. After an error, the
/// communicator must not be used again.
pub trait Communicator: Send + Sync + std::fmt::Debug {
    /// Returns the number of this rank, below [`size`](Self::size).
    fn rank(&self) -> usize;

    /// Returns the number of ranks, at least 1.
    fn size(&self) -> usize;

    /// Gathers the bytes of all ranks, in the order of ranks, on every rank.
    ///
    /// # Shapes
    /// `own`: n bytes, the same n on all ranks. `all`: `size` · n bytes
    ///
    /// # Errors
    /// If the lengths do not fit, or another rank has failed.
    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()>;

    /// Sends part r of `to_each` to rank r. Part r of `from_each` comes from rank r.
    ///
    /// # Shapes
    /// `to_each` and `from_each`: `size` parts of n bytes, the same n on all ranks
    ///
    /// # Errors
    /// If the lengths do not fit, or another rank has failed.
    fn exchange(&self, to_each: &[u8], from_each: &mut [u8]) -> Result<()>;

    /// Sends bytes to the next rank, and receives those of the previous rank. Rank 0 follows the last rank.
    ///
    /// # Shapes
    /// `to_next` and `from_previous`: n bytes, the same n on all ranks
    ///
    /// # Errors
    /// If the lengths do not fit, or another rank has failed.
    fn shift(&self, to_next: &[u8], from_previous: &mut [u8]) -> Result<()>;

    /// Copies the bytes of rank `from` to all ranks.
    ///
    /// # Shapes
    /// `bytes`: the same length on all ranks
    ///
    /// # Errors
    /// If there is no rank `from`, the lengths do not fit, or another rank has failed.
    fn broadcast(&self, bytes: &mut [u8], from: usize) -> Result<()>;

    /// Waits until every rank has called this.
    ///
    /// # Errors
    /// If another rank has failed.
    fn barrier(&self) -> Result<()>;

    /// Ends all ranks at once, with this exit code. Nothing is saved, and no rank is waited for.
    fn abort(&self, code: u8) -> !;

    /// Gathers messages, whose lengths may differ, in the order of ranks, on every rank.
    ///
    /// # Errors
    /// If another rank has failed.
    fn all_gather_messages(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut lengths = vec![0u64; self.size()];
        self.all_gather(bytes_of(&[own.len() as u64]), bytes_of_mut(&mut lengths))?;
        let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
        if longest == 0 {
            return Ok(vec![Vec::new(); self.size()]);
        }
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let mut all = vec![0; longest * self.size()];
        self.all_gather(&padded, &mut all)?;
        let messages = all.chunks_exact(longest).zip(&lengths);
        Ok(messages.map(|(bytes, length)| bytes[..*length as usize].to_vec()).collect())
    }
}

/// Checks the lengths of [`Communicator::all_gather`].
fn check_gather(size: usize, own: usize, all: usize) -> Result<()> {
    let message = || format!("all_gather: {size} ranks with {own} bytes each do not fill {all} bytes");
    if own.checked_mul(size) == Some(all) { Ok(()) } else { Err(CommunicationError::Lengths(message())) }
}

/// Checks the lengths of [`Communicator::exchange`].
fn check_exchange(size: usize, to_each: usize, from_each: usize) -> Result<()> {
    let message = || {
        format!(
            "exchange: {to_each} bytes to {size} ranks and {from_each} bytes from them are not equal parts"
        )
    };
    let fits = to_each == from_each && to_each.is_multiple_of(size);
    if fits { Ok(()) } else { Err(CommunicationError::Lengths(message())) }
}

/// Checks the lengths of [`Communicator::shift`].
fn check_shift(to_next: usize, from_previous: usize) -> Result<()> {
    let message =
        || format!("shift: {to_next} bytes to the next rank, and {from_previous} from the one before");
    if to_next == from_previous { Ok(()) } else { Err(CommunicationError::Lengths(message())) }
}

/// Checks the rank that broadcasts.
fn check_root(size: usize, from: usize) -> Result<()> {
    let message = || format!("broadcast: there is no rank {from} among {size}");
    if from < size { Ok(()) } else { Err(CommunicationError::Lengths(message())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls every operation with bytes that tell rank and position, and checks what arrives.
    pub(crate) fn exercise(comm: &dyn Communicator, n: usize) -> Result<()> {
        let (rank, size) = (comm.rank(), comm.size());
        let byte = |from: usize, to: usize, i: usize| ((from * 31 + to * 17 + i) % 251) as u8;
        let row = |from: usize, to: usize| (0..n).map(move |i| byte(from, to, i));
        let mut all = vec![0; n * size];
        comm.all_gather(&row(rank, 0).collect::<Vec<_>>(), &mut all)?;
        assert_eq!(all, (0..size).flat_map(|from| row(from, 0)).collect::<Vec<_>>());
        let to_each: Vec<u8> = (0..size).flat_map(|to| row(rank, to)).collect();
        comm.exchange(&to_each, &mut all)?;
        assert_eq!(all, (0..size).flat_map(|from| row(from, rank)).collect::<Vec<_>>());
        let mut shifted = vec![0; n];
        comm.shift(&row(rank, 3).collect::<Vec<_>>(), &mut shifted)?;
        assert_eq!(shifted, row((rank + size - 1) % size, 3).collect::<Vec<_>>());
        for from in 0..size {
            let mut bytes: Vec<u8> = row(rank, 5).collect();
            comm.broadcast(&mut bytes, from)?;
            assert_eq!(bytes, row(from, 5).collect::<Vec<_>>());
        }
        comm.barrier()?;
        let own = vec![rank as u8; rank * n];
        let messages = comm.all_gather_messages(&own)?;
        assert_eq!(messages, (0..size).map(|r| vec![r as u8; r * n]).collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        assert!(check_gather(4, 3, 12).is_ok() && check_gather(4, 0, 0).is_ok());
        for e in [check_gather(4, 3, 11), check_gather(2, usize::MAX, 6)] {
            assert!(matches!(e, Err(CommunicationError::Lengths(_))));
        }
        assert!(check_exchange(3, 6, 6).is_ok() && check_exchange(3, 0, 0).is_ok());
        assert!(check_exchange(3, 7, 7).is_err() && check_exchange(3, 6, 3).is_err());
        assert!(check_shift(3, 3).is_ok() && check_shift(3, 4).is_err());
        assert!(check_root(2, 1).is_ok() && check_root(2, 2).is_err());
    }
}
