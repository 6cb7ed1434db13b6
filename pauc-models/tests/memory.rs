//! After the first steps, a training step of an encoder reuses its memory.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

use dfdx::prelude::*;
use pauc_models as _;
use pauc_traits::param::clear_gradients;
use pauc_traits::registry::kind;
use pauc_traits::{BuildOptions, Compute, Configured, ImageShape, Pass};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system allocator, with a count of the allocated bytes.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_step_allocates_no_more_than_its_inputs_and_outputs() {
    let device = Cpu::default();
    for recipe in [
        "ResNet18(stem: Small, width: 16)",
        "ConvNet(channels: [16, 32], grid: 2)",
        "WideResNet(depth: 10, widen: 2)",
    ] {
        let input = ImageShape { height: 32, width: 32, channels: 3 };
        let config = Configured::<kind::Encoder>::parse(recipe).unwrap();
        let mut encoder = Cpu::encoder(&*config.value).build(&device, input, BuildOptions::seed(0)).unwrap();
        let parameters = encoder.parameters();
        let batch = 32;
        let pixels = (0..batch * input.len()).map(|i| (i as f32).sin()).collect();
        let images = device.tensor_from_vec(pixels, (batch, 32, 32, 3));
        let mut step = || {
            let before = BYTES.load(Ordering::Relaxed);
            clear_gradients(&device, &parameters).unwrap();
            let features = encoder.forward(images.clone(), Pass::Train).unwrap();
            features.sum::<Rank0, _>().backward();
            BYTES.load(Ordering::Relaxed) - before
        };
        step();
        step();
        let bytes = (0..5).map(|_| step()).max().unwrap();
        // Features and their gradients, and small allocations of the tape. A single map is 1 MiB or more.
        assert!(bytes < 512 << 10, "{recipe}: {bytes} bytes");
        println!("{recipe}: {bytes} bytes per step");
    }
}
