//! A plain interpreter of the ONNX operators that exported encoders have, by ONNX's documentation. Slow and simple.

use std::collections::BTreeMap;
use std::path::Path;

/// A tensor, row-major. Integers are stored as numbers too.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// An attribute: a number, an integer or a list of integers.
#[derive(Clone, Debug, Default)]
struct Attribute {
    float: f32,
    ints: Vec<i64>,
}

#[derive(Debug, Default)]
struct Node {
    operator: String,
    inputs: Vec<String>,
    output: String,
    attributes: BTreeMap<String, Attribute>,
}

/// The content of a file.
#[derive(Debug, Default)]
pub struct Model {
    nodes: Vec<Node>,
    tensors: BTreeMap<String, Tensor>,
    input: String,
    outputs: Vec<String>,
    pub metadata: BTreeMap<String, String>,
}

/// The fields of a message: number, and integer or bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = match tag & 7 {
            0 => Field { integer: varint(&mut bytes) as i64, bytes: &[] },
            2 => {
                let length = varint(&mut bytes) as usize;
                Field { integer: 0, bytes: take_from(&mut bytes, length) }
            }
            5 => Field { integer: 0, bytes: take_from(&mut bytes, 4) },
            other => panic!("wire type {other}"),
        };
        all.push((tag >> 3, field));
    }
    all
}

struct Field<'a> {
    integer: i64,
    bytes: &'a [u8],
}

impl Field<'_> {
    fn text(&self) -> String {
        String::from_utf8(self.bytes.to_vec()).unwrap()
    }
}

fn take_from<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(n);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take_from(bytes, 1)[0];
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            break;
        }
    }
    value
}

impl Model {
    pub fn read(path: &Path) -> Self {
        let mut model = Model::default();
        for (field, value) in fields(&std::fs::read(path).unwrap()) {
            match field {
                7 => model.read_graph(value.bytes),
                14 => {
                    let text: Vec<String> = fields(value.bytes).iter().map(|(_, f)| f.text()).collect();
                    model.metadata.insert(text[0].clone(), text[1].clone());
                }
                _ => {}
            }
        }
        model
    }

    fn read_graph(&mut self, bytes: &[u8]) {
        let name = |bytes: &[u8]| fields(bytes)[0].1.text();
        for (field, value) in fields(bytes) {
            match field {
                1 => self.nodes.push(read_node(value.bytes)),
                5 => self.tensors.extend([read_tensor(value.bytes)]),
                11 => self.input = name(value.bytes),
                12 => self.outputs.push(name(value.bytes)),
                _ => {}
            }
        }
    }

    /// Computes the outputs.
    pub fn run(&self, input: Tensor) -> Vec<Tensor> {
        let mut values = self.tensors.clone();
        values.insert(self.input.clone(), input);
        for node in &self.nodes {
            let inputs: Vec<&Tensor> = node.inputs.iter().map(|name| &values[name]).collect();
            let output = compute(node, &inputs);
            let len = output.shape.iter().product::<usize>();
            assert_eq!(output.values.len(), len, "{node:?}");
            values.insert(node.output.clone(), output);
        }
        self.outputs.iter().map(|name| values[name].clone()).collect()
    }
}

fn read_node(bytes: &[u8]) -> Node {
    let mut node = Node::default();
    for (field, value) in fields(bytes) {
        match field {
            1 => node.inputs.push(value.text()),
            2 => node.output = value.text(),
            4 => node.operator = value.text(),
            5 => {
                let (mut name, mut attribute) = (String::new(), Attribute::default());
                for (field, value) in fields(value.bytes) {
                    match field {
                        1 => name = value.text(),
                        2 => attribute.float = f32::from_le_bytes(value.bytes.try_into().unwrap()),
                        3 | 8 => attribute.ints.push(value.integer),
                        _ => {}
                    }
                }
                node.attributes.insert(name, attribute);
            }
            _ => {}
        }
    }
    node
}

