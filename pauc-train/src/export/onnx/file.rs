//! The content of an ONNX file.

use pauc_report::protobuf::Message;
use pauc_traits::graph::{Attribute, Elements, Graph, Node};
use pauc_traits::{Error, Result};

/// The version of the operators.
pub const OPSET: i64 = 17;
/// The version of the file format that belongs to [`OPSET`].
const IR: i64 = 8;
/// The element type `f32`.
const FLOAT: i64 = 1;
/// The element type `i64`.
const INT64: i64 = 7;
/// Protocol buffers of 2 GiB or more cannot be read.
const MOST_BYTES: u64 = (1 << 31) - 1;

/// An axis of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// A fixed length.
    Fixed(usize),
    /// A length that each call chooses, by name.
    Dynamic(&'static str),
}

/// An input or output of `f32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name of the value.
    pub name: String,
    /// Its axes.
    pub axes: Vec<Axis>,
    /// What it is, for people.
    pub description: &'static str,
}

/// The values of a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter<'a> {
    /// The name in the graph.
    pub name: &'a str,
    /// The shape.
    pub shape: &'a [usize],
    /// One value per element, row-major.
    pub values: &'a [f32],
}

/// Everything in a file.
#[derive(Clone, Debug)]
pub struct Model<'a> {
    /// A name for the graph.
    pub name: &'a str,
    /// The nodes and constants.
    pub graph: &'a Graph,
    /// The values of the graph's parameters.
    pub parameters: &'a [Parameter<'a>],
    /// The inputs.
    pub inputs: &'a [Port],
    /// The outputs.
    pub outputs: &'a [Port],
    /// The name and the version of the program that wrote it.
    pub producer: (&'a str, &'a str),
    /// Text by key.
    pub metadata: &'a [(&'a str, String)],
}

impl Model<'_> {
    /// Returns the content of the file. Equal models give equal bytes.
    ///
    /// # Errors
    /// If it would have 2 GiB or more, which no reader of ONNX accepts.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let weights: u64 = self.parameters.iter().map(|p| 4 * p.values.len() as u64).sum();
        let too_large = |bytes: u64| {
            Error::config(format!(
                "the file would have {:.1} GiB, but an ONNX file has less than 2 GiB; use a smaller encoder",
                bytes as f64 / (1u64 << 30) as f64
            ))
        };
        // Before anything is copied.
        if weights > MOST_BYTES {
            return Err(too_large(weights));
        }
        let bytes = self.message().into_bytes();
        if bytes.len() as u64 > MOST_BYTES { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
    }

    /// The message `ModelProto`. Numbers of fields are those of ONNX's `onnx.proto`.
    fn message(&self) -> Message {
        let mut model = Message::new();
        model.integer(1, IR).text(2, self.producer.0).text(3, self.producer.1);
        model.message(7, &self.graph()).message(8, Message::new().text(1, "").integer(2, OPSET));
        for (key, value) in self.metadata {
            model.message(14, Message::new().text(1, key).text(2, value));
        }
        model
    }

    /// `GraphProto`.
    fn graph(&self) -> Message {
        let mut graph = Message::new();
        for n in self.graph.nodes() {
            graph.message(1, &node(n));
        }
        graph.text(2, self.name);
        for p in self.parameters {
            graph.message(5, &tensor(p.name, p.shape, FLOAT, p.values.iter().flat_map(|v| v.to_le_bytes())));
        }
        for c in self.graph.constants() {
            let (name, shape) = (c.value.name(), &c.shape[..]);
            graph.message(
                5,
                &match &c.elements {
                    Elements::F32(all) => {
                        tensor(name, shape, FLOAT, all.iter().flat_map(|v| v.to_le_bytes()))
                    }
                    Elements::I64(all) => {
                        tensor(name, shape, INT64, all.iter().flat_map(|v| v.to_le_bytes()))
                    }
                },
            );
        }
        for p in self.inputs {
            graph.message(11, &port(p));
        }
        for p in self.outputs {
            graph.message(12, &port(p));
        }
        graph
    }
}

/// `NodeProto`.
fn node(node: &Node) -> Message {
    let mut message = Message::new();
    for input in &node.inputs {
        message.text(1, input.name());
    }
    message.text(2, node.output.name()).text(3, node.output.name()).text(4, node.operator);
    for (name, value) in &node.attributes {
        let mut attribute = Message::new();
        attribute.text(1, name);
        match value {
            Attribute::Float(f) => attribute.float(2, *f).integer(20, 1),
            Attribute::Int(i) => attribute.integer(3, *i).integer(20, 2),
            Attribute::Ints(all) => {
                // Lists are not packed in this version of the language.
                for i in all {
                    attribute.integer(8, *i);
                }
                attribute.integer(20, 7)
            }
        };
        message.message(5, &attribute);
    }
    message
}

