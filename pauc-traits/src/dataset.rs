//! Datasets and augmentations.

use crate::registry::Component;
use crate::rng::Stream;
use crate::{Image, ImageShape, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A registered dataset: where images come from.
pub trait Dataset: Component {
    /// Opens the dataset: reads or indexes what has to be in memory and checks that it is whole.
    ///
    /// # Errors
    /// If a file or folder is missing, damaged or of another format; the error names it and the remedy.
    fn open(&self, place: &Place) -> Result<Splits>;

    /// What is known of the data without its files, for checking a recipe where they are not; by default nothing.
    fn published(&self) -> Option<Published> {
        None
    }
}

/// The sizes of a dataset as its authors published it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// The shape of all images; `None` when they differ.
    pub shape: Option<ImageShape>,
    /// The number of channels.
    pub channels: usize,
    /// The number of classes.
    pub classes: usize,
    /// Whether the training images have labels.
    pub labeled: bool,
}

impl Published {
    /// `train` and `test` labeled images of one shape.
    pub fn new(train: usize, test: usize, shape: ImageShape, classes: usize) -> Self {
        Published { train, test, shape: Some(shape), channels: shape.channels, classes, labeled: true }
    }

    /// Splits of these sizes whose images cannot be read.
    pub fn splits(self, name: &str) -> Splits {
        let images = |len, labeled: bool| {
            let labels = labeled.then(|| (0..len).map(|i| (i % self.classes.max(1)) as u32).collect());
            Arc::new(Absent { len, shape: self.shape, labels }) as Arc<dyn ImageSource>
        };
        Splits {
            train: images(self.train, self.labeled),
            test: Some(images(self.test, true)),
            classes: (0..self.classes).map(|c| c.to_string()).collect(),
            statistics: vec![(0.5, 0.25); self.channels],
            description: format!("{name}, by its published sizes"),
            skipped: Vec::new(),
        }
    }
}

/// Images of which nothing but number, shape and labels is there.
struct Absent {
    len: usize,
    shape: Option<ImageShape>,
    labels: Option<Vec<u32>>,
}

impl ImageSource for Absent {
    fn len(&self) -> usize {
        self.len
    }
    fn shape(&self) -> Option<ImageShape> {
        self.shape
    }
    fn image(&self, _: usize) -> Result<Image<'_>> {
        Err(crate::Error::config("the images themselves are not there"))
    }
    fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }
}

/// Where relative paths of a recipe start.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder that relative paths are relative to: the working directory.
    pub base: PathBuf,
}

impl Place {
    /// A recipe's path made absolute.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base.join(path)
    }
}

/// An opened dataset.
#[derive(Clone)]
pub struct Splits {
    /// The images to train on.
    pub train: Arc<dyn ImageSource>,
    /// The images to evaluate on, if the dataset has them.
    pub test: Option<Arc<dyn ImageSource>>,
    /// The names of the classes, index = label; empty when there are no labels.
    pub classes: Vec<String>,
    /// Each channel's mean and standard deviation over the training pixels, in 0..1, for normalization.
    pub statistics: Vec<(f32, f32)>,
    /// One line on what the data is, for reports.
    pub description: String,
    /// What was left out because it could not be read.
    pub skipped: Vec<Skipped>,
}

/// A picture that a dataset left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where it lies.
    pub path: String,
    /// Why it cannot be read.
    pub reason: String,
}

/// Images by index. Reading is shared between threads.
pub trait ImageSource: Send + Sync {
    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape of all images, or `None` when they differ.
    fn shape(&self) -> Option<ImageShape>;

    /// Image `index`.
    ///
    /// # Errors
    /// If the image cannot be read or decoded.
    fn image(&self, index: usize) -> Result<Image<'_>>;

    /// What image `index` is called in messages: its path, where it has one.
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    /// The class labels in index order, if there are any.
    ///
    /// # Shapes
    /// as many as images
    fn labels(&self) -> Option<&[u32]>;

    /// Labels of another granularity, if there are any: finer or coarser than [`ImageSource::labels`].
    ///
    /// # Shapes
    /// as many as images
    fn fine_labels(&self) -> Option<&[u32]> {
        None
    }
}

impl std::fmt::Debug for dyn ImageSource + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} images", self.len())
    }
}

/// A registered augmentation: one step of a view.
pub trait Augmentation: Component {
    /// Changes the image, with random numbers from the view's own stream. The pixels may be borrowed from the
    /// dataset, so that a step that makes new ones, such as a crop, copies nothing first.
    fn apply<'a>(&self, image: Image<'a>, rng: &mut Stream) -> Image<'a>;

    /// The shape of the result for an input of shape `input`; `None` for an input of unknown shape whose size the
    /// step keeps.
    ///
    /// # Errors
    /// If the step cannot work on such images.
    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>>;

    /// What the step becomes in the evaluation view, which has to be deterministic: by default nothing.
    fn evaluation(&self) -> Option<Box<dyn Augmentation>> {
        None
    }

    /// Whether the step only chooses a part of the image or turns it round: what classifiers are usually trained with.
    fn is_crop_or_flip(&self) -> bool {
        false
    }

    /// The steps that this one stands for, if it is a list of them under one name.
    fn steps(&self) -> Option<Vec<Arc<dyn Augmentation>>> {
        None
    }

    /// Each channel's mean and deviation, in 0..1, that views are normalized with instead of the dataset's.
    fn normalization(&self) -> Option<Vec<(f32, f32)>> {
        None
    }
}
