//! Runs schedules on symbolic contents instead of memory.

use super::*;
use pauc_traits::ImageShape;

/// A residual network: a stem with pooling, then blocks of two or three convolutions.
fn residual(side: usize, width: usize, is_bottleneck: bool, blocks: usize) -> Blueprint {
    let mut b = Blueprint::new(ImageShape { height: side, width: side, channels: 3 }).unwrap();
    let names = |layer: usize| (format!("conv{layer}"), format!("bn{layer}"));
    let image = b.shape(0);
    let stem = b.declare(names(0), image, width, (7, 2));
    let mut x = b.conv(stem, 0, None);
    x = b.max_pool(x);
    for block in 0..blocks {
        let (stride, w) = (1 + block % 2, width << (block / 2));
        let path: &[_] = match is_bottleneck {
            true => &[(w, 1, 1), (w, 3, stride), (4 * w, 1, 1)],
            false => &[(w, 3, stride), (w, 3, 1)],
        };
        let (mut shape, mut main) = (b.shape(x), Vec::new());
        for &(outputs, kernel, stride) in path {
            let layer = b.declare(names(b.layers.len()), shape, outputs, (kernel, stride));
            shape = b.output(layer);
            main.push(layer);
        }
        let mut skip = x;
        if shape != b.shape(x) {
            let layer = b.declare(names(b.layers.len()), b.shape(x), shape.2, (1, stride));
            skip = b.shortcut(layer, x);
        }
        let last = main.len() - 1;
        x = main
            .into_iter()
            .enumerate()
            .fold(x, |x, (i, layer)| b.conv(layer, x, (i == last).then_some(skip)));
    }
    b
}

fn plain() -> Blueprint {
    let mut b = Blueprint::new(ImageShape { height: 9, width: 8, channels: 1 }).unwrap();
    let mut x = 0;
    for (i, outputs) in [8, 12, 8].into_iter().enumerate() {
        let layer = b.declare((format!("conv{i}"), format!("bn{i}")), b.shape(x), outputs, (3, 1 + i % 2));
        x = b.conv(layer, x, None);
    }
    b
}

fn networks() -> [Blueprint; 3] {
    [plain(), residual(40, 8, false, 5), residual(48, 8, true, 4)]
}

const KEEPS: [Keep; 3] = [Keep::All, Keep::Sources, Keep::Nothing];
const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::Bf16];

/// The content of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Map(Map),
    /// The output of a convolution, by layer.
    Output(usize),
    /// The sum of this many parts of a map's gradient.
    Gradient(Map, usize),
    /// The output gradient of a convolution, by layer.
    OutputGradient(usize),
}

/// Slots with symbolic contents.
struct Contents<'a> {
    plan: &'a Blueprint,
    slots: Vec<Option<Content>>,
    f16_slots: Vec<Option<Content>>,
}

