//! Lengths and distances, in `f64`.

use std::borrow::Borrow;

/// ‖v‖.
pub fn norm(v: impl IntoIterator<Item = impl Borrow<f64>>) -> f64 {
    v.into_iter().map(|x| x.borrow() * x.borrow()).sum::<f64>().sqrt()
}

/// ‖a − b‖.
///
/// # Panics
/// If the lengths differ.
pub fn distance<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of different lengths");
    norm(a.iter().zip(b).map(|(a, b)| (*a).into() - (*b).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_triangle() {
        assert_eq!(norm([3.0, 4.0]), 5.0);
        assert_eq!(norm([3.0, 4.0].into_iter()), 5.0);
        assert_eq!(distance(&[1f32, 1.0], &[4.0, 5.0]), 5.0);
    }
}
