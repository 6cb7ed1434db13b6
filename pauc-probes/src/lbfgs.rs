//! Limited-memory BFGS for smooth convex functions.

use pauc_traits::progress;

/// The stopping rule of the search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// The search has converged if no entry of the gradient is larger than this.
    pub tolerance: f64,
    /// The maximum number of iterations.
    pub iterations: usize,
}

/// The result of the search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The value at the end.
    pub value: f64,
    /// The largest entry of the gradient at the end.
    pub gradient: f64,
    /// The number of iterations.
    pub iterations: usize,
    /// Whether the gradient fell below the tolerance.
    pub converged: bool,
}

/// The number of stored pairs of steps and gradient changes.
const MEMORY: usize = 12;

struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    inverse: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn largest(v: &[f64]) -> f64 {
    v.iter().fold(0.0, |m, x| if x.abs() > m || x.is_nan() { x.abs() } else { m })
}

fn add(into: &mut [f64], scale: f64, v: &[f64]) {
    into.iter_mut().zip(v).for_each(|(x, y)| *x += scale * y);
}

/// Minimizes a function in place, starting from `x`.
///
/// `evaluate(x, gradient)` returns the value and fills in the gradient. `precondition(v)` replaces v by an
/// estimate of H⁻¹v; the estimate must be positive definite and the same throughout (for the identity, do
/// nothing). Steps satisfy the weak Wolfe conditions, in the form of Hager and Zhang if the decrease is
/// within rounding.
///
/// Source: Nocedal & Wright, Numerical Optimization, chapter 7; the line search of Lewis & Overton 2013.
///
/// # Errors
/// Any error of `evaluate`.
pub fn minimize<E>(
    x: &mut [f64],
    mut evaluate: impl FnMut(&[f64], &mut [f64]) -> Result<f64, E>,
    precondition: impl Fn(&mut [f64]),
    stop: Stop,
) -> Result<Outcome, E> {
    let mut gradient = vec![0.0; x.len()];
    let mut value = evaluate(x, &mut gradient)?;
    let mut pairs: std::collections::VecDeque<Pair> = Default::default();
    let mut iterations = 0;
    let task = progress::task("linear probe", stop.iterations as u64);
    while largest(&gradient) > stop.tolerance && iterations < stop.iterations {
        let direction = direction(&gradient, &pairs, &precondition);
        let Some((step, new, new_gradient)) = search(x, value, &gradient, &direction, &mut evaluate)? else {
            if pairs.is_empty() {
                break;
            }
            // The stored curvature no longer fits, so restart from the preconditioner alone.
            pairs.clear();
            continue;
        };
        let step: Vec<f64> = direction.iter().map(|d| step * d).collect();
        let change: Vec<f64> = new_gradient.iter().zip(&gradient).map(|(n, o)| n - o).collect();
        add(x, 1.0, &step);
        (value, gradient) = (new, new_gradient);
        let curvature = dot(&step, &change);
        if curvature > 0.0 {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair { step, change, inverse: 1.0 / curvature });
        }
        iterations += 1;
        task.advance(1);
    }
    let gradient = largest(&gradient);
    Ok(Outcome { value, gradient, iterations, converged: gradient <= stop.tolerance })
}

/// Computes −H⁻¹g by the two-loop recursion.
fn direction(
    gradient: &[f64],
    pairs: &std::collections::VecDeque<Pair>,
    precondition: impl Fn(&mut [f64]),
) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let alpha = pair.inverse * dot(&pair.step, &q);
        add(&mut q, -alpha, &pair.change);
        alphas.push(alpha);
    }
    precondition(&mut q);
    if let Some(last) = pairs.back() {
        let mut scaled = last.change.clone();
        precondition(&mut scaled);
        let scale = 1.0 / (last.inverse * dot(&last.change, &scaled));
        q.iter_mut().for_each(|v| *v *= scale);
    }
    for (pair, alpha) in pairs.iter().zip(alphas.iter().rev()) {
        let beta = pair.inverse * dot(&pair.change, &q);
        add(&mut q, alpha - beta, &pair.step);
    }
    q
}

