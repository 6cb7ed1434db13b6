//! Single layers beside plain loops in `f64`.

use crate::{device, pattern};
use pauc::cuda::conv::{Convolution, Math, Work};
use pauc::cuda::field::{Element, Field, Maps};
use pauc::cuda::norm::{Halved, Norm, Relu};
use pauc::cuda::{Buffer, Context, maps};
use pauc::kernels::conv::Geometry;

/// Maps on the device, and their values as they are there.
fn maps_of(on: &Context, shape: Maps, element: Element, phase: f64) -> (Field, Vec<f64>) {
    let values = pattern(shape.len(), phase);
    let images = Buffer::from_host(on, &values).unwrap();
    let mut field = Field::any(on, shape.len(), element).unwrap();
    maps::pixels(on, images.view().into(), shape.channels, (field.elements_mut(), shape)).unwrap();
    let there = field.to_host().unwrap();
    let off = |a: &f32, b: &f32| f64::from((a - b).abs()) > rounding(element) * f64::from(b.abs());
    assert!(!there.iter().zip(&values).any(|(a, b)| off(a, b)), "{element:?}");
    (field, there.iter().map(|v| f64::from(*v)).collect())
}

/// Of one element, relative.
fn rounding(element: Element) -> f64 {
    match element {
        Element::F32 => 0.0,
        Element::Bf16 => 1.0 / 256.0,
        Element::F16 => 1.0 / 2048.0,
    }
}

/// That each value is a plain one's, within its own rounding and `more` of the largest.
fn near(what: &str, got: &[f32], want: &[f64], (element, more): (Element, f64)) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*g) - w).abs();
        assert!(off <= rounding(element) * w.abs() + more * largest, "{what}, {element:?}, {i}: {g} for {w}");
    }
}

