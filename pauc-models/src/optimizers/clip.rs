//! Clipping of gradients by their common norm.

use crate::device::NetworkDevice;
use pauc_traits::{Param, Result};

/// Scales all gradients by min(1, `max_norm`/(‖g‖ + 1e-6)), where ‖g‖ is the norm over all parameters that
/// are not frozen, and returns ‖g‖. If the norm is NaN or infinite, gradients are unchanged, and the caller
/// can tell from the result.
///
/// Source: PyTorch's `clip_grad_norm_`.
///
/// # Errors
/// If the device fails.
pub fn clip_gradients<D: NetworkDevice>(device: &D, params: &[Param<D>], max_norm: f64) -> Result<f64> {
    let norm = squared_gradients(device, params)?.iter().sum::<f64>().sqrt();
    shorten_gradients(device, params, norm, max_norm)?;
    Ok(norm)
}

/// Returns ‖g‖² of each parameter, 0 for those that are frozen.
///
/// # Shapes
/// one value per parameter
///
/// # Errors
/// If the device fails.
pub fn squared_gradients<D: NetworkDevice>(device: &D, params: &[Param<D>]) -> Result<Vec<f64>> {
    let moving: Vec<usize> = (0..params.len()).filter(|i| !params[*i].is_frozen()).collect();
    let gradients: Vec<_> = moving.iter().map(|i| params[*i].grad()).collect();
    let found = device.squared_norms(&gradients.iter().map(|g| &**g).collect::<Vec<_>>())?;
    let mut squares = vec![0.0; params.len()];
    moving.into_iter().zip(found).for_each(|(i, square)| squares[i] = square);
    Ok(squares)
}

/// Scales gradients whose common norm is `norm` as [`clip_gradients`] does.
///
/// # Errors
/// If the device fails.
pub fn shorten_gradients<D: NetworkDevice>(
    device: &D,
    params: &[Param<D>],
    norm: f64,
    max_norm: f64,
) -> Result<()> {
    let factor = max_norm / (norm + 1e-6);
    if norm.is_finite() && factor < 1.0 {
        params.iter().filter(|p| !p.is_frozen()).try_for_each(|p| device.scale(&mut p.grad_mut(), factor))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::Cpu;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::param::Role;

    #[test]
    fn long_gradients_are_shortened_and_short_ones_kept() {
        let dev = Cpu::default();
        let param = |grad: &[f32]| {
            let p = Param::new(&dev, "w", &[grad.len()], Role::Weight, &vec![0.0; grad.len()]).unwrap();
            p.grad_mut().copy_from_slice(grad);
            p
        };
        let params = [param(&[3.0, 0.0]), param(&[4.0]), param(&[100.0])];
        params[2].set_frozen(true);
        assert_eq!(clip_gradients(&dev, &params, 10.0).unwrap(), 5.0);
        assert_eq!(squared_gradients(&dev, &params).unwrap(), [9.0, 16.0, 0.0]);
        assert_eq!(*params[1].grad(), [4.0]);
        assert_eq!(clip_gradients(&dev, &params, 1.0).unwrap(), 5.0);
        // The factor is rounded, and so is each product.
        let clipped = |p: &Param<Cpu>, length: f64| {
            let want = length / (5.0 + 1e-6);
            assert_within!(p.grad()[0], want, tolerance::f32(2, want));
        };
        clipped(&params[0], 3.0);
        clipped(&params[1], 4.0);
        assert_eq!(*params[2].grad(), [100.0], "frozen");
        params[0].grad_mut()[0] = f32::NAN;
        assert!(clip_gradients(&dev, &params, 0.1).unwrap().is_nan());
        clipped(&params[1], 4.0);
    }
}
