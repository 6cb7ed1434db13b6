//! Single layers against plain loops.

use crate::{device, pattern};
use pauc::cuda::conv::{Convolution, Scratch};
use pauc::cuda::feature_map::{self, FeatureMap, MapShape};
use pauc::cuda::norm::{BatchNorm, Relu, ScaledF16};
use pauc::cuda::{Buffer, Context, Element, Precision};
use pauc::kernels::conv::Geometry;
use pauc_testing::{Rounded, assert_within, tolerance};

/// Feature maps on the device, and their values as stored there.
fn maps_of(on: &Context, shape: MapShape, element: Element, phase: f64) -> (FeatureMap, Vec<Rounded>) {
    let values = pattern(shape.len(), phase);
    let images = Buffer::from_host(on, &values).unwrap();
    let mut field = FeatureMap::uninit(on, shape.len(), element).unwrap();
    feature_map::convert(on, images.view().into(), shape.channels, (field.slice_mut(), shape)).unwrap();
    let there: Vec<Rounded> = field.to_host().unwrap().into_iter().map(Rounded::exact).collect();
    let off = |a: &Rounded, b: &f32| (a.value - f64::from(*b)).abs() > stored(element, f64::from(b.abs()));
    assert!(!there.iter().zip(&values).any(|(a, b)| off(a, b)), "{element:?}");
    (field, there)
}

/// The error of a stored number of this size: half a unit in the last of 8 or 11 bits. For fp16 it is at
/// least that of 2⁻¹⁴, the smallest normal number.
fn stored(element: Element, size: f64) -> f64 {
    match element {
        Element::F32 => 0.0,
        Element::Bf16 => size / 256.0,
        Element::F16 => size.max(2f64.powi(-14)) / 2048.0,
    }
}

/// Asserts that each value equals the plain loop's, within that value's error and the rounding of the result.
fn near(what: &str, got: &[f32], want: &[Rounded], element: Element) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let allowed = w.error + stored(element, w.value.abs() + w.error);
        assert_within!(*g, w.value, allowed, "{what}, {element:?}, {i}");
    }
}

