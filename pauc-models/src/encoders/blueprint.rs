//! What a convolutional network consists of, without any device: layers, the order in which they run, shapes, names.

use pauc_kernels::conv::Geometry;
use pauc_kernels::pool::{self, CellMean};
use pauc_traits::encoder::Layer;
use pauc_traits::param::Role;
use pauc_traits::rng::{self, Purpose};
use pauc_traits::{Compute, Error, ImageShape, Param, Result};
use rand_distr::{Distribution, Normal};

/// A feature map's number; 0 is the image.
pub type Map = usize;

/// A convolution followed by batch normalisation. Its learnable parameters are number 3i, 3i + 1 and 3i + 2 (weight,
/// γ, β) of the network's, its running mean and variance number 2i and 2i + 1 of the statistics.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    /// The convolution's name.
    pub name: String,
    /// The normalisation's name.
    pub norm: String,
    /// The convolution's shape.
    pub geometry: Geometry,
}

/// One step of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// out ← ReLU(norm(conv(input)) + residual).
    Conv {
        /// The number of the [`ConvNorm`].
        layer: usize,
        /// What it reads.
        input: Map,
        /// What it writes.
        output: Map,
        /// What is added before ReLU.
        residual: Option<Map>,
    },
    /// The convolution of a shortcut; the step that adds it also normalises it.
    Shortcut {
        /// The number of the [`ConvNorm`].
        layer: usize,
        /// What it reads.
        input: Map,
        /// What it writes.
        output: Map,
    },
    /// The maximum of 3×3 windows at stride 2.
    MaxPool {
        /// What it reads.
        input: Map,
        /// What it writes.
        output: Map,
    },
}

impl Step {
    /// The maps that the step reads.
    pub fn reads(&self) -> [Option<Map>; 2] {
        match *self {
            Step::Conv { input, residual, .. } => [Some(input), residual],
            Step::Shortcut { input, .. } | Step::MaxPool { input, .. } => [Some(input), None],
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
    /// The layer whose normalisation is still to be applied, for the output of [`Step::Shortcut`].
    pub pending: Option<usize>,
}

/// A network whose features are means over its last map.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// The images.
    pub input: ImageShape,
    /// Layers in the order of their parameters.
    pub layers: Vec<ConvNorm>,
    /// Steps in the order in which they run.
    pub steps: Vec<Step>,
    /// The shapes of all maps.
    pub maps: Vec<Size>,
    /// Cells a side over which the last map is averaged; 1 averages all of it.
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
    /// With initial weights from the streams of `seed`.
    pub(crate) fn new(device: &D, plan: &Blueprint, seed: u64) -> Result<Self> {
        let make = |all: Vec<Initial>| -> Result<Vec<Param<D>>> {
            all.into_iter().map(|(name, shape, role, v)| Param::new(device, name, &shape, role, &v)).collect()
        };
        Ok(State { parameters: make(plan.parameters(seed))?, statistics: make(plan.statistics())? })
    }

    /// The same values in parameters of their own.
    pub(crate) fn duplicate(&self, device: &D) -> Result<Self> {
        let copy = |all: &[Param<D>]| all.iter().map(|p| p.deep_clone(device)).collect::<Result<Vec<_>>>();
        Ok(State { parameters: copy(&self.parameters)?, statistics: copy(&self.statistics)? })
    }
}

/// A parameter's name, shape, role and initial values.
pub type Initial = (String, Vec<usize>, Role, Vec<f32>);

impl Blueprint {
    /// Only the image so far.
    ///
    /// # Errors
    /// If the image is not grey or RGB, or empty.
    pub fn new(input: ImageShape) -> Result<Self> {
        if ![1, 3].contains(&input.channels) {
            return Err(Error::shape(
                "conv1",
                format!("images are {input}: encoders take 1 channel (grey) or 3 (RGB)"),
            ));
        }
        if input.is_empty() {
            return Err(Error::shape("conv1", format!("images are {input}, which holds no pixel")));
        }
        let image =
            Size { height: input.height, width: input.width, channels: input.channels, pending: None };
        Ok(Blueprint { input, layers: Vec::new(), steps: Vec::new(), maps: vec![image], grid: 1 })
    }

