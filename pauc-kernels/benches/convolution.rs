//! Convolutions of the stages of a ResNet, by algorithm. Elements per second are floating-point operations
//! per second of the direct method, so Winograd's can exceed the processor's peak.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench -p pauc-kernels --bench convolution
//! ```

#![allow(missing_docs)] // criterion's macros generate undocumented items

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pauc_kernels::buffer::Buffer;
use pauc_kernels::conv::{After, Algorithm, Convolution, Geometry, Work};
use pauc_kernels::layout::Layout;
use pauc_kernels::simd::Simd;

const BATCH: usize = 32;

fn convolutions(c: &mut Criterion) {
    let Ok(simd) = Simd::detect() else { return };
    let stages = [
        (32, 16, 16, 1),
        (32, 64, 64, 1),
        (32, 64, 128, 2),
        (16, 128, 128, 1),
        (8, 256, 256, 1),
        (4, 512, 512, 1),
    ];
    for (side, inputs, outputs, stride) in stages {
        let g = Geometry { height: side, width: side, inputs, outputs, kernel: 3, stride, padding: 1 };
        let mut group = c.benchmark_group(format!("{inputs}→{outputs} at {side}², stride {stride}"));
        group.sample_size(10).throughput(Throughput::Elements(2 * BATCH as u64 * g.multiply_adds()));
        let algorithms = [Algorithm::Direct, Algorithm::winograd(g, inputs)];
        for algorithm in algorithms.into_iter().take(if algorithms[0] == algorithms[1] { 1 } else { 2 }) {
            let (layer, mut work) = (Convolution::new(g, algorithm), Work::default());
            let (oh, ow) = g.output();
            let (xl, yl) =
                (Layout::haloed(BATCH, side, side, inputs, 1), Layout::flat(BATCH, oh, ow, outputs));
            let dyl = Layout::haloed(BATCH, oh, ow, outputs, 1);
            let (x, mut y) = (Buffer::zeros(xl.len()), Buffer::zeros(yl.len()));
            let (dy, mut dx) = (Buffer::zeros(dyl.len()), Buffer::zeros(xl.len()));
            let (w, mut dw) = (vec![0.01; g.weights()], vec![0.0; g.weights()]);
            let flat = Layout::flat(BATCH, side, side, inputs);
            group.bench_function(BenchmarkId::new("forward", algorithm), |b| {
                b.iter(|| layer.forward(simd, &mut work, (&x, xl), &w, (&mut y, yl), After::Nothing))
            });
            group.bench_function(BenchmarkId::new("input gradient", algorithm), |b| {
                b.iter(|| {
                    layer.input_gradient(
                        simd,
                        &mut work,
                        (&dy, dyl),
                        &w,
                        (&mut dx, flat, false),
                        After::Nothing,
                    )
                })
            });
            group.bench_function(BenchmarkId::new("weight gradient", algorithm), |b| {
                b.iter(|| layer.weight_gradient(simd, &mut work, (&x, xl), (&dy, dyl), &mut dw))
            });
        }
    }
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