#[test]
fn normalisations_of_either_element_equal_plain_loops() {
    let dev = device();
    let on = Context::of(&dev).unwrap();
    let buffer = |n: usize, phase: f64| {
        let values = pattern(n, phase);
        (Buffer::from_host(&on, &values).unwrap(), values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
    };
    for (element, c) in [Element::F32, Element::Bf16].into_iter().flat_map(|e| [3, 8, 72].map(|c| (e, c))) {
        let shape = Maps { batch: 5, height: 3, width: 7, channels: c };
        let (n, close) = (shape.pixels(), (element, 2e-5));
        let [(y, ys), (r, rs), (mut g, gs), (more, ms)] =
            [0.0, 1.0, 2.0, 3.0].map(|phase| maps_of(&on, shape, element, phase));
        let ((gamma, gammas), (beta, betas)) = (buffer(c, 4.0), buffer(c, 5.0));
        let (mut mean, mut variance) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let mut norm = Norm::new(&on, c).unwrap();
        let running = (&mut mean, &mut variance, 1.0);
        norm.measure(&on, (y.elements(), shape), running, (&gamma, &beta, 1e-5)).unwrap();
        let column = |of: &dyn Fn(usize) -> f64, k: usize| (0..n).map(|i| of(i * c + k)).sum::<f64>();
        let means: Vec<f64> = (0..c).map(|k| column(&|i| ys[i], k) / n as f64).collect();
        let spread = |k: usize| column(&|i| (ys[i] - means[k]).powi(2), k);
        near("mean", &mean.to_host().unwrap(), &means, (Element::F32, 1e-5));
        let unbiased: Vec<f64> = (0..c).map(|k| spread(k) / (n - 1) as f64).collect();
        near("variance", &variance.to_host().unwrap(), &unbiased, (Element::F32, 1e-5));
        let inverse: Vec<f64> = (0..c).map(|k| 1.0 / (spread(k) / n as f64 + 1e-5).sqrt()).collect();
        let hat = |i: usize| (ys[i] - means[i % c]) * inverse[i % c];
        // Behind a residual that its own normalisation is still to be applied to: here the same one.
        let value =
            |x: &[f64], i: usize| (x[i] - means[i % c]) * inverse[i % c] * gammas[i % c] + betas[i % c];
        let outputs: Vec<f64> = (0..shape.len()).map(|i| (value(&ys, i) + value(&rs, i)).max(0.0)).collect();
        let mut out = Field::any(&on, shape.len(), element).unwrap();
        let residual = Some((r.elements(), Some(&norm)));
        let as_halves = element == Element::F32;
        let mut halves = Field::any(&on, shape.len(), Element::F16).unwrap();
        let halved = as_halves.then(|| halves.elements_mut());
        norm.apply(&on, (y.elements(), shape), residual, true, out.elements_mut(), halved).unwrap();
        near("output", &out.to_host().unwrap(), &outputs, close);
        if as_halves {
            near("halves of the output", &halves.to_host().unwrap(), &outputs, (Element::F16, 1e-5));
        }
        // Its gradient, of which a part lies apart.
        let open: Vec<f64> = out.to_host().unwrap().iter().map(|o| f64::from(u8::from(*o > 0.0))).collect();
        let masked: Vec<f64> = (0..shape.len()).map(|i| (gs[i] + ms[i]) * open[i]).collect();
        let gradients = |masked: &[f64]| {
            let b: Vec<f64> = (0..c).map(|k| column(&|i| masked[i], k)).collect();
            let a: Vec<f64> = (0..c).map(|k| column(&|i| masked[i] * hat(i), k)).collect();
            let of_y = |i: usize| {
                let k = i % c;
                gammas[k] * inverse[k] * (masked[i] - b[k] / n as f64 - hat(i) * a[k] / n as f64)
            };
            ((0..shape.len()).map(of_y).collect::<Vec<_>>(), a, b)
        };
        let (mut d_gamma, mut d_beta) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let to = (&mut d_gamma, &mut d_beta);
        let relu = Relu::Output(out.elements());
        let g_and_more = (&mut g.elements_mut(), Some(more.elements()));
        norm.own_gradient(&on, g_and_more, relu, (y.elements(), shape), to, as_halves).unwrap();
        near("masked", &g.to_host().unwrap(), &masked, close);
        let (_, a, b) = gradients(&masked);
        near("gradient of gamma", &d_gamma.to_host().unwrap(), &a, (Element::F32, 1e-4));
        near("gradient of beta", &d_beta.to_host().unwrap(), &b, (Element::F32, 1e-4));
        // What was masked has been rounded once before it is read again.
        let there: Vec<f64> = g.to_host().unwrap().iter().map(|v| f64::from(*v)).collect();
        let mut dy = Field::any(&on, shape.len(), element).unwrap();
        let to = Some(dy.elements_mut());
        let halved = as_halves.then(|| halves.elements_mut());
        norm.input_gradient(&on, &mut g.elements_mut(), relu, (y.elements(), shape), to, halved).unwrap();
        let (mut of_y, ..) = gradients(&there);
        if as_halves {
            let unit = norm.halved(halves.elements()).unit.to_host().unwrap()[0];
            let found = halves.to_host().unwrap();
            assert!(found.iter().any(|v| v.abs() > 2.0) && found.iter().all(|v| v.abs() < 64.0), "{found:?}");
            let times: Vec<f32> = found.iter().map(|v| v * unit).collect();
            near("halves of the gradient", &times, &of_y, (Element::F16, 2e-5));
        }
        let within = (element, 4e-3 * rounding(element) * 256.0 + 2e-5);
        near("gradient", &dy.to_host().unwrap(), &of_y, within);
        // Without a residual: the values tell where ReLU was shut, and the gradient takes its own place.
        let (mut g, gs) = maps_of(&on, shape, element, 6.0);
        let masked: Vec<f64> =
            (0..shape.len()).map(|i| if value(&ys, i) > 0.0 { gs[i] + ms[i] } else { 0.0 }).collect();
        (d_gamma, d_beta) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let (to, y) = ((&mut d_gamma, &mut d_beta), (y.elements(), shape));
        let g_and_more = (&mut g.elements_mut(), Some(more.elements()));
        norm.own_gradient(&on, g_and_more, Relu::Own, y, to, false).unwrap();
        near("masked", &g.to_host().unwrap(), &masked, close);
        let there: Vec<f64> = g.to_host().unwrap().iter().map(|v| f64::from(*v)).collect();
        norm.input_gradient(&on, &mut g.elements_mut(), Relu::Own, y, None, None).unwrap();
        (of_y, ..) = gradients(&there);
        let (_, a, b) = gradients(&masked);
        near("gradient of gamma", &d_gamma.to_host().unwrap(), &a, (Element::F32, 1e-4));
        near("gradient of beta", &d_beta.to_host().unwrap(), &b, (Element::F32, 1e-4));
        near("gradient in place", &g.to_host().unwrap(), &of_y, within);
    }
}

#[test]
fn convolutions_of_either_element_equal_plain_loops() {
    let dev = device();
    let on = Context::of(&dev).unwrap();
    // Kernel, stride, channels of images and outputs.
    for (math, (k, s, c, outputs)) in [Math::F32, Math::Tf32, Math::Bf16]
        .into_iter()
        .flat_map(|m| [(3, 2, 3, 8), (1, 1, 8, 5), (1, 2, 5, 8), (7, 2, 1, 4)].map(|g| (m, g)))
    {
        let (height, width, batch) = (5, 7, 2);
        let g = Geometry { height, width, inputs: c, outputs, kernel: k, stride: s, padding: k / 2 };
        let input = Maps { batch, height, width, channels: math.channels(c) };
        let (oh, ow) = g.output();
        let output = Maps { batch, height: oh, width: ow, channels: outputs };
        let (element, padded) = (math.element(), input.channels);
        // Tensor cores round factors of f32 to 11 bits.
        let close = (element, if math == Math::Tf32 { 1e-3 } else { 1e-5 });
        let values = pattern(input.pixels() * c, 0.5);
        let images = Buffer::from_host(&on, &values).unwrap();
        let mut x = Field::any(&on, input.len(), element).unwrap();
        maps::pixels(&on, images.view().into(), c, (x.elements_mut(), input)).unwrap();
        let xs = x.to_host().unwrap();
        let weights = pattern(g.weights(), 1.5);
        // Weights as the device rounds them.
        let (_, ws) = maps_of(&on, Maps::rows(1, weights.len()), element, 1.5);
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
        let (mut conv, mut work) = (Convolution::new(&on, g, input, math).unwrap(), Work::default());
        let mut y = Field::any(&on, output.len(), element).unwrap();
        conv.forward(&on, &mut work, x.elements(), &w, y.elements_mut()).unwrap();
        let mut want = vec![0.0; output.len()];
        each(&mut |x, w, y| want[y] += f64::from(xs[x]) * ws[w]);
        near("convolution", &y.to_host().unwrap(), &want, close);
        let (dy, dys) = maps_of(&on, output, element, 2.5);
        let mut dw = Buffer::zeros(&on, g.weights()).unwrap();
        conv.weight_gradient(&on, &mut work, x.elements(), dy.elements(), &mut dw).unwrap();
        let mut want = vec![0.0; g.weights()];
        each(&mut |x, w, y| want[w] += f64::from(xs[x]) * dys[y]);
        near("gradient of weights", &dw.to_host().unwrap(), &want, close);
        assert_eq!(conv.halves().is_some(), math == Math::Tf32 && !Convolution::is_product(g));
        if let Some(as_halves) = conv.halves() {
            let mut x16 = Field::any(&on, as_halves.len(), Element::F16).unwrap();
            maps::pixels(&on, x.elements(), padded, (x16.elements_mut(), as_halves)).unwrap();
            let (dy16, _) = maps_of(&on, output, Element::F16, 2.5);
            // As if it had been multiplied with 4.
            let unit = Buffer::from_host(&on, &[0.25]).unwrap();
            let halved = Halved { values: dy16.elements(), unit: &unit };
            conv.weight_gradient_of_halves(&on, &mut work, x16.elements(), halved, &mut dw).unwrap();
            want.iter_mut().for_each(|v| *v *= 1.25);
            near("gradient of weights from halves", &dw.to_host().unwrap(), &want, (Element::F16, 1e-3));
        }
        for beta in [0.0, 1.0] {
            let (mut dx, mut want) = maps_of(&on, input, element, 3.5);
            want.iter_mut().for_each(|v| *v *= beta);
            let to = (dx.elements_mut(), beta as f32);
            conv.input_gradient(&on, &mut work, dy.elements(), &w, to).unwrap();
            each(&mut |x, w, y| want[x] += ws[w] * dys[y]);
            // Added to what is there, it may have been rounded before.
            let more = if beta > 0.0 { rounding(element) } else { 0.0 };
            near("gradient of the input", &dx.to_host().unwrap(), &want, (element, close.1 + more));
        }
    }
}
