//! Every term on CUDA beside the CPU: values and gradients. The plain composition of dfdx operations runs on CUDA, where dfdx
//! differentiates some operations on repeated (broadcast) tensors wrongly, so a term that used one would fail here.

use crate::properties::{each, toy};
use crate::testing::{self, Data, Outcome, distance_above, run, run_on};
use dfdx::prelude::*;
use pauc_traits::ops;

/// Relative, as everywhere between devices.
const TOLERANCE: f64 = 1e-4;

fn device() -> Cuda {
    pauc_cuda::open(0).unwrap_or_else(|e| panic!("these tests need a GPU, or an emulated one: {e}"))
}

fn agree(text: &str, got: &Outcome, want: &Outcome) {
    let off = (got.value - want.value).abs();
    assert!(off <= TOLERANCE * want.value.abs().max(1.0), "{text}: {} for {}", got.value, want.value);
    assert_eq!(got.skipped, want.skipped, "{text}");
    assert_eq!(got.gradients.len(), want.gradients.len(), "{text}");
    for (name, gradient) in &want.gradients {
        // A gradient that cancels is compared with the size of what cancels.
        let off = distance_above(1e-2, &got.gradients[name], gradient);
        assert!(off <= TOLERANCE, "{text}: the gradient of {name} is off by {off:e}");
    }
}

#[test]
fn terms_equal_those_of_the_cpu() {
    let dev = device();
    let mut checked = 0;
    each(
        |row| row.forms,
        |_, _, text| {
            let mut batches = vec![toy(text)];
            if !testing::term(text).info().needs().momentum {
                batches.push(toy(text).without_momentum());
            }
            for data in batches {
                let want = run::<f64>(text, &data);
                // The plain composition, and what takes its place against large banks.
                for plain in [true, false] {
                    crate::fused_cuda::PLAIN.set(plain);
                    agree(text, &run_on::<f32, Cuda>(&dev, text, &data).unwrap(), &want);
                }
                checked += 1;
            }
        },
    );
    assert!(checked > 50, "{checked}");
}

#[test]
fn degenerate_batches_stay_finite() {
    let dev = device();
    each(
        |row| row.finite,
        |_, _, text| {
            for (what, data) in testing::degenerate() {
                if testing::term(text).info().needs().momentum && data.keys.is_empty() {
                    continue;
                }
                let found = run_on::<f32, Cuda>(&dev, text, &data).unwrap();
                let finite =
                    found.value.is_finite() && found.gradients.values().flatten().all(|g| g.is_finite());
                assert!(finite, "{text} on {what}: {found:?}");
            }
        },
    );
}

/// What a term must not do, and why: on CUDA, dfdx 0.13's derivative of a sum that leaves a repeated axis is wrong. Should a
/// later dfdx be right, this fails, and the rule can go.
#[test]
fn dfdx_differentiates_sums_of_repeated_tensors_wrongly() {
    fn gradient<D: pauc_traits::Backend<f32>>(dev: &D) -> Vec<f32> {
        let leaf: Tensor<(usize, usize), f32, D> = ops::constant(dev, vec![1., 2., 3., 4., 5., 6.], (2, 3));
        let repeated = leaf.leaky_trace().broadcast_like::<_, Axis<1>>(&(2usize, 4usize, 3usize));
        let sums = repeated.sum::<(usize, usize), Axis<2>>();
        let factors: Tensor<(usize, usize), f32, D> =
            ops::constant(dev, (0..8).map(|i| i as f32).collect(), (2, 4));
        (sums * factors).sum::<Rank0, _>().backward().get(&leaf).as_vec()
    }
    let cpu = gradient(&Cpu::default());
    assert_eq!(cpu, [6., 6., 6., 22., 22., 22.]);
    assert_ne!(gradient(&device()), cpu);
}

/// The helpers that terms are made of, on matrices whose rows repeat or are permuted.
#[test]
fn helpers_take_permuted_tensors() {
    fn gradients<D: pauc_traits::Backend<f32>>(dev: &D) -> Vec<Vec<f32>> {
        let values: Vec<f32> = testing::pattern(4, 3, 0.3).iter().map(|v| *v as f32).collect();
        let leaf: ops::Matrix<f32, D> = ops::constant(dev, values, (4, 3));
        let t = || leaf.leaky_trace().permute::<(usize, usize), Axes2<1, 0>>();
        let weigh = |m: Tensor<(usize, usize), f32, D, OwnedTape<f32, D>>| {
            let (r, c) = *m.shape();
            let w = ops::constant(dev, (0..r * c).map(|i| (i as f32).cos()).collect(), (r, c));
            ops::total(m * w)
        };
        let of = |loss: pauc_traits::Value<f32, D>| loss.backward().get(&leaf).as_vec();
        vec![
            of(weigh(ops::l2_normalize(t()))),
            of(weigh(ops::dot_rows(t(), t()))),
            of(ops::mean(ops::row_dots(t(), t()))),
            of(ops::mean(ops::cross_entropy_rows(t(), &[1, 3, 0]))),
            of(weigh(crate::rows::standardise(t()))),
            of(weigh(crate::rows::gather(t(), &[2, 0, 2]))),
            of(crate::rows::log_mean_exp(t(), 12)),
            of(crate::rows::covariance_energy(t())),
        ]
    }
    for (n, (got, want)) in gradients(&device()).iter().zip(gradients(&Cpu::default())).enumerate() {
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let off = distance_above(1e-3, &wide(got), &wide(&want));
        assert!(off <= TOLERANCE, "helper {n} is off by {off:e}: {got:?} for {want:?}");
    }
}

/// A batch of the size that recipes have.
#[test]
fn a_batch_of_usual_size_agrees() {
    let dev = device();
    let data = Data::toy(48, 32);
    for text in
        ["InfoNce(negatives: Queue)", "InfoNce()", "ProtoNce()", "Correlation(level: Instances)", "VicReg()"]
    {
        agree(text, &run_on::<f32, Cuda>(&dev, text, &data).unwrap(), &run::<f64>(text, &data));
    }
}
