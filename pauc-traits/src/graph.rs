//! A network as a graph of ONNX operators, for export.
//!
//! An encoder describes itself once more, besides its forward pass: [`EncoderConfig::graph`] adds the operators of
//! [ONNX](https://onnx.ai/onnx/operators/), opset 17, that compute the same features from the same parameters.
//!
//! ```
//! use pauc_traits::graph::{Attribute, Graph, Value};
//!
//! /// The mean of each channel, and a linear layer.
//! fn network(graph: &mut Graph, images: &Value) -> Value {
//!     graph.accept_any_size();
//!     let means = graph.node("GlobalAveragePool", &[images], &[]);
//!     let means = graph.node("Flatten", &[&means], &[("axis", Attribute::Int(1))]);
//!     graph.linear(&means, "fc.weight", Some("fc.bias"))
//! }
//!
//! let mut graph = Graph::new();
//! let images = graph.input("images");
//! network(&mut graph, &images);
//! assert_eq!(graph.parameters().collect::<Vec<_>>(), ["fc.bias", "fc.weight"]);
//! assert_eq!(graph.nodes().iter().map(|n| n.operator).collect::<Vec<_>>(), ["GlobalAveragePool", "Flatten", "Gemm"]);
//! ```
//!
//! [`EncoderConfig::graph`]: crate::EncoderConfig::graph

use std::collections::BTreeSet;

/// A tensor of a graph: an input, a parameter, a constant, or the output of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(String);

impl Value {
    /// Returns its name, unique in the graph.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// An attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
}

/// An operator with its inputs and attributes. It has one output.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The operator's name in ONNX.
    pub operator: &'static str,
    /// Its inputs.
    pub inputs: Vec<Value>,
    /// Its attributes; those that are left out have ONNX's defaults.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Its output.
    pub output: Value,
}

/// A tensor that is not a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Its name.
    pub value: Value,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub elements: Elements,
}

/// The elements of a [`Constant`].
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// Numbers.
    F32(Vec<f32>),
    /// Integers, such as shapes and indices.
    I64(Vec<i64>),
}

/// Nodes in an order in which they can be computed, with the names of the parameters that they read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    constants: Vec<Constant>,
    parameters: BTreeSet<String>,
    accepts_any_size: bool,
}

impl Graph {
    /// Creates a graph without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refers to an input.
    pub fn input(&self, name: &str) -> Value {
        Value(name.into())
    }

    /// Refers to a parameter or running statistic by its name in weight files.
    pub fn parameter(&mut self, name: &str) -> Value {
        self.parameters.insert(name.into());
        Value(name.into())
    }

    /// Adds a constant of numbers.
    ///
    /// # Panics
    /// If the number of elements is not that of the shape, which is a bug of the caller.
    pub fn numbers(&mut self, shape: &[usize], elements: Vec<f32>) -> Value {
        assert_eq!(elements.len(), shape.iter().product::<usize>(), "elements for shape {shape:?}");
        self.constant(shape, Elements::F32(elements))
    }

    /// Adds a constant list of integers.
    pub fn integers(&mut self, elements: &[i64]) -> Value {
        self.constant(&[elements.len()], Elements::I64(elements.to_vec()))
    }

    fn constant(&mut self, shape: &[usize], elements: Elements) -> Value {
        let value = Value(format!("constant_{}", self.constants.len()));
        self.constants.push(Constant { value: value.clone(), shape: shape.to_vec(), elements });
        value
    }

    /// Adds a node and returns its output.
    pub fn node(
        &mut self,
        operator: &'static str,
        inputs: &[&Value],
        attributes: &[(&'static str, Attribute)],
    ) -> Value {
        let output = Value(format!("{operator}_{}", self.nodes.len()));
        let inputs = inputs.iter().map(|v| (*v).clone()).collect();
        self.nodes.push(Node { operator, inputs, attributes: attributes.to_vec(), output: output.clone() });
        output
    }

    /// Gives a value the name of an output.
    pub fn output(&mut self, name: &str, value: &Value) -> Value {
        let output = Value(name.into());
        let inputs = vec![value.clone()];
        let node = Node { operator: "Identity", inputs, attributes: Vec::new(), output: output.clone() };
        self.nodes.push(node);
        output
    }

    /// Adds x·Wᵀ + b, for a weight of shape (outputs, inputs).
    ///
    /// # Shapes
    /// (N, inputs) → (N, outputs)
    pub fn linear(&mut self, x: &Value, weight: &str, bias: Option<&str>) -> Value {
        let weight = self.parameter(weight);
        let bias = bias.map(|name| self.parameter(name));
        let inputs: Vec<&Value> = [x, &weight].into_iter().chain(&bias).collect();
        self.node("Gemm", &inputs, &[("transB", Attribute::Int(1))])
    }

    /// Adds batch normalization with running statistics: the parameters `name.weight`, `name.bias`,
    /// `name.running_mean` and `name.running_var`.
    ///
    /// # Shapes
    /// (N, C, …) → (N, C, …)
    pub fn batch_norm(&mut self, x: &Value, name: &str, epsilon: f32) -> Value {
        let parts = ["weight", "bias", "running_mean", "running_var"];
        let parts = parts.map(|part| self.parameter(&format!("{name}.{part}")));
        let inputs: Vec<&Value> = [x].into_iter().chain(&parts).collect();
        self.node("BatchNormalization", &inputs, &[("epsilon", Attribute::Float(epsilon))])
    }

    /// Adds a LayerNorm over the last axis, with the parameters `name.weight` and `name.bias`.
    pub fn layer_norm(&mut self, x: &Value, name: &str, epsilon: f32) -> Value {
        let [gamma, beta] = ["weight", "bias"].map(|part| self.parameter(&format!("{name}.{part}")));
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
        self.node("LayerNormalization", &[x, &gamma, &beta], &attributes)
    }

    /// Adds GELU, x·Φ(x), by the error function: the operator Gelu is newer than opset 17.
    pub fn gelu(&mut self, x: &Value) -> Value {
        let mut scalar = |value: f32| self.numbers(&[], vec![value]);
        let (root, one, half) = (scalar(std::f32::consts::FRAC_1_SQRT_2), scalar(1.0), scalar(0.5));
        let erf = self.node("Mul", &[x, &root], &[]);
        let erf = self.node("Erf", &[&erf], &[]);
        let shifted = self.node("Add", &[&erf, &one], &[]);
        let product = self.node("Mul", &[x, &shifted], &[]);
        self.node("Mul", &[&product, &half], &[])
    }

    /// Orders the axes anew: axis i of the result is axis `order[i]` of x.
    pub fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.node("Transpose", &[x], &[("perm", Attribute::Ints(order.to_vec()))])
    }

    /// Declares that the graph also computes the features of images of other sizes than it was made for. By
    /// default it does not.
    pub fn accept_any_size(&mut self) {
        self.accepts_any_size = true;
    }

    /// Returns whether images of other sizes are accepted.
    pub fn accepts_any_size(&self) -> bool {
        self.accepts_any_size
    }

    /// Returns the nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the constants.
    pub fn constants(&self) -> &[Constant] {
        &self.constants
    }

    /// Returns the names of the parameters, sorted.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(String::as_str)
    }
}