    /// Declares a convolution from a map of the shape of `from` and `inputs` channels. The order of declarations is the
    /// order of parameters.
    pub fn declare(
        &mut self,
        (name, norm): (String, String),
        (height, width, inputs): (usize, usize, usize),
        outputs: usize,
        (kernel, stride): (usize, usize),
    ) -> usize {
        let geometry = Geometry { height, width, inputs, outputs, kernel, stride, padding: kernel / 2 };
        self.layers.push(ConvNorm { name, norm, geometry });
        self.layers.len() - 1
    }

    /// The shape of a map as [`Blueprint::declare`] takes it.
    pub fn shape(&self, map: Map) -> (usize, usize, usize) {
        let m = self.maps[map];
        (m.height, m.width, m.channels)
    }

    /// Rows, columns and channels of a declared layer's output.
    pub fn output(&self, layer: usize) -> (usize, usize, usize) {
        let g = self.layers[layer].geometry;
        let (h, w) = g.output();
        (h, w, g.outputs)
    }

    /// Runs a declared convolution with normalisation, residual and ReLU.
    pub fn conv(&mut self, layer: usize, input: Map, residual: Option<Map>) -> Map {
        let output = self.add_map(self.output(layer), None);
        self.steps.push(Step::Conv { layer, input, output, residual });
        output
    }

    /// Runs a declared convolution as a shortcut. It has to come before the other convolutions of its input, so that
    /// its gradient is added last.
    pub fn shortcut(&mut self, layer: usize, input: Map) -> Map {
        let output = self.add_map(self.output(layer), Some(layer));
        self.steps.push(Step::Shortcut { layer, input, output });
        output
    }

    /// Pools the maximum.
    pub fn max_pool(&mut self, input: Map) -> Map {
        let (h, w, c) = self.shape(input);
        let output = self.add_map((pool::max_side(h), pool::max_side(w), c), None);
        self.steps.push(Step::MaxPool { input, output });
        output
    }

    /// The layer and the step that made the map which step `i` reads, if the gradient through step `i` is the last part of
    /// the map's gradient: no earlier step reads it.
    pub fn last_summand(&self, i: usize) -> Option<(usize, usize)> {
        let [Some(map), _] = self.steps[i].reads() else { return None };
        let read_before = self.steps[..i].iter().any(|s| s.reads().contains(&Some(map)));
        let made_by = |(step, s): (usize, &Step)| match *s {
            Step::Conv { layer, output, .. } if output == map => Some((layer, step)),
            _ => None,
        };
        if read_before { None } else { self.steps[..i].iter().enumerate().find_map(made_by) }
    }

    fn add_map(&mut self, (height, width, channels): (usize, usize, usize), pending: Option<usize>) -> Map {
        self.maps.push(Size { height, width, channels, pending });
        self.maps.len() - 1
    }

    /// The width of the features.
    pub fn feature_dim(&self) -> usize {
        self.features().outputs()
    }

    /// How features come from the last map.
    pub fn features(&self) -> CellMean {
        CellMean { channels: self.maps[self.maps.len() - 1].channels, grid: self.grid }
    }

    /// Checks that the last map has enough pixels for the grid, and that no strided layer is left with a single row or column, which it would reduce to nothing new.
    ///
    /// # Errors
    /// Naming the layer, its input and the remedy.
    pub fn check(self, remedy: &str) -> Result<Self> {
        let strided = |s: &Step| match *s {
            Step::Conv { layer, input, .. } => {
                (self.layers[layer].geometry.stride > 1).then(|| (self.layers[layer].name.clone(), input))
            }
            Step::MaxPool { input, .. } => Some(("maxpool".to_string(), input)),
            Step::Shortcut { .. } => None,
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
                "features are means of {grid}×{grid} cells, and the last map has {}×{} pixels for images of {}; {remedy}",
                last.height,
                last.width,
                self.input,
                grid = self.grid
            );
            return Err(Error::shape("avgpool", message));
        }
        Ok(self)
    }

