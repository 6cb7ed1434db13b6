//! A convolutional network without a device: layers, the order in which they run, shapes and names.

use crate::batch_moments::EPSILON;
use pauc_kernels::conv::Geometry;
use pauc_kernels::pool::{self, CellMean};
use pauc_traits::encoder::{Layer, LayerDepths};
use pauc_traits::graph::{self, Attribute, Graph};
use pauc_traits::param::Role;
use pauc_traits::rng::{self, Purpose};
use pauc_traits::{Compute, Error, ImageShape, NetworkSize, Param, Result};
use rand_distr::{Distribution, Normal};

/// The number of a feature map; 0 is the image.
pub type Map = usize;

/// A convolution, followed by batch normalization if `norm` names one. Its parameters are weight, γ and β, or the
/// weight alone; its statistics are running mean and variance, or none.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    /// The convolution's name.
    pub name: String,
    /// The normalization's name.
    pub norm: Option<String>,
    /// The convolution's shape.
    pub geometry: Geometry,
}

impl ConvNorm {
    /// Returns the name of the normalization, or of the convolution if there is none.
    pub fn norm_name(&self) -> &str {
        self.norm.as_deref().unwrap_or(&self.name)
    }
}

/// One step of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// out ← ReLU(norm(conv(input)) + residual).
    Conv {
        /// The number of the [`ConvNorm`].
        layer: usize,
        /// The map that it reads.
        input: Map,
        /// The map that it writes.
        output: Map,
        /// The map added before ReLU.
        residual: Option<Map>,
    },
    /// The convolution of a shortcut. The step that adds it also normalizes it.
    Shortcut {
        /// The number of the [`ConvNorm`].
        layer: usize,
        /// The map that it reads.
        input: Map,
        /// The map that it writes.
        output: Map,
    },
    /// sum ← conv(input) + residual, out ← ReLU(norm(sum)): a step of a pre-activation network.
    Sum {
        /// The number of the [`ConvNorm`].
        layer: usize,
        /// The map that it reads.
        input: Map,
        /// The map that it writes before normalization.
        sum: Map,
        /// The map that it writes after ReLU.
        output: Map,
        /// The map added before normalization.
        residual: Option<Map>,
    },
    /// A convolution alone.
    Bare {
        /// The number of the [`ConvNorm`], which has no normalization.
        layer: usize,
        /// The map that it reads.
        input: Map,
        /// The map that it writes.
        output: Map,
    },
    /// The maximum of 3×3 windows at stride 2.
    MaxPool {
        /// The map that it reads.
        input: Map,
        /// The map that it writes.
        output: Map,
    },
}

impl Step {
    /// Returns the maps that the step reads.
    pub fn reads(&self) -> [Option<Map>; 2] {
        match *self {
            Step::Conv { input, residual, .. } | Step::Sum { input, residual, .. } => [Some(input), residual],
            Step::Shortcut { input, .. } | Step::Bare { input, .. } | Step::MaxPool { input, .. } => {
                [Some(input), None]
            }
        }
    }
}

/// The shape of a feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// The layer whose normalization is still pending, for the output of [`Step::Shortcut`].
    pub pending: Option<usize>,
    /// The layer that holds the map as its output before normalization, for [`Step::Bare`] and the sum of
    /// [`Step::Sum`].
    pub raw: Option<usize>,
}

impl Size {
    /// Returns the layer whose output before normalization the map is, if it is one.
    pub fn held_by(&self) -> Option<usize> {
        self.pending.or(self.raw)
    }
}

/// A network whose features are means over its last map.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// The shape of the images.
    pub input: ImageShape,
    /// Layers in the order of their parameters.
    pub layers: Vec<ConvNorm>,
    /// Steps in execution order.
    pub steps: Vec<Step>,
    /// The shapes of all maps.
    pub maps: Vec<Size>,
    /// The number of cells per side over which the last map is averaged; 1 averages the whole map.
    pub grid: usize,
}

/// Parameters and statistics, in the blueprint's order.
#[derive(Debug)]
pub(crate) struct State<D: Compute> {
    pub parameters: Vec<Param<D>>,
    pub statistics: Vec<Param<D>>,
}

