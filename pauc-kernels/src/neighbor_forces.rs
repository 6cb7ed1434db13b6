//! The forces between points in two dimensions (t-SNE).

use crate::simd::dispatched;

const LANES: usize = 16;

/// The attraction and repulsion of a point.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forces {
    /// Σ_j p_j·q_j·(y − y_j).
    pub pull: [f32; 2],
    /// Σ_j q_j²·(y − y_j).
    pub push: [f32; 2],
    /// Σ_j q_j.
    pub total: f32,
}

/// The repulsion of a point.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Repulsion {
    /// Σ_j w_j·q_j²·(y − y_j).
    pub push: [f32; 2],
    /// Σ_j w_j·q_j.
    pub total: f32,
}

/// The loops, written once and compiled for every instruction set.
mod body {
    use super::{Forces, LANES, Repulsion};

    /// Returns the sums over j of the numbers that `of` computes from w_j, q_j and the two coordinates of y − y_j.
    #[inline(always)]
    fn sums<const N: usize>(
        y: [f32; 2],
        [weights, xs, ys]: [&[f32]; 3],
        of: impl Fn(f32, f32, f32, f32) -> [f32; N],
    ) -> [f32; N] {
        assert!(
            weights.len() == xs.len() && xs.len() == ys.len(),
            "affinities or weights and coordinates must have one length"
        );
        let mut sums = [[0.0f32; LANES]; N];
        let mut add = |w: &[f32; LANES], x: &[f32; LANES], z: &[f32; LANES]| {
            for l in 0..LANES {
                let (dx, dy) = (y[0] - x[l], y[1] - z[l]);
                let q = 1.0 / (1.0 + dx * dx + dy * dy);
                for (sum, term) in sums.iter_mut().zip(of(w[l], q, dx, dy)) {
                    sum[l] += term;
                }
            }
        };
        let ((w, w_rest), (x, x_rest), (z, z_rest)) =
            (weights.as_chunks::<LANES>(), xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
        for ((w, x), z) in w.iter().zip(x).zip(z) {
            add(w, x, z);
        }
        if !w_rest.is_empty() {
            // Lanes beyond the end weigh nothing and are infinitely far away.
            let fill = |rest: &[f32], with: f32| {
                let mut lanes = [with; LANES];
                lanes[..rest.len()].copy_from_slice(rest);
                lanes
            };
            add(&fill(w_rest, 0.0), &fill(x_rest, 1e18), &fill(z_rest, 1e18));
        }
        sums.map(|lanes| lanes.iter().sum())
    }

    #[inline(always)]
    pub fn forces(y: [f32; 2], affinities: &[f32], xs: &[f32], ys: &[f32]) -> Forces {
        let [a, b, c, d, total] = sums(y, [affinities, xs, ys], |p, q, dx, dy| {
            let (pull, push) = (p * q, q * q);
            [pull * dx, pull * dy, push * dx, push * dy, q]
        });
        Forces { pull: [a, b], push: [c, d], total }
    }

    #[inline(always)]
    pub fn repulsion(y: [f32; 2], weights: &[f32], xs: &[f32], ys: &[f32]) -> Repulsion {
        let [a, b, total] = sums(y, [weights, xs, ys], |w, q, dx, dy| {
            let weighted = w * q;
            let push = weighted * q;
            [push * dx, push * dy, weighted]
        });
        Repulsion { push: [a, b], total }
    }
}

dispatched! {
    /// Computes the forces on a point at `y` with affinities p_j to the points (xs_j, ys_j), where q_j = 1/(1 +
    /// ‖y − y_j‖²). A point at the same position adds 1 to `total` and nothing to the forces.
    ///
    /// The order of the sums is fixed, and the same for every instruction set.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn forces(y: [f32; 2], affinities: &[f32], xs: &[f32], ys: &[f32]) -> Forces
}

dispatched! {
    /// Computes the repulsion of a point at `y` from points (xs_j, ys_j) that each stand for w_j points, with q_j as in
    /// [`forces`].
    ///
    /// The order of the sums is fixed, and the same for every instruction set.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn repulsion(y: [f32; 2], weights: &[f32], xs: &[f32], ys: &[f32]) -> Repulsion
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::Rounded;
    use pauc_testing::inputs::wave;

    #[test]
    fn bits_do_not_depend_on_the_instruction_set() {
        for n in [0, 1, 15, 16, 17, 50] {
            let (p, xs, ys) = (wave(n, 0.17, 1.7), wave(n, 0.85, 1.7), wave(n, 1.53, 1.7));
            let y = [0.3f32, -0.2];
            assert_eq!(forces(y, &p, &xs, &ys), body::forces(y, &p, &xs, &ys), "{n} points");
            assert_eq!(repulsion(y, &p, &xs, &ys), body::repulsion(y, &p, &xs, &ys), "{n} points");
        }
    }

    #[test]
    fn repulsion_is_that_of_loops_in_double_precision() {
        for n in [0, 1, 15, 16, 17, 50] {
            let (xs, ys) = (wave(n, 0.85, 1.7), wave(n, 1.53, 1.7));
            let weights: Vec<f32> = (0..n).map(|j| (1 + j * j % 7) as f32).collect();
            let y = [0.3f32, -0.2];
            let exact = Rounded::exact;
            let mut terms: [Vec<Rounded>; 3] = Default::default();
            for j in 0..n {
                let (dx, dy) = (exact(y[0]) - exact(xs[j]), exact(y[1]) - exact(ys[j]));
                let q = exact(1.0) / (exact(1.0) + (dx * dx + dy * dy));
                let weighted = exact(weights[j]) * q;
                let of_one = [weighted * q * dx, weighted * q * dy, weighted];
                terms.iter_mut().zip(of_one).for_each(|(all, term)| all.push(term));
            }
            let got = repulsion(y, &weights, &xs, &ys);
            for (got, terms) in [got.push[0], got.push[1], got.total].iter().zip(terms) {
                let want = Rounded::sum(terms);
                assert!(want.admits(*got), "{n} points: got {got}, expected {want}");
            }
        }
    }

    #[test]
    fn forces_are_those_of_loops_in_double_precision() {
        for n in [0, 1, 15, 16, 17, 50] {
            let (p, xs, ys) = (wave(n, 0.17, 1.7), wave(n, 0.85, 1.7), wave(n, 1.53, 1.7));
            let y = [0.3f32, -0.2];
            let exact = Rounded::exact;
            let mut terms: [Vec<Rounded>; 5] = Default::default();
            for j in 0..n {
                let (dx, dy) = (exact(y[0]) - exact(xs[j]), exact(y[1]) - exact(ys[j]));
                let q = exact(1.0) / (exact(1.0) + (dx * dx + dy * dy));
                let p = exact(p[j]);
                let of_one = [p * q * dx, p * q * dy, q * q * dx, q * q * dy, q];
                terms.iter_mut().zip(of_one).for_each(|(all, term)| all.push(term));
            }
            let got = forces(y, &p, &xs, &ys);
            let got = [got.pull[0], got.pull[1], got.push[0], got.push[1], got.total];
            for (got, terms) in got.iter().zip(terms) {
                // Lanes beyond the end are 10¹⁸ away and add 10⁻¹⁸ each.
                let want = Rounded::sum(terms).loosen(16e-18);
                assert!(want.admits(*got), "{n} points: got {got}, expected {want}");
            }
        }
    }
}
