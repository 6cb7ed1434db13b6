//! Stochastic depth: during training, an image skips some residual branches.
//!
//! Source: Huang et al. 2016; rates and scale as in timm's `DropPath`.

use pauc_traits::encoder::Draws;
use pauc_traits::{Error, Result};
use rand::Rng;

/// Returns the rate of each of `depth` blocks, from 0 in the first to `rate` in the last.
pub fn rates(rate: f64, depth: usize) -> Vec<f64> {
    let last = depth.saturating_sub(1).max(1) as f64;
    (0..depth).map(|block| rate * block as f64 / last).collect()
}

/// Returns the factor on each branch of each image: 0 with the rate of the branch p, otherwise 1/(1 − p), so that the mean
/// over all draws is 1.
///
/// # Shapes
/// one rate per branch → (branches, images)
///
/// # Errors
/// If there are not `images` draws.
pub fn factors(draws: &Draws, images: usize, rates: &[f64]) -> Result<Vec<Vec<f32>>> {
    if draws.images.len() != images {
        let message = format!("random draws for {} images, got {images}", draws.images.len());
        return Err(Error::shape("dropped paths", message));
    }
    let mut factors = vec![Vec::with_capacity(images); rates.len()];
    for mut stream in draws.streams() {
        for (branch, rate) in factors.iter_mut().zip(rates) {
            let is_dropped = stream.gen_range(0.0..1.0) < *rate;
            branch.push(if is_dropped { 0.0 } else { (1.0 / (1.0 - rate)) as f32 });
        }
    }
    Ok(factors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance::SIGMAS};

    fn draws(images: impl Iterator<Item = u64>) -> Draws {
        Draws { seed: 3, step: 7, images: images.map(|id| (id, 1)).collect() }
    }

    #[test]
    fn rates_are_those_of_timm() {
        // torch.linspace(0, rate, depth), from which timm takes them.
        assert_eq!(rates(0.5, 3), [0.0, 0.25, 0.5]);
        assert_eq!(rates(0.5, 1), [0.0]);
        assert!(rates(0.5, 0).is_empty());
    }

    #[test]
    fn images_are_dropped_at_the_rate_and_the_mean_stays() {
        const IMAGES: usize = 20_000;
        let rates = [0.0, 0.1, 0.7];
        let all = factors(&draws(0..IMAGES as u64), IMAGES, &rates).unwrap();
        assert_eq!(all[0], vec![1.0; IMAGES]);
        for (branch, rate) in all.iter().zip(rates) {
            let kept = (1.0 / (1.0 - rate)) as f32;
            assert!(branch.iter().all(|f| *f == 0.0 || *f == kept));
            let dropped = branch.iter().filter(|f| **f == 0.0).count() as f64;
            let deviation = (IMAGES as f64 * rate * (1.0 - rate)).sqrt();
            assert_within!(dropped, IMAGES as f64 * rate, SIGMAS * deviation);
        }
        // Branches are independent: both drop with the product of their rates.
        let both = all[1].iter().zip(&all[2]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count() as f64;
        let mean = IMAGES as f64 * 0.07;
        assert_within!(both, mean, SIGMAS * mean.sqrt());
    }

    #[test]
    fn an_image_has_the_same_factors_in_every_batch() {
        let rates = [0.5; 16];
        let whole = factors(&draws(0..10), 10, &rates).unwrap();
        let part = factors(&draws(4..7), 3, &rates).unwrap();
        for (whole, part) in whole.iter().zip(part) {
            assert_eq!(whole[4..7], part);
        }
        let next = Draws { step: 8, ..draws(0..10) };
        assert_ne!(factors(&next, 10, &rates).unwrap(), whole);
        let error = factors(&next, 9, &rates).unwrap_err().to_string();
        assert!(error.contains("draws for 10 images, got 9"), "{error}");
    }
}
