//! A part of a run, such as the E-step, that a request to stop ends on all ranks at the same place.
//!
//! Before every collective operation of a phase, each rank tells the others whether it was asked to stop. So all of them
//! learn of a request at the same operation, and leave the phase there. A rank that notices a request between two
//! operations leaves at once: [`Phase::settle`] then tells the others, at their next operation.

use crate::ranks;
use pauc_distributed::{
    Alone, CommunicationError, Communicator, Result as Communicated, bytes_of, bytes_of_mut,
};
use pauc_traits::{Error, Result, stop};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The interval at which ranks that compute for long tell each other of requests.
const INTERVAL: Duration = Duration::from_millis(400);

/// The value that rank 0 tells the others when its work is done.
const DONE: u64 = 1;
/// The value that it tells them before.
const WORKING: u64 = 0;

/// The ranks during a phase. As a communicator, it ends with [`CommunicationError::Stopped`] on all ranks once one of them
/// was asked to stop.
#[derive(Debug)]
pub(crate) struct Phase {
    ranks: Arc<dyn Communicator>,
    /// Whether all ranks know that they stop.
    ended: AtomicBool,
}

/// What a rank tells the others.
#[derive(Clone, Copy)]
struct Word {
    stop: bool,
    value: u64,
}

/// Tells the other ranks a word, and returns those of all.
fn tell(ranks: &dyn Communicator, word: Word) -> Communicated<Vec<Word>> {
    let mut all = vec![0u64; 2 * ranks.size()];
    ranks.all_gather(bytes_of(&[u64::from(word.stop), word.value]), bytes_of_mut(&mut all))?;
    Ok(all.chunks_exact(2).map(|word| Word { stop: word[0] != 0, value: word[1] }).collect())
}

fn is_stop(words: &[Word]) -> bool {
    words.iter().any(|word| word.stop)
}

impl Phase {
    /// Begins a phase.
    pub fn new(ranks: Arc<dyn Communicator>) -> Self {
        Phase { ranks, ended: AtomicBool::new(false) }
    }

    /// Begins a phase of a single process.
    pub fn alone() -> Self {
        Self::new(Arc::new(Alone))
    }

    /// Returns whether other ranks take part.
    pub fn has_others(&self) -> bool {
        self.ranks.size() > 1
    }

    /// Ends the phase if a rank was asked to stop. A phase calls this before it changes anything that a checkpoint
    /// holds. After that, it ignores requests.
    ///
    /// # Errors
    /// [`Error::Stopped`], on all ranks, or if another rank has failed.
    pub fn agree(&self) -> Result<()> {
        Ok(self.tell(0).map(drop)?)
    }

    /// Tells the others a value, and whether this rank was asked to stop.
    fn tell(&self, value: u64) -> Communicated<Vec<Word>> {
        let words = tell(&*self.ranks, Word { stop: stop::flag().is_set(), value })?;
        if is_stop(&words) {
            self.ended.store(true, Ordering::Relaxed);
            return Err(CommunicationError::Stopped);
        }
        Ok(words)
    }

    /// As [`agree`](Self::agree), but only in some of the calls: about once per [`INTERVAL`]. All ranks call this the
    /// same number of times, before equal pieces of work.
    ///
    /// # Errors
    /// As [`agree`](Self::agree).
    pub fn agree_at(&self, pace: &mut Pace) -> Result<()> {
        pace.calls += 1;
        if pace.calls < pace.every || !self.has_others() {
            return stop::check();
        }
        let words = self.tell(pace.began.elapsed().as_micros() as u64)?;
        // All ranks compute this from the same times, so they meet again after the same number of calls.
        let slowest = words.iter().map(|word| word.value).max().unwrap_or(0).max(1);
        let fitting = INTERVAL.as_micros() as u64 * pace.every / slowest;
        *pace = Pace { every: fitting.clamp(1, 2 * pace.every), calls: 0, began: Instant::now() };
        Ok(())
    }