impl<D: Compute> Clone for State<D> {
    fn clone(&self) -> Self {
        State { parameters: self.parameters.clone(), statistics: self.statistics.clone() }
    }
}

impl<D: Compute> State<D> {
    /// Creates them with initial weights from the random streams of `seed`.
    pub(crate) fn new(device: &D, plan: &Blueprint, seed: u64) -> Result<Self> {
        let make = |all: Vec<Initial>| -> Result<Vec<Param<D>>> {
            all.into_iter().map(|(name, shape, role, v)| Param::new(device, name, &shape, role, &v)).collect()
        };
        Ok(State { parameters: make(plan.parameters(seed))?, statistics: make(plan.statistics())? })
    }

    /// Copies the values into new parameters.
    pub(crate) fn duplicate(&self, device: &D) -> Result<Self> {
        let copy = |all: &[Param<D>]| all.iter().map(|p| p.deep_clone(device)).collect::<Result<Vec<_>>>();
        Ok(State { parameters: copy(&self.parameters)?, statistics: copy(&self.statistics)? })
    }
}

/// A parameter's name, shape, role and initial values.
pub type Initial = (String, Vec<usize>, Role, Vec<f32>);

impl Blueprint {
    /// Creates a network of the image only.
    ///
    /// # Errors
    /// If the image is not gray or RGB, or empty.
    pub fn new(input: ImageShape) -> Result<Self> {
        if ![1, 3].contains(&input.channels) {
            return Err(Error::shape(
                "conv1",
                format!("images are {input}: encoders take 1 channel (gray) or 3 (RGB)"),
            ));
        }
        if input.is_empty() {
            return Err(Error::shape("conv1", format!("images are {input}: there are no pixels")));
        }
        let image = Size {
            height: input.height,
            width: input.width,
            channels: input.channels,
            pending: None,
            raw: None,
        };
        Ok(Blueprint { input, layers: Vec::new(), steps: Vec::new(), maps: vec![image], grid: 1 })
    }

    /// Declares a convolution of a map with the shape of `from` and `inputs` channels. The order of
    /// declarations is the order of parameters.
    pub fn declare(
        &mut self,
        (name, norm): (String, String),
        (height, width, inputs): (usize, usize, usize),
        outputs: usize,
        (kernel, stride): (usize, usize),
    ) -> usize {
        let geometry = Geometry { height, width, inputs, outputs, kernel, stride, padding: kernel / 2 };
        self.layers.push(ConvNorm { name, norm: Some(norm), geometry });
        self.layers.len() - 1
    }

    /// As [`Blueprint::declare`], without normalization.
    pub fn declare_bare(
        &mut self,
        name: String,
        shape: (usize, usize, usize),
        outputs: usize,
        window: (usize, usize),
    ) -> usize {
        let layer = self.declare((name, String::new()), shape, outputs, window);
        self.layers[layer].norm = None;
        layer
    }

    /// Returns the number of the weight of a layer among the parameters. γ and β follow.
    pub fn weight(&self, layer: usize) -> usize {
        self.layers[..layer].iter().map(|l| if l.norm.is_some() { 3 } else { 1 }).sum()
    }

    /// Returns the number of the running mean of a layer among the statistics. The running variance follows.
    pub fn running_mean(&self, layer: usize) -> usize {
        self.layers[..layer].iter().map(|l| if l.norm.is_some() { 2 } else { 0 }).sum()
    }

    /// Returns whether a convolution is added to its residual before normalization.
    pub fn is_pre_activated(&self) -> bool {
        self.steps.iter().any(|s| matches!(s, Step::Sum { .. } | Step::Bare { .. }))
    }

    /// Returns the shape of a map, in the form that [`Blueprint::declare`] takes.
    pub fn shape(&self, map: Map) -> (usize, usize, usize) {
        let m = self.maps[map];
        (m.height, m.width, m.channels)
    }

    /// Returns rows, columns and channels of the output of a declared layer.
    pub fn output(&self, layer: usize) -> (usize, usize, usize) {
        let g = self.layers[layer].geometry;
        let (h, w) = g.output();
        (h, w, g.outputs)
    }