    /// The number of images in a batch (B, H, W, C).
    ///
    /// # Errors
    /// If there are none, or of another size than the network's.
    pub fn batch_of(&self, shape: (usize, usize, usize, usize)) -> Result<usize> {
        let ((batch, height, width, channels), input) = (shape, self.input);
        if (height, width, channels) != (input.height, input.width, input.channels) || batch == 0 {
            return Err(Error::shape(
                self.layers[0].name.as_str(),
                format!("{batch} images of {height}×{width}×{channels} for a network built for {input}"),
            ));
        }
        Ok(batch)
    }

    /// The same network for images of another size.
    ///
    /// # Errors
    /// If the images have other channels, or become too small on their way.
    pub fn resized(&self, input: ImageShape) -> Result<Self> {
        if input.channels != self.input.channels {
            let message = format!("images are {input}, others have {} channels", self.input.channels);
            return Err(Error::shape("conv1", message));
        }
        let mut plan = Blueprint { maps: Blueprint::new(input)?.maps, input, ..self.clone() };
        plan.maps.extend_from_slice(&self.maps[1..]);
        for step in &self.steps {
            let (from, to, size) = match *step {
                Step::Conv { layer, input, output, .. } | Step::Shortcut { layer, input, output } => {
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
            debug_assert!(from < to, "maps are numbered in the order in which they are made");
            (plan.maps[to].height, plan.maps[to].width) = size;
        }
        plan.check("give larger views, or an encoder that reduces less")
    }

    /// The learnable parameters as torchvision initialises them: weights normal with variance 2 / (outputs · kernel²),
    /// γ = 1, β = 0.
    pub fn parameters(&self, seed: u64) -> Vec<Initial> {
        let mut all: Vec<Initial> = Vec::new();
        for layer in &self.layers {
            let g = layer.geometry;
            let fan_out = (g.outputs * g.kernel * g.kernel) as f32;
            let mut rng = rng::stream(seed, Purpose::Init, 0, all.len() as u64, 0);
            // A positive standard deviation is always accepted.
            let values = match Normal::new(0.0, (2.0 / fan_out).sqrt()) {
                Ok(normal) => normal.sample_iter(&mut rng).take(g.weights()).collect(),
                Err(_) => vec![0.0; g.weights()],
            };
            let shape = vec![g.outputs, g.inputs, g.kernel, g.kernel];
            all.push((format!("{}.weight", layer.name), shape, Role::Weight, values));
            for (part, value) in [("weight", 1.0), ("bias", 0.0)] {
                let name = format!("{}.{part}", layer.norm);
                all.push((name, vec![g.outputs], Role::Norm, vec![value; g.outputs]));
            }
        }
        all
    }

    /// The running statistics at their start: mean 0, variance 1.
    pub fn statistics(&self) -> Vec<Initial> {
        let pair = |l: &ConvNorm| {
            [("running_mean", 0.0), ("running_var", 1.0)].map(|(part, value)| {
                let n = l.geometry.outputs;
                (format!("{}.{part}", l.norm), vec![n], Role::Statistic, vec![value; n])
            })
        };
        self.layers.iter().flat_map(pair).collect()
    }

    /// The layers in forward order; `algorithm` says how each convolution is computed.
    pub fn describe(&self, algorithm: impl Fn(usize) -> String) -> Vec<Layer> {
        let mut all = Vec::new();
        for step in &self.steps {
            match *step {
                Step::Conv { layer, output, .. } | Step::Shortcut { layer, output, .. } => {
                    let (l, m) = (&self.layers[layer], self.maps[output]);
                    let output = vec![m.height, m.width, m.channels];
                    all.push(Layer {
                        name: l.name.clone(),
                        output: output.clone(),
                        parameters: l.geometry.weights(),
                        multiply_adds: l.geometry.multiply_adds(),
                        algorithm: algorithm(layer),
                    });
                    all.push(Layer {
                        name: l.norm.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn images_of_other_channels_are_refused() {
        let text = Blueprint::new(ImageShape { height: 8, width: 8, channels: 4 }).unwrap_err().to_string();
        assert_eq!(text, "conv1: images are 8×8×4: encoders take 1 channel (grey) or 3 (RGB)");
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
