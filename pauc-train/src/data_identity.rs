//! The identity of a run's data, to notice that a resumed run would continue with other images.

use pauc_traits::dataset::{ImageSource, Splits};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The number of images of each split whose pixels are hashed, at equal distances. A change of a single other
/// image goes unnoticed; the check must stay cheap for a million files.
const SAMPLED: usize = 64;

/// What identifies the data of a run. Equal data has an equal identity on every platform and in every folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// The training images.
    pub train: SplitIdentity,
    /// The test images, if there are any.
    pub test: Option<SplitIdentity>,
}

/// What identifies the images of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitIdentity {
    /// The number of images.
    pub images: usize,
    /// The shape of all images, such as "28×28×1"; `None` if they differ.
    pub shape: Option<String>,
    /// The BLAKE3 hash of the labels, if there are any.
    pub labels: Option<String>,
    /// The BLAKE3 hash of file names, and of the shapes and pixels of a fixed sample of images.
    pub content: String,
}

impl DataIdentity {
    /// Computes the identity of opened data.
    pub fn of(splits: &Splits) -> Self {
        DataIdentity {
            train: SplitIdentity::of(&*splits.train),
            test: splits.test.as_deref().map(SplitIdentity::of),
        }
    }

    /// Says how this data differs from that of a run, if it does.
    pub fn difference(&self, run: &DataIdentity) -> Option<String> {
        let test = || match (&self.test, &run.test) {
            (None, None) => None,
            (Some(_), None) => Some("a test split, the run has none".into()),
            (None, Some(_)) => Some("no test split, the run has one".into()),
            (Some(here), Some(there)) => here.difference(there, "test"),
        };
        self.train.difference(&run.train, "training").or_else(test)
    }
}

impl SplitIdentity {
    fn of(images: &dyn ImageSource) -> Self {
        let labels = images.labels().map(|labels| {
            let all = [labels, images.fine_labels().unwrap_or_default()].concat();
            let bytes: Vec<u8> = all.iter().flat_map(|label| label.to_le_bytes()).collect();
            blake3::hash(&bytes).to_hex().to_string()
        });
        SplitIdentity {
            images: images.len(),
            shape: images.shape().map(|shape| shape.to_string()),
            labels,
            content: content(images),
        }
    }

    /// Says how this split differs from that of a run; `split` is the adjective for messages.
    fn difference(&self, run: &SplitIdentity, split: &str) -> Option<String> {
        let shape = |s: &SplitIdentity| s.shape.clone().unwrap_or_else(|| "several shapes".into());
        if self.images != run.images {
            return Some(format!("{} {split} images, the run has {}", self.images, run.images));
        }
        if self.shape != run.shape {
            return Some(format!("{split} images of {}, the run has {}", shape(self), shape(run)));
        }
        if self.labels != run.labels {
            return Some(match (&self.labels, &run.labels) {
                (None, _) => format!("{split} images without labels, the run has labels"),
                (_, None) => format!("{split} images with labels, the run has none"),
                _ => format!("other labels of the {split} images than the run"),
            });
        }
        (self.content != run.content)
            .then(|| format!("other {split} images than the run: their names or pixels differ"))
    }
}

