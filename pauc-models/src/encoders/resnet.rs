//! Residual networks of any depth: the shared code of ResNet-18 to ResNet-101, and of the wide ones.
//!
//! He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition (CVPR 2016), as in torchvision: the
//! 3×3 convolution of a bottleneck has the stride, and shortcuts are 1×1 convolutions if the shape changes.

use super::blueprint::{Blueprint, Map};
use crate::bounds;
use pauc_traits::encoder::TimmModel;
use pauc_traits::{Error, ImageShape, Result};
use serde::{Deserialize, Serialize};

/// The first layers of a residual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stem {
    /// A 3×3 convolution at stride 1, for images of about 32 pixels.
    Small,
    /// A 7×7 convolution at stride 2 and 3×3 max pooling at stride 2, for images of about 224 pixels.
    ImageNet,
}

/// The block that a network repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Two 3×3 convolutions.
    Basic,
    /// 1×1, 3×3, 1×1, with four times the width at the end.
    Bottleneck,
    /// [`Block::Bottleneck`] with twice the width in its first two convolutions.
    WideBottleneck,
}

/// Builds the network: `stages[i]` blocks of width · 2ⁱ.
pub(super) fn blueprint(
    input: ImageShape,
    stem: Stem,
    width: usize,
    block: Block,
    stages: &[usize],
) -> Result<Blueprint> {
    let mut b = Blueprint::new(input)?;
    let width = bounds::width("width", width)?;
    let (kernel, remedy) = match stem {
        Stem::Small => ((3, 1), "use larger images or a network with fewer stages"),
        Stem::ImageNet => ((7, 2), "use `stem: Small` or larger images"),
    };
    let image = b.shape(0);
    let first = b.declare(("conv1".into(), "bn1".into()), image, width, kernel);
    let mut x = b.conv(first, 0, None);
    if stem == Stem::ImageNet {
        x = b.max_pool(x);
    }
    for (stage, count) in stages.iter().enumerate() {
        for n in 0..*count {
            let stride = if stage > 0 && n == 0 { 2 } else { 1 };
            x = add_block(&mut b, &format!("layer{}.{n}", stage + 1), x, width << stage, stride, block);
        }
    }
    b.check(remedy)
}

/// Returns timm's model of this name, which has torchvision's stem and width.
pub(super) fn timm(architecture: &str, stem: Stem, width: usize) -> Result<TimmModel> {
    if stem != Stem::ImageNet || width != 64 {
        return Err(Error::config(format!(
            "timm has {architecture} only with `stem: ImageNet` and `width: 64`, got `stem: {stem:?}` and \
             `width: {width}`"
        )));
    }
    Ok(TimmModel {
        architecture: architecture.into(),
        arguments: Vec::new(),
        global_pool: "avg",
        first_conv: "conv1",
        classifier: "fc",
    })
}

fn add_block(b: &mut Blueprint, name: &str, x: Map, width: usize, stride: usize, block: Block) -> Map {
    // (output channels, kernel, stride) of the convolutions on the main path.
    let path: &[(usize, usize, usize)] = match block {
        Block::Basic => &[(width, 3, stride), (width, 3, 1)],
        Block::Bottleneck => &[(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)],
        Block::WideBottleneck => &[(2 * width, 1, 1), (2 * width, 3, stride), (4 * width, 1, 1)],
    };
    let mut shape = b.shape(x);
    let mut main = Vec::new();
    for (i, &(outputs, kernel, stride)) in path.iter().enumerate() {
        let names = (format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1));
        main.push(b.declare(names, shape, outputs, (kernel, stride)));
        shape = b.output(main[i]);
    }
    let mut skip = x;
    if shape != b.shape(x) {
        let names = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
        let layer = b.declare(names, b.shape(x), shape.2, (1, stride));
        skip = b.shortcut(layer, x);
    }
    let last = main.len() - 1;
    main.into_iter().enumerate().fold(x, |x, (i, layer)| b.conv(layer, x, (i == last).then_some(skip)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(side: usize) -> ImageShape {
        ImageShape { height: side, width: side, channels: 3 }
    }

    #[test]
    fn parameter_counts_are_torchvisions() {
        let count = |block, stages: &[usize]| -> usize {
            let b = blueprint(image(224), Stem::ImageNet, 64, block, stages).unwrap();
            b.parameters(0).iter().map(|p| p.3.len()).sum()
        };
        // torchvision's totals minus the classifier of 1000 classes.
        assert_eq!(count(Block::Basic, &[2, 2, 2, 2]), 11_689_512 - 513_000);
        assert_eq!(count(Block::Basic, &[3, 4, 6, 3]), 21_797_672 - 513_000);
        assert_eq!(count(Block::Bottleneck, &[3, 4, 6, 3]), 25_557_032 - 2_049_000);
        assert_eq!(count(Block::Bottleneck, &[3, 4, 23, 3]), 44_549_160 - 2_049_000);
        assert_eq!(count(Block::WideBottleneck, &[3, 4, 6, 3]), 68_883_240 - 2_049_000);
        assert_eq!(count(Block::WideBottleneck, &[3, 4, 23, 3]), 126_886_696 - 2_049_000);
    }

    #[test]
    fn only_the_standard_stem_and_width_are_timms() {
        assert_eq!(timm("resnet18", Stem::ImageNet, 64).unwrap().architecture, "resnet18");
        for (stem, width) in [(Stem::Small, 64), (Stem::ImageNet, 32)] {
            let text = timm("resnet18", stem, width).unwrap_err().to_string();
            assert!(text.contains("resnet18") && text.contains(&format!("{stem:?}")), "{text}");
        }
    }

    #[test]
    fn too_small_images_are_refused_with_layer_shape_and_remedy() {
        let text =
            blueprint(image(16), Stem::ImageNet, 64, Block::Basic, &[2, 2, 2, 2]).unwrap_err().to_string();
        assert_eq!(
            text,
            "layer4.0.conv1: its input is 1×1×256 for images of 16×16×3: too small for stride 2; \
             use `stem: Small` or larger images"
        );
        assert!(blueprint(image(9), Stem::Small, 64, Block::Basic, &[2, 2, 2, 2]).is_ok());
    }

    #[test]
    fn multiply_adds_are_the_published_1_8_billion() {
        let b = blueprint(image(224), Stem::ImageNet, 64, Block::Basic, &[2, 2, 2, 2]).unwrap();
        let total: u64 = b.layers.iter().map(|l| l.geometry.multiply_adds()).sum();
        assert_eq!(total / 10_000_000, 181);
    }
}
