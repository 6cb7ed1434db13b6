//! Compares every term on CUDA with the CPU: values and gradients. The plain composition of dfdx operations
//! also runs on CUDA, where dfdx differentiates some operations on broadcast tensors wrongly. A term that
//! used one would fail here.

use crate::contrastive::{InfoNce, ProtoNce};
use crate::properties::{each, each_finite, toy};
use crate::testing::{self, Data, Outcome, run, run_by, run_on};
use dfdx::prelude::*;
use pauc_testing::assert_within;
use pauc_testing::inputs::Perturbation;
use pauc_testing::tolerance::{SIGMAS, UNIT_F32};
use pauc_testing::vectors::{distance, norm};
use pauc_traits::{Backend, Batch, Scalar, Value, ops};

fn device() -> Cuda {
    pauc_cuda::open(0).unwrap_or_else(|e| panic!("these tests need a GPU, or an emulated one: {e}"))
}

/// The number of random draws that measure the effect of rounding.
const DRAWS: u64 = 8;

/// All inputs of a batch, each changed by the relative amount `size`.
fn shaken(data: &Data, size: f64, draw: u64) -> Data {
    let (mut data, mut perturbation) = (data.clone(), Perturbation::new(size, draw));
    let Data { views, predictions, keys, queue, levels, parameters, .. } = &mut data;
    let rows = views.iter_mut().chain(predictions).chain(keys).flatten().chain(queue);
    let of_levels = levels.iter_mut().flat_map(|l| [&mut l.centroids, &mut l.concentration]);
    rows.chain(of_levels).chain(parameters.values_mut()).for_each(|m| perturbation.apply_all(m));
    data
}

/// The relative deviation of sums of `n` roundings in `f32`.
fn of_sums(n: usize) -> f64 {
    (n as f64).sqrt() * UNIT_F32
}

/// Asserts that a term in `f32` equals the term in `f64` up to rounding.
///
/// A computation in `f32` is as accurate as an exact one on slightly different inputs, each off by its
/// rounding (backward error). The effect depends on the term, for example on its temperature. It is measured
/// in `f64`, on inputs changed by six standard deviations of such a rounding, each up or down at random. The
/// largest distance over [`DRAWS`] draws is allowed. The rounding of quantities that cancel is added; its
/// scales are the products of unit rows and the largest gradient.
fn agree(text: &str, got: &Outcome, data: &Data) {
    let want = run::<f64>(text, data);
    // The longest sums run over pairs of rows, or over pairs of dimensions.
    let unit = of_sums(data.rows.max(data.dim).pow(2));
    let draws: Vec<Outcome> =
        (0..DRAWS).map(|draw| run::<f64>(text, &shaken(data, SIGMAS * unit, draw))).collect();
    let response = draws.iter().map(|d| (d.value - want.value).abs()).fold(0.0, f64::max);
    assert_within!(got.value, want.value, response + unit * want.value.abs().max(1.0), "{text}");
    assert_eq!(got.skipped, want.skipped, "{text}");
    assert_eq!(got.gradients.len(), want.gradients.len(), "{text}");
    let largest = want.gradients.values().map(|g| norm(g)).fold(0.0, f64::max);
    for (name, gradient) in &want.gradients {
        let response = draws.iter().map(|d| distance(&d.gradients[name], gradient)).fold(0.0, f64::max);
        // A term has no gradient for an input that it does not read.
        let unread = norm(gradient) == 0.0 && response == 0.0;
        let allowed = if unread { 0.0 } else { response + unit * largest };
        let off = distance(&got.gradients[name], gradient);
        assert_within!(off, 0.0, allowed, "{text}: the gradient of {name}");
    }
}

/// The batches on which a form is compared: with a momentum encoder and, unless the form needs one, without.
fn batches(text: &str) -> Vec<Data> {
    let mut batches = vec![toy(text)];
    if !testing::term(text).info().needs().momentum {
        batches.push(toy(text).without_momentum());
    }
    batches
}

#[test]
fn terms_equal_those_of_the_cpu() {
    let dev = device();
    let mut checked = 0;
    each(|_, _, text| {
        for data in batches(text) {
            agree(text, &run_on::<f32, Cuda>(&dev, text, &data).unwrap(), &data);
            checked += 1;
        }
    });
    assert!(checked > 50, "{checked}");
}

