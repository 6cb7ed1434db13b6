//! Which of a network's maps and gradients lie in CUDA's memory, in what form, how long, and how much that takes.

use crate::encoders::blueprint::{Blueprint, Map, Step};
use pauc_cuda::conv::{Convolution, Math};
use pauc_cuda::field::Maps;

/// Which maps a forward pass keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// All, for the backward pass.
    All,
    /// Those that cannot be made again from one convolution's output, which is kept in any case.
    Sources,
    /// None: memory is used again once it has been read.
    Nothing,
}

impl Keep {
    /// Whether a map is made again when the backward pass reads it.
    pub(super) fn makes_again(self, plan: &Blueprint, map: Map) -> bool {
        self == Keep::Sources && source(plan, map).is_some()
    }
}

/// The layer whose normalisation and ReLU alone make a map.
pub(super) fn source(plan: &Blueprint, map: Map) -> Option<usize> {
    plan.steps.iter().find_map(|s| match *s {
        Step::Conv { layer, output, residual: None, .. } if output == map => Some(layer),
        _ => None,
    })
}

/// Whether the gradient that a layer sends to a map that has one already lies apart from it until both are read: where a
/// normalisation reads the map's gradient anyway, that costs less than cuDNN's sums.
pub(super) fn lies_apart(plan: &Blueprint, layer: usize, map: Map) -> bool {
    let makes = |s: &Step| matches!(s, Step::Conv { output, .. } if *output == map);
    !Convolution::is_product(plan.layers[layer].geometry) && plan.steps.iter().any(makes)
}

/// Whether a map is kept as halves too, for gradients of weights, where it is written: that costs less than making halves of it
/// later.
pub(super) fn is_halved(plan: &Blueprint, keep: Keep, map: Map, math: Math) -> bool {
    let takes = |layer: usize| Convolution::takes_halves(plan.layers[layer].geometry, math);
    let reads = |s: &Step| match *s {
        Step::Conv { layer, input, .. } | Step::Shortcut { layer, input, .. } => input == map && takes(layer),
        Step::MaxPool { .. } => false,
    };
    let normalised = |s: &Step| matches!(s, Step::Conv { output, .. } if *output == map);
    keep == Keep::All
        && plan.maps[map].channels.is_multiple_of(8)
        && plan.steps.iter().any(normalised)
        && plan.steps.iter().any(reads)
}

/// Elements of the halves of which one gradient of weights at a time is a product: of an input that has none of its own, and of the
/// gradient of an output.
pub(super) fn factors(plan: &Blueprint, batch: usize, keep: Keep, math: Math) -> [usize; 2] {
    let mut most = [0, 0];
    for step in &plan.steps {
        let (Step::Conv { layer, input, output, .. } | Step::Shortcut { layer, input, output }) = *step
        else {
            continue;
        };
        if !Convolution::takes_halves(plan.layers[layer].geometry, math) {
            continue;
        }
        most[1] = most[1].max(shape(plan, output, batch, math).len());
        if !is_halved(plan, keep, input, math) {
            most[0] = most[0].max(Convolution::as_halves(shape(plan, input, batch, math)).len());
        }
    }
    most
}

/// The last step that reads a map.
pub(super) fn last_reader(plan: &Blueprint, map: Map) -> Option<usize> {
    plan.steps.iter().rposition(|s| s.reads().contains(&Some(map)))
}

/// Bytes of the maps, gradients and features of a training pass, and of the parts of maps and gradients where they are taken apart.
pub(super) fn planned(plan: &Blueprint, batch: usize, keep: Keep, math: Math, in_parts: bool) -> usize {
    let parts = if in_parts { parts(plan, batch, math) } else { 0 };
    planned_elements(plan, batch, keep, math) * math.element().bytes()
        + (parts + batch * plan.feature_dim()) * size_of::<f32>()
}

