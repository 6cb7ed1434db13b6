//! Weights of another network as the start of an encoder: stems for gray and RGB images, and positions of another
//! number of patches.

use crate::positions::{Grid, resize};
use crate::weights::{FileTensor, TensorFile, Values};
use pauc_traits::{Compute, Error, ImageShape, Param, Result};
use std::path::Path;

/// The positions of a vision transformer, in timm's names.
const POSITIONS: &str = "pos_embed";
const PATCHES: &str = "patch_embed.proj.weight";

/// Changes the tensors named `prefix` + name to the shapes of an encoder's parameters where that has a usual meaning,
/// as in timm. Returns a sentence for each change.
///
/// * A first convolution of RGB images is summed over its channels for gray images. One of gray images is repeated
///   for RGB, divided by 3, so that a gray image in RGB gives the same features.
/// * Positions are resized to the grid of patches of images of `input`, bicubic with antialiasing.
///
/// # Errors
/// If the positions in the file are not those of a square grid.
pub fn adapt<D: Compute>(
    file: &mut TensorFile,
    params: &[Param<D>],
    input: ImageShape,
    prefix: &str,
) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    if let Some(stem) = params.iter().find(|p| p.shape.len() == 4) {
        changes.extend(adapt_stem(file, &format!("{prefix}{}", stem.name), &stem.shape)?);
    }
    let named = |name: &str| params.iter().find(|p| p.name == name);
    if let (Some(positions), Some(patches)) = (named(POSITIONS), named(PATCHES)) {
        let grid = Grid { rows: input.height / patches.shape[2], columns: input.width / patches.shape[3] };
        let others = positions.shape[1].saturating_sub(grid.patches());
        let name = format!("{prefix}{POSITIONS}");
        changes.extend(adapt_positions(file, &name, &positions.shape, others, grid)?);
    }
    Ok(changes)
}

/// Adapts a convolution (outputs, channels, …) to images with another number of channels.
fn adapt_stem(file: &mut TensorFile, name: &str, wanted: &[usize]) -> Result<Option<String>> {
    let Some(FileTensor { shape, values: Values::F32(values) }) = file.get(name) else { return Ok(None) };
    let same = shape.len() == 4 && shape[0] == wanted[0] && shape[2..] == wanted[2..];
    let window: usize = wanted[2..].iter().product();
    let (adapted, change): (Vec<f32>, _) = match (shape.get(1), wanted[1]) {
        (Some(3), 1) if same => {
            let sums = values.chunks_exact(3 * window).flat_map(|rgb| {
                (0..window).map(|i| rgb[i] + rgb[window + i] + rgb[2 * window + i]).collect::<Vec<_>>()
            });
            (sums.collect(), "its 3 channels are summed, for gray images")
        }
        (Some(1), 3) if same => {
            let third = |gray: &[f32]| gray.iter().map(|v| v / 3.0).collect::<Vec<_>>();
            (values.chunks_exact(window).flat_map(|gray| third(gray).repeat(3)).collect(), {
                "its channel is repeated and divided by 3, for RGB images"
            })
        }
        _ => return Ok(None),
    };
    file.replace(name, wanted, Values::F32(adapted))?;
    Ok(Some(format!("{name}: {change}")))
}

/// Adapts positions (1, others + patches, width) to another grid. The others are those of the class token and the
/// registers, and are kept.
fn adapt_positions(
    file: &mut TensorFile,
    name: &str,
    wanted: &[usize],
    others: usize,
    grid: Grid,
) -> Result<Option<String>> {
    let Some(FileTensor { shape, values: Values::F32(values) }) = file.get(name) else { return Ok(None) };
    let &[1, tokens, width] = &shape[..] else { return Ok(None) };
    if shape == wanted || width != wanted[2] {
        return Ok(None);
    }
    let patches = tokens.saturating_sub(others);
    let side = patches.isqrt();
    if side == 0 || side * side != patches {
        let besides = match others {
            0 => "",
            1 => " besides the class token",
            _ => " besides the class token and the registers",
        };
        let message = format!(
            "{name} has {patches} positions{besides}: not a square grid, so it cannot be resized to {grid}; use weights \
             of a network for square images"
        );
        return Err(Error::damaged(file.path(), message));
    }
    let from = Grid { rows: side, columns: side };
    let (first, positions) = values.split_at(others * width);
    let resized = [first, &resize(positions, from, grid, width)].concat();
    file.replace(name, wanted, Values::F32(resized))?;
    Ok(Some(format!("{name}: resized from {from} to {grid} positions")))
}

