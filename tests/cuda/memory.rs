//! Uploads, downloads and device memory.

use crate::{device, pattern};
use pauc::dfdx::prelude::*;
use pauc::models::NetworkDevice;
use pauc::traits::{Compute, ops};

#[test]
fn rows_are_replaced_in_place() {
    let dev = device();
    let matrix: Tensor<(usize, usize), f32, Cuda> = dev.tensor_from_vec(pattern(12, 0.0), (4, 3));
    let shared = matrix.clone();
    dev.replace_rows(&matrix, 1, &[1., 2., 3., 4., 5., 6.]).unwrap();
    let mut want = pattern(12, 0.0);
    want[3..9].copy_from_slice(&[1., 2., 3., 4., 5., 6.]);
    assert_eq!(shared.as_vec(), want);
    assert!(dev.replace_rows(&matrix, 3, &[0.0; 6]).is_err(), "beyond the end");
    assert!(dev.replace_rows(&matrix, 0, &[0.0; 4]).is_err(), "not whole rows");
    let turned = matrix.permute::<(usize, usize), Axes2<1, 0>>();
    assert!(dev.replace_rows(&turned, 0, &[0.0; 4]).is_err(), "permuted");
}

#[test]
fn uploads_and_downloads_of_any_size_round_trip() {
    let dev = device();
    let on = pauc::cuda::Context::of(&dev).unwrap();
    // A piece has 2¹⁸ numbers; six pieces use all four buffers and reuse two.
    for n in [0, 1, 7, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 6 * (1 << 18) + 5] {
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let buffer = dev.upload(&values).unwrap();
        assert!(dev.download(&buffer).unwrap() == values, "{n}");
        let from = n / 3;
        let part = buffer.view().part(from, n);
        assert!(part.to_host(&on).unwrap() == values[from..], "{n} from {from} on");
    }
}

/// Permuted, broadcast or neither: a tensor is downloaded in row-major order, and so is its gradient.
#[test]
fn tensors_and_gradients_are_downloaded_in_row_major_order() {
    let dev = device();
    let matrix: Tensor<(usize, usize), f32, Cuda> = dev.tensor_from_vec(pattern(12, 0.0), (4, 3));
    let turned = matrix.clone().permute::<(usize, usize), Axes2<1, 0>>();
    let row: Tensor<(usize,), f32, Cuda> = dev.tensor_from_vec(pattern(3, 1.0), (3,));
    let repeated = row.clone().broadcast_like::<_, Axis<0>>(&(2usize, 3usize));
    assert_eq!(ops::to_host(&matrix).unwrap(), pattern(12, 0.0));
    assert_eq!(ops::to_host(&row).unwrap(), pattern(3, 1.0));
    let want: Vec<f32> = (0..12).map(|i| pattern(12, 0.0)[i % 4 * 3 + i / 4]).collect();
    assert_eq!(ops::to_host(&turned).unwrap(), want);
    assert_eq!(ops::to_host(&repeated).unwrap(), pattern(3, 1.0).repeat(2));
    for leaf in [matrix, turned] {
        let shape = *leaf.shape();
        let factors: Tensor<(usize, usize), f32, Cuda> = dev.tensor_from_vec(pattern(12, 2.0), shape);
        let mut gradients = ops::total(leaf.leaky_trace() * factors).backward();
        assert_eq!(ops::gradient(&mut gradients, &leaf).unwrap(), pattern(12, 2.0), "{shape:?}");
    }
}