/// `TensorProto`.
fn tensor(name: &str, shape: &[usize], element: i64, bytes: impl Iterator<Item = u8>) -> Message {
    let mut message = Message::new();
    for n in shape {
        message.integer(1, *n as i64);
    }
    message.integer(2, element).text(8, name).data(9, &bytes.collect::<Vec<_>>());
    message
}

/// `ValueInfoProto`.
fn port(port: &Port) -> Message {
    let mut shape = Message::new();
    for axis in &port.axes {
        let mut dimension = Message::new();
        match axis {
            Axis::Fixed(length) => dimension.integer(1, *length as i64),
            Axis::Dynamic(name) => dimension.text(2, name),
        };
        shape.message(1, &dimension);
    }
    let mut of_tensor = Message::new();
    of_tensor.message(1, Message::new().integer(1, FLOAT).message(2, &shape));
    let mut message = Message::new();
    message.text(1, &port.name).message(2, &of_tensor).text(3, port.description);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_two_gibibytes_is_refused_before_it_is_built() {
        let values = vec![0.0; 1 << 24];
        let parameters = vec![Parameter { name: "w", shape: &[1 << 24], values: &values }; 32];
        let graph = Graph::new();
        let encode = |parameters| {
            let (inputs, outputs, metadata) = (&[], &[], &[]);
            Model { name: "g", graph: &graph, parameters, inputs, outputs, producer: ("p", "1"), metadata }
                .encode()
        };
        let error = encode(&parameters).unwrap_err().to_string();
        assert!(error.contains("the file would have 2.0 GiB"), "{error}");
        assert!(encode(&parameters[..1]).unwrap().len() > 1 << 26);
    }

    #[test]
    fn a_model_is_the_bytes_that_protocol_buffers_prescribe() {
        let mut graph = Graph::new();
        let x = graph.input("x");
        let y = graph.node("Softmax", &[&x], &[("axis", Attribute::Int(-1))]);
        let port = |name: &str| Port {
            name: name.into(),
            axes: vec![Axis::Dynamic("n"), Axis::Fixed(3)],
            description: "d",
        };
        let model = Model {
            name: "g",
            graph: &graph,
            parameters: &[Parameter { name: "w", shape: &[1], values: &[1.0] }],
            inputs: &[port("x")],
            outputs: &[port(y.name())],
            producer: ("p", "1"),
            metadata: &[("k", "v".to_string())],
        };
        // Field numbers are those of onnx.proto: tag = number · 8 + wire type, then the length.
        let minus_one = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let axis = [&[0x0a, 4][..], b"axis", &[0x18], &minus_one, &[0xa0, 1, 2]].concat();
        let softmax = [
            &[0x0a, 1][..],
            b"x",
            &[0x12, 9],
            b"Softmax_0",
            &[0x1a, 9],
            b"Softmax_0",
            &[0x22, 7],
            b"Softmax",
            &[0x2a, axis.len() as u8],
            &axis,
        ]
        .concat();
        let weight = [&[0x08, 1, 0x10, 1, 0x42, 1][..], b"w", &[0x4a, 4], &1.0f32.to_le_bytes()].concat();
        let shape = [0x0a, 3, 0x12, 1, b'n', 0x0a, 2, 0x08, 3];
        let kind = [&[0x0a, 13, 0x08, 1, 0x12, 9][..], &shape].concat();
        let info = |name: &[u8]| {
            [&[0x0a, name.len() as u8][..], name, &[0x12, kind.len() as u8], &kind, &[0x1a, 1, b'd']].concat()
        };
        let (input, output) = (info(b"x"), info(b"Softmax_0"));
        let part = |tag: u8, bytes: &[u8]| [&[tag, bytes.len() as u8][..], bytes].concat();
        let body = [
            part(0x0a, &softmax),
            part(0x12, b"g"),
            part(0x2a, &weight),
            part(0x5a, &input),
            part(0x62, &output),
        ]
        .concat();
        assert!(body.len() >= 128, "its length takes two bytes");
        let length = [(body.len() & 0x7f) as u8 | 0x80, (body.len() >> 7) as u8];
        let want = [
            &[0x08, 8, 0x12, 1, b'p', 0x1a, 1, b'1', 0x3a][..],
            &length,
            &body,
            &[0x42, 4, 0x0a, 0, 0x10, 17],
            &[0x72, 6, 0x0a, 1, b'k', 0x12, 1, b'v'],
        ]
        .concat();
        assert_eq!(model.encode().unwrap(), want);
    }
}