/// Hashes the names of all images, and shapes and pixels of the sample. An image that cannot be read counts
/// as one without pixels: a run reports it when it needs it.
fn content(images: &dyn ImageSource) -> String {
    let mut hash = blake3::Hasher::new();
    // Folders do not count, so that the data may move.
    let file_name = |index| {
        let name = images.name(index);
        name[name.rfind(['/', '\\']).map_or(0, |slash| slash + 1)..].to_string()
    };
    let are_named = !images.is_empty() && images.name(0) != "image 0";
    for index in (0..images.len()).filter(|_| are_named) {
        hash.update(file_name(index).as_bytes());
        hash.update(&[0]);
    }
    let sampled = images.len().min(SAMPLED);
    let last = images.len().saturating_sub(1);
    let pixels = |i: usize| {
        let index = i * last / (sampled - 1).max(1);
        let mut hash = blake3::Hasher::new();
        if let Ok(image) = images.image(index) {
            hash.update(image.shape.to_string().as_bytes());
            hash.update(&image.pixels);
        }
        hash.finalize()
    };
    let hashes: Vec<blake3::Hash> = (0..sampled).into_par_iter().map(pixels).collect();
    for sampled in &hashes {
        hash.update(sampled.as_bytes());
    }
    hash.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::{Image, ImageShape, Result};
    use std::sync::Arc;

    #[derive(Clone)]
    struct Images {
        pixels: Vec<u8>,
        labels: Option<Vec<u32>>,
        folder: Option<&'static str>,
    }

    impl ImageSource for Images {
        fn len(&self) -> usize {
            self.pixels.len()
        }
        fn shape(&self) -> Option<ImageShape> {
            Some(ImageShape { height: 1, width: 1, channels: 1 })
        }
        fn image(&self, index: usize) -> Result<Image<'_>> {
            let shape = ImageShape { height: 1, width: 1, channels: 1 };
            Ok(Image::new(shape, &self.pixels[index..index + 1]))
        }
        fn name(&self, index: usize) -> String {
            self.folder.map_or(format!("image {index}"), |folder| format!("{folder}{index}.png"))
        }
        fn labels(&self) -> Option<&[u32]> {
            self.labels.as_deref()
        }
    }

    fn identity(images: &Images, test: Option<&Images>) -> DataIdentity {
        DataIdentity::of(&Splits {
            train: Arc::new(images.clone()),
            test: test.map(|t| Arc::new(t.clone()) as Arc<dyn ImageSource>),
            classes: Vec::new(),
            statistics: Vec::new(),
            description: String::new(),
            skipped: Vec::new(),
        })
    }

    fn images(n: usize) -> Images {
        Images { pixels: (0..n).map(|i| i as u8).collect(), labels: Some(vec![0; n]), folder: None }
    }

    #[test]
    fn every_difference_is_named() {
        let run = identity(&images(200), Some(&images(10)));
        let said = |train: &Images, test: Option<&Images>| identity(train, test).difference(&run);
        let test = images(10);
        assert_eq!(said(&images(200), Some(&test)), None);
        assert_eq!(said(&images(150), Some(&test)).unwrap(), "150 training images, the run has 200");
        assert_eq!(said(&images(200), Some(&images(9))).unwrap(), "9 test images, the run has 10");
        assert_eq!(said(&images(200), None).unwrap(), "no test split, the run has one");
        let mut other = images(200);
        other.labels.as_mut().unwrap()[3] = 1;
        assert_eq!(said(&other, Some(&test)).unwrap(), "other labels of the training images than the run");
        other.labels = None;
        assert!(said(&other, Some(&test)).unwrap().contains("without labels"));
        let mut other = images(200);
        other.pixels[199] ^= 1; // the first and the last image are always in the sample
        assert!(said(&other, Some(&test)).unwrap().contains("names or pixels"));
    }

    #[test]
    fn file_names_count_and_folders_do_not() {
        let at = |folder| identity(&Images { folder: Some(folder), ..images(70) }, None);
        assert_eq!(at("/data/a/"), at("C:\\b\\"));
        assert_ne!(at("/data/a/"), at("/data/a/x"));
        assert_ne!(at("/data/a/"), identity(&images(70), None));
    }

    #[test]
    fn an_identity_is_the_same_on_every_platform() {
        let text = serde_json::to_string(&identity(&images(3), None)).unwrap();
        // b3sum over the 32-byte hashes of "1×1×1" and one byte, for the bytes 0, 1 and 2.
        let mut all = blake3::Hasher::new();
        for pixel in 0..3u8 {
            all.update(blake3::hash(&["1×1×1".as_bytes(), &[pixel]].concat()).as_bytes());
        }
        assert!(text.contains(&all.finalize().to_hex().to_string()), "{text}");
        assert!(serde_json::from_str::<DataIdentity>(&text).unwrap().test.is_none());
    }
}