/// Returns whether a file is one of PyTorch's own, a zip archive or a pickle.
pub(crate) fn is_pickle(path: &Path, bytes: &[u8]) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    bytes.starts_with(b"PK\x03\x04")
        || (["pt", "pth", "bin"].contains(&ending) && bytes.first() == Some(&0x80))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::Cpu;
    use pauc_testing::assert_within;
    use pauc_traits::param::Role;

    fn parameter(name: &str, shape: &[usize]) -> Param<Cpu> {
        let values = vec![0.0; shape.iter().product()];
        Param::new(&Cpu::default(), name, shape, Role::Weight, &values).unwrap()
    }

    fn file(name: &str, shape: &[usize], values: Vec<f32>) -> TensorFile {
        let mut file = TensorFile::new();
        file.insert(name, shape, Values::F32(values)).unwrap();
        file
    }

    #[test]
    fn positions_are_resized_as_timm_does() {
        // timm.layers.resample_abs_pos_embed of timm 1.0.31 on PyTorch 2.15, from 3×3 to 2×5 after a class token.
        let values = [9.0f32, -0.5, -0.3, -0.7, -1.7, -0.9, -0.7, -1.1, 0.3, 1.1];
        let want = [
            9.0,
            -0.9731032848358154,
            -0.7990488409996033,
            -0.5581059455871582,
            -0.6798495650291443,
            -0.7883915305137634,
            -1.4497380256652832,
            -0.9597541093826294,
            -0.1439806967973709,
            0.3091062605381012,
            0.5164936184883118,
        ];
        let params = [
            parameter("cls_token", &[1, 1, 1]),
            parameter("pos_embed", &[1, 11, 1]),
            parameter("patch_embed.proj.weight", &[1, 3, 4, 4]),
        ];
        let input = ImageShape { height: 8, width: 20, channels: 3 };
        let mut file = file("net.pos_embed", &[1, 10, 1], values.to_vec());
        let changes = adapt(&mut file, &params, input, "net.").unwrap();
        assert_eq!(changes, ["net.pos_embed: resized from 3×3 to 2×5 positions"]);
        for (got, want) in file.f32("net.pos_embed").unwrap().iter().zip(want) {
            // Sums of nine products of numbers below 2, in f32 there and in f64 here.
            assert_within!(*got, want, 2e-6);
        }
    }

    #[test]
    fn stems_turn_from_rgb_to_gray_and_back() {
        let gray = [parameter("conv1.weight", &[2, 1, 1, 2])];
        let shape = ImageShape { height: 8, width: 8, channels: 1 };
        let rgb_values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut rgb = file("conv1.weight", &[2, 3, 1, 2], rgb_values);
        let changes = adapt(&mut rgb, &gray, shape, "").unwrap();
        assert!(changes[0].starts_with("conv1.weight: its 3 channels"), "{changes:?}");
        assert_eq!(rgb.f32("conv1.weight").unwrap(), [6.0, 9.0, 24.0, 27.0]);
        let color = [parameter("conv1.weight", &[2, 3, 1, 2])];
        let changes = adapt(&mut rgb, &color, shape, "").unwrap();
        assert!(changes[0].contains("repeated"), "{changes:?}");
        assert_eq!(
            rgb.f32("conv1.weight").unwrap(),
            [2.0, 3.0, 2.0, 3.0, 2.0, 3.0, 8.0, 9.0, 8.0, 9.0, 8.0, 9.0]
        );
        assert!(adapt(&mut rgb, &color, shape, "").unwrap().is_empty(), "it fits now");
        let wider = [parameter("conv1.weight", &[4, 1, 1, 2])];
        assert!(adapt(&mut rgb, &wider, shape, "").unwrap().is_empty(), "another network");
    }

    #[test]
    fn positions_of_no_square_grid_are_refused() {
        let params =
            [parameter("pos_embed", &[1, 4, 2]), parameter("patch_embed.proj.weight", &[2, 1, 4, 4])];
        let input = ImageShape { height: 8, width: 8, channels: 1 };
        let mut ten = file("pos_embed", &[1, 10, 2], vec![0.0; 20]);
        let error = adapt(&mut ten, &params, input, "").unwrap_err().to_string();
        assert!(error.contains("pos_embed has 10 positions") && error.contains("2×2"), "{error}");
        let mut wide = file("pos_embed", &[1, 9, 3], vec![0.0; 27]);
        assert!(adapt(&mut wide, &params, input, "").unwrap().is_empty(), "another network");
    }

    #[test]
    fn pytorchs_own_files_are_told_apart() {
        assert!(is_pickle(Path::new("a"), b"PK\x03\x04rest"));
        assert!(is_pickle(Path::new("a.pth"), b"\x80\x02"));
        assert!(!is_pickle(Path::new("a.safetensors"), b"\x80\x02\0\0\0\0\0\0"));
    }
}
