//! Gradient descent of t-SNE: momentum, and a gain per coordinate.

use rayon::prelude::*;

/// A phase of the descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Phase {
    /// The factor of the affinities.
    pub exaggeration: f32,
    /// The momentum.
    pub momentum: f32,
}

/// Groups form while affinities are exaggerated …
pub(super) const EARLY: Phase = Phase { exaggeration: 12.0, momentum: 0.5 };
/// … and take their shape afterwards.
pub(super) const LATE: Phase = Phase { exaggeration: 1.0, momentum: 0.8 };
/// The standard deviation of the first coordinate at the start.
const DEVIATION: f64 = 1e-4;

/// The points and their motion.
pub(super) struct Descent {
    /// The coordinates of the points: all x, then all y.
    pub points: [Vec<f32>; 2],
    velocity: [Vec<f32>; 2],
    gains: [Vec<f32>; 2],
    rate: f32,
}

impl Descent {
    /// Starts from positions, scaled to be close together. The learning rate is max(N/48, 50).
    pub fn from(start: &[[f32; 2]]) -> Self {
        let n = start.len();
        let deviation = (start.iter().map(|p| (p[0] as f64).powi(2)).sum::<f64>() / n as f64).sqrt();
        let scale = if deviation > 0.0 { (DEVIATION / deviation) as f32 } else { 0.0 };
        let axis = |d: usize| start.iter().map(|p| p[d] * scale).collect::<Vec<f32>>();
        Descent {
            points: [axis(0), axis(1)],
            velocity: [vec![0.0; n], vec![0.0; n]],
            gains: [vec![1.0; n], vec![1.0; n]],
            rate: (n as f32 / (4.0 * EARLY.exaggeration)).max(50.0),
        }
    }

    /// Moves every point against its gradient.
    pub fn step(&mut self, gradient: &[[f32; 2]], momentum: f32) {
        let rate = self.rate;
        let axes = self.points.iter_mut().zip(&mut self.velocity).zip(&mut self.gains).enumerate();
        for (d, ((axis, velocity), gains)) in axes {
            let states = axis.par_iter_mut().zip(velocity).zip(gains).zip(gradient);
            states.with_min_len(4096).for_each(|(((y, v), gain), g)| {
                let g = g[d];
                *gain = if (g > 0.0) == (*v > 0.0) { (*gain * 0.8).max(0.01) } else { *gain + 0.2 };
                *v = momentum * *v - rate * *gain * g;
                *y += *v;
            });
        }
    }

    /// Returns the points, with their mean at zero.
    pub fn centered(&self) -> Vec<[f32; 2]> {
        let mean = |v: &[f32]| (v.iter().map(|x| *x as f64).sum::<f64>() / v.len() as f64) as f32;
        let [x, y] = [mean(&self.points[0]), mean(&self.points[1])];
        self.points[0].iter().zip(&self.points[1]).map(|(a, b)| [a - x, b - y]).collect()
    }
}