fn read_tensor(bytes: &[u8]) -> (String, Tensor) {
    let (mut name, mut shape, mut element, mut raw) = (String::new(), Vec::new(), 0, &[][..]);
    for (field, value) in fields(bytes) {
        match field {
            1 => shape.push(value.integer as usize),
            2 => element = value.integer,
            8 => name = value.text(),
            9 => raw = value.bytes,
            _ => {}
        }
    }
    let values = match element {
        1 => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        7 => raw.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect(),
        other => panic!("element type {other}"),
    };
    (name, Tensor { shape, values })
}

impl Tensor {
    /// Builds a tensor from the value at each index.
    fn from(shape: &[usize], mut value: impl FnMut(&[usize]) -> f64) -> Tensor {
        let len = shape.iter().product();
        let mut values = Vec::with_capacity(len);
        let mut index = vec![0; shape.len()];
        for _ in 0..len {
            values.push(value(&index) as f32);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Tensor { shape: shape.to_vec(), values }
    }

    fn at(&self, index: &[usize]) -> f64 {
        assert_eq!(index.len(), self.shape.len());
        let flat = index.iter().zip(&self.shape).fold(0, |flat, (i, n)| {
            assert!(i < n, "{index:?} in {:?}", self.shape);
            flat * n + i
        });
        f64::from(self.values[flat])
    }

    /// The value at an index of a shape that this one is broadcast to.
    fn broadcast(&self, index: &[usize]) -> f64 {
        let own = &index[index.len() - self.shape.len()..];
        let own: Vec<usize> =
            own.iter().zip(&self.shape).map(|(i, n)| if *n == 1 { 0 } else { *i }).collect();
        self.at(&own)
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Tensor {
        let values = self.values.iter().map(|v| f(f64::from(*v)) as f32).collect();
        Tensor { shape: self.shape.clone(), values }
    }

    fn reshaped(&self, shape: Vec<usize>) -> Tensor {
        Tensor { shape, values: self.values.clone() }
    }

    fn integers(&self) -> Vec<i64> {
        self.values.iter().map(|v| *v as i64).collect()
    }

    /// Applies `f` to each row along the last axis.
    fn rows(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Tensor {
        let width = *self.shape.last().unwrap();
        let row = |row: &[f32]| f(&row.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        let values = self.values.chunks(width).flat_map(row).map(|v| v as f32).collect();
        Tensor { shape: self.shape.clone(), values }
    }
}

fn elementwise(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let rank = a.shape.len().max(b.shape.len());
    let side = |t: &Tensor, axis: usize| (axis + t.shape.len()).checked_sub(rank).map_or(1, |i| t.shape[i]);
    let shape: Vec<usize> = (0..rank).map(|axis| side(a, axis).max(side(b, axis))).collect();
    Tensor::from(&shape, |i| f(a.broadcast(i), b.broadcast(i)))
}

fn compute(node: &Node, x: &[&Tensor]) -> Tensor {
    let ints = |name: &str| node.attributes.get(name).map(|a| a.ints.clone());
    let float = |name: &str| f64::from(node.attributes[name].float);
    match node.operator.as_str() {
        "Identity" => x[0].clone(),
        "Add" => elementwise(x[0], x[1], |a, b| a + b),
        "Sub" => elementwise(x[0], x[1], |a, b| a - b),
        "Mul" => elementwise(x[0], x[1], |a, b| a * b),
        "Div" => elementwise(x[0], x[1], |a, b| a / b),
        "Max" => elementwise(x[0], x[1], f64::max),
        "Relu" => x[0].map(|v| v.max(0.0)),
        "Erf" => x[0].map(erf),
        "Sigmoid" => x[0].map(|v| 1.0 / (1.0 + (-v).exp())),
        "Conv" => {
            let groups = ints("group").map_or(1, |g| g[0] as usize);
            convolution(x, &ints("strides").unwrap(), &ints("pads").unwrap_or_default(), groups)
        }
        "MaxPool" => {
            max_pool(x[0], &ints("kernel_shape").unwrap(), &ints("strides").unwrap(), &ints("pads").unwrap())
        }
        "GlobalAveragePool" => {
            let pixels = x[0].shape[2] * x[0].shape[3];
            let means = x[0].reshaped(vec![x[0].shape[0], x[0].shape[1], pixels]);
            let sums =
                Tensor::from(&means.shape[..2], |i| (0..pixels).map(|p| means.at(&[i[0], i[1], p])).sum());
            sums.map(|v| v / pixels as f64).reshaped(vec![x[0].shape[0], x[0].shape[1], 1, 1])
        }
        "BatchNormalization" => Tensor::from(&x[0].shape, |i| {
            let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|n| x[n].at(&i[1..2]));
            (x[0].at(i) - mean) / (variance + float("epsilon")).sqrt() * gamma + beta
        }),
        "LayerNormalization" => {
            let normed = x[0].rows(|row| {
                let n = row.len() as f64;
                let mean = row.iter().sum::<f64>() / n;
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                row.iter().map(|v| (v - mean) / (variance + float("epsilon")).sqrt()).collect()
            });
            elementwise(&elementwise(&normed, x[1], |a, b| a * b), x[2], |a, b| a + b)
        }
        "Softmax" => x[0].rows(|row| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|v| (v - largest).exp()).sum();
            row.iter().map(|v| (v - largest).exp() / sum).collect()
        }),
        "Gemm" => {
            assert_eq!(ints("transB"), Some(vec![1]));
            let (rows, inputs, outputs) = (x[0].shape[0], x[0].shape[1], x[1].shape[0]);
            Tensor::from(&[rows, outputs], |i| {
                let product: f64 = (0..inputs).map(|k| x[0].at(&[i[0], k]) * x[1].at(&[i[1], k])).sum();
                product + x.get(2).map_or(0.0, |bias| bias.at(&i[1..]))
            })
        }
        "MatMul" => {
            let rank = x[0].shape.len();
            let inputs = x[0].shape[rank - 1];
            let shape = [&x[0].shape[..rank - 1], &x[1].shape[x[1].shape.len() - 1..]].concat();
            Tensor::from(&shape, |i| {
                let (batch, row, column) = (&i[..rank - 2], i[rank - 2], i[rank - 1]);
                let left = |k| [batch, &[row, k]].concat();
                let right = |k| [batch, &[k, column]].concat();
                (0..inputs).map(|k| x[0].at(&left(k)) * x[1].broadcast(&right(k))).sum()
            })
        }
        "Transpose" => {
            let order: Vec<usize> = ints("perm").unwrap().iter().map(|a| *a as usize).collect();
            let shape: Vec<usize> = order.iter().map(|a| x[0].shape[*a]).collect();
            Tensor::from(&shape, |i| {
                let mut from = vec![0; i.len()];
                order.iter().zip(i).for_each(|(axis, i)| from[*axis] = *i);
                x[0].at(&from)
            })
        }
        "Reshape" => reshape(x[0], &x[1].integers()),
        "Flatten" => {
            assert_eq!(ints("axis"), Some(vec![1]));
            x[0].reshaped(vec![x[0].shape[0], x[0].shape[1..].iter().product()])
        }
        "Slice" => {
            let [start, end, axis] = [1, 2, 3].map(|n| x[n].integers()[0] as usize);
            let mut shape = x[0].shape.clone();
            shape[axis] = end - start;
            Tensor::from(&shape, |i| {
                let mut from = i.to_vec();
                from[axis] += start;
                x[0].at(&from)
            })
        }
        "Pad" => {
            let pads: Vec<usize> = x[1].integers().iter().map(|n| *n as usize).collect();
            let rank = x[0].shape.len();
            let shape: Vec<usize> = (0..rank).map(|a| pads[a] + x[0].shape[a] + pads[rank + a]).collect();
            Tensor::from(&shape, |i| {
                let from: Option<Vec<usize>> = (0..rank)
                    .map(|a| i[a].checked_sub(pads[a]).filter(|from| *from < x[0].shape[a]))
                    .collect();
                from.map_or(0.0, |from| x[0].at(&from))
            })
        }
        "ReduceMean" => {
            assert_eq!((ints("axes"), ints("keepdims")), (Some(vec![1]), Some(vec![0])));
            let n = x[0].shape[1];
            let shape = [x[0].shape[0], x[0].shape[2]];
            Tensor::from(&shape, |i| (0..n).map(|k| x[0].at(&[i[0], k, i[1]])).sum::<f64>() / n as f64)
        }
        "ReduceL2" => reduce(node, x[0], |row| row.map(|v| v * v).sum::<f64>().sqrt()),
        "ReduceMax" => reduce(node, x[0], |row| row.fold(f64::NEG_INFINITY, f64::max)),
        "Abs" => x[0].map(f64::abs),
        other => panic!("the operator {other}"),
    }
}

/// Reduces each row of a matrix to one number, and keeps the axis.
fn reduce(node: &Node, x: &Tensor, f: impl Fn(&mut dyn Iterator<Item = f64>) -> f64) -> Tensor {
    assert_eq!(node.attributes["axes"].ints, [1]);
    assert!(!node.attributes.contains_key("keepdims"));
    Tensor::from(&[x.shape[0], 1], |i| f(&mut (0..x.shape[1]).map(|k| x.at(&[i[0], k]))))
}

/// 0 copies a length, −1 takes what is left.
fn reshape(x: &Tensor, wanted: &[i64]) -> Tensor {
    let known: Vec<usize> = wanted
        .iter()
        .enumerate()
        .map(|(axis, n)| match n {
            0 => x.shape[axis],
            -1 => 1,
            n => *n as usize,
        })
        .collect();
    let rest = x.values.len() / known.iter().product::<usize>();
    let shape = known.iter().zip(wanted).map(|(n, wanted)| if *wanted == -1 { rest } else { *n });
    x.reshaped(shape.collect())
}

/// Calls `each` with the kernel's offset and the input's index for every pixel under a window.
fn window(
    (top, left): (i64, i64),
    (rows, columns): (i64, i64),
    shape: &[usize],
    mut each: impl FnMut([usize; 2], [usize; 2]),
) {
    for (r, c) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        let (y, x) = (top + r, left + c);
        if (0..shape[2] as i64).contains(&y) && (0..shape[3] as i64).contains(&x) {
            each([r as usize, c as usize], [y as usize, x as usize]);
        }
    }
}

