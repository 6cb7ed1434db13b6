//! Datasets, one file each, and the formats they share.

pub mod array_datasets;
pub mod cifar;
pub mod cifar10;
pub mod cifar100;
pub mod fashion_mini;
pub mod fashion_mnist;
pub mod file_list;
pub mod idx;
pub mod image_folder;
pub mod imagenet;
mod locate;
pub mod merged;
pub mod mnist;
pub mod npy;
#[cfg(feature = "parquet")]
pub mod parquet;
mod pictures;
pub mod safetensors;
pub mod shapes;
pub mod stl10;
pub mod subset;
pub mod tar;

pub use cifar10::Cifar10;
pub use cifar100::{Cifar100, Granularity};
pub use fashion_mini::FashionMini;
pub use fashion_mnist::FashionMnist;
pub use file_list::FileList;
pub use image_folder::ImageFolder;
pub use imagenet::{ImageNet, ImageNetSubset};
pub use locate::{Located, is_meant_as_data, locate};
pub use merged::Merged;
pub use mnist::Mnist;
pub use npy::Npy;
#[cfg(feature = "parquet")]
pub use parquet::Parquet;
pub use pictures::{OnError, held_out};
pub use safetensors::Safetensors;
pub use shapes::Shapes;
pub use stl10::{Stl10, StlPart};
pub use subset::{LabelFraction, Subset};
pub use tar::Tar;

use crate::MemoryImages;
use pauc_traits::dataset::Splits;
use pauc_traits::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// Makes splits of images in memory, with the statistics of the training images.
fn splits(
    train: MemoryImages,
    test: Option<MemoryImages>,
    classes: Vec<String>,
    description: String,
) -> Splits {
    let statistics = train.statistics();
    let test = test.map(|t| Arc::new(t) as Arc<_>);
    Splits { train: Arc::new(train), test, classes, statistics, description, skipped: Vec::new() }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

/// Whether a file name is that of a compressed archive; `None` if it is not an archive.
fn compressed(path: &Path) -> Option<bool> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    if name.starts_with('.') {
        None
    } else if name.ends_with(".tar") {
        Some(false)
    } else {
        (name.ends_with(".tar.gz") || name.ends_with(".tgz")).then_some(true)
    }
}

/// Returns how to get images out of a file of another kind, if that is known.
fn remedy(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_string_lossy().to_lowercase();
    match &*extension {
        "mp4" | "mov" | "avi" | "mkv" | "webm" | "m4v" | "mpg" | "mpeg" | "wmv" => {
            Some("extract a video's frames first, such as with `ffmpeg -i VIDEO -vf fps=1 FOLDER/%06d.jpg`")
        }
        "zip" | "rar" | "7z" | "bz2" | "xz" | "zst" => {
            Some("unpack it first; of archives, .tar, .tar.gz and .tgz are read in place")
        }
        "tif" | "tiff" | "heic" | "heif" | "avif" | "jp2" | "dng" | "cr2" | "nef" | "arw" | "psd" | "svg" => {
            Some("convert it to JPEG or PNG first, such as with ImageMagick's `mogrify -format png`")
        }
        "npz" => Some("save its arrays as .npy files"),
        "h5" | "hdf5" | "pt" | "pth" | "pkl" | "mat" => Some("save its images as .npy or .safetensors"),
        _ => None,
    }
}

/// Returns the error for a file that cannot be opened: [`Error::NotFound`] with a remedy if it does not
/// exist.
fn cannot_open(path: &Path, error: std::io::Error, remedy: &str) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        Error::NotFound { path: path.to_path_buf(), remedy: remedy.to_string() }
    } else {
        Error::io(path, error)
    }
}

/// Returns the first of `root` and its subfolders `below` for which `has` is true.
///
/// # Errors
/// [`Error::NotFound`] for `root` if there is none.
fn find_folder(
    root: &Path,
    below: &[&str],
    has: impl Fn(&Path) -> bool,
    remedy: &str,
) -> Result<std::path::PathBuf> {
    let mut candidates = std::iter::once(root.to_path_buf()).chain(below.iter().map(|b| root.join(b)));
    candidates
        .find(|c| has(c))
        .ok_or_else(|| Error::NotFound { path: root.to_path_buf(), remedy: remedy.to_string() })
}