    /// Runs a declared convolution with normalization, residual and ReLU.
    pub fn conv(&mut self, layer: usize, input: Map, residual: Option<Map>) -> Map {
        let output = self.add_map(self.output(layer), None);
        self.steps.push(Step::Conv { layer, input, output, residual });
        output
    }

    /// Runs a declared convolution as a shortcut. It must come before the other convolutions of its input, so
    /// that its gradient is added last.
    pub fn shortcut(&mut self, layer: usize, input: Map) -> Map {
        let output = self.add_map(self.output(layer), Some(layer));
        self.steps.push(Step::Shortcut { layer, input, output });
        output
    }

    /// Runs a declared convolution, adds a residual, and returns the sum before and after normalization and
    /// ReLU.
    pub fn sum(&mut self, layer: usize, input: Map, residual: Option<Map>) -> (Map, Map) {
        let shape = self.output(layer);
        let sum = self.add_map(shape, None);
        self.maps[sum].raw = Some(layer);
        let output = self.add_map(shape, None);
        self.steps.push(Step::Sum { layer, input, sum, output, residual });
        (sum, output)
    }

    /// Runs a convolution that was declared without normalization. As [`Blueprint::shortcut`], it comes before
    /// the other convolutions of its input.
    pub fn bare(&mut self, layer: usize, input: Map) -> Map {
        let output = self.add_map(self.output(layer), None);
        self.maps[output].raw = Some(layer);
        self.steps.push(Step::Bare { layer, input, output });
        output
    }

    /// Runs max pooling.
    pub fn max_pool(&mut self, input: Map) -> Map {
        let (h, w, c) = self.shape(input);
        let output = self.add_map((pool::max_side(h), pool::max_side(w), c), None);
        self.steps.push(Step::MaxPool { input, output });
        output
    }

    /// Returns the layer and the step that made the map read by step `i`, if the gradient through step `i` is
    /// the last part of the map's gradient, that is, if no earlier step reads the map.
    pub fn last_summand(&self, i: usize) -> Option<(usize, usize)> {
        let [Some(map), _] = self.steps[i].reads() else { return None };
        let read_before = self.steps[..i].iter().any(|s| s.reads().contains(&Some(map)));
        let made_by = |(step, s): (usize, &Step)| match *s {
            Step::Conv { layer, output, .. } | Step::Sum { layer, output, .. } if output == map => {
                Some((layer, step))
            }
            _ => None,
        };
        if read_before { None } else { self.steps[..i].iter().enumerate().find_map(made_by) }
    }

    fn add_map(&mut self, (height, width, channels): (usize, usize, usize), pending: Option<usize>) -> Map {
        self.maps.push(Size { height, width, channels, pending, raw: None });
        self.maps.len() - 1
    }

    /// Returns the width of the features.
    pub fn feature_dim(&self) -> usize {
        self.features().outputs()
    }

    /// Returns the pooling from the last map to the features.
    pub fn features(&self) -> CellMean {
        CellMean { channels: self.maps[self.maps.len() - 1].channels, grid: self.grid }
    }

    /// Checks that the last map has enough pixels for the grid, and that the input of every strided layer has
    /// at least two rows and two columns.
    ///
    /// # Errors
    /// If not. The error names the layer, its input and `remedy`.
    pub fn check(self, remedy: &str) -> Result<Self> {
        let strided = |s: &Step| match *s {
            Step::Conv { layer, input, .. } | Step::Sum { layer, input, .. } => {
                (self.layers[layer].geometry.stride > 1).then(|| (self.layers[layer].name.clone(), input))
            }
            Step::MaxPool { input, .. } => Some(("maxpool".to_string(), input)),
            Step::Shortcut { .. } | Step::Bare { .. } => None,
        };
        for (name, input) in self.steps.iter().filter_map(strided) {
            let m = self.maps[input];
            if m.height < 2 || m.width < 2 {
                let message = format!(
                    "its input is {}×{}×{} for images of {}: too small for stride 2; {remedy}",
                    m.height, m.width, m.channels, self.input
                );
                return Err(Error::shape(name, message));
            }
        }
        let last = self.maps[self.maps.len() - 1];
        if self.grid > last.height.min(last.width) {
            let message = format!(
                "a grid of {grid}×{grid} cells, but the last map has {}×{} pixels for images of {}; {remedy}",
                last.height,
                last.width,
                self.input,
                grid = self.grid
            );
            return Err(Error::shape("avgpool", message));
        }
        Ok(self)
    }