/// The number of windows along an axis.
fn windows(side: usize, kernel: i64, stride: i64, padding: i64) -> usize {
    ((side as i64 + 2 * padding - kernel) / stride + 1) as usize
}

fn convolution(x: &[&Tensor], stride: &[i64], pads: &[i64], groups: usize) -> Tensor {
    let (images, weight) = (x[0], x[1]);
    let kernel = [weight.shape[2] as i64, weight.shape[3] as i64];
    let padding = pads.first().copied().unwrap_or(0);
    let side = |axis: usize| windows(images.shape[2 + axis], kernel[axis], stride[axis], padding);
    let shape = [images.shape[0], weight.shape[0], side(0), side(1)];
    let (outputs, inputs) = (weight.shape[0] / groups, weight.shape[1]);
    assert_eq!(images.shape[1], groups * inputs);
    Tensor::from(&shape, |i| {
        let first = i[1] / outputs * inputs;
        let corner = (i[2] as i64 * stride[0] - padding, i[3] as i64 * stride[1] - padding);
        let mut sum = x.get(2).map_or(0.0, |bias| bias.at(&i[1..2]));
        window(corner, (kernel[0], kernel[1]), &images.shape, |k, pixel| {
            for c in 0..inputs {
                let pixel = images.at(&[i[0], first + c, pixel[0], pixel[1]]);
                sum += weight.at(&[i[1], c, k[0], k[1]]) * pixel;
            }
        });
        sum
    })
}

fn max_pool(x: &Tensor, kernel: &[i64], stride: &[i64], pads: &[i64]) -> Tensor {
    let side = |axis: usize| windows(x.shape[2 + axis], kernel[axis], stride[axis], pads[0]);
    Tensor::from(&[x.shape[0], x.shape[1], side(0), side(1)], |i| {
        let corner = (i[2] as i64 * stride[0] - pads[0], i[3] as i64 * stride[1] - pads[0]);
        let mut largest = f64::NEG_INFINITY;
        window(corner, (kernel[0], kernel[1]), &x.shape, |_, pixel| {
            largest = largest.max(x.at(&[i[0], i[1], pixel[0], pixel[1]]));
        });
        largest
    })
}

/// The error function by its Taylor series, or by its asymptotic value where that has no rounding error in `f32`.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