    /// Ends the phase on this rank. If this rank has stopped before the others, tells them.
    ///
    /// # Errors
    /// That of `result`, or if another rank has failed.
    pub fn settle<T>(&self, result: Result<T>) -> Result<T> {
        let is_first = matches!(result, Err(Error::Stopped)) && !self.ended.swap(true, Ordering::Relaxed);
        if is_first && self.has_others() {
            tell(&*self.ranks, Word { stop: true, value: 0 })?;
        }
        result
    }

    /// Does work on rank 0, and returns its result on all ranks. A request to another rank ends the work as soon as it
    /// calls [`stop::check`] on the thread that has called this.
    ///
    /// # Errors
    /// As [`ranks::from_first`].
    pub fn work_on_first(&self, work: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        if !self.has_others() {
            return work();
        }
        self.agree()?;
        let mut result = None;
        if self.ranks.rank() == 0 {
            result = Some(stop::looking(self.look(), work));
            tell(&*self.ranks, Word { stop: false, value: DONE })?;
        } else {
            let word = || Word { stop: stop::flag().is_set(), value: WORKING };
            while tell(&*self.ranks, word())?[0].value != DONE {}
        }
        let result = ranks::from_first(&*self.ranks, || result.unwrap_or_else(|| Ok(Vec::new())));
        if matches!(result, Err(Error::Stopped)) {
            self.ended.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Returns what rank 0 does when it checks for requests: from time to time, it asks the others, which wait for it.
    fn look(&self) -> impl Fn() + 'static {
        let (ranks, flag, last) = (self.ranks.clone(), stop::flag(), Cell::new(Instant::now()));
        move || {
            if last.get().elapsed() < INTERVAL {
                return;
            }
            // If a rank has failed, the next operation reports it.
            let words = tell(&*ranks, Word { stop: flag.is_set(), value: WORKING });
            if words.is_ok_and(|words| is_stop(&words)) {
                flag.set();
            }
            last.set(Instant::now());
        }
    }

    /// Gathers the numbers of all ranks on rank 0, in their order; `None` on the others.
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn gather_on_first(&self, own: Vec<f32>) -> Result<Option<Vec<f32>>> {
        /// The most numbers that are sent at once: 16 MiB.
        const PIECE: usize = 1 << 22;
        let (rank, size) = (self.rank(), self.size());
        if size == 1 {
            return Ok(Some(own));
        }
        let mut counts = vec![0usize; size];
        self.all_gather(bytes_of(&[own.len()]), bytes_of_mut(&mut counts))?;
        let mut all = Vec::new();
        if rank == 0 {
            all.reserve_exact(counts.iter().sum());
            all.extend(&own);
        }
        for (from, count) in counts.iter().enumerate().skip(1) {
            for start in (0..*count).step_by(PIECE) {
                let len = PIECE.min(count - start);
                let mut piece = if rank == from { own[start..][..len].to_vec() } else { vec![0.0; len] };
                self.broadcast(bytes_of_mut(&mut piece), from)?;
                if rank == 0 {
                    all.extend(piece);
                }
            }
        }
        Ok((rank == 0).then_some(all))
    }
}

/// How often ranks tell each other of requests during equal pieces of work.
pub(crate) struct Pace {
    every: u64,
    calls: u64,
    began: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { every: 1, calls: 0, began: Instant::now() }
    }
}

impl Communicator for Phase {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Communicated<()> {
        self.tell(0)?;
        self.ranks.all_gather(own, all)
    }

    fn exchange(&self, to_each: &[u8], from_each: &mut [u8]) -> Communicated<()> {
        self.tell(0)?;
        self.ranks.exchange(to_each, from_each)
    }

    fn shift(&self, to_next: &[u8], from_previous: &mut [u8]) -> Communicated<()> {
        self.tell(0)?;
        self.ranks.shift(to_next, from_previous)
    }

    fn broadcast(&self, bytes: &mut [u8], from: usize) -> Communicated<()> {
        self.tell(0)?;
        self.ranks.broadcast(bytes, from)
    }

    fn barrier(&self) -> Communicated<()> {
        self.tell(0)?;
        self.ranks.barrier()
    }

    fn abort(&self, code: u8) -> ! {
        self.ranks.abort(code)
    }

