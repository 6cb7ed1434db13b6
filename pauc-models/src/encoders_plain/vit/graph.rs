//! The vision transformer as a graph, for export.

use super::{Mlp, Plan, Pool};
use crate::encoders_plain::LAYER_NORM_EPSILON;
use pauc_traits::graph::{Attribute, Graph, Value};

/// SiLU(a) ⊙ b of tokens (a, b), (N, T, 2·width) → (N, T, width).
fn gated(graph: &mut Graph, x: &Value, width: usize) -> Value {
    let (gate, value) = (slice(graph, x, (0, width), 2), slice(graph, x, (width, 2 * width), 2));
    let sigmoid = graph.node("Sigmoid", &[&gate], &[]);
    let silu = graph.node("Mul", &[&gate, &sigmoid], &[]);
    graph.node("Mul", &[&silu, &value], &[])
}

/// x·Wᵀ + b of tokens, (N, T, inputs) → (N, T, outputs).
fn linear(graph: &mut Graph, x: &Value, name: &str) -> Value {
    let [weight, bias] = ["weight", "bias"].map(|part| graph.parameter(&format!("{name}.{part}")));
    let weight = graph.transpose(&weight, &[1, 0]);
    let y = graph.node("MatMul", &[x, &weight], &[]);
    graph.node("Add", &[&y, &bias], &[])
}

fn reshape(graph: &mut Graph, x: &Value, shape: &[i64]) -> Value {
    let shape = graph.integers(shape);
    graph.node("Reshape", &[x, &shape], &[])
}

/// Returns the elements `start..end` along an axis.
fn slice(graph: &mut Graph, x: &Value, (start, end): (usize, usize), axis: i64) -> Value {
    let [start, end] = [start, end].map(|i| graph.integers(&[i as i64]));
    let axis = graph.integers(&[axis]);
    graph.node("Slice", &[x, &start, &end, &axis], &[])
}

/// Adds rows of zeros before and after the tokens of (N, T, width).
fn pad(graph: &mut Graph, x: &Value, before: usize, after: usize) -> Value {
    let pads = graph.integers(&[0, before as i64, 0, 0, after as i64, 0]);
    graph.node("Pad", &[x, &pads], &[])
}

fn add_positions(graph: &mut Graph, x: &Value) -> Value {
    let positions = graph.parameter("pos_embed");
    graph.node("Add", &[x, &positions], &[])
}

impl Plan {
    /// Adds the network to a graph, and returns its features.
    ///
    /// # Shapes
    /// images (N, C, H, W) → (N, width)
    pub(super) fn add_to(&self, graph: &mut Graph, images: &Value) -> Value {
        let mut x = self.add_tokens(graph, images);
        for i in 0..self.depth {
            x = self.add_block(graph, &x, &format!("blocks.{i}"));
        }
        match self.pool {
            Pool::Class => {
                let x = slice(graph, &x, (0, 1), 1);
                let x = graph.layer_norm(&x, "norm", LAYER_NORM_EPSILON as f32);
                graph.node("Flatten", &[&x], &[("axis", Attribute::Int(1))])
            }
            Pool::Mean => {
                if self.registers > 0 {
                    x = slice(graph, &x, (self.registers, self.tokens()), 1);
                }
                let over_tokens = [("axes", Attribute::Ints(vec![1])), ("keepdims", Attribute::Int(0))];
                let x = graph.node("ReduceMean", &[&x], &over_tokens);
                graph.layer_norm(&x, "fc_norm", LAYER_NORM_EPSILON as f32)
            }
        }
    }

