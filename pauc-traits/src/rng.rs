//! Counter-based random streams.
//!
//! A random number is a function of its purpose (seed, purpose, epoch, sample, view), never of the number of
//! draws before it. Therefore any thread may draw for any sample in any order, and a resumed run continues
//! with the same numbers.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The generator behind every stream: ChaCha with 8 rounds, seekable and the same on every platform.
pub type Stream = ChaCha8Rng;

/// The purpose of random numbers. Two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights; `epoch` counts the networks, `sample` the parameters.
    Init = 1,
    /// The order of samples within an epoch.
    Shuffle = 2,
    /// The augmentations of a view.
    View = 3,
    /// Clustering: initial centroids, splits of empty clusters.
    Cluster = 4,
    /// The negatives drawn by a term.
    Negatives = 5,
    /// Procedural data.
    Data = 6,
    /// Probes: subsets, initial weights of online classifiers.
    Probe = 7,
    /// Any use in a plugin.
    Plugin = 8,
    /// The values of random sweeps.
    Sweep = 9,
    /// The paths that a training pass drops; `epoch` is the step.
    DropPath = 10,
    /// The order in which the samples of a batch pass through the momentum encoder; `epoch` is the step, `sample` the
    /// batch within the step.
    KeyOrder = 11,
    /// The resamples of a bootstrap.
    Bootstrap = 12,
}

/// Returns the stream of `(seed, purpose, epoch, sample, view)`.
pub fn stream(seed: u64, purpose: Purpose, epoch: u64, sample: u64, view: u64) -> Stream {
    let mut key = [0u8; 32];
    for (chunk, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, epoch, sample]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(view);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    #[test]
    fn every_coordinate_changes_the_stream() {
        let first = |s, p, e, n, v| stream(s, p, e, n, v).next_u64();
        let base = first(1, Purpose::View, 2, 3, 4);
        assert_eq!(base, first(1, Purpose::View, 2, 3, 4));
        for other in [
            first(0, Purpose::View, 2, 3, 4),
            first(1, Purpose::Shuffle, 2, 3, 4),
            first(1, Purpose::View, 0, 3, 4),
            first(1, Purpose::View, 2, 0, 4),
            first(1, Purpose::View, 2, 3, 0),
        ] {
            assert_ne!(base, other);
        }
    }
}