    /// Returns the number of images in a batch (B, H, W, C).
    ///
    /// # Errors
    /// If there are no images, or their size is not that of the network.
    pub fn batch_of(&self, shape: (usize, usize, usize, usize)) -> Result<usize> {
        let ((batch, height, width, channels), input) = (shape, self.input);
        if (height, width, channels) != (input.height, input.width, input.channels) || batch == 0 {
            return Err(Error::shape(
                self.layers[0].name.as_str(),
                format!("was built for images of {input}, got {batch} of {height}×{width}×{channels}"),
            ));
        }
        Ok(batch)
    }

    /// Returns the same network for images of another size.
    ///
    /// # Errors
    /// If the images have a different number of channels, or their maps become too small.
    pub fn resized(&self, input: ImageShape) -> Result<Self> {
        if input.channels != self.input.channels {
            let message =
                format!("images are {input}; expected {} channels, as for the others", self.input.channels);
            return Err(Error::shape("conv1", message));
        }
        let mut plan = Blueprint { maps: Blueprint::new(input)?.maps, input, ..self.clone() };
        plan.maps.extend_from_slice(&self.maps[1..]);
        for step in &self.steps {
            let (from, to, size) = match *step {
                Step::Conv { layer, input, output, .. }
                | Step::Sum { layer, input, output, .. }
                | Step::Shortcut { layer, input, output }
                | Step::Bare { layer, input, output } => {
                    let Size { height, width, .. } = plan.maps[input];
                    let geometry = &mut plan.layers[layer].geometry;
                    (geometry.height, geometry.width) = (height, width);
                    (input, output, geometry.output())
                }
                Step::MaxPool { input, output } => {
                    let Size { height, width, .. } = plan.maps[input];
                    (input, output, (pool::max_side(height), pool::max_side(width)))
                }
            };
            debug_assert!(from < to, "maps are numbered in the order of their creation");
            (plan.maps[to].height, plan.maps[to].width) = size;
            if let Step::Sum { sum, .. } = *step {
                (plan.maps[sum].height, plan.maps[sum].width) = size;
            }
        }
        plan.check("use larger views, or an encoder with fewer strides")
    }

    /// Counts the network's parameters and feature maps.
    pub fn size(&self) -> NetworkSize {
        let norm = |l: &ConvNorm| if l.norm.is_some() { 2 * l.geometry.outputs } else { 0 };
        let parameters = |l: &ConvNorm| (l.geometry.weights() + norm(l)) as u64;
        let values = |m: &Size| (m.height * m.width * m.channels) as u64;
        NetworkSize {
            output: self.feature_dim(),
            parameters: self.layers.iter().map(parameters).sum(),
            activations: self.maps[1..].iter().map(values).sum(),
        }
    }

    /// Returns the learnable parameters as torchvision initializes them: weights normal with variance 2 /
    /// (outputs · kernel²), γ = 1, β = 0.
    pub fn parameters(&self, seed: u64) -> Vec<Initial> {
        let mut all: Vec<Initial> = Vec::new();
        for layer in &self.layers {
            let g = layer.geometry;
            let fan_out = (g.outputs * g.kernel * g.kernel) as f32;
            let mut rng = rng::stream(seed, Purpose::Init, 0, all.len() as u64, 0);
            // A positive standard deviation is always valid.
            let values = match Normal::new(0.0, (2.0 / fan_out).sqrt()) {
                Ok(normal) => normal.sample_iter(&mut rng).take(g.weights()).collect(),
                Err(_) => vec![0.0; g.weights()],
            };
            let shape = vec![g.outputs, g.inputs, g.kernel, g.kernel];
            all.push((format!("{}.weight", layer.name), shape, Role::Weight, values));
            let Some(norm) = &layer.norm else { continue };
            for (part, value) in [("weight", 1.0), ("bias", 0.0)] {
                let name = format!("{norm}.{part}");
                all.push((name, vec![g.outputs], Role::Norm, vec![value; g.outputs]));
            }
        }
        all
    }

