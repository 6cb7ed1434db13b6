//! Numbers with a bound on the error of a computation in `f32`.

use crate::tolerance::{self, UNIT_F32};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// The smallest error of a result that is too small to be a normal `f32`.
const UNDERFLOW: f64 = f32::MIN_POSITIVE as f64 * UNIT_F32;

/// An exact value, computed in `f64`, and a bound on the error of the same computation in `f32`.
///
/// An oracle written with this type computes the tolerance of its result along with the result. Every
/// operation propagates the errors of its operands and adds its own rounding (running error analysis; Higham,
/// *Accuracy and Stability of Numerical Algorithms*, section 3.3). The bound holds for sums in any order and
/// for fused multiply-add, so it is the same for all instruction sets and all numbers of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rounded {
    /// The exact value.
    pub value: f64,
    /// The largest difference of the computed value from it.
    pub error: f64,
}

impl Rounded {
    /// A number that is exact in `f32`.
    pub const fn exact(value: f32) -> Self {
        Rounded { value: value as f64, error: 0.0 }
    }

    /// A number that is known up to an error.
    pub const fn within(value: f64, error: f64) -> Self {
        Rounded { value, error }
    }

    /// Adds the rounding of the value to `f32`, as after one more operation.
    pub fn round(self) -> Self {
        Rounded { error: self.error + UNIT_F32 * (self.value.abs() + self.error) + UNDERFLOW, ..self }
    }

    /// Increases the error bound by `error`.
    pub fn loosen(self, error: f64) -> Self {
        Rounded { error: self.error + error, ..self }
    }

    /// A sum in any order.
    pub fn sum(terms: impl IntoIterator<Item = Rounded>) -> Self {
        let (mut count, mut total, mut magnitude) = (0, Rounded::default(), 0.0);
        for term in terms {
            count += 1;
            total.value += term.value;
            total.error += term.error;
            magnitude += term.value.abs() + term.error;
        }
        Rounded { error: total.error + tolerance::f32(count, magnitude), ..total }
    }

    /// Σ aᵢ·bᵢ, in any order, with or without fused multiply-add.
    pub fn dot(pairs: impl IntoIterator<Item = (Rounded, Rounded)>) -> Self {
        Rounded::sum(pairs.into_iter().map(|(a, b)| a * b))
    }

    /// max(x, 0), which does not increase the error.
    pub fn relu(self) -> Self {
        Rounded { value: self.value.max(0.0), ..self }
    }

    /// √x, rounded once. Values that are negative because of rounding count as zero.
    pub fn sqrt(self) -> Self {
        let root = self.value.max(0.0).sqrt();
        let below = root - (self.value - self.error).max(0.0).sqrt();
        let above = (self.value + self.error).max(0.0).sqrt() - root;
        Rounded { value: root, error: below.max(above) }.round()
    }

    /// exp(x), computed by a function that is accurate to `ulps` units in the last place.
    pub fn exp(self, ulps: f64) -> Self {
        let value = self.value.exp();
        let inherited = value * self.error.exp_m1();
        Rounded { value, error: inherited + 2.0 * ulps * UNIT_F32 * (value + inherited) + UNDERFLOW }
    }

    /// ln(x), rounded once.
    pub fn ln(self) -> Self {
        let value = self.value.ln();
        let relative = self.error / self.value;
        let inherited = if relative < 1.0 { -(-relative).ln_1p() } else { f64::INFINITY };
        Rounded { value, error: inherited }.round()
    }

    /// Returns whether a computed value is within the error bound.
    pub fn admits(self, got: f32) -> bool {
        (f64::from(got) - self.value).abs() <= self.error
    }
}

impl From<f32> for Rounded {
    fn from(value: f32) -> Self {
        Rounded::exact(value)
    }
}

impl std::fmt::Display for Rounded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ± {:e}", self.value, self.error)
    }
}

impl Add for Rounded {
    type Output = Rounded;
    fn add(self, other: Rounded) -> Rounded {
        Rounded { value: self.value + other.value, error: self.error + other.error }.round()
    }
}

impl Sub for Rounded {
    type Output = Rounded;
    fn sub(self, other: Rounded) -> Rounded {
        self + -other
    }
}

impl Mul for Rounded {
    type Output = Rounded;
    fn mul(self, other: Rounded) -> Rounded {
        let crossed = self.value.abs() * other.error + self.error * (other.value.abs() + other.error);
        Rounded { value: self.value * other.value, error: crossed }.round()
    }
}

impl Div for Rounded {
    type Output = Rounded;
    fn div(self, other: Rounded) -> Rounded {
        let value = self.value / other.value;
        let least = other.value.abs() - other.error;
        let crossed = self.error + value.abs() * other.error;
        let error = match crossed {
            0.0 => 0.0,
            _ if least > 0.0 => crossed / least,
            _ => f64::INFINITY,
        };
        Rounded { value, error }.round()
    }
}

impl Neg for Rounded {
    type Output = Rounded;
    fn neg(self) -> Rounded {
        Rounded { value: -self.value, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::property;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![-2.0f32..2.0, 900.0f32..1100.0, -1e-6f32..1e-6]
    }

    proptest! {
        #![proptest_config(property::cases(2000))]

        #[test]
        fn arithmetic_in_f32_stays_within_the_bound(a in number(), b in number(), c in 0.1f32..9.0, d in number()) {
            // The value and the bound are computed by exactly these expressions.
            let (ra, rb, rc, rd) = (Rounded::from(a), Rounded::from(b), Rounded::from(c), Rounded::from(d));
            for (got, bound) in [
                ((a + b) * d - a, (ra + rb) * rd - ra),
                ((a - b) / c + d, (ra - rb) / rc + rd),
                ((a * a + c).sqrt() - c, (ra * ra + rc).sqrt() - rc),
                ((a * 0.001 - c).exp(), (ra * Rounded::exact(0.001) - rc).exp(1.0)),
                ((c + b * b).ln(), (rc + rb * rb).ln()),
                (a * b + c * d + a * d, Rounded::dot([(ra, rb), (rc, rd), (ra, rd)])),
                (a.mul_add(b, c * d), Rounded::dot([(ra, rb), (rc, rd)])),
            ] {
                prop_assert!(bound.admits(got), "{got} is not {bound}");
            }
        }
    }

    #[test]
    fn the_bound_is_not_vacuous() {
        // 1 + 2⁻²⁵ rounds to 1: the error is 2⁻²⁵, half of the bound.
        let sum = Rounded::exact(1.0) + Rounded::exact(2f32.powi(-25));
        assert!(sum.admits(1.0) && !sum.admits(1.0 - 2f32.powi(-23)) && !sum.admits(1.0 + 2f32.powi(-22)));
        // After cancellation the absolute error remains.
        let left = sum - Rounded::exact(1.0);
        assert!(left.admits(0.0) && !left.admits(1e-6));
        assert!((Rounded::exact(1.0) / Rounded::within(0.0, 1e-9)).error.is_infinite());
    }
}