/// The plain loops mirror the `f32` kernels, each with a bound on its rounding. Kernels add some rows in
/// `f32` and the rest in `f64`; the bound holds for any order.
#[test]
fn normalizations_equal_plain_loops_for_both_elements() {
    let dev = device();
    let on = Context::of(&dev).unwrap();
    let buffer = |n: usize, phase: f64| {
        let values = pattern(n, phase);
        let there = Buffer::from_host(&on, &values).unwrap();
        (there, values.into_iter().map(Rounded::exact).collect::<Vec<_>>())
    };
    let (zero, one) = (Rounded::default(), Rounded::exact(1.0));
    for (element, c) in [Element::F32, Element::Bf16].into_iter().flat_map(|e| [3, 8, 72].map(|c| (e, c))) {
        let shape = MapShape { batch: 5, height: 3, width: 7, channels: c };
        let (n, count) = (shape.pixels(), Rounded::exact(shape.pixels() as f32));
        let [(y, ys), (r, rs), (mut g, gs), (more, ms)] =
            [0.0, 1.0, 2.0, 3.0].map(|phase| maps_of(&on, shape, element, phase));
        let ((gamma, gammas), (beta, betas)) = (buffer(c, 4.0), buffer(c, 5.0));
        let (mut mean, mut variance) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let mut norm = BatchNorm::new(&on, c).unwrap();
        let running = (&mut mean, &mut variance, 1.0);
        norm.measure(&on, (y.slice(), shape), running, (&gamma, &beta, 1e-5)).unwrap();
        let channels = |of: &dyn Fn(usize) -> Rounded| (0..c).map(of).collect::<Vec<_>>();
        let column = |of: &dyn Fn(usize) -> Rounded, k: usize| Rounded::sum((0..n).map(|i| of(i * c + k)));
        // Differences from the first pixel avoid cancellation in the sum of squares.
        let offset = channels(&|k| column(&|i| ys[i] - ys[k], k) / count);
        let means = channels(&|k| ys[k] + offset[k]);
        let variances = channels(&|k| {
            let squares = column(&|i| (ys[i] - ys[k]) * (ys[i] - ys[k]), k);
            squares / count - offset[k] * offset[k]
        });
        near("mean", &mean.to_host().unwrap(), &means, Element::F32);
        let unbiased = channels(&|k| variances[k] * count / Rounded::exact((n - 1) as f32));
        near("variance", &variance.to_host().unwrap(), &unbiased, Element::F32);
        let inverse = channels(&|k| one / (variances[k] + Rounded::exact(1e-5)).sqrt());
        let scale = channels(&|k| gammas[k] * inverse[k]);
        let shift = channels(&|k| betas[k] - means[k] * gammas[k] * inverse[k]);
        let value = |x: &[Rounded], i: usize| x[i] * scale[i % c] + shift[i % c];
        // With a residual whose own normalization is still to be applied: here the same one.
        let outputs: Vec<Rounded> =
            (0..shape.len()).map(|i| (value(&ys, i) + value(&rs, i)).relu()).collect();
        let mut out = FeatureMap::uninit(&on, shape.len(), element).unwrap();
        let residual = Some((r.slice(), Some(&norm)));
        let f16 = element == Element::F32;
        let mut halves = FeatureMap::uninit(&on, shape.len(), Element::F16).unwrap();
        let as_f16 = f16.then(|| halves.slice_mut());
        norm.apply(&on, (y.slice(), shape), residual, true, out.slice_mut(), as_f16).unwrap();
        near("output", &out.to_host().unwrap(), &outputs, element);
        if f16 {
            near("fp16 of the output", &halves.to_host().unwrap(), &outputs, Element::F16);
        }
        // The gradient, in two parts to be added.
        let given = |gs: &[Rounded], open: &dyn Fn(usize) -> bool| -> Vec<Rounded> {
            (0..shape.len()).map(|i| if open(i) { gs[i] + ms[i] } else { zero }).collect()
        };
        let opened = out.to_host().unwrap();
        let masked = given(&gs, &|i| opened[i] > 0.0);
        // The gradients of gamma and beta, and that of y, from the masked gradient as stored.
        let gradients = |masked: &[Rounded], there: &[f32]| {
            let b = channels(&|k| column(&|i| masked[i], k));
            let a = channels(&|k| column(&|i| masked[i] * (ys[i] - means[k]), k) * inverse[k]);
            let of_y = |i: usize| {
                let k = i % c;
                let from = Rounded::exact(there[i]) - b[k] / count;
                scale[k] * (from - (ys[i] - means[k]) * (a[k] / count * inverse[k]))
            };
            ((0..shape.len()).map(of_y).collect::<Vec<_>>(), a, b)
        };
        let (mut d_gamma, mut d_beta) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let to = (&mut d_gamma, &mut d_beta);
        let relu = Relu::Output(out.slice());
        let g_and_more = (&mut g.slice_mut(), Some(more.slice()));
        norm.parameter_gradients(&on, g_and_more, relu, (y.slice(), shape), to, f16).unwrap();
        let there = g.to_host().unwrap();
        near("masked", &there, &masked, element);
        let (of_y, a, b) = gradients(&masked, &there);
        near("gradient of gamma", &d_gamma.to_host().unwrap(), &a, Element::F32);
        near("gradient of beta", &d_beta.to_host().unwrap(), &b, Element::F32);
        let mut dy = FeatureMap::uninit(&on, shape.len(), element).unwrap();
        let to = Some(dy.slice_mut());
        let as_f16 = f16.then(|| halves.slice_mut());
        norm.input_gradient(&on, &mut g.slice_mut(), relu, (y.slice(), shape), to, as_f16).unwrap();
        if f16 {
            let unit = norm.scaled_f16(halves.slice()).inverse_scale.to_host().unwrap()[0];
            let scaled = halves.to_host().unwrap();
            // The largest gradient is between 8 and 16 before two means are subtracted, each smaller than it.
            assert!(
                scaled.iter().any(|v| v.abs() > 2.0) && scaled.iter().all(|v| v.abs() < 64.0),
                "{scaled:?}"
            );
            let wanted: Vec<Rounded> = of_y.iter().map(|w| *w / Rounded::exact(unit)).collect();
            near("fp16 of the gradient", &scaled, &wanted, Element::F16);
        }
        near("gradient", &dy.to_host().unwrap(), &of_y, element);
        // Without a residual: the values give the ReLU mask, and the gradient is computed in place.
        let (mut g, gs) = maps_of(&on, shape, element, 6.0);
        (d_gamma, d_beta) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let (to, y) = ((&mut d_gamma, &mut d_beta), (y.slice(), shape));
        let g_and_more = (&mut g.slice_mut(), Some(more.slice()));
        norm.parameter_gradients(&on, g_and_more, Relu::Own, y, to, false).unwrap();
        let there = g.to_host().unwrap();
        // Where rounding decides whether ReLU was closed, follow the device.
        let masked = given(&gs, &|i| {
            let value = value(&ys, i);
            if value.admits(0.0) { there[i] != 0.0 } else { value.value > 0.0 }
        });
        near("masked", &there, &masked, element);
        norm.input_gradient(&on, &mut g.slice_mut(), Relu::Own, y, None, None).unwrap();
        let (of_y, a, b) = gradients(&masked, &there);
        near("gradient of gamma", &d_gamma.to_host().unwrap(), &a, Element::F32);
        near("gradient of beta", &d_beta.to_host().unwrap(), &b, Element::F32);
        near("gradient in place", &g.to_host().unwrap(), &of_y, element);
    }
}

