//! Operations on many bytes as several operations on few: MPI counts with 32 bits.

use crate::Result;

/// Gathers in pieces, so that each call of `gather` fills at most `limit` bytes, or one per rank.
///
/// # Shapes
/// `own`: n bytes. `all`: `size` · n bytes
pub fn all_gather(
    (size, limit): (usize, usize),
    own: &[u8],
    all: &mut [u8],
    mut gather: impl FnMut(&[u8], &mut [u8]) -> Result<()>,
) -> Result<()> {
    let (n, most) = (own.len(), (limit / size).max(1));
    if n == 0 {
        return Ok(());
    }
    if n <= most {
        return gather(own, all);
    }
    let mut gathered = vec![0; most * size];
    for (i, piece) in own.chunks(most).enumerate() {
        let gathered = &mut gathered[..piece.len() * size];
        gather(piece, gathered)?;
        for (from, part) in all.chunks_exact_mut(n).zip(gathered.chunks_exact(piece.len())) {
            from[i * most..][..piece.len()].copy_from_slice(part);
        }
    }
    Ok(())
}

/// Exchanges in pieces, so that each call of `exchange` moves at most `limit` bytes, or one per rank.
///
/// # Shapes
/// `to_each` and `from_each`: `size` parts of n bytes
pub fn exchange(
    (size, limit): (usize, usize),
    to_each: &[u8],
    from_each: &mut [u8],
    mut exchange: impl FnMut(&[u8], &mut [u8]) -> Result<()>,
) -> Result<()> {
    let (n, most) = (to_each.len() / size, (limit / size).max(1));
    if n == 0 {
        return Ok(());
    }
    if n <= most {
        return exchange(to_each, from_each);
    }
    let (mut sent, mut received) = (vec![0; most * size], vec![0; most * size]);
    for start in (0..n).step_by(most) {
        let len = most.min(n - start);
        let (sent, received) = (&mut sent[..len * size], &mut received[..len * size]);
        for (part, to) in sent.chunks_exact_mut(len).zip(to_each.chunks_exact(n)) {
            part.copy_from_slice(&to[start..][..len]);
        }
        exchange(sent, received)?;
        for (part, from) in received.chunks_exact(len).zip(from_each.chunks_exact_mut(n)) {
            from[start..][..len].copy_from_slice(part);
        }
    }
    Ok(())
}

/// Shifts in pieces of at most `limit` bytes.
pub fn shift(
    limit: usize,
    to_next: &[u8],
    from_previous: &mut [u8],
    mut shift: impl FnMut(&[u8], &mut [u8]) -> Result<()>,
) -> Result<()> {
    let pieces = to_next.chunks(limit).zip(from_previous.chunks_mut(limit));
    pieces.into_iter().try_for_each(|(to, from)| shift(to, from))
}

/// Broadcasts in pieces of at most `limit` bytes.
pub fn broadcast(
    limit: usize,
    bytes: &mut [u8],
    broadcast: impl FnMut(&mut [u8]) -> Result<()>,
) -> Result<()> {
    bytes.chunks_mut(limit).try_for_each(broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Communicator, Threads};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A communicator that moves everything in pieces, and counts the largest.
    #[derive(Debug)]
    struct InPieces {
        inner: Threads,
        limit: usize,
        largest: AtomicUsize,
    }

    impl InPieces {
        fn count<'a>(&self, bytes: &'a mut [u8]) -> &'a mut [u8] {
            self.largest.fetch_max(bytes.len(), Ordering::Relaxed);
            bytes
        }
    }

    impl Communicator for InPieces {
        fn rank(&self) -> usize {
            self.inner.rank()
        }
        fn size(&self) -> usize {
            self.inner.size()
        }
        fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
            all_gather((self.size(), self.limit), own, all, |own, all| {
                self.inner.all_gather(own, self.count(all))
            })
        }
        fn exchange(&self, to: &[u8], from: &mut [u8]) -> Result<()> {
            exchange((self.size(), self.limit), to, from, |to, from| {
                self.inner.exchange(to, self.count(from))
            })
        }
        fn shift(&self, to: &[u8], from: &mut [u8]) -> Result<()> {
            shift(self.limit, to, from, |to, from| self.inner.shift(to, self.count(from)))
        }
        fn broadcast(&self, bytes: &mut [u8], from: usize) -> Result<()> {
            broadcast(self.limit, bytes, |bytes| self.inner.broadcast(self.count(bytes), from))
        }
        fn barrier(&self) -> Result<()> {
            self.inner.barrier()
        }
        fn abort(&self, code: u8) -> ! {
            self.inner.abort(code)
        }
    }

    #[test]
    fn pieces_of_any_size_arrive_in_their_places() {
        for size in [1, 2, 3] {
            for limit in [1, 2, 7, 16, 100] {
                let run = |inner| -> Result<usize> {
                    let comm = InPieces { inner, limit, largest: AtomicUsize::new(0) };
                    for n in [0, 1, 5, 7, 8, 33] {
                        crate::tests::exercise(&comm, n)?;
                    }
                    Ok(comm.largest.into_inner())
                };
                for largest in Threads::run(size, run) {
                    let largest = largest.unwrap();
                    assert!(largest > 0 && largest <= limit.max(size), "{largest} of {limit}");
                }
            }
        }
    }
}
