//! The sizes that follow from the number of training images: the queue, and the numbers of prototypes.

/// Returns the largest power of two that is at most `n`; 1 for 0.
pub fn power_of_two(n: usize) -> usize {
    n.checked_ilog2().map_or(1, |log| 1 << log)
}

/// Returns the length of a queue for `images` training images and batches of `batch`; `None` if it would hold more than
/// half of them. A key in the queue is a past embedding of a training image: with more of them, images would meet their own
/// past keys as negatives.
pub fn queue(images: usize, batch: usize) -> Option<usize> {
    let most = match images {
        0..100_000 => 4096,
        100_000..500_000 => 16_384,
        _ => 65_536,
    };
    let length = power_of_two(images / 2).min(most);
    (length >= batch.saturating_mul(2)).then_some(length)
}

/// The images that a prototype of the finest level should have on average.
pub const MEMBERS: usize = 25;
/// Prototypes of the finest level for each image of a batch. With five, nearly every prototype that occurs in a batch has a
/// single image there.
pub const PER_BATCH: usize = 4;

/// Returns the numbers of prototypes of three levels for `images` training images and batches of `batch`; fewer levels if
/// they would be equal.
pub fn prototypes(images: usize, batch: usize) -> Vec<usize> {
    let finest = (images / MEMBERS).min(batch.saturating_mul(PER_BATCH)).max(2);
    let mut levels: Vec<usize> = [4, 2, 1].map(|part| (finest / part).max(2)).to_vec();
    levels.dedup();
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_number_of_images() {
        assert_eq!([0, 1, 2, 3, 1023, 1024].map(power_of_two), [1, 1, 2, 2, 512, 1024]);
        // The quickstart's queue for its 5000 images in batches of 64.
        assert_eq!(queue(5000, 64), Some(2048));
        assert_eq!((queue(20, 8), queue(240, 32), queue(1_281_167, 256)), (None, Some(64), Some(65_536)));
        // The quickstart's prototypes, and those of recipes/cifar10.ron up to rounding.
        assert_eq!(prototypes(5000, 64), [50, 100, 200]);
        assert_eq!(prototypes(50_000, 256), [256, 512, 1024]);
        assert_eq!((prototypes(20, 8), prototypes(240, 32)), (vec![2], vec![2, 4, 9]));
    }

    #[test]
    fn queues_are_well_below_the_number_of_images() {
        for images in (20..100_000).step_by(37) {
            for batch in [4, 8, 32, 64, 256] {
                if let Some(queue) = queue(images, batch) {
                    assert!(queue >= 2 * batch && 2 * queue <= images, "{images} {batch}");
                }
            }
        }
    }
}
