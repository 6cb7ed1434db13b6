//! Ranks that are threads of one process.

use crate::error::Call;
use crate::{
    CommunicationError, Communicator, Result, check_exchange, check_gather, check_root, check_shift,
};
use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One of several ranks that are threads of this process.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    group: Arc<Group>,
}

/// How a rank failed.
#[derive(Debug, PartialEq, Eq)]
pub enum RankError<E> {
    /// Its work returned an error.
    Failed(E),
    /// Its work panicked, with this message.
    Panicked(String),
    /// It called [`Communicator::abort`] with this exit code.
    Aborted(u8),
}

/// The payload of the panic that ends a rank which aborts.
struct Abort(u8);

impl Threads {
    /// Calls `work` on `size` threads, each with the communicator of its rank, and returns the results in the
    /// order of ranks. If a rank ends early, for any reason, others that wait for it get an error.
    ///
    /// Ranks share the rayon pool of the process. Work that computes in parallel must give each rank a pool of its
    /// own. Otherwise, a thread of the shared pool may wait for a rank that needs that thread to compute.
    ///
    /// # Panics
    /// If `size` is 0, or the system cannot start a thread.
    pub fn run<T: Send, E: Send + Display>(
        size: usize,
        work: impl Fn(Threads) -> Result<T, E> + Sync,
    ) -> Vec<Result<T, RankError<E>>> {
        assert!(size > 0, "a communicator has at least one rank");
        let group = Arc::new(Group::new(size));
        let run = |rank| {
            let communicator = Threads { rank, group: group.clone() };
            let result = catch_unwind(AssertUnwindSafe(|| work(communicator)));
            let result = match result {
                Ok(result) => result.map_err(RankError::Failed),
                Err(panic) => Err(of_panic(panic)),
            };
            group.leave(rank, result.as_ref().err().map(describe));
            result
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..size).map(|rank| scope.spawn(move || run(rank))).collect();
            // The closure catches all panics of `work`.
            ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }
}

fn of_panic<E>(panic: Box<dyn Any + Send>) -> RankError<E> {
    if let Some(Abort(code)) = panic.downcast_ref() {
        return RankError::Aborted(*code);
    }
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    RankError::Panicked(text.unwrap_or("without a message").into())
}

fn describe<E: Display>(error: &RankError<E>) -> String {
    match error {
        RankError::Failed(e) => format!("has failed: {e}"),
        RankError::Panicked(message) => format!("has panicked: {message}"),
        RankError::Aborted(code) => format!("has aborted with exit code {code}"),
    }
}

/// What the ranks share.
#[derive(Debug)]
struct Group {
    size: usize,
    round: Mutex<Round>,
    changed: Condvar,
}

/// One collective operation. A rank arrives with its bytes, waits for the others, takes what it needs and
/// leaves. The next round begins when all have left.
#[derive(Debug)]
struct Round {
    arrived: Vec<Option<Arrival>>,
    /// The number of ranks that have taken what they need.
    left: usize,
    /// The rank that ended first, and how; a failure replaces an end without one.
    gone: Option<Gone>,
}

#[derive(Debug)]
struct Arrival {
    operation: Operation,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operation {
    name: &'static str,
    /// The length, the same on all ranks.
    length: usize,
    /// The rank that broadcasts.
    from: Option<usize>,
}

impl Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.name, self.length)?;
        self.from.map_or(Ok(()), |rank| write!(f, " from rank {rank}"))
    }
}

#[derive(Clone, Debug)]
struct Gone {
    rank: usize,
    /// `None` if it returned without an error.
    failure: Option<String>,
}

impl Gone {
    fn error(&self) -> CommunicationError {
        let how = self.failure.as_deref().unwrap_or("has ended");
        CommunicationError::Gone { rank: self.rank, how: how.into() }
    }
}