    /// Returns the depth of each of [`Blueprint::parameters`]: 0 for the first convolution, then one more per residual
    /// block, or per convolution of a network without blocks. Shortcuts are as deep as their block.
    pub fn depths(&self) -> LayerDepths {
        let mut blocks: Vec<&str> = self.layers.iter().map(|l| block(&l.name)).collect();
        blocks.dedup();
        let depth_of = |name: &str| blocks.iter().position(|b| *b == block(name));
        let (mut of, mut own) = (Vec::new(), 0);
        for (i, layer) in self.layers.iter().enumerate() {
            own = depth_of(&layer.name).unwrap_or(own);
            of.push(own);
            let Some(norm) = &layer.norm else { continue };
            // A pre-activated network normalizes before a block, and once more after the last.
            let is_after_all = self.is_pre_activated() && i + 1 == self.layers.len();
            let depth = if is_after_all { blocks.len() } else { depth_of(norm).unwrap_or(own) };
            of.extend([depth; 2]);
        }
        LayerDepths { of, groups: blocks.len() + 1 }
    }

    /// Returns the initial running statistics: mean 0, variance 1.
    pub fn statistics(&self) -> Vec<Initial> {
        let pair = |(norm, n): (&String, usize)| {
            [("running_mean", 0.0), ("running_var", 1.0)]
                .map(|(part, value)| (format!("{norm}.{part}"), vec![n], Role::Statistic, vec![value; n]))
        };
        let normed =
            self.layers.iter().filter_map(|l| l.norm.as_ref().map(|norm| (norm, l.geometry.outputs)));
        normed.flat_map(pair).collect()
    }

    /// Adds the network in evaluation mode to a graph, and returns its features.
    ///
    /// # Shapes
    /// images (N, C, H, W) → (N, F)
    pub fn add_to(&self, graph: &mut Graph, images: &graph::Value) -> graph::Value {
        let mut maps = vec![images.clone()];
        for step in &self.steps {
            // Steps write maps in the order of their numbers.
            let map = match *step {
                Step::Conv { layer, input, residual, .. } => {
                    let mut y = self.normed_convolution(layer, graph, &maps[input]);
                    if let Some(residual) = residual {
                        y = graph.node("Add", &[&y, &maps[residual]], &[]);
                    }
                    graph.node("Relu", &[&y], &[])
                }
                Step::Shortcut { layer, input, .. } => self.normed_convolution(layer, graph, &maps[input]),
                Step::Sum { layer, input, residual, .. } => {
                    let mut sum = self.convolution(layer, graph, &maps[input]);
                    if let Some(residual) = residual {
                        sum = graph.node("Add", &[&sum, &maps[residual]], &[]);
                    }
                    let y = graph.batch_norm(&sum, self.layers[layer].norm_name(), EPSILON as f32);
                    maps.push(sum);
                    graph.node("Relu", &[&y], &[])
                }
                Step::Bare { layer, input, .. } => self.convolution(layer, graph, &maps[input]),
                Step::MaxPool { input, .. } => graph.node("MaxPool", &[&maps[input]], &window(3, 2, 1)),
            };
            maps.push(map);
        }
        self.pool(graph, &maps[maps.len() - 1])
    }

    fn normed_convolution(&self, layer: usize, graph: &mut Graph, x: &graph::Value) -> graph::Value {
        let y = self.convolution(layer, graph, x);
        graph.batch_norm(&y, self.layers[layer].norm_name(), EPSILON as f32)
    }

    fn convolution(&self, layer: usize, graph: &mut Graph, x: &graph::Value) -> graph::Value {
        let ConvNorm { name, geometry: g, .. } = &self.layers[layer];
        let weight = graph.parameter(&format!("{name}.weight"));
        graph.node("Conv", &[x, &weight], &window(g.kernel, g.stride, g.padding))
    }

