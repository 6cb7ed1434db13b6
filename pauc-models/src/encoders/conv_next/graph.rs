//! ConvNeXt as a graph, for export.

use super::plan::{Plan, Stage};
use pauc_kernels::depthwise::KERNEL;
use pauc_kernels::layer_norm::EPSILON;
use pauc_traits::graph::{Attribute, Graph, Value};

/// From (N, C, H, W) to (N, H, W, C).
const CHANNELS_LAST: [i64; 4] = [0, 2, 3, 1];
/// And back.
const CHANNELS_FIRST: [i64; 4] = [0, 3, 1, 2];

/// LayerNorm over the channels of (N, C, H, W).
fn layer_norm_of_channels(graph: &mut Graph, x: &Value, name: &str) -> Value {
    let x = graph.transpose(x, &CHANNELS_LAST);
    let x = graph.layer_norm(&x, name, EPSILON);
    graph.transpose(&x, &CHANNELS_FIRST)
}

/// A convolution with a square kernel.
fn convolution(
    graph: &mut Graph,
    x: &Value,
    name: &str,
    (kernel, stride, padding): (usize, usize, usize),
    groups: usize,
) -> Value {
    let [weight, bias] = ["weight", "bias"].map(|part| graph.parameter(&format!("{name}.{part}")));
    let ints = |n: usize, times| Attribute::Ints(vec![n as i64; times]);
    let mut attributes =
        vec![("kernel_shape", ints(kernel, 2)), ("strides", ints(stride, 2)), ("pads", ints(padding, 4))];
    if groups > 1 {
        attributes.push(("group", Attribute::Int(groups as i64)));
    }
    graph.node("Conv", &[x, &weight, &bias], &attributes)
}

impl Plan {
    /// Adds the network to a graph, and returns its features.
    ///
    /// # Shapes
    /// images (N, C, H, W) → (N, F)
    pub(super) fn add_to(&self, graph: &mut Graph, images: &Value) -> Value {
        graph.accept_any_size();
        let patch = self.patch;
        let x = convolution(graph, images, "stem.0", (patch, patch, 0), 1);
        let mut x = layer_norm_of_channels(graph, &x, "stem.1");
        for (i, stage) in self.stages.iter().enumerate() {
            if i > 0 {
                x = layer_norm_of_channels(graph, &x, &format!("stages.{i}.downsample.0"));
                x = convolution(graph, &x, &format!("stages.{i}.downsample.1"), (2, 2, 0), 1);
            }
            for j in 0..stage.depth {
                x = self.add_block(graph, &x, &format!("stages.{i}.blocks.{j}"), *stage);
            }
        }
        let means = graph.node("GlobalAveragePool", &[&x], &[]);
        let means = graph.node("Flatten", &[&means], &[("axis", Attribute::Int(1))]);
        graph.layer_norm(&means, "head.norm", EPSILON)
    }

    fn add_block(&self, graph: &mut Graph, x: &Value, name: &str, stage: Stage) -> Value {
        let width = stage.width;
        let y = convolution(graph, x, &format!("{name}.conv_dw"), (KERNEL, 1, KERNEL / 2), width);
        let y = graph.transpose(&y, &CHANNELS_LAST);
        let y = graph.layer_norm(&y, &format!("{name}.norm"), EPSILON);
        let y = self.linear(graph, &y, &format!("{name}.mlp.fc1"), (width, stage.hidden()));
        let y = graph.gelu(&y);
        let y = self.linear(graph, &y, &format!("{name}.mlp.fc2"), (stage.hidden(), width));
        let scale = graph.parameter(&format!("{name}.gamma"));
        let y = graph.node("Mul", &[&y, &scale], &[]);
        let y = graph.transpose(&y, &CHANNELS_FIRST);
        graph.node("Add", &[x, &y], &[])
    }

    /// x·Wᵀ + b of pixels, (N, H, W, inputs) → (N, H, W, outputs).
    fn linear(&self, graph: &mut Graph, x: &Value, name: &str, (inputs, outputs): (usize, usize)) -> Value {
        let [mut weight, bias] = ["weight", "bias"].map(|part| graph.parameter(&format!("{name}.{part}")));
        if self.has_convolutions {
            let shape = graph.integers(&[outputs as i64, inputs as i64]);
            weight = graph.node("Reshape", &[&weight, &shape], &[]);
        }
        let weight = graph.transpose(&weight, &[1, 0]);
        let y = graph.node("MatMul", &[x, &weight], &[]);
        graph.node("Add", &[&y, &bias], &[])
    }
}