impl Group {
    fn new(size: usize) -> Self {
        let arrived = (0..size).map(|_| None).collect();
        Group { size, round: Mutex::new(Round { arrived, left: 0, gone: None }), changed: Condvar::new() }
    }

    /// Locks the round. A panic while it was locked cannot leave it half changed.
    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the round is as wanted, or a rank is gone.
    fn wait(&self, is_ready: impl Fn(&Round) -> bool) -> Result<MutexGuard<'_, Round>> {
        let is_over = |round: &mut Round| !is_ready(round) && round.gone.is_none();
        let round = self.changed.wait_while(self.lock(), is_over).unwrap_or_else(PoisonError::into_inner);
        match &round.gone {
            Some(gone) if !is_ready(&round) => Err(gone.error()),
            _ => Ok(round),
        }
    }

    /// Takes part in a round: brings `bytes`, and calls `take` with those of all ranks, in order.
    fn meet(
        &self,
        rank: usize,
        operation: Operation,
        bytes: &[u8],
        take: impl FnOnce(&[&[u8]]),
    ) -> Result<()> {
        let mut round = self.wait(|round| round.arrived[rank].is_none())?;
        round.arrived[rank] = Some(Arrival { operation, bytes: bytes.to_vec() });
        drop(round);
        self.changed.notify_all();
        let mut round = self.wait(|round| round.arrived.iter().all(Option::is_some))?;
        let all: Vec<&Arrival> = round.arrived.iter().flatten().collect();
        check_same(&all)?;
        take(&all.iter().map(|arrival| &*arrival.bytes).collect::<Vec<_>>());
        round.left += 1;
        if round.left == self.size {
            round.left = 0;
            round.arrived.fill_with(|| None);
            drop(round);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Records that a rank calls nothing any more.
    fn leave(&self, rank: usize, failure: Option<String>) {
        let mut round = self.lock();
        let is_first = round.gone.as_ref().is_none_or(|gone| gone.failure.is_none() && failure.is_some());
        if is_first {
            round.gone = Some(Gone { rank, failure });
        }
        drop(round);
        self.changed.notify_all();
    }
}

fn check_same(all: &[&Arrival]) -> Result<()> {
    match all.iter().position(|arrival| arrival.operation != all[0].operation) {
        None => Ok(()),
        Some(rank) => {
            let call = |rank: usize| Call { rank, what: all[rank].operation.to_string() };
            Err(CommunicationError::Different { one: call(0), other: call(rank) })
        }
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.size
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        check_gather(self.size(), own.len(), all.len())?;
        let operation = Operation { name: "all_gather", length: own.len(), from: None };
        self.group.meet(self.rank, operation, own, |bytes| {
            let parts = all.chunks_exact_mut(own.len().max(1));
            parts.zip(bytes).for_each(|(part, bytes)| part.copy_from_slice(bytes));
        })
    }

    fn exchange(&self, to_each: &[u8], from_each: &mut [u8]) -> Result<()> {
        check_exchange(self.size(), to_each.len(), from_each.len())?;
        let part = to_each.len() / self.size();
        let operation = Operation { name: "exchange", length: to_each.len(), from: None };
        let own = self.rank * part..(self.rank + 1) * part;
        self.group.meet(self.rank, operation, to_each, |bytes| {
            let parts = from_each.chunks_exact_mut(part.max(1));
            parts.zip(bytes).for_each(|(part, bytes)| part.copy_from_slice(&bytes[own.clone()]));
        })
    }

    fn shift(&self, to_next: &[u8], from_previous: &mut [u8]) -> Result<()> {
        check_shift(to_next.len(), from_previous.len())?;
        let operation = Operation { name: "shift", length: to_next.len(), from: None };
        let previous = (self.rank + self.size() - 1) % self.size();
        self.group.meet(self.rank, operation, to_next, |bytes| from_previous.copy_from_slice(bytes[previous]))
    }

    fn broadcast(&self, bytes: &mut [u8], from: usize) -> Result<()> {
        check_root(self.size(), from)?;
        let operation = Operation { name: "broadcast", length: bytes.len(), from: Some(from) };
        let own = if self.rank == from { bytes.to_vec() } else { Vec::new() };
        self.group.meet(self.rank, operation, &own, |all| bytes.copy_from_slice(all[from]))
    }

    fn barrier(&self) -> Result<()> {
        let operation = Operation { name: "barrier", length: 0, from: None };
        self.group.meet(self.rank, operation, &[], |_| {})
    }

    /// Ends this rank by unwinding, and the others when they next wait for it. The process continues:
    /// [`Threads::run`] returns the code.
    fn abort(&self, code: u8) -> ! {
        resume_unwind(Box::new(Abort(code)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_get_what_the_others_send() {
        for size in [1, 2, 3, 8] {
            let results = Threads::run(size, |comm| {
                (0..50).try_for_each(|round| crate::tests::exercise(&comm, round % 7 * round))?;
                Ok::<_, CommunicationError>((comm.rank(), comm.size()))
            });
            let ranks: Vec<_> = results.into_iter().map(Result::unwrap).collect();
            assert_eq!(ranks, (0..size).map(|rank| (rank, size)).collect::<Vec<_>>());
        }
    }

    /// Runs three ranks, of which rank 1 ends as `end` says, and returns what each of them returned.
    fn with_an_end(
        end: impl Fn(&Threads) -> Result<()> + Sync,
    ) -> Vec<Result<(), RankError<CommunicationError>>> {
        Threads::run(3, |comm| {
            comm.barrier()?;
            if comm.rank() == 1 {
                return end(&comm);
            }
            comm.all_gather(&[1, 2], &mut [0; 6])?;
            comm.barrier()
        })
    }

    fn gone(how: &str) -> Result<(), RankError<CommunicationError>> {
        Err(RankError::Failed(CommunicationError::Gone { rank: 1, how: how.into() }))
    }

    #[test]
    fn a_rank_that_ends_does_not_leave_others_waiting() {
        let of_panic = with_an_end(|_| resume_unwind(Box::new("no more")));
        assert_eq!(of_panic[1], Err(RankError::Panicked("no more".into())));
        let of_error = with_an_end(|_| Err(CommunicationError::Lengths("too long".into())));
        let of_abort = with_an_end(|comm| comm.abort(4));
        assert_eq!(of_abort[1], Err(RankError::Aborted(4)));
        let of_end = with_an_end(|_| Ok(()));
        assert_eq!(of_end[1], Ok(()));
        let expected = [
            (of_panic, "has panicked: no more"),
            (of_error, "has failed: too long"),
            (of_abort, "has aborted with exit code 4"),
            (of_end, "has ended"),
        ];
        for (results, how) in expected {
            // A rank that gets the error ends with it. The other may see that end first, but never waits.
            let others = [&results[0], &results[2]];
            assert!(others.iter().all(|result| result.is_err()), "{others:?}");
            assert!(others.contains(&&gone(how)), "{others:?}");
        }
    }

    #[test]
    fn different_calls_are_an_error_on_every_rank() {
        let results = Threads::run(2, |comm| match comm.rank() {
            0 => comm.barrier(),
            _ => comm.broadcast(&mut [0; 3], 1),
        });
        for result in results {
            let Err(RankError::Failed(e)) = result else { panic!("{result:?}") };
            let text = e.to_string();
            assert_eq!(
                text,
                "rank 0 calls barrier of 0 bytes where rank 1 calls broadcast of 3 bytes from rank 1"
            );
        }
    }

    #[test]
    fn an_error_of_communication_is_one_of_components() {
        let e = CommunicationError::Gone { rank: 2, how: "has ended".into() };
        let e = pauc_traits::Error::from(e);
        assert!(!e.is_about_data() && e.to_string() == "rank 2 has ended", "{e}");
    }
}