    /// Adds the means of the cells of the last map.
    fn pool(&self, graph: &mut Graph, map: &graph::Value) -> graph::Value {
        let flatten = [("axis", Attribute::Int(1))];
        if self.grid == 1 {
            graph.accept_any_size();
            let means = graph.node("GlobalAveragePool", &[map], &[]);
            return graph.node("Flatten", &[&means], &flatten);
        }
        let Size { height, width, channels, .. } = self.maps[self.maps.len() - 1];
        let cells = self.grid * self.grid;
        let shape = graph.integers(&[0, channels as i64, (height * width) as i64]);
        let pixels = graph.node("Reshape", &[map, &shape], &[]);
        let averaging = graph.numbers(&[height * width, cells], self.features().averaging(height, width));
        let means = graph.node("MatMul", &[&pixels, &averaging], &[]);
        let means = graph.node("Transpose", &[&means], &[("perm", Attribute::Ints(vec![0, 2, 1]))]);
        graph.node("Flatten", &[&means], &flatten)
    }

    /// Returns the layers in forward order. `algorithm` names the algorithm of each convolution.
    pub fn describe(&self, algorithm: impl Fn(usize) -> String) -> Vec<Layer> {
        let mut all = Vec::new();
        for step in &self.steps {
            match *step {
                Step::Conv { layer, output, .. }
                | Step::Sum { layer, output, .. }
                | Step::Shortcut { layer, output, .. }
                | Step::Bare { layer, output, .. } => {
                    let (l, m) = (&self.layers[layer], self.maps[output]);
                    let output = vec![m.height, m.width, m.channels];
                    all.push(Layer {
                        name: l.name.clone(),
                        output: output.clone(),
                        parameters: l.geometry.weights(),
                        multiply_adds: l.geometry.multiply_adds(),
                        algorithm: algorithm(layer),
                    });
                    let Some(norm) = &l.norm else { continue };
                    all.push(Layer {
                        name: norm.clone(),
                        output,
                        parameters: 2 * m.channels,
                        multiply_adds: (m.height * m.width * m.channels) as u64,
                        algorithm: String::new(),
                    });
                }
                Step::MaxPool { output, .. } => {
                    let m = self.maps[output];
                    all.push(Layer {
                        name: "maxpool".into(),
                        output: vec![m.height, m.width, m.channels],
                        parameters: 0,
                        multiply_adds: 0,
                        algorithm: String::new(),
                    });
                }
            }
        }
        all.push(Layer {
            name: "avgpool".into(),
            output: vec![self.feature_dim()],
            parameters: 0,
            multiply_adds: 0,
            algorithm: String::new(),
        });
        all
    }
}

/// Returns the attributes of a square window.
fn window(kernel: usize, stride: usize, padding: usize) -> [(&'static str, Attribute); 3] {
    let ints = |n: usize, times| Attribute::Ints(vec![n as i64; times]);
    [("kernel_shape", ints(kernel, 2)), ("strides", ints(stride, 2)), ("pads", ints(padding, 4))]
}

/// Returns the block that a layer belongs to, such as `layer1.0` for `layer1.0.conv2`; a layer outside of blocks is
/// its own.
fn block(layer: &str) -> &str {
    let ends = [".conv", ".bn", ".downsample"].map(|part| layer.find(part));
    ends.into_iter().flatten().min().map_or(layer, |end| &layer[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn images_of_other_channels_are_refused() {
        let text = Blueprint::new(ImageShape { height: 8, width: 8, channels: 4 }).unwrap_err().to_string();
        assert_eq!(text, "conv1: images are 8×8×4: encoders take 1 channel (gray) or 3 (RGB)");
        assert!(Blueprint::new(ImageShape { height: 0, width: 8, channels: 3 }).is_err());
    }

    #[test]
    fn initial_weights_have_the_variance_of_their_fan_out() {
        let mut b = Blueprint::new(ImageShape { height: 8, width: 8, channels: 3 }).unwrap();
        let shape = b.shape(0);
        b.declare(("conv1".into(), "bn1".into()), shape, 256, (3, 1));
        let all = b.parameters(1);
        let w = &all[0].3;
        let variance = w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / w.len() as f64;
        let want = 2.0 / (256.0 * 9.0);
        assert_within!(variance, want, tolerance::variance(want, 3.0, w.len()));
        assert_eq!(all[0].3, b.parameters(1)[0].3);
        assert_ne!(all[0].3, b.parameters(2)[0].3);
        assert_eq!((all[1].3[0], all[2].3[0]), (1.0, 0.0));
    }
}