/// A sum of products in `f64`, and the terms of its error bound.
#[derive(Clone, Copy, Default)]
struct Products {
    sum: f64,
    /// The sum of their absolute values.
    size: f64,
    count: usize,
    /// The error of the sum if each factor is rounded to fp16.
    f16_error: f64,
}

impl Products {
    fn add(&mut self, a: f64, b: f64) {
        self.sum += a * b;
        self.size += (a * b).abs();
        self.count += 1;
        let [u, v] = [a, b].map(|f| stored(Element::F16, f.abs()));
        self.f16_error += u * b.abs() + v * a.abs() + u * v;
    }

    /// The result on the device, whose products have the relative error `factors`. Sums have 24 bits. Tensor
    /// cores round them toward zero, but only once per four products or more, which stays below γₙ. Split
    /// factors add three sums to the old value.
    fn within(&self, factors: f64) -> Rounded {
        Rounded::within(self.sum, factors * self.size + tolerance::f32(self.count + 3, self.size))
    }
}

/// The relative error of a product due to factors with fewer bits.
fn of_factors(on: &Context, precision: Precision) -> f64 {
    match precision {
        // The low part of a factor is at most 2⁻¹¹ of it and truncated to 11 bits: 2⁻²¹ for each of two
        // factors. The product of both low parts is left out.
        Precision::F32 if Convolution::splits_operands(on, precision).unwrap() => 5.0 * 2f64.powi(-22),
        Precision::F32 => 0.0,
        // Tensor cores truncate factors to 11 bits.
        Precision::Tf32 => 2.0 * 2f64.powi(-10) + 2f64.powi(-20),
        // These tests use the factors as stored.
        Precision::Bf16 => 0.0,
    }
}