/// For terms with device kernels, the definitions agree too.
#[test]
fn definitions_of_fused_terms_equal_those_of_the_cpu() {
    let dev = device();
    let mut checked = 0;
    each(|forms, _, text| {
        let plain = |batch: &Batch<f32, Cuda>| match forms.term {
            "InfoNce" => Some(testing::parse::<InfoNce>(text).plain(batch)),
            "ProtoNce" => Some(testing::parse::<ProtoNce>(text).plain(batch)),
            _ => None,
        };
        for data in batches(text) {
            let batch = Batch::new(&dev, data.inputs(&dev)).unwrap();
            if plain(&batch).is_some() {
                let outcome = run_by(&dev, &data, |batch| plain(batch).expect("checked above"));
                agree(text, &outcome.unwrap(), &data);
                checked += 1;
            }
        }
    });
    assert!(checked > 20, "{checked}");
}

#[test]
fn degenerate_batches_stay_finite() {
    let dev = device();
    each_finite(|text| {
        for (what, data) in testing::degenerate() {
            if testing::term(text).info().needs().momentum && data.keys.is_empty() {
                continue;
            }
            let outcome = run_on::<f32, Cuda>(&dev, text, &data).unwrap();
            let gradients = outcome.gradients.values().flatten();
            let finite = outcome.value.is_finite() && gradients.into_iter().all(|g| g.is_finite());
            assert!(finite, "{text} on {what}: {outcome:?}");
        }
    });
}

/// Documents the reason for a rule of terms: on CUDA, dfdx 0.13 computes a wrong derivative for a sum that
/// keeps a broadcast axis. If a later dfdx is right, this test fails and the rule can be dropped.
#[test]
fn dfdx_differentiates_sums_of_repeated_tensors_wrongly() {
    fn gradient<D: Backend<f32>>(dev: &D) -> Vec<f32> {
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

/// Compares the helpers of terms in `f32` with `f64` on the CPU, on matrices whose rows are broadcast or
/// permuted.
#[test]
fn helpers_take_permuted_tensors() {
    fn gradients<E: Scalar, D: Backend<E>>(dev: &D, values: &[f64]) -> Vec<Vec<f64>> {
        let constant =
            |values: Vec<f64>, shape| ops::constant(dev, values.into_iter().map(E::of).collect(), shape);
        let leaf: ops::Matrix<E, D> = constant(values.to_vec(), (4, 3));
        let t = || leaf.leaky_trace().permute::<(usize, usize), Axes2<1, 0>>();
        let weigh = |m: Tensor<(usize, usize), E, D, OwnedTape<E, D>>| {
            let (r, c) = *m.shape();
            ops::total(m * constant((0..r * c).map(|i| (i as f64).cos()).collect(), (r, c)))
        };
        let of = |loss: Value<E, D>| -> Vec<f64> {
            loss.backward().get(&leaf).as_vec().into_iter().map(|v| v.as_f64()).collect()
        };
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
    let (cpu, unit, values) = (Cpu::default(), of_sums(12), testing::pattern(4, 3, 0.3));
    let wanted = gradients::<f64, Cpu>(&cpu, &values);
    // The same measure as in `agree`.
    let draws = (0..DRAWS).map(|draw| {
        let mut values = values.clone();
        Perturbation::new(SIGMAS * unit, draw).apply_all(&mut values);
        gradients::<f64, Cpu>(&cpu, &values)
    });
    let draws: Vec<_> = draws.collect();
    for (n, (got, want)) in gradients::<f32, Cuda>(&device(), &values).iter().zip(&wanted).enumerate() {
        let response = draws.iter().map(|d| distance(&d[n], want)).fold(0.0, f64::max);
        let (off, allowed) = (distance(got, want), response + unit * norm(want));
        assert_within!(off, 0.0, allowed, "helper {n}: {got:?} for {want:?}");
    }
}

/// A batch of the size that recipes use.
#[test]
fn a_batch_of_usual_size_agrees() {
    let dev = device();
    let data = Data::toy(48, 32);
    for text in
        ["InfoNce(negatives: Queue)", "InfoNce()", "ProtoNce()", "Correlation(level: Instances)", "VicReg()"]
    {
        agree(text, &run_on::<f32, Cuda>(&dev, text, &data).unwrap(), &data);
    }
}
