//! Wide residual networks for images of about 32 pixels.

use super::Convolutions;
use super::blueprint::{Blueprint, Map};
use crate::bounds;
use pauc_traits::{Count, Error, ImageShape, Result, component};

component! {
    /// The wide residual network WRN-`depth`-`widen` for small images, features of 64 · widen.
    ///
    /// Three stages of (depth − 4)/6 blocks with 16, 32 and 64 times `widen` channels. Blocks normalize before
    /// they convolve (pre-activation): x + conv(ReLU(norm(conv(ReLU(norm(x)))))). Where the shape changes, a 1×1
    /// convolution of the normalized input replaces x. There is no dropout. Published tables have WRN-28-10,
    /// WRN-28-2 and WRN-40-2. Parameters are named as in the common PyTorch implementations:
    /// `block1.layer.0.bn1`, `convShortcut`, and `bn1` for the last normalization.
    ///
    /// It runs on the CPU only.
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, 64 · widen)
    ///
    /// Source: Zagoruyko and Komodakis, Wide Residual Networks (BMVC 2016).
    pub struct WideResNet: Encoder {
        /// The number of convolutions on the longest path, 6n + 4.
        pub depth: Count = Count::lit(28),
        /// The factor on the number of channels.
        pub widen: Count = Count::lit(10),
        /// The convolution algorithm on the CPU.
        pub convolution: Convolutions = Convolutions::Auto,
    }
}

/// The shapes of the sums between blocks, before normalization (`sum`) and after (`normed`).
#[derive(Clone, Copy)]
struct Between {
    sum: Map,
    normed: Map,
}

impl WideResNet {
    fn blueprint(&self, input: ImageShape) -> Result<Blueprint> {
        let depth = bounds::at_most("depth", self.depth.get(), bounds::MAX_DEPTH)?;
        if depth < 10 || !(depth - 4).is_multiple_of(6) {
            return Err(Error::config(format!(
                "`depth` of `WideResNet` is 6n + 4, such as 10, 16, 28 or 40; got {depth}"
            )));
        }
        let blocks = (depth - 4) / 6;
        let width = 16 * bounds::width("widen", self.widen.get())?;
        bounds::width("widen", 4 * width)?;
        let mut b = Blueprint::new(input)?;
        let name = |i: usize| match i {
            i if i < 3 * blocks => format!("block{}.layer.{}", i / blocks + 1, i % blocks),
            _ => String::new(),
        };
        let before = |i: usize| if i < 3 * blocks { format!("{}.bn1", name(i)) } else { "bn1".into() };
        let image = b.shape(0);
        let first = b.declare(("conv1".into(), before(0)), image, 16, (3, 1));
        let (sum, normed) = b.sum(first, 0, None);
        let mut x = Between { sum, normed };
        for i in 0..3 * blocks {
            let stage = i / blocks;
            let stride = if stage > 0 && i % blocks == 0 { 2 } else { 1 };
            x = add_block(&mut b, &name(i), before(i + 1), x, (width << stage, stride));
        }
        b.check("use larger images")
    }
}

/// Adds a block, and the normalization after it, named `next`.
fn add_block(
    b: &mut Blueprint,
    name: &str,
    next: String,
    x: Between,
    (width, stride): (usize, usize),
) -> Between {
    let shape = b.shape(x.normed);
    let names = (format!("{name}.conv1"), format!("{name}.bn2"));
    let conv1 = b.declare(names, shape, width, (3, stride));
    let mut skip = x.sum;
    if b.output(conv1) != shape {
        let layer = b.declare_bare(format!("{name}.convShortcut"), shape, width, (1, stride));
        skip = b.bare(layer, x.normed);
    }
    let hidden = b.conv(conv1, x.normed, None);
    let conv2 = b.declare((format!("{name}.conv2"), next), b.shape(hidden), width, (3, 1));
    let (sum, normed) = b.sum(conv2, hidden, Some(skip));
    Between { sum, normed }
}

blueprint_encoder!(WideResNet);

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(depth: usize, widen: usize) -> Result<Blueprint> {
        let config = WideResNet {
            depth: Count::lit(depth),
            widen: Count::lit(widen),
            convolution: Convolutions::Auto,
        };
        config.blueprint(ImageShape { height: 32, width: 32, channels: 3 })
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        // The paper's table 5 has 2.2, 36.5 and 8.9 million with the classifier of 10 classes.
        let count = |depth, widen| wide(depth, widen).unwrap().size().parameters;
        assert_eq!(count(40, 2) + 1290, 2_243_546);
        assert_eq!(count(28, 10) + 6410, 36_479_194);
        assert_eq!(count(28, 2) + 1290, 1_467_610);
    }

    #[test]
    fn other_depths_are_refused_with_examples() {
        for depth in [1, 4, 9, 29] {
            let text = wide(depth, 1).unwrap_err().to_string();
            assert!(text.contains("6n + 4") && text.ends_with(&format!("got {depth}")), "{text}");
        }
        assert!(wide(28, 1 << 20).is_err());
    }
}