#[test]
fn convolutions_equal_plain_loops_for_every_precision() {
    let dev = device();
    let on = Context::of(&dev).unwrap();
    // Kernel, stride, channels of the images, channels of the output.
    for (precision, (k, s, c, outputs)) in [Precision::F32, Precision::Tf32, Precision::Bf16]
        .into_iter()
        .flat_map(|m| [(3, 2, 3, 8), (1, 1, 8, 5), (1, 2, 5, 8), (7, 2, 1, 4)].map(|g| (m, g)))
    {
        let (height, width, batch) = (5, 7, 2);
        let g = Geometry { height, width, inputs: c, outputs, kernel: k, stride: s, padding: k / 2 };
        let input = MapShape { batch, height, width, channels: Element::of(precision).padded_channels(c) };
        let (oh, ow) = g.output();
        let output = MapShape { batch, height: oh, width: ow, channels: outputs };
        let (element, padded, factors) = (Element::of(precision), input.channels, of_factors(&on, precision));
        let within = |all: &[Products]| all.iter().map(|p| p.within(factors)).collect::<Vec<_>>();
        let values = pattern(input.pixels() * c, 0.5);
        let images = Buffer::from_host(&on, &values).unwrap();
        let mut x = FeatureMap::uninit(&on, input.len(), element).unwrap();
        feature_map::convert(&on, images.view().into(), c, (x.slice_mut(), input)).unwrap();
        let xs = x.to_host().unwrap();
        let weights = pattern(g.weights(), 1.5);
        // Weights as the device rounds them.
        let (_, ws) = maps_of(&on, MapShape::matrix(1, weights.len()), element, 1.5);
        let w = Buffer::from_host(&on, &weights).unwrap();
        let each = |visit: &mut dyn FnMut(usize, usize, usize)| {
            for (b, y, x) in
                (0..batch).flat_map(|b| (0..oh).flat_map(move |y| (0..ow).map(move |x| (b, y, x))))
            {
                for (o, i, r, q) in (0..outputs).flat_map(|o| {
                    (0..c).flat_map(move |i| (0..k).flat_map(move |r| (0..k).map(move |q| (o, i, r, q))))
                }) {
                    let (top, left) = (y * s + r, x * s + q);
                    let inside =
                        (k / 2..height + k / 2).contains(&top) && (k / 2..width + k / 2).contains(&left);
                    if inside {
                        let pixel = (b * height + top - k / 2) * width + left - k / 2;
                        let weight = ((o * c + i) * k + r) * k + q;
                        visit(pixel * padded + i, weight, ((b * oh + y) * ow + x) * outputs + o);
                    }
                }
            }
        };
        let (mut conv, mut scratch) =
            (Convolution::new(&on, g, input, precision).unwrap(), Scratch::default());
        let mut y = FeatureMap::uninit(&on, output.len(), element).unwrap();
        conv.forward(&on, &mut scratch, x.slice(), &w, y.slice_mut()).unwrap();
        let mut want = vec![Products::default(); output.len()];
        each(&mut |x, w, y| want[y].add(f64::from(xs[x]), ws[w].value));
        near("convolution", &y.to_host().unwrap(), &within(&want), element);
        let (dy, dys) = maps_of(&on, output, element, 2.5);
        let mut dw = Buffer::zeros(&on, g.weights()).unwrap();
        conv.weight_gradient(&on, &mut scratch, x.slice(), dy.slice(), &mut dw).unwrap();
        let mut want = vec![Products::default(); g.weights()];
        each(&mut |x, w, y| want[w].add(f64::from(xs[x]), dys[y].value));
        near("gradient of weights", &dw.to_host().unwrap(), &within(&want), element);
        assert_eq!(conv.f16_input().is_some(), precision == Precision::Tf32 && !Convolution::is_matmul(g));
        if let Some(f16_shape) = conv.f16_input() {
            let mut x16 = FeatureMap::uninit(&on, f16_shape.len(), Element::F16).unwrap();
            feature_map::convert(&on, x.slice(), padded, (x16.slice_mut(), f16_shape)).unwrap();
            let (dy16, _) = maps_of(&on, output, Element::F16, 2.5);
            // As if the gradient had been multiplied by 4.
            let unit = Buffer::from_host(&on, &[0.25]).unwrap();
            let as_f16 = ScaledF16 { values: dy16.slice(), inverse_scale: &unit };
            conv.weight_gradient_f16(&on, &mut scratch, x16.slice(), as_f16, &mut dw).unwrap();
            // The sums are stored in fp16, divided by the square root of the number of pixels rounded up to a
            // power of 2.
            let root = 2.0 * (output.pixels() as f64).sqrt();
            let quarter = |p: &Products| {
                let error = p.f16_error + tolerance::f32(p.count, p.size);
                let error = error + stored(Element::F16, (p.sum.abs() + error) / root) * root;
                Rounded::within(p.sum / 4.0, error / 4.0)
            };
            let all: Vec<Rounded> = want.iter().map(|p| p.within(factors) + quarter(p)).collect();
            near("gradient of weights in fp16", &dw.to_host().unwrap(), &all, Element::F32);
        }
        for beta in [0.0f32, 1.0] {
            let (mut dx, before) = maps_of(&on, input, element, 3.5);
            let to = (dx.slice_mut(), beta);
            conv.input_gradient(&on, &mut scratch, dy.slice(), &w, to).unwrap();
            let mut want = vec![Products::default(); input.len()];
            each(&mut |x, w, y| want[x].add(ws[w].value, dys[y].value));
            let all = want.iter().zip(&before).map(|(p, before)| {
                let new = p.within(factors);
                // The result may have been rounded before the old value is added, and three sums may be added
                // one by one.
                let rounded = stored(element, new.value.abs()) + tolerance::f32(3, before.value.abs());
                let more = if beta > 0.0 { rounded } else { 0.0 };
                Rounded::within(new.value + f64::from(beta) * before.value, new.error + more)
            });
            let all: Vec<Rounded> = all.collect();
            near("gradient of the input", &dx.to_host().unwrap(), &all, element);
        }
    }
}
