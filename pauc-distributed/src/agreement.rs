//! What must be the same on all ranks of a training.

use crate::{Communicator, Result};

/// A fact that differs between two ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The fact, such as "recipe hash".
    pub fact: &'static str,
    /// The first rank whose value is not that of rank 0.
    pub rank: usize,
    /// The value of rank 0.
    pub first: String,
    /// The value of that rank.
    pub other: String,
}

/// Compares facts, a name and a value each, in order. Every rank gets the same result: the first that differs.
///
/// # Errors
/// If another rank has failed.
pub fn agree(
    communicator: &dyn Communicator,
    facts: &[(&'static str, String)],
) -> Result<Option<Disagreement>> {
    for (fact, own) in facts {
        let all = communicator.all_gather_messages(own.as_bytes())?;
        if let Some(rank) = all.iter().position(|value| *value != all[0]) {
            let value = |rank: usize| String::from_utf8_lossy(&all[rank]).into_owned();
            return Ok(Some(Disagreement { fact, rank, first: value(0), other: value(rank) }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Threads;

    #[test]
    fn the_first_difference_is_found_on_every_rank() {
        let compare = |odd: Option<usize>| {
            Threads::run(4, |comm| {
                let value = if Some(comm.rank()) == odd { "avx2" } else { "avx512" };
                agree(&comm, &[("version", "1".into()), ("instructions", value.into()), ("x", "".into())])
            })
        };
        assert!(compare(None).into_iter().all(|result| result == Ok(None)));
        for (odd, rank) in [(0, 1), (2, 2), (3, 3)] {
            for result in compare(Some(odd)) {
                let Ok(Some(found)) = result else { panic!("{result:?}") };
                assert_eq!((found.fact, found.rank), ("instructions", rank));
                assert_eq!((odd == 0, found.first == "avx2"), (odd == 0, odd == 0));
            }
        }
    }
}