/// Elements of the parts of both factors, of the largest product of each kind: of an input and weights, an input and an output's
/// gradient, or that and weights.
fn parts(plan: &Blueprint, batch: usize, math: Math) -> usize {
    let mut most = [0, 0];
    for step in &plan.steps {
        if let Step::Conv { layer, input, output, .. } | Step::Shortcut { layer, input, output } = *step {
            let g = plan.layers[layer].geometry;
            let [input, output] = [input, output].map(|map| shape(plan, map, batch, math));
            let weights = g.outputs * g.kernel * g.kernel * input.channels;
            most = [most[0].max(input.len()).max(output.len()), most[1].max(output.len()).max(weights)];
        }
    }
    2 * (most[0] + most[1])
}

/// Elements of maps and gradients: the very fields that [`super::workspace::Workspace`] takes, counted with lengths in their place.
pub(super) fn planned_elements(plan: &Blueprint, batch: usize, keep: Keep, math: Math) -> usize {
    #[derive(Default)]
    struct Pool {
        spare: Vec<usize>,
        total: usize,
    }
    impl Pool {
        fn take(&mut self, len: usize) -> usize {
            match self.spare.iter().position(|l| *l == len) {
                Some(i) => self.spare.swap_remove(i),
                None => {
                    self.total += len;
                    len
                }
            }
        }
    }
    let len = |map: Map| shape(plan, map, batch, math).len();
    let mut pool = Pool::default();
    let halved = (0..plan.maps.len()).filter(|map| is_halved(plan, keep, *map, math)).map(len);
    pool.total += halved.chain(factors(plan, batch, keep, math)).map(|len| len.div_ceil(2)).sum::<usize>();
    pool.take(len(0));
    for (i, step) in plan.steps.iter().enumerate() {
        match *step {
            Step::Conv { output, .. } => {
                pool.take(len(output));
                pool.take(len(output));
            }
            Step::Shortcut { output, .. } | Step::MaxPool { output, .. } => {
                pool.take(len(output));
            }
        }
        for map in step.reads().into_iter().flatten() {
            if keep.makes_again(plan, map) && last_reader(plan, map) == Some(i) {
                pool.spare.push(len(map));
            }
        }
    }
    let last = plan.maps.len() - 1;
    let mut there: Vec<bool> = (0..=last).map(|map| !keep.makes_again(plan, map) || map == last).collect();
    let (mut gradients, mut apart) = (vec![false; plan.maps.len()], vec![false; plan.maps.len()]);
    pool.take(len(last));
    gradients[last] = true;
    for step in plan.steps.iter().rev() {
        let (layer, input, output) = match *step {
            Step::Conv { layer, input, output, .. } | Step::Shortcut { layer, input, output } => {
                (Some(layer), input, output)
            }
            Step::MaxPool { input, output } => (None, input, output),
        };
        if !gradients[output] {
            continue;
        }
        let Some(layer) = layer else {
            let dx = pool.take(len(input));
            if std::mem::replace(&mut gradients[input], true) {
                pool.spare.push(dx);
            }
            pool.spare.push(len(output));
            continue;
        };
        let residual = if let Step::Conv { residual, .. } = *step { residual } else { None };
        if residual.is_some() {
            pool.take(len(output));
        }
        if !std::mem::replace(&mut there[input], true) {
            pool.take(len(input));
        }
        if std::mem::replace(&mut apart[output], false) {
            pool.spare.push(len(output));
        }
        if input != 0 {
            if !std::mem::replace(&mut gradients[input], true) {
                pool.take(len(input));
            } else if !apart[input] && lies_apart(plan, layer, input) {
                pool.take(len(input));
                apart[input] = true;
            }
        }
        pool.spare.push(len(output));
        if keep.makes_again(plan, output) && std::mem::replace(&mut there[output], false) {
            pool.spare.push(len(output));
        }
        if let Some(r) = residual
            && std::mem::replace(&mut gradients[r], true)
        {
            pool.spare.push(len(output));
        }
    }
    pool.total
}

/// The shape of a map for a batch.
pub(super) fn shape(plan: &Blueprint, map: Map, batch: usize, math: Math) -> Maps {
    let m = plan.maps[map];
    let channels = if map == 0 { math.channels(m.channels) } else { m.channels };
    Maps { batch, height: m.height, width: m.width, channels }
}