    /// Adds the embedded patches, the class token and the positions: (N, tokens, width).
    fn add_tokens(&self, graph: &mut Graph, images: &Value) -> Value {
        let [weight, bias] =
            ["weight", "bias"].map(|part| graph.parameter(&format!("patch_embed.proj.{part}")));
        let side = |n: usize| Attribute::Ints(vec![n as i64; 2]);
        let window = [("kernel_shape", side(self.patch)), ("strides", side(self.patch))];
        let x = graph.node("Conv", &[images, &weight, &bias], &window);
        let x = reshape(graph, &x, &[0, self.width as i64, -1]);
        let mut x = graph.transpose(&x, &[0, 2, 1]);
        if !self.prefix_positions {
            x = add_positions(graph, &x);
        }
        if self.prefix() > 0 {
            x = self.add_prefix(graph, &x);
        }
        if self.prefix_positions { add_positions(graph, &x) } else { x }
    }

    /// Puts class token and registers before the patches of each image.
    fn add_prefix(&self, graph: &mut Graph, patches: &Value) -> Value {
        // The sum of padded tokens is their concatenation, for a batch of any size.
        let mut x = pad(graph, patches, self.prefix(), 0);
        let class_tokens = self.prefix() - self.registers;
        for (name, start, count) in
            [("cls_token", 0, class_tokens), ("reg_token", class_tokens, self.registers)]
        {
            if count > 0 {
                let tokens = graph.parameter(name);
                let tokens = pad(graph, &tokens, start, self.tokens() - start - count);
                x = graph.node("Add", &[&x, &tokens], &[]);
            }
        }
        x
    }

    fn add_block(&self, graph: &mut Graph, x: &Value, name: &str) -> Value {
        let normed = graph.layer_norm(x, &format!("{name}.norm1"), LAYER_NORM_EPSILON as f32);
        let attended = self.add_attention(graph, &normed, &format!("{name}.attn"));
        let attended = self.add_scale(graph, attended, &format!("{name}.ls1"));
        let x = graph.node("Add", &[x, &attended], &[]);
        let normed = graph.layer_norm(&x, &format!("{name}.norm2"), LAYER_NORM_EPSILON as f32);
        let hidden = linear(graph, &normed, &format!("{name}.mlp.fc1"));
        let hidden = match self.mlp {
            Mlp::Gelu => graph.gelu(&hidden),
            Mlp::SwiGlu => gated(graph, &hidden, self.hidden),
        };
        let mixed = linear(graph, &hidden, &format!("{name}.mlp.fc2"));
        let mixed = self.add_scale(graph, mixed, &format!("{name}.ls2"));
        graph.node("Add", &[&x, &mixed], &[])
    }

    /// Multiplies by LayerScale, if there is one.
    fn add_scale(&self, graph: &mut Graph, x: Value, name: &str) -> Value {
        if self.layer_scale.is_none() {
            return x;
        }
        let scale = graph.parameter(&format!("{name}.gamma"));
        graph.node("Mul", &[&x, &scale], &[])
    }

    fn add_attention(&self, graph: &mut Graph, x: &Value, name: &str) -> Value {
        let (width, heads, dim) = (self.width, self.heads, self.width / self.heads);
        let qkv = linear(graph, x, &format!("{name}.qkv"));
        let mut part = |n: usize, order: &[i64]| {
            let rows = slice(graph, &qkv, (n * width, (n + 1) * width), 2);
            let rows = reshape(graph, &rows, &[0, 0, heads as i64, dim as i64]);
            graph.transpose(&rows, order)
        };
        let (q, k, v) = (part(0, &[0, 2, 1, 3]), part(1, &[0, 2, 3, 1]), part(2, &[0, 2, 1, 3]));
        let scale = graph.numbers(&[], vec![1.0 / (dim as f32).sqrt()]);
        let q = graph.node("Mul", &[&q, &scale], &[]);
        let logits = graph.node("MatMul", &[&q, &k], &[]);
        let shares = graph.node("Softmax", &[&logits], &[("axis", Attribute::Int(-1))]);
        let mixed = graph.node("MatMul", &[&shares, &v], &[]);
        let mixed = graph.transpose(&mixed, &[0, 2, 1, 3]);
        let mixed = reshape(graph, &mixed, &[0, 0, width as i64]);
        linear(graph, &mixed, &format!("{name}.proj"))
    }
}