impl Contents<'_> {
    fn read(&self, slot: Slot, content: Content) {
        assert_eq!(self.slots[slot.0], Some(content), "{slot:?}");
    }

    /// Reads a map, or the output that a pending normalization turns into it.
    fn read_map(&self, slot: Slot, map: Map) {
        self.read(slot, self.plan.maps[map].pending.map_or(Content::Map(map), Content::Output));
    }

    fn parts(&self, slot: Slot, map: Map) -> usize {
        match self.slots[slot.0] {
            Some(Content::Gradient(of, parts)) if of == map => parts,
            other => panic!("{slot:?} holds {other:?} instead of the gradient of {map}"),
        }
    }

    fn forward(&mut self, operation: Forward) {
        match operation {
            Forward::Load { to } => self.slots[to.0] = Some(Content::Map(0)),
            Forward::Convolve { conv, x, y } => {
                self.read(x, Content::Map(conv.input));
                self.slots[y.0] = Some(Content::Output(conv.layer));
            }
            Forward::Normalize { conv, y, residual, out, f16 } => {
                self.read(y, Content::Output(conv.layer));
                let step = |s: &&Step| matches!(s, Step::Conv { layer, .. } if *layer == conv.layer);
                let step = self.plan.steps.iter().find(step).unwrap();
                assert_eq!(step.reads()[1].is_some(), residual.is_some());
                if let (Some(map), Some((slot, pending))) = (step.reads()[1], residual) {
                    assert_eq!(pending, self.plan.maps[map].pending);
                    self.read_map(slot, map);
                }
                self.slots[out.0] = Some(Content::Map(conv.output));
                if let Some(slot) = f16 {
                    self.f16_slots[slot.0] = Some(Content::Map(conv.output));
                }
            }
            Forward::MaxPool { input, output, x, y } => {
                self.read(x, Content::Map(input));
                self.slots[y.0] = Some(Content::Map(output));
            }
            Forward::CellMean { x } => self.read(x, Content::Map(self.plan.maps.len() - 1)),
        }
    }

    /// `received` lists the layers whose weights have received a gradient.
    fn backward(&mut self, operation: Backward, received: &mut Vec<usize>) {
        match operation {
            Backward::CellMean { dx } => {
                self.slots[dx.0] = Some(Content::Gradient(self.plan.maps.len() - 1, 1));
            }
            Backward::Recompute { layer, map, y, out } => {
                self.read(y, Content::Output(layer));
                self.slots[out.0] = Some(Content::Map(map));
            }
            Backward::Norm { conv, g, extra, relu, y, dy, f16 } => {
                let extra = extra.map_or(0, |slot| self.parts(slot, conv.output));
                let parts = self.parts(g, conv.output) + extra;
                let readers = self.plan.steps.iter().flat_map(|s| s.reads()).flatten();
                let last = usize::from(conv.output == self.plan.maps.len() - 1);
                assert_eq!(parts, last + readers.filter(|map| *map == conv.output).count());
                self.read(y, Content::Output(conv.layer));
                if let ReluSlot::Output(slot) = relu {
                    self.read(slot, Content::Map(conv.output));
                    // g masked by ReLU is one part of the residual's gradient.
                    let step = |s: &&Step| matches!(s, Step::Conv { layer, .. } if *layer == conv.layer);
                    let residual = self.plan.steps.iter().find(step).unwrap().reads()[1].unwrap();
                    self.slots[g.0] = Some(Content::Gradient(residual, 1));
                }
                self.slots[dy.unwrap_or(g).0] = Some(Content::OutputGradient(conv.layer));
                if f16 {
                    self.f16_slots[F16_GRADIENT.0] = Some(Content::OutputGradient(conv.layer));
                }
            }
            Backward::Weight { conv, operands } => {
                received.push(conv.layer);
                match operands {
                    Operands::Plain { x, dy } => {
                        self.read(x, Content::Map(conv.input));
                        self.read(dy, Content::OutputGradient(conv.layer));
                    }
                    Operands::F16 { x, convert } => {
                        if let Some(from) = convert {
                            self.read(from, Content::Map(conv.input));
                            self.f16_slots[F16_INPUT.0] = Some(Content::Map(conv.input));
                        }
                        assert_eq!(self.f16_slots[x.0], Some(Content::Map(conv.input)));
                        let dy = Some(Content::OutputGradient(conv.layer));
                        assert_eq!(self.f16_slots[F16_GRADIENT.0], dy);
                    }
                }
            }
            Backward::Input { conv, dy, dx, accumulate } => {
                self.read(dy, Content::OutputGradient(conv.layer));
                let before = if accumulate { self.parts(dx, conv.input) } else { 0 };
                self.slots[dx.0] = Some(Content::Gradient(conv.input, before + 1));
            }
            Backward::MaxPool { input, output, dy, dx } => {
                self.parts(dy, output);
                self.slots[dx.0] = Some(Content::Gradient(input, 1));
            }
            Backward::Add { map, from, to } => {
                let parts = self.parts(from, map) + self.parts(to, map);
                self.slots[to.0] = Some(Content::Gradient(map, parts));
            }
        }
    }
}

/// Includes a second step, whose first operations find the slots as the first step left them.
#[test]
fn operations_find_their_inputs_in_slots() {
    for plan in networks() {
        for (keep, precision) in KEEPS.into_iter().flat_map(|k| PRECISIONS.map(|p| (k, p))) {
            let schedule = Schedule::new(&plan, keep, precision).unwrap();
            let [slots, f16_slots] = schedule.slot_counts().map(|n| vec![None; n]);
            let mut contents = Contents { plan: &plan, slots, f16_slots };
            for _ in 0..2 {
                schedule.forward.iter().for_each(|o| contents.forward(*o));
                let mut received = Vec::new();
                schedule.backward.iter().for_each(|o| contents.backward(*o, &mut received));
                received.sort_unstable();
                let layers = if keep == Keep::Nothing { 0 } else { plan.layers.len() };
                assert_eq!(received, (0..layers).collect::<Vec<_>>());
            }
        }
    }
}

/// The byte counts come from a simulation of the passes that was written independently of the executor.
#[test]
fn memory_is_that_of_reused_slots() {
    let plan = residual(48, 8, true, 4);
    let known = [
        (Precision::F32, [1_627_200, 1_500_480]),
        (Precision::Tf32, [1_961_280, 1_730_880]),
        (Precision::Bf16, [905_760, 842_400]),
    ];
    for (precision, bytes) in known {
        let planned = |keep| Schedule::new(&plan, keep, precision).unwrap().bytes(5, Element::of(precision));
        assert_eq!([Keep::All, Keep::Sources].map(planned), bytes, "{precision:?}");
        assert!(planned(Keep::Nothing) < bytes[1], "{precision:?}");
    }
}