/// Returns the length of a step along `direction`, with the value and the gradient there; `None` if there is
/// no descent.
fn search<E>(
    x: &[f64],
    value: f64,
    gradient: &[f64],
    direction: &[f64],
    evaluate: &mut impl FnMut(&[f64], &mut [f64]) -> Result<f64, E>,
) -> Result<Option<(f64, f64, Vec<f64>)>, E> {
    const DECREASE: f64 = 1e-4;
    const CURVATURE: f64 = 0.9;
    const ROUNDING: f64 = 1e-7;
    let slope = dot(gradient, direction);
    if slope.is_nan() || slope >= 0.0 {
        return Ok(None);
    }
    let (mut low, mut high, mut t) = (0.0, f64::INFINITY, 1.0);
    let (mut there, mut new_gradient) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for _ in 0..40 {
        there.copy_from_slice(x);
        add(&mut there, t, direction);
        let new = evaluate(&there, &mut new_gradient)?;
        let new_slope = dot(&new_gradient, direction);
        let sufficient = new <= value + DECREASE * t * slope;
        let flat = new <= value + ROUNDING * value.abs() && new_slope <= (2.0 * DECREASE - 1.0) * slope;
        if !sufficient && !flat {
            high = t;
        } else if new_slope < CURVATURE * slope {
            low = t;
        } else {
            return Ok(Some((t, new, new_gradient)));
        }
        t = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * t };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use std::convert::Infallible;

    fn minimize(
        x: &mut [f64],
        mut evaluate: impl FnMut(&[f64], &mut [f64]) -> f64,
        precondition: impl Fn(&mut [f64]),
        stop: Stop,
    ) -> Outcome {
        let Ok(outcome) = super::minimize::<Infallible>(x, |x, g| Ok(evaluate(x, g)), precondition, stop);
        outcome
    }

    #[test]
    fn an_error_ends_the_search() {
        let mut left = 3;
        let evaluate = |x: &[f64], g: &mut [f64]| {
            left -= 1;
            g[0] = 2.0 * x[0] + x[0].sin();
            if left == 0 { Err("broken") } else { Ok(x[0] * x[0] - x[0].cos()) }
        };
        let stop = Stop { tolerance: 0.0, iterations: 50 };
        assert_eq!(super::minimize(&mut [3.0], evaluate, |_| (), stop), Err("broken"));
        assert_eq!(left, 0);
    }

    #[test]
    fn an_ill_conditioned_quadratic_is_solved_with_and_without_preconditioner() {
        // ½ Σ a_i (x_i − i)² with a_i from 1 to 1e4.
        let a = |i: usize| 10f64.powf(i as f64 / 5.0);
        let evaluate = |x: &[f64], g: &mut [f64]| {
            (0..x.len()).for_each(|i| g[i] = a(i) * (x[i] - i as f64));
            (0..x.len()).map(|i| 0.5 * a(i) * (x[i] - i as f64).powi(2)).sum::<f64>()
        };
        let stop = Stop { tolerance: 1e-6, iterations: 500 };
        let mut x = vec![0.0; 21];
        let plain = minimize(&mut x, evaluate, |_| (), stop);
        // No entry g_i = a_i·(x_i − i) of the gradient exceeds the tolerance of the search. The value is Σ
        // g_i²/2a_i.
        let largest = stop.tolerance + tolerance::f64(2, stop.tolerance);
        let value: f64 = (0..x.len()).map(|i| 0.5 * largest.powi(2) / a(i)).sum();
        assert!(plain.converged && plain.value <= value, "{plain:?}");
        x.iter().enumerate().for_each(|(i, x)| assert_within!(*x, i as f64, largest / a(i)));
        let mut x = vec![0.0; 21];
        let exact = |v: &mut [f64]| v.iter_mut().enumerate().for_each(|(i, v)| *v /= a(i));
        let newton = minimize(&mut x, evaluate, exact, stop);
        assert!(newton.converged && newton.iterations <= 2, "{newton:?}");
        assert!(plain.iterations > 10 * newton.iterations);
    }

    #[test]
    fn an_unbounded_or_impossible_search_ends() {
        let stop = Stop { tolerance: 1e-9, iterations: 20 };
        let linear = |x: &[f64], g: &mut [f64]| {
            g[0] = -1.0;
            -x[0]
        };
        assert!(!minimize(&mut [0.0], linear, |_| (), stop).converged);
        let broken = |_: &[f64], g: &mut [f64]| {
            g[0] = f64::NAN;
            f64::NAN
        };
        assert!(!minimize(&mut [0.0], broken, |_| (), stop).converged);
    }
}