    fn all_gather_messages(&self, own: &[u8]) -> Communicated<Vec<Vec<u8>>> {
        self.tell(0)?;
        self.ranks.all_gather_messages(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_distributed::Threads;

    /// Runs a phase on four ranks, of which one is asked to stop when it has done so many pieces of work. Returns whether
    /// each rank ended with [`Error::Stopped`], and how many pieces it had done.
    fn pieces(
        asked: usize,
        after: usize,
        work: impl Fn(&Phase, &mut dyn FnMut()) -> Result<()> + Sync,
    ) -> Vec<(bool, usize)> {
        let results = Threads::run(4, |ranks| {
            let (is_asked, ranks) = (ranks.rank() == asked, Arc::new(ranks));
            let (flag, phase) = (Arc::new(AtomicBool::new(false)), Phase::new(ranks.clone()));
            let mut done = 0;
            let mut piece = || {
                done += 1;
                flag.store(is_asked && done >= after, Ordering::Relaxed);
            };
            let result = stop::within(Some(flag.clone()), || phase.settle(work(&phase, &mut piece)));
            // Whatever has stopped the phase, the ranks are at the same operation.
            ranks.barrier()?;
            match result {
                Ok(()) => Ok((false, done)),
                Err(Error::Stopped) => Ok((true, done)),
                Err(error) => Err(error),
            }
        });
        results.into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn a_request_to_one_rank_ends_equal_pieces_of_work_on_all() {
        for asked in [0, 3] {
            let ends = pieces(asked, 20, |phase, piece| {
                let mut pace = Pace::default();
                for _ in 0..1_000_000 {
                    phase.agree_at(&mut pace)?;
                    piece();
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            });
            assert!(ends.iter().all(|(stopped, done)| *stopped && *done < 100_000), "{ends:?}");
        }
    }

    #[test]
    fn a_rank_that_stops_between_operations_meets_the_others_at_their_next() {
        for asked in 0..4 {
            let ends = pieces(asked, 3, |phase, piece| {
                for _ in 0..10 {
                    piece();
                    stop::check()?;
                    phase.barrier().map_err(Error::from)?;
                }
                phase.agree()
            });
            assert!(ends.iter().all(|end| *end == (true, 3)), "{ends:?}");
            let at_the_end = pieces(asked, 1, |phase, piece| {
                piece();
                stop::check()?;
                phase.agree()
            });
            assert!(at_the_end.iter().all(|end| *end == (true, 1)), "{at_the_end:?}");
        }
    }

    #[test]
    fn a_request_to_any_rank_ends_the_work_of_the_first() {
        for asked in [0, 2] {
            let results = Threads::run(3, |ranks| {
                let (rank, ranks) = (ranks.rank(), Arc::new(ranks));
                let (flag, phase) = (Arc::new(AtomicBool::new(false)), Phase::new(ranks.clone()));
                let forever = || loop {
                    if asked == 0 {
                        flag.store(true, Ordering::Relaxed);
                    }
                    stop::check()?;
                    std::thread::sleep(Duration::from_millis(1));
                };
                let theirs = flag.clone();
                let ask = move || {
                    std::thread::sleep(Duration::from_millis(50));
                    theirs.store(rank == asked, Ordering::Relaxed);
                };
                if rank > 0 {
                    std::thread::spawn(ask);
                }
                let result = stop::within(Some(flag.clone()), || phase.settle(phase.work_on_first(forever)));
                ranks.barrier()?;
                Ok::<_, Error>(matches!(result, Err(Error::Stopped)))
            });
            assert!(results.into_iter().all(|stopped| matches!(stopped, Ok(true))), "rank {asked} was asked");
        }
    }

    #[test]
    fn without_a_request_all_ranks_do_everything() {
        let ends = pieces(4, 0, |phase, _| {
            let bytes = phase.work_on_first(|| Ok(vec![3; 5]))?;
            assert_eq!(bytes, [3; 5]);
            let own = vec![phase.rank() as f32; phase.rank() + 1];
            let all = phase.gather_on_first(own)?;
            let expected = vec![0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0];
            assert_eq!(all, (phase.rank() == 0).then_some(expected));
            phase.agree()
        });
        assert_eq!(ends, [(false, 0); 4]);
    }
}
